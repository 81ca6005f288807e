"""OpenVINO's engines, opened without `load`, whose checks would refuse damaged ones first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.engines.manifest import Manifest
from depthkit.engines.ov import capabilities
from depthkit.runtime.ov import OpenVinoSession, open_engine
from depthkit.runtime.run_options import RunOptions

Engine = tuple[Path, Manifest]

needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no BF16 arithmetic")


def build_engine(onnx_file: Path, folder: Path, **options: Any) -> Engine:
    """Build in a folder of its own."""
    folder.mkdir()
    made = build(Path(shutil.copy(onnx_file, folder)), BuildOptions("openvino", options))
    return made.path, made.manifest


def open_session(engine: Engine) -> OpenVinoSession:
    return open_engine(*engine, RunOptions())
