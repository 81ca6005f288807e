"""Check the gate of a new engine: `depthkit export` runs it on this machine before it counts as built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.replay import measure_parity
from ..engines.build import backend
from ..engines.manifest import read_manifest
from ..errors import DepthkitError, GateError
from ..parity import describe_gate, describe_parity, gate_faults
from ..reference import find_reference, read_reference
from ..runtime.load import load
from .tell import silent

if TYPE_CHECKING:
    from ..reference import Reference
    from .tell import Tell

__all__ = ["Proof"]


class Proof:
    """Runs engines on the reference of their ONNX file, and new engines on held-out frames too.

    Args:
        held_out: returns held-out frames with the run's own depth, or None; called at most once.
        tell: called with each engine's parity.
    """

    def __init__(self, held_out: Callable[[], Reference | None] = lambda: None, tell: Tell = silent) -> None:
        self._tell = tell
        self._held_out = cache(held_out)

    def prove(self, onnx: Path, engine: Path, is_new: bool) -> None:
        """Check and report the parity of an engine, in the store or elsewhere, that was built from `onnx`.

        Raises:
            GateError: it does not run, or its gate fails.
        """
        manifest = read_manifest(engine)
        maker, asked = backend(manifest.backend), manifest.precision_asked
        if not maker.computes:
            return
        if not (maker.availability().runnable and maker.here().accepts(manifest.device)):
            self._tell("note", f"{maker.name}: cannot run here, so its gate was not checked")
            return
        proofs = [("", read_reference(find_reference(onnx, manifest.weights_sha256, manifest.model)))]
        if is_new and (others := self._held_out()) is not None:
            proofs.append((" held-out", others))
        try:
            with load(engine) as session:
                found = [(what, measure_parity(session, reference)[0]) for what, reference in proofs]
        except DepthkitError as error:
            raise GateError(f"the engine does not run: {error}") from error
        for what, parity in found:
            result = f"{describe_parity(parity, asked)} on {parity.frames}{what} frames"
            if faults := gate_faults(parity, asked):
                gate = describe_gate(asked, is_metric=parity.is_metric)
                raise GateError(f"{', '.join(faults)} on {parity.frames}{what} frames ({gate} allowed)")
            self._tell("pass", f"{maker.name} vs reference: {result}")
