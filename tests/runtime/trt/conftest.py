"""Sessions on stand-ins for CUDA and for TensorRT's runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.runtime.run_options import RunOptions
from depthkit.runtime.trt import TensorRTSession, open_engine
from depthkit.spec import Dim

from .. import cudart, tensorrt_runtime
from ..cudart import DeviceArray, FakeCudart
from ..tensorrt_runtime import World, manifest, plan, spec

Open = Callable[..., TensorRTSession]


@pytest.fixture
def fake() -> Iterator[FakeCudart]:
    with cudart.installed() as fake:
        yield fake


@pytest.fixture
def world(fake: FakeCudart) -> Iterator[World]:
    with tensorrt_runtime.installed(fake, "tensorrt") as world:
        yield world


@pytest.fixture
def open_session(world: World, tmp_path: Path) -> Iterator[Open]:
    """Open the stand-in's engine for a batch, with options; it is closed at the end."""
    opened = []

    def open_session(batch: int | Dim = 1, **options: Any) -> TensorRTSession:
        path, model = tmp_path / "engine.plan", spec(batch)
        path.write_bytes(plan(model))
        opened.append(open_engine(path, manifest(path, model), RunOptions(**options)))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


@pytest.fixture
def on_gpu(fake: FakeCudart) -> Iterator[Callable[..., DeviceArray]]:
    """Arrays on the device."""
    made = []

    def on_gpu(values: np.ndarray, **options: Any) -> DeviceArray:
        made.append(DeviceArray(fake, values, **options))
        return made[-1]

    yield on_gpu
    for array in made:
        array.free()
