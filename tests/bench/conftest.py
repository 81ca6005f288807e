"""Sessions that keep the protocol, need no vendor, and remember what was done to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from depthkit.bench.results import BenchResult
from depthkit.bench.suite import Contender, SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.reference import Reference, read_reference
from depthkit.runtime.load import load
from depthkit.runtime.null import NullSession
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready
from depthkit.tolerances import Precision

STEM = "compact-32x48"


class Recorded(NullSession):
    """Answers what `answer` makes of a frame, and writes its name into `log` at every run."""

    def __init__(
        self,
        log: list[str],
        name: str = "a",
        batch: int | Dim = 1,
        answer: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        spec = ModelSpec(name, (8,), *camera_ready(16, 32, batch), Preprocessing(), (0.0, 10.0), 123, 456)
        super().__init__(spec, 2.5)
        self.log, self.name, self.answer = log, name, answer
        self.seen: list[np.ndarray] = []

    def run(self) -> None:
        image, depth = self._buffers()
        self.log.append(self.name)
        self.seen.append(image[:, 0, 0, 0].copy())
        depth[...] = 2.5 if self.answer is None else np.stack([self.answer(frame) for frame in image])


@pytest.fixture(scope="session")
def recorded() -> type[Recorded]:
    """The class; a session of it is made in the test."""
    return Recorded


@pytest.fixture
def reference() -> Reference:
    """Four frames of 16 x 32 that are told apart by their first pixel; torch is said to have answered waves."""
    images = np.zeros((4, 16, 32, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    y, x = np.mgrid[:16, :32]
    depths = np.stack([3 + np.sin(x / 3 + n) + y / 9 for n in range(4)]).astype(np.float32)
    return Reference(images, depths, depths * np.float32(1.1))


@pytest.fixture(scope="session")
def contenders(pristine_exports: Path) -> list[Contender]:
    """Both ONNX Runtime engines, the FP32 ONNX file, and the null engine, which cannot pass."""
    reference = read_reference(pristine_exports / f"{STEM}.reference.npz")
    chosen: list[tuple[str, str, Precision]] = [
        ("fp32.ort.onnx", "onnxruntime", "fp32"),
        ("fp16.ort.onnx", "onnxruntime", "fp16"),
        ("fp32.onnx", "onnxruntime (ONNX file)", "fp32"),
        ("fp32.null", "null", "fp32"),
    ]
    paths = [pristine_exports / f"{STEM}.{name}" for name, _, _ in chosen]
    return [
        Contender(str(path), backend, partial(load, path), precision, reference, path.stat().st_size)
        for path, (_, backend, precision) in zip(paths, chosen, strict=True)
    ]


@pytest.fixture(scope="session")
def benched(contenders: list[Contender]) -> tuple[BenchResult, list[np.ndarray | None]]:
    """A bench of them all."""
    options = SuiteOptions(steady=Steady(0.0, 0.0, 5), memory=False, roofline=False, command="depthkit bench <all>")
    return run_suite(contenders, None, options)
