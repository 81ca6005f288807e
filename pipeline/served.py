"""`depthkit bench --server`: a served model beside the same engine in this process: gate, accuracy, and load."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..bench.accuracy import accuracy_faults, measure_accuracy
from ..bench.load import OK, Load, Outcome, closed_loop, in_turns, open_loop
from ..bench.replay import measure_parity
from ..engines.manifest import read_manifest
from ..errors import ProtocolError, UserError
from ..onnx_graph import describe_onnx
from ..parity import gate_faults
from ..runtime.remote import RemoteModel, RemoteSession
from ..train.shipped import shipped_names, shipped_run
from .proven import prove
from .targets import find_engines
from .tell import silent

if TYPE_CHECKING:
    from ..bench.contender import SampleSet
    from ..metrics import DepthScores
    from ..parity import Parity
    from ..session import Session
    from ..spec import ModelSpec
    from .proven import Proven

__all__ = ["OPEN_SHARES", "ServerBench", "ServerOptions", "find_served", "measure_server"]

OPEN_SHARES: Final = (0.5, 0.8, 1.5)
"""Rates of the open loops, as shares of the largest throughput of the closed ones: idle, busy, and overloaded."""


@dataclass(frozen=True)
class ServerOptions:
    """What to measure.

    Attributes:
        clients: of each closed loop.
        window_s: seconds of a window of a closed loop, and a tenth of an open loop.
    """

    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    window_s: float = 1.0


@dataclass(frozen=True)
class ServerBench:
    """What was found.

    Attributes:
        model: at the server.
        target: the engine in this process.
        same: whether the server says that it serves the same file; None: it does not say.
        here: the engine in this process, asked by one client in a closed loop that takes turns with `loads[0]`.
        loads: the server's closed loops, then its open ones.
        parity: over the wire, on the frames of the reference.
        accuracy: over the wire, and in this process.
        faults: why it fails.
    """

    model: RemoteModel
    target: str
    same: bool | None
    here: Load
    loads: tuple[Load, ...]
    parity: Parity
    accuracy: tuple[DepthScores, DepthScores] | None
    faults: tuple[str, ...]

    @property
    def overhead_ms(self) -> float:
        """What the wire adds to the median of a request by one client."""
        return self.loads[0].percentile(50) - self.here.percentile(50)


def find_served(model: RemoteModel, runs: Path) -> Path:
    """The engine that a server of depthkit serves, by its hash: in the runs, or built-in weights. Raises UserError."""
    hashes = model.parameters.get("sha256")
    wanted = hashes if isinstance(hashes, dict) else {}
    engines: list[Path] = []
    with suppress(UserError):  # there is none
        engines = find_engines(runs, silent)
    for path in engines:
        with suppress(UserError):  # it was changed or removed since it was listed
            if read_manifest(path).engine_sha256 == wanted.get("engine"):
                return path
    for name in shipped_names():
        for onnx in shipped_run(name).glob("*.fp32.onnx"):
            if (describe_onnx(onnx).weights_sha256, "fp32") == (
                wanted.get("weights"),
                model.parameters.get("precision"),
            ):
                return Path(name)
    raise UserError(
        f"the engine of model {model.name} is neither in {runs}/ nor built-in; name a copy of it with --engine, beside "
        "which its reference is"
    )


def measure_server(
    model: RemoteModel,
    target: Path,
    options: ServerOptions,
    samples: SampleSet | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> ServerBench:
    """Check and measure a served model.

    Args:
        model: at the server.
        target: the same engine here.
        options: what to measure.
        samples: for accuracy; None: not measured.
        on_progress: is told what is measured next.

    Raises:
        GateError: the engine here fails its gate, so that nothing can be compared with it.
        UserError: also BackendError, EngineError: the server does not answer, or serves another model.
    """
    on_progress("the engine here")
    with closing(prove(target, 1)) as proven:
        (session,) = proven.sessions
        on_progress("parity")
        with RemoteSession(model, session.spec, str(model.parameters.get("precision", "unknown"))) as remote:
            parity, depths = measure_parity(remote, proven.reference)
            faults = gate_faults(parity, proven.asked)
            accuracy = None
            if samples is not None:
                on_progress("accuracy")
                accuracy = _accuracy(remote, samples), _accuracy(session, samples)
                faults += accuracy_faults(*accuracy, proven.asked)
        inputs = _Inputs.of(proven.reference.images, depths, session.spec.opt_batch)
        here, loads = _measure(session, lambda: _Wire(model, session.spec, inputs), inputs, options, on_progress)
        same = _is_same(model, proven)
    return ServerBench(model, str(target), same, here, loads, parity, accuracy, (*faults, *_load_faults(loads)))


def _measure(
    session: Session,
    open_client: Callable[[], _Wire],
    inputs: _Inputs,
    options: ServerOptions,
    on_progress: Callable[[str], None],
) -> tuple[Load, tuple[Load, ...]]:
    """The engine here; the server's closed loops, then its open ones."""
    on_progress("the engine here, and one client")
    with closing(open_client()) as client:
        here, first = in_turns([_Here(session, inputs), client], window_s=options.window_s)
    loads = [first]
    for clients in options.clients:
        if clients > 1:
            on_progress(f"{clients} clients")
            loads.append(closed_loop(open_client, clients, window_s=options.window_s))
    most = max(load.rate for load in loads)
    for share in OPEN_SHARES:
        on_progress(f"{share * most:.0f} requests a second")
        loads.append(open_loop(open_client, share * most, seconds=10 * options.window_s))
    return here, tuple(loads)


