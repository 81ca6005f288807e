"""A manifest, an ONNX file to build engines of, and a GPU that need not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthkit.engines import gpu, trt
from depthkit.engines.gpu import Gpu
from depthkit.engines.manifest import Manifest

from ..support import NO_GPU, STEM, FindGpu, sample_manifest


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return sample_manifest()


@pytest.fixture
def onnx_file(exports: Path) -> Path:
    """An FP32 file of the test's own, beside an FP16 one and engines that were built with another store."""
    return exports / f"{STEM}.fp32.onnx"


@pytest.fixture
def find_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FindGpu:
    """Sets the GPU that is found; there is none at first, also on a machine with one."""

    def finds(found: Gpu | str) -> None:
        for module in (trt, gpu):
            monkeypatch.setattr(module, "find_gpu", lambda: found)

    if request.node.get_closest_marker("gpu") is None:
        finds(NO_GPU)
    return finds
