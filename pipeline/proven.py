"""Sessions of an engine that have passed its gate in this process: what `depthkit serve` answers with."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.replay import measure_parity
from ..engines.manifest import read_manifest
from ..errors import GateError
from ..files import sha256
from ..onnx_graph import describe_onnx
from ..parity import describe_gate, gate_faults
from ..runtime.load import is_onnx_file
from .contenders import contenders
from .scaling import find_scale
from .targets import build_fp32, locate
from .tell import silent

if TYPE_CHECKING:
    from ..bench.contender import Contender
    from ..parity import Parity
    from ..precisions import Precision
    from ..reference import Reference
    from ..runtime.scale import MetricScale
    from ..session import Session
    from ..spec import ModelSpec

__all__ = ["Proven", "prove"]


@dataclass(frozen=True, eq=False)
class Proven:
    """Open sessions of one engine, each of which passed the gate.

    Attributes:
        sessions: at least one; each for one thread at a time.
        backend: its name and options.
        asked: the precision that was asked for, whose gate it passed; `sessions[0].precision` is what it computes in.
        reference: what it was compared with.
        parity: of the first session, on the frames of the reference.
        hashes: SHA-256 of "engine", "onnx" and "weights", as far as there are such files.
        scale: that makes metres of what the sessions answer, see `scaling.find_scale`; the sessions do not apply it.
    """

    sessions: tuple[Session, ...]
    backend: str
    asked: Precision
    reference: Reference
    parity: Parity
    hashes: dict[str, str]
    scale: MetricScale | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model's, as it is with `scale`."""
        spec = self.sessions[0].spec
        return spec if self.scale is None else self.scale.spec_of(spec)

    def close(self) -> None:
        """Close the sessions, all of them even if one raises."""
        with ExitStack() as stack:
            for session in self.sessions:
                stack.callback(session.close)


def prove(target: Path, sessions: int) -> Proven:
    """Open an engine several times, and let every session compute the reference frames.

    Args:
        target: an engine, an ONNX file that depthkit exported, or a run or the name of shipped weights: of these an
            engine of the FP32 ONNX file is built, so torch is never needed.
        sessions: how many.

    Raises:
        GateError: an answer differs from the reference's by more than the gate of the engine's precision allows, or
            files that belong together do not.
        UserError: there is no such target, or it cannot be opened here; also EngineError, BackendError, SpecError.
    """
    path, scale = locate(target), find_scale(target)
    with tempfile.TemporaryDirectory(prefix="depthkit-") as scratch, ExitStack() as stack:
        if path.is_dir():
            path = build_fp32(path, Path(scratch))
        hashes = _hashes(path)
        (contender,) = contenders([path], silent, with_torch=False)
        opened, found = [], []
        for _ in range(sessions):
            session = contender.open()
            stack.callback(session.close)
            opened.append(session)
            found.append(_checked(session, contender, target))
        stack.pop_all()  # the sessions are the caller's from here on
        asked, reference = contender.precision, contender.reference
        return Proven(tuple(opened), contender.backend, asked, reference, found[0], hashes, scale)


def _checked(session: Session, contender: Contender, target: Path) -> Parity:
    """The parity of a session. Raises GateError."""
    parity, _ = measure_parity(session, contender.reference)
    faults = [*contender.faults, *gate_faults(parity, contender.precision)]
    if faults:
        allowed = describe_gate(contender.precision, is_metric=parity.is_metric)
        raise GateError(f"{target}: {', '.join(faults)} on {parity.frames} frames ({allowed} allowed)")
    return parity


def _hashes(path: Path) -> dict[str, str]:
    """The hashes of an engine or ONNX file. Raises GateError: the engine was changed since it was built."""
    found = sha256(path)
    if is_onnx_file(path):
        return {"onnx": found, "weights": describe_onnx(path).weights_sha256}
    manifest = read_manifest(path)
    if found != manifest.engine_sha256:
        raise GateError(f"{path} is not the file that its manifest describes (SHA-256 differs); build it again")
    return {"engine": found, "onnx": manifest.onnx_sha256, "weights": manifest.weights_sha256}
