"""Run a bench: open all contenders, check their parity, time them in turns, then measure the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from ..errors import UserError
from ..metrics import DepthScores
from .accuracy import measure_accuracy
from .contender import Contender, SampleSet
from .energy import can_measure_energy
from .entry import Entry
from .environment import environment, moved
from .results import BenchResult
from .timing import Steady, time_steady

__all__ = ["SuiteOptions", "run_suite"]

TORCH: Final = "torch"
PICTURES: Final = 8
"""Number of samples on which phases are measured."""


@dataclass(frozen=True)
class SuiteOptions:
    """What to measure.

    Attributes:
        protocol, steady: how latency is measured.
        phases: measure the phases of a run.
        memory: measure memory first, each contender in a separate process; those that crash there are not opened here.
        streams: number of sessions side by side, for throughput; None: do not measure it.
        roofline: measure the machine's peaks, and compute every engine's roofline.
        profile: time layers with the vendors' profilers.
        notes: further notes for the result.
        command: the command line.
    """

    protocol: Literal["steady", "paper"] = "steady"
    steady: Steady = field(default_factory=Steady)
    phases: bool = True
    memory: bool = True
    streams: int | None = None
    roofline: bool = True
    profile: bool = False
    notes: tuple[str, ...] = ()
    command: str = ""


def run_suite(
    contenders: Sequence[Contender],
    samples: SampleSet | None,
    options: SuiteOptions,
    on_progress: Callable[[str, float], None] | None = None,
) -> tuple[BenchResult, list[np.ndarray | None]]:
    """Bench all contenders; also return each one's depth for its reference frames, N x H x W float32.

    If one fails, its row says why and the others go on. If interrupted (Ctrl-C), the result has what was measured until
    then and is marked as incomplete.

    Args:
        contenders: in the order of the result's rows.
        samples: for the accuracy columns; None leaves them empty.
        options: what to measure.
        on_progress: called with the current step and the share of it that is done, 0 to 1.

    Raises:
        UserError: there are no contenders.
    """
    if not contenders:
        raise UserError("there is nothing to bench; build engines with `depthkit export`, or name them with --engine")
    before = environment(options.command)
    entries = [Entry(contender) for contender in contenders]
    complete = True
    with ExitStack() as stack:
        try:
            _measure(entries, samples, options, stack, on_progress or (lambda _what, _share: None))
        except KeyboardInterrupt:
            complete = False
        rows = tuple(entry.row() for entry in entries)
    notes = (*options.notes, *moved(before, environment(options.command)))
    return BenchResult(before, options.protocol, rows, complete, notes), [entry.depths for entry in entries]


def _measure(
    entries: Sequence[Entry],
    samples: SampleSet | None,
    options: SuiteOptions,
    stack: ExitStack,
    tell: Callable[[str, float], None],
) -> None:
    """Do one measurement after the other, each for all entries without an error."""

    def each(what: str, work: Callable[[Entry], None], *, optional: bool = False) -> None:
        for index, entry in enumerate(entries):
            if not entry.error:
                tell(f"{what} {entry.contender.name}", index / len(entries))
                with entry.kept(what if optional else ""):
                    work(entry)

    if options.memory:
        each("rehearsing", Entry.rehearse)
    each("opening", lambda entry: entry.open(stack))
    each("parity of", Entry.compare)
    if options.protocol == "paper":
        each("timing", Entry.time_paper)
    else:
        _time_in_turns([entry for entry in entries if not entry.error], options.steady, tell)
        each("timed", Entry.require_times)
    some = range(min(len(samples.samples), PICTURES)) if samples is not None else ()
    pictures = [samples.samples[index][0] for index in some] if samples is not None else []
    seconds = options.steady.duration_s
    extras: list[tuple[object, str, Callable[[Entry], None]]] = [
        (options.phases, "phases of", lambda entry: entry.find_phases(pictures, min(1.0, seconds))),
        (options.streams, "throughput of", lambda entry: entry.stream(options.streams or 1, seconds)),
        (can_measure_energy(), "energy of", Entry.find_energy),
        (options.roofline, "roofline of", Entry.measure_roofline),
        (options.profile, "layers of", Entry.profile),
    ]
    for wanted, what, work in extras:
        if wanted:
            each(what, work, optional=True)
    if samples is not None:
        each("accuracy of", lambda entry: entry.score(samples, tell))
        _find_fp32(entries, samples, tell)


def _time_in_turns(entries: Sequence[Entry], steady: Steady, tell: Callable[[str, float], None]) -> None:
    time_steady(
        [entry.session for entry in entries],
        [entry.contender.reference.images for entry in entries],
        steady,
        on_progress=lambda share: tell("timing, in turns", share),
        into=[entry.times for entry in entries],
    )


def _find_fp32(entries: Sequence[Entry], samples: SampleSet, tell: Callable[[str, float], None]) -> None:
    """Set `Entry.fp32`, the scores that the accuracy gate compares with; or add a note that there are none.

    They are those of torch or of a passing FP32 engine with the same run, weights and size; else they are measured on
    the FP32 model beside the engine.
    """
    known: dict[tuple[object, ...], DepthScores] = {}
    for entry in sorted(entries, key=lambda entry: entry.contender.backend != TORCH):
        if entry.scores is not None and entry.contender.precision == "fp32" and entry.row().passed:
            known.setdefault(entry.contender.model[:-1], entry.scores)
    for entry in entries:
        contender = entry.contender
        if entry.scores is None or contender.kind != "engine" or contender.precision == "fp32":
            continue
        of = contender.model[:-1]
        with entry.kept("accuracy gate"):
            if of not in known:
                if contender.fp32 is None:
                    raise UserError("the bench has no FP32 row of this run and weights")
                with contender.fp32() as session:
                    tell(f"FP32 accuracy for {contender.name}", 0.0)
                    known[of] = measure_accuracy(session, samples.pairs(), samples.crop)
            entry.fp32 = known[of]
