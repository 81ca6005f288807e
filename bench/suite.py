"""Run the bench: open everything, judge everything, time everything in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..errors import UserError
from ..parity import Parity, gate_faults
from ..reference import Reference
from ..session import Session
from ..tolerances import Precision
from .accuracy import measure_accuracy
from .environment import environment
from .memory import peak_memory
from .parity import measure_parity
from .results import Accuracy, BenchResult, Row
from .timing import Steady, time_paper, time_steady

__all__ = ["Contender", "SampleSet", "Samples", "SuiteOptions", "run_suite"]


@dataclass(frozen=True)
class Contender:
    """Something to bench.

    Attributes:
        target: path, as it is shown.
        backend: as it is shown.
        open: opens the session; can be pickled.
        precision: what was asked for, which chooses the gate.
        reference: what it must agree with.
        file_bytes: size on disk.
        faults: what is wrong with it before it is opened.
        batch: frames a run; of a dynamic batch the optimum.
        macs_share: see `Row`.
    """

    target: str
    backend: str
    open: Callable[[], Session]
    precision: Precision
    reference: Reference
    file_bytes: int
    faults: tuple[str, ...] = ()
    batch: int = 1
    macs_share: float | None = None


class Samples(Protocol):
    """Pairs of H x W x 3 uint8 pictures and H x W depth in metres, read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SampleSet:
    """Pictures with measured depth for the accuracy columns; of `available` ones only `frames`."""

    data: str
    frames: int
    available: int
    crop: tuple[slice, slice] | None
    samples: Samples


@dataclass(frozen=True)
class SuiteOptions:
    """How to bench."""

    protocol: Literal["steady", "paper"] = "steady"
    steady: Steady = field(default_factory=Steady)
    memory: bool = True
    command: str = ""


def run_suite(
    contenders: Sequence[Contender],
    samples: SampleSet | None,
    options: SuiteOptions,
    on_progress: Callable[[str, float], None] | None = None,
) -> tuple[BenchResult, list[np.ndarray]]:
    """Bench all contenders; also return each one's depth for its reference frames, N x H x W metres.

    Args:
        contenders: in the order of the result's rows.
        samples: for the accuracy columns; None leaves them empty.
        options: how.
        on_progress: told what is going on and the share of it that is done, 0 to 1.

    Raises:
        UserError: nothing to bench.
        EngineError, BackendError: a contender cannot be opened.
    """
    if not contenders:
        raise UserError("there is nothing to bench; build engines with `depthkit export`, or name them with --engine")
    tell = on_progress or (lambda _what, _share: None)
    surroundings = environment(options.command)
    with ExitStack() as stack:
        sessions = [stack.enter_context(contender.open()) for contender in contenders]
        parities, answers = _parities(contenders, sessions, tell)
        wall = _times(contenders, sessions, options, tell)
        accuracies = [
            _accuracy(session, samples, c.target, tell) for c, session in zip(contenders, sessions, strict=True)
        ]
        memory = [_memory(contender, options, tell) for contender in contenders]
        rows = [
            _row(*parts) for parts in zip(contenders, sessions, parities, wall, accuracies, memory, strict=True)
        ]  # fmt: skip
    return BenchResult(surroundings, options.protocol, tuple(rows)), answers


def _parities(
    contenders: Sequence[Contender], sessions: Sequence[Session], tell: Callable[[str, float], None]
) -> tuple[list[Parity], list[np.ndarray]]:
    parities, answers = [], []
    for index, (contender, session) in enumerate(zip(contenders, sessions, strict=True)):
        tell(f"parity of {Path(contender.target).name}", index / len(sessions))
        parity, depths = measure_parity(session, contender.reference)
        parities.append(parity)
        answers.append(depths)
    return parities, answers


def _times(
    contenders: Sequence[Contender],
    sessions: Sequence[Session],
    options: SuiteOptions,
    tell: Callable[[str, float], None],
) -> list[list[float]]:
    if options.protocol == "paper":
        times = []
        for index, session in enumerate(sessions):
            tell(f"timing {Path(contenders[index].target).name}", index / len(sessions))
            times.append(time_paper(session))
        return times
    frames = [contender.reference.images for contender in contenders]
    return time_steady(sessions, frames, options.steady, on_progress=lambda share: tell("timing, in turns", share))


def _accuracy(
    session: Session, samples: SampleSet | None, target: str, tell: Callable[[str, float], None]
) -> Accuracy | None:
    if samples is None:
        return None
    pairs = samples.samples

    def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in range(len(pairs)):
            tell(f"accuracy of {Path(target).name}", index / len(pairs))
            yield pairs[index]

    scores = measure_accuracy(session, watched(), samples.crop)
    return Accuracy(samples.data, samples.frames, samples.available, scores)


def _memory(contender: Contender, options: SuiteOptions, tell: Callable[[str, float], None]) -> int | None:
    if not options.memory:
        return None
    tell(f"memory of {Path(contender.target).name}", 0.0)
    return peak_memory(contender.open)


def _row(
    contender: Contender,
    session: Session,
    parity: Parity,
    wall: list[float],
    accuracy: Accuracy | None,
    memory: int | None,
) -> Row:
    spec = session.spec
    faults = [*contender.faults, *gate_faults(parity, contender.precision)]
    if accuracy is not None and not np.isfinite(accuracy.scores.mse):
        faults.append("accuracy is not finite")
    return Row(
        network=spec.network,
        backend=contender.backend,
        target=contender.target,
        provider=session.provider,
        precision_asked=contender.precision,
        precision=session.precision,
        size=spec.size,
        batch=spec.opt_batch,
        parameters=spec.parameters,
        macs=spec.macs,
        file_bytes=contender.file_bytes,
        peak_memory_bytes=memory,
        macs_share=contender.macs_share,
        wall_ms=tuple(wall),
        parity=parity,
        accuracy=accuracy,
        faults=tuple(faults),
    )
