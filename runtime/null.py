"""The null backend's session: a constant depth."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import numpy as np

from ..engines.manifest import Manifest
from ..errors import EngineError
from ..session import LayerTime, SessionBase
from ..spec import ModelSpec
from .profiled_runs import mean_times, profiled_runs
from .run_options import RunOptions

__all__ = ["NullSession", "open_engine", "profile_engine"]


class NullSession(SessionBase):
    """Answers `depth_m` for every pixel."""

    provider = "null"
    precision = "fp32"

    def __init__(self, spec: ModelSpec, depth_m: float) -> None:
        self.spec = spec
        self._depth = depth_m

    def run(self) -> None:
        """See `Session.run`."""
        _, depth = self._buffers()
        depth.fill(self._depth)


def open_engine(path: Path, manifest: Manifest, run: RunOptions) -> NullSession:
    """Open an engine whose manifest was verified."""
    run.require_cpu("null")
    try:
        return NullSession(manifest.model, float(json.loads(path.read_text())["depth_m"]))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is not a null engine ({error}); build it again") from error


def profile_engine(path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """See `Runner.profile_engine`; times are by the host's clock."""
    (layer,) = manifest.layers
    times, start = [], perf_counter()
    with open_engine(path, manifest, RunOptions()) as session:
        for _ in profiled_runs(session, images, runs):
            times.append(LayerTime(layer.name, layer.operator, (perf_counter() - start) * 1000))
            start = perf_counter()
    return mean_times(times, runs)
