"""A manifest that needs no engine, and an ONNX file to build engines of."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import Layer, Manifest
from depthkit.spec import ModelSpec, Preprocessing, camera_ready


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """A plausible one, sealed, of a machine that does not exist."""
    spec = ModelSpec("compact", (8,), *camera_ready(32, 48), Preprocessing(), (0.0, 10.0), 100, 1000)
    return Manifest(
        model=spec,
        backend="onnxruntime",
        backend_version="1.0.0",
        device=Fingerprint("cpu", "Imaginary 9000", "x86_64", ("avx", "avx2", "f16c")),
        precision_asked="fp16",
        precision_found="fp16→fp32",
        layers=(Layer("conv", "FusedConv", "fp32", "winograd"), Layer("cast", "Cast", "fp16")),
        layers_from="engine",
        engine_sha256="0" * 64,
        onnx_sha256="1" * 64,
        weights_sha256="2" * 64,
        onnx="compact-32x48.fp16.onnx",
        reference="compact-32x48.reference.npz",
        options={"threads": 2},
        build_seconds=0.25,
        created="2026-01-02T03:04:05+00:00",
    ).sealed()


@pytest.fixture
def onnx_file(exports: Path) -> Path:
    """An FP32 file of the test's own; an FP16 one and engines that were built with another store stand beside it."""
    return exports / "compact-32x48.fp32.onnx"
