"""Run the bench: open everything, judge everything, time everything in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from ..errors import DepthkitError, UserError
from ..metrics import DepthScores
from ..parity import gate_faults
from ..reference import Reference
from ..session import LayerTime, Session
from ..tolerances import Precision
from .accuracy import accuracy_faults, measure_accuracy
from .energy import can_measure_energy, measure_energy
from .environment import environment, moved
from .memory import measure_memory
from .parity import measure_parity
from .phases import measure_phases
from .results import Accuracy, BenchResult, Row
from .roofline import find_roofline
from .throughput import measure_throughput
from .timing import Steady, Times, time_paper, time_steady

__all__ = ["Contender", "SampleSet", "Samples", "SuiteOptions", "run_suite"]

TORCH: Final = "torch"
MOST_VARIATION: Final = 0.025
HOST_BOUND: Final = 0.8
PICTURES: Final = 8
"""How many of the samples show what phases take."""


@dataclass(frozen=True)
class Contender:
    """Something to bench.

    Attributes:
        target: path, as it is shown.
        backend: as it is shown.
        open: opens the session; can be pickled.
        precision: what was asked for, which chooses the gate.
        reference: what it must agree with.
        file_bytes: size on disk; None: it has no file.
        faults: what is wrong with it before it is opened.
        batch: frames a run; of a dynamic batch the optimum.
        macs_share, kind: see `Row`.
        network: as it is called where it cannot be opened.
        run: name of the run that it belongs to; see `Row`.
        onnx: the ONNX file of what it computes, for the bytes that its layers move; None: it is not there.
        fp32: opens the FP32 model of the same run and weights, whose accuracy it is held to where no row is FP32; None:
            there is none.
        profile: tells what its layers take for these N x H x W x 3 frames; None: nobody can tell.
    """

    target: str
    backend: str
    open: Callable[[], Session]
    precision: Precision
    reference: Reference
    file_bytes: int | None
    faults: tuple[str, ...] = ()
    batch: int = 1
    macs_share: float | None = None
    kind: Literal["engine", "peer"] = "engine"
    network: str = ""
    run: str = ""
    onnx: Path | None = None
    fp32: Callable[[], Session] | None = None
    profile: Callable[[np.ndarray], Sequence[LayerTime]] | None = None

    @property
    def model(self) -> tuple[str, str, tuple[int, int], int]:
        """What it is compared within: run, weights, size and batch."""
        return self.run, self.reference.weights_sha256, self.reference.size, self.batch

    @property
    def name(self) -> str:
        """For messages."""
        return f"{Path(self.target).name} ({self.backend})"


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
    """How to bench.

    Attributes:
        protocol, steady: how latency is measured.
        phases: measure the phases of a run as well.
        memory: measure memory first, each contender in a process of its own; what crashes there is not opened here.
        streams: measure throughput as well, with so many sessions of a contender side by side; None: do not.
        roofline: measure the machine's peaks, and put every engine under them.
        profile: ask the vendors what each layer takes.
        notes: what is to be said of the result besides.
        command: what was typed.
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
    """Bench all contenders; also return each one's depth for its reference frames, N x H x W metres.

    One that fails takes nothing with it: its row says why. Interrupted (Ctrl-C), it gives what was measured until then,
    and the result says that it is not complete.

    Args:
        contenders: in the order of the result's rows.
        samples: for the accuracy columns; None leaves them empty.
        options: how.
        on_progress: told what is going on and the share of it that is done, 0 to 1.

    Raises:
        UserError: nothing to bench.
    """
    if not contenders:
        raise UserError("there is nothing to bench; build engines with `depthkit export`, or name them with --engine")
    before = environment(options.command)
    entries = [_Entry(contender) for contender in contenders]
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
    entries: Sequence[_Entry],
    samples: SampleSet | None,
    options: SuiteOptions,
    stack: ExitStack,
    tell: Callable[[str, float], None],
) -> None:
    """One kind of measurement after the other, and each of all entries that are well."""

    def each(what: str, work: Callable[[_Entry], None], *, optional: bool = False) -> None:
        for index, entry in enumerate(entries):
            if not entry.error:
                tell(f"{what} {entry.contender.name}", index / len(entries))
                with entry.kept(what if optional else ""):
                    work(entry)

    if options.memory:
        each("rehearsing", _Entry.rehearse)
    each("opening", lambda entry: entry.open(stack))
    each("parity of", _Entry.compare)
    if options.protocol == "paper":
        each("timing", _Entry.time_paper)
    else:
        _time_in_turns([entry for entry in entries if not entry.error], options.steady, tell)
        each("timed", _Entry.require_times)
    some = range(min(len(samples.samples), PICTURES)) if samples is not None else ()
    pictures = [samples.samples[index][0] for index in some] if samples is not None else []
    seconds = options.steady.duration_s
    extras: list[tuple[object, str, Callable[[_Entry], None]]] = [
        (options.phases, "phases of", lambda entry: entry.find_phases(pictures, min(1.0, seconds))),
        (options.streams, "throughput of", lambda entry: entry.stream(options.streams or 1, seconds)),
        (can_measure_energy(), "energy of", _Entry.find_energy),
        (options.roofline, "roofline of", _Entry.put_under_roof),
        (options.profile, "layers of", _Entry.profile),
    ]
    for wanted, what, work in extras:
        if wanted:
            each(what, work, optional=True)
    if samples is not None:
        each("accuracy of", lambda entry: entry.score(samples, tell))
        _find_fp32(entries, samples, tell)


