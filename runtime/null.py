"""The null backend's session: one depth everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from ..engines.manifest import Manifest
from ..errors import EngineError
from ..session import SessionBase
from ..spec import ModelSpec
from .options import RunOptions

__all__ = ["NullSession", "open_engine"]


class NullSession(SessionBase):
    """Answers `depth_m` metres for every pixel."""

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
    """An engine whose manifest was verified."""
    run.require_cpu("null")
    try:
        return NullSession(manifest.model, float(json.loads(path.read_text())["depth_m"]))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is no null engine ({error}); build it again") from error
