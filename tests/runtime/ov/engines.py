"""OpenVINO's engines, built and opened without the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from depthkit.engines.manifest import Manifest
from depthkit.engines.ov import OPENVINO, capabilities
from depthkit.onnx_graph import describe_onnx
from depthkit.runtime.ov import OpenVinoSession, open_engine
from depthkit.runtime.run_options import RunOptions

STEM = "compact-32x48"
Engine = tuple[Path, Manifest]

needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no BF16 arithmetic")


def build_engine(onnx_file: Path, engine: Path, options: dict[str, Any] | None = None) -> Engine:
    """An engine and its manifest, of which opening needs the model, the precision and the options."""
    description, parsed = describe_onnx(onnx_file), OPENVINO.parse_options(options or {})
    asked = OPENVINO.asked(description.precision, parsed)
    built = OPENVINO.build(onnx_file, engine, asked, parsed)
    manifest = Manifest(
        model=description.model,
        backend=OPENVINO.name,
        backend_version="0",
        device=OPENVINO.here(),
        precision_asked=asked,
        precision_found=OPENVINO.found_precision(built.layers, asked),
        layers=built.layers,
        layers_from=built.layers_from,
        engine_sha256="0" * 64,
        onnx_sha256="0" * 64,
        weights_sha256="0" * 64,
        onnx=onnx_file.name,
        reference="",
        options=OPENVINO.record(parsed),
        build_seconds=0.0,
        created="",
    )
    return engine, manifest


def open_session(engine: Engine) -> OpenVinoSession:
    return open_engine(*engine, RunOptions())
