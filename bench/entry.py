"""One contender in a bench: each step that is measured of it, and the row that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from ..errors import DepthkitError
from ..metrics import DepthScores
from ..parity import Parity, gate_faults
from ..session import LayerTime, Session
from .accuracy import accuracy_faults, measure_accuracy
from .contender import Contender, SampleSet
from .energy import measure_energy
from .memory import measure_memory
from .parts import Accuracy, MemoryUse, Roofline, Throughput
from .phases import measure_phases
from .replay import measure_parity
from .results import Phase, Row
from .roofline import find_roofline
from .throughput import measure_throughput
from .timing import Times, time_paper

__all__ = ["Entry"]

MOST_VARIATION: Final = 0.025
HOST_BOUND: Final = 0.8


@dataclass
class _Found:
    """What the steps of a bench measured of one entry, as `Row` has it; empty until then."""

    memory: MemoryUse | None = None
    parity: Parity | None = None
    phases: dict[Phase, tuple[float, ...]] = field(default_factory=dict)
    throughput: Throughput | None = None
    energy_j: float | None = None
    roofline: Roofline | None = None
    layers: tuple[LayerTime, ...] = ()
    accuracy: Accuracy | None = None


class Entry:
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
        self._found = _Found()

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
        return None if self._found.accuracy is None else self._found.accuracy.scores

    def rehearse(self) -> None:
        """Measure its memory, in a process of its own."""
        self._found.memory = measure_memory(self.contender.open)

    def open(self, stack: ExitStack) -> None:
        """Open its session, which `stack` closes."""
        self.session = stack.enter_context(self.contender.open())
        self._opened = True

    def compare(self) -> None:
        """Its parity with the reference, and its depth."""
        self._found.parity, self.depths = measure_parity(self.session, self.contender.reference)

    def time_paper(self) -> None:
        """Its latency by the paper's protocol."""
        self.times = time_paper(self.session)

    def require_times(self) -> None:
        """Raise what its session raised while it was timed in turns."""
        if self.times.error is not None:
            raise self.times.error

    def find_phases(self, pictures: Sequence[np.ndarray], seconds: float) -> None:
        """The phases of its runs on `pictures`, or where there are none on its reference frames."""
        shown = pictures or self.contender.reference.images
        self._found.phases = measure_phases(self.session, shown, seconds=seconds)

    def stream(self, streams: int, seconds: float) -> None:
        """Throughput of so many sessions side by side."""
        self._found.throughput = measure_throughput(
            self.contender.open, self.contender.reference.images, streams, seconds=seconds
        )

    def find_energy(self) -> None:
        """Joules a frame."""
        self._found.energy_j = measure_energy(self.session, self.contender.reference.images)

    def put_under_roof(self) -> None:
        """What the machine's peaks allow, where its ONNX file is there."""
        if self.contender.onnx is not None:
            self._found.roofline = find_roofline(self.session, self.contender.onnx)

    def profile(self) -> None:
        """What its layers take, the slowest first."""
        if self.contender.profile is not None:
            layers = self.contender.profile(self.contender.reference.images)
            self._found.layers = tuple(sorted(layers, key=lambda layer: layer.ms, reverse=True))

    def score(self, samples: SampleSet, tell: Callable[[str, float], None]) -> None:
        """Accuracy against measured depth."""

        def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for index, pair in enumerate(samples.pairs()):
                tell(f"accuracy of {self.contender.name}", index / samples.frames)
                yield pair

        scores = measure_accuracy(self.session, watched(), samples.crop)
        self._found.accuracy = Accuracy(samples.data, samples.frames, samples.available, scores)

    def row(self) -> Row:
        """What was found until now."""
        contender, spec = self.contender, self.session.spec if self._opened else None
        faults = list(contender.faults)
        parity, accuracy = self._found.parity, self._found.accuracy
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
            phases=self._found.phases,
            throughput=self._found.throughput,
            memory=self._found.memory,
            energy_j=self._found.energy_j,
            macs_share=contender.macs_share,
            roofline=self._found.roofline,
            layers=self._found.layers,
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
