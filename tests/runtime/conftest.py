"""Engines that are not of batch 1, built without the checks of an export, which have tests of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from depthkit.engines.build import build
from depthkit.export.graph import Origin, build_graph
from depthkit.reference import Reference, read_reference
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle
from depthkit.train.networks import compact, describe_network

STEM = "compact-32x48"


@pytest.fixture(scope="session")
def reference(pristine_exports: Path) -> Reference:
    """Eight frames with what torch answered."""
    return read_reference(pristine_exports / f"{STEM}.reference.npz")


@pytest.fixture(scope="session")
def fp32(pristine_exports: Path) -> Path:
    """The FP32 engine of batch 1."""
    return pristine_exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture(scope="session")
def batched(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | Dim], Path]:
    """FP32 engines of the same network for another batch; each is built once."""
    folder, made = tmp_path_factory.mktemp("batched"), dict[int | Dim, Path]()

    def engine(batch: int | Dim) -> Path:
        if batch not in made:
            bundle = read_bundle(pristine_exports)
            spec = describe_network("compact", compact(), (32, 48)).with_batch(batch)
            path = folder / f"{STEM}-{len(made)}.fp32.onnx"
            onnx.save(build_graph(bundle.network, spec, "fp32", Origin(bundle.weights_sha256, "{}")), path)
            made[batch] = build(path).path
        return made[batch]

    return engine


@pytest.fixture
def copied(exports: Path) -> Path:
    """A folder of the test's own with nothing but the FP32 engine and its manifest."""
    folder = exports.parent / "engine"
    folder.mkdir()
    for name in (f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.ort.onnx.json"):
        shutil.copyfile(exports / name, folder / name)
    return folder / f"{STEM}.fp32.ort.onnx"