def _time_in_turns(entries: Sequence[_Entry], steady: Steady, tell: Callable[[str, float], None]) -> None:
    time_steady(
        [entry.session for entry in entries],
        [entry.contender.reference.images for entry in entries],
        steady,
        on_progress=lambda share: tell("timing, in turns", share),
        into=[entry.times for entry in entries],
    )


def _find_fp32(entries: Sequence[_Entry], samples: SampleSet, tell: Callable[[str, float], None]) -> None:
    """Give every row the scores that its gate compares its own with, see `_Entry.fp32`; or a note that there are none.

    They are those of torch, or of an FP32 engine that passes, of the same run, weights and size; else of the FP32
    model that lies beside the engine.
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
                    known[of] = measure_accuracy(session, _pairs(samples), samples.crop)
            entry.fp32 = known[of]


def _pairs(samples: SampleSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (samples.samples[index] for index in range(len(samples.samples)))


class _Entry:
    """A contender on its way to a row; each method is one measurement.

    Attributes:
        error: why it is out; empty: it is not.
        notes: what could not be measured of it, and why.
        session: after `open`.
        depths: its answers to the reference frames, after `compare`.
        fp32: scores that its own may not be much worse than; None: there are none.
    """

    session: Session

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.error = ""
        self.notes: list[str] = []
        self.times = Times()
        self.depths: np.ndarray | None = None
        self.fp32: DepthScores | None = None
        self._opened = False
        self._found: dict[str, Any] = {}

    @contextmanager
    def kept(self, optional: str) -> Iterator[None]:
        """Turn what is raised into this entry's error; or into a note, if what was tried, `optional`, can be missed."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a vendor may raise anything, and the others go on
            words = str(error) if isinstance(error, DepthkitError) else f"{type(error).__name__}: {error}"
            if optional:
                self.notes.append(f"no {optional.removesuffix(' of')}: {words}")
            else:
                self.error = words

    @property
    def scores(self) -> DepthScores | None:
        """Against measured depth, after `score`."""
        accuracy: Accuracy | None = self._found.get("accuracy")
        return None if accuracy is None else accuracy.scores

    def rehearse(self) -> None:
        self._found["memory"] = measure_memory(self.contender.open)

    def open(self, stack: ExitStack) -> None:
        self.session = stack.enter_context(self.contender.open())
        self._opened = True

    def compare(self) -> None:
        self._found["parity"], self.depths = measure_parity(self.session, self.contender.reference)

    def time_paper(self) -> None:
        self.times = time_paper(self.session)

    def require_times(self) -> None:
        if self.times.error is not None:
            raise self.times.error

    def find_phases(self, pictures: Sequence[np.ndarray], seconds: float) -> None:
        shown = pictures or self.contender.reference.images
        self._found["phases"] = measure_phases(self.session, shown, seconds=seconds)

    def stream(self, streams: int, seconds: float) -> None:
        self._found["throughput"] = measure_throughput(
            self.contender.open, self.contender.reference.images, streams, seconds=seconds
        )

    def find_energy(self) -> None:
        self._found["energy_j"] = measure_energy(self.session, self.contender.reference.images)

    def put_under_roof(self) -> None:
        if self.contender.onnx is not None:
            self._found["roofline"] = find_roofline(self.session, self.contender.onnx)

    def profile(self) -> None:
        if self.contender.profile is not None:
            layers = self.contender.profile(self.contender.reference.images)
            self._found["layers"] = tuple(sorted(layers, key=lambda layer: layer.ms, reverse=True))

    def score(self, samples: SampleSet | None, tell: Callable[[str, float], None]) -> None:
        assert samples is not None

        def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for index, pair in enumerate(_pairs(samples)):
                tell(f"accuracy of {self.contender.name}", index / samples.frames)
                yield pair

        scores = measure_accuracy(self.session, watched(), samples.crop)
        self._found["accuracy"] = Accuracy(samples.data, samples.frames, samples.available, scores)

    def row(self) -> Row:
        """What was found until now."""
        contender, spec = self.contender, self.session.spec if self._opened else None
        faults = list(contender.faults)
        parity, accuracy = self._found.get("parity"), self._found.get("accuracy")
        if parity is not None and contender.kind == "engine":
            faults += gate_faults(parity, contender.precision)
        if accuracy is not None and not np.isfinite(accuracy.scores.mse):
            faults.append("accuracy is not finite")
        elif accuracy is not None and self.fp32 is not None:
            faults += accuracy_faults(accuracy.scores, self.fp32, contender.precision)
        error = self.error or ("" if self.times else "interrupted before it was timed")
        height, width = contender.reference.size
        row = Row(
            network=contender.network if spec is None else spec.network,
            backend=contender.backend,
            target=contender.target,
            kind=contender.kind,
            provider=self.session.provider if self._opened else "",
            precision_asked=contender.precision,
            precision=self.session.precision if self._opened else contender.precision,
            size=(height, width),
            batch=contender.batch if spec is None else spec.opt_batch,
            parameters=None if spec is None else spec.parameters,
            macs=None if spec is None else spec.macs,
            file_bytes=contender.file_bytes,
            wall_ms=tuple(self.times),
            turns=tuple(self.times.turns),
            phases=self._found.get("phases", {}),
            throughput=self._found.get("throughput"),
            memory=self._found.get("memory"),
            energy_j=self._found.get("energy_j"),
            macs_share=contender.macs_share,
            roofline=self._found.get("roofline"),
            layers=self._found.get("layers", ()),
            parity=parity,
            diverges="",
            accuracy=accuracy,
            faults=tuple(faults),
            notes=(),
            error=error,
            run=contender.run,
            weights=contender.reference.weights_sha256,
        )
        return replace(row, notes=(*self.notes, *doubts(row)))


def doubts(row: Row) -> tuple[str, ...]:
    """What makes a row's figures doubtful, by trtexec's thresholds."""
    found = []
    if row.cv is not None and row.cv > MOST_VARIATION:
        found.append(f"latency varies: CV {row.cv:.1%} > {MOST_VARIATION:.1%}")
    device, enqueue = row.phases.get("device"), row.phases.get("enqueue")
    if device and enqueue and np.median(enqueue) > HOST_BOUND * np.median(device):
        share = np.median(enqueue) / np.median(device)
        found.append(f"host-bound: starting a run takes {share:.0%} of the device's time, more than {HOST_BOUND:.0%}")
    if row.roofline is not None and row.p50_ms is not None and row.p50_ms < row.roofline.floor_ms:
        found.append("faster than the machine's peaks allow: they were measured while it was busier")
    return tuple(found)