def _is_same(model: RemoteModel, proven: Proven) -> bool | None:
    hashes = model.parameters.get("sha256")
    if not isinstance(hashes, dict):
        return None
    return all(hashes.get(kind) == digest for kind, digest in proven.hashes.items())


def _accuracy(session: Session, samples: SampleSet) -> DepthScores:
    return measure_accuracy(session, samples.pairs(), samples.crop)


def _load_faults(loads: Iterable[Load]) -> list[str]:
    """What no load may cause; to be refused with 503 is no fault."""
    faults = []
    wrong = sum(load.wrong for load in loads)
    if wrong:
        faults.append(f"{wrong} answers under load differ from the first ones")
    if others := sum((load.others for load in loads), Counter[int]()):
        named = ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(others.items()))
        faults.append(f"requests failed: {named}")
    return faults


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What clients send, M x N x H x W x 3 uint8, and the bytes of depth that each has to be answered with."""

    images: np.ndarray
    depths: tuple[bytes, ...]

    @classmethod
    def of(cls, images: np.ndarray, depths: np.ndarray, batch: int) -> _Inputs:
        """Frames and their depth in batches; the first ones fill the last batch."""
        count = -(-len(images) // batch)
        chosen = np.arange(count * batch).reshape(count, batch) % len(images)
        return cls(images[chosen], tuple(depths[each].tobytes() for each in chosen))


class _Here:
    """The engine in this process as a client."""

    def __init__(self, session: Session, inputs: _Inputs) -> None:
        self._session, self._images = session, itertools.cycle(inputs.images)
        self._image = inputs.images[0].copy()
        session.bind(image=self._image, depth=np.empty(self._image.shape[:3], np.float32))

    def ask(self) -> Outcome:
        np.copyto(self._image, next(self._images))
        self._session.run()
        return Outcome(OK)

    def close(self) -> None:
        """The session belongs to another."""


class _Wire:
    """A client of the server. An answer is right if it has the bytes that passed the gate over the wire."""

    def __init__(self, model: RemoteModel, spec: ModelSpec, inputs: _Inputs) -> None:
        self._session = RemoteSession(model, spec, "")
        self._inputs = itertools.cycle(zip(inputs.images, inputs.depths, strict=True))

    def ask(self) -> Outcome:
        image, expected = next(self._inputs)
        reply = self._session.ask(image)
        if reply.status != OK:
            return Outcome(reply.status, text=reply.error)
        try:
            found = self._session.read(reply, len(image))
        except ProtocolError:
            return Outcome(OK, right=False)
        return Outcome(OK, right=found.tobytes() == expected)

    def close(self) -> None:
        self._session.close()
