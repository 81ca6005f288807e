"""Sessions on the stand-ins for CUDA and TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depthkit.runtime.run_options import RunOptions
from depthkit.runtime.trt import TensorRTSession, open_engine
from depthkit.spec import Dim

from .. import tensorrt_runtime
from ..cudart import FakeCudart
from ..tensorrt_runtime import Open, World, manifest, plan, spec


@pytest.fixture
def world(fake: FakeCudart) -> Iterator[World]:
    with tensorrt_runtime.installed(fake, "tensorrt") as world:
        yield world


@pytest.fixture
def open_session(world: World, tmp_path: Path) -> Iterator[Open]:
    """Opens an engine for a batch, with options, until the end of the test."""
    opened = []

    def open_session(batch: int | Dim = 1, **options: Any) -> TensorRTSession:
        path, model = tmp_path / "engine.plan", spec(batch)
        path.write_bytes(plan(model))
        opened.append(open_engine(path, manifest(path, model), RunOptions(**options)))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()
