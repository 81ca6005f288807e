"""Real engines, and the stand-in for the CUDA runtime, for every test in this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.export.finish import Origin, sign
from depthkit.export.graph import build_graph
from depthkit.reference import Reference, read_reference
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle
from depthkit.train.networks import compact, describe_network

from ..support import STEM

if TYPE_CHECKING:
    from .cudart import FakeCudart
    from .device_array import OnGpu


@pytest.fixture(scope="session")
def reference(pristine_exports: Path) -> Reference:
    """Eight frames with PyTorch's depth."""
    return read_reference(pristine_exports / f"{STEM}.reference.npz")


@pytest.fixture(scope="session")
def fp32(pristine_exports: Path) -> Path:
    """The FP32 engine of batch 1."""
    return pristine_exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture(scope="session")
def engines(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the exports with an OpenVINO engine. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    for path in pristine_exports.glob(f"{STEM}.*"):
        shutil.copyfile(path, folder / path.name)
    build(folder / f"{STEM}.fp32.onnx", BuildOptions("openvino"))
    return folder


@pytest.fixture(scope="session")
def batched(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """FP32 engines of the same network for another batch or size, without the checks of an export; each built once."""

    @cache
    def engine(batch: int | Dim, size: tuple[int, int] = (32, 48), backend: str = "onnxruntime") -> Path:
        bundle = read_bundle(pristine_exports)
        spec = describe_network("compact", compact(), size).with_batch(batch)
        path = tmp_path_factory.mktemp("batched") / f"{STEM}.fp32.onnx"
        graph = build_graph(bundle.network, spec, "fp32")
        onnx.save(sign(graph, spec, "fp32", Origin(bundle.weights_sha256, "{}")), path)
        return build(path, BuildOptions(backend)).path

    return engine


@pytest.fixture
def copied(exports: Path) -> Path:
    """The FP32 engine alone with its manifest in a folder of the test's own."""
    folder = exports.parent / "engine"
    folder.mkdir()
    for name in (f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.ort.onnx.json"):
        shutil.copyfile(exports / name, folder / name)
    return folder / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def fake() -> Iterator[FakeCudart]:
    """A GPU that need not exist; the test is skipped without cuda-python."""
    from .cudart import installed

    with installed() as fake:
        yield fake


@pytest.fixture
def on_gpu(fake: FakeCudart) -> Iterator[OnGpu]:
    """Puts arrays on that GPU, until the end of the test."""
    from .device_array import DeviceArray

    made = []

    def on_gpu(values: np.ndarray, **options: Any) -> DeviceArray:
        made.append(DeviceArray(fake, values, **options))
        return made[-1]

    yield on_gpu
    for array in made:
        array.free()
