"""One contender of a bench: its measurements, and the row made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from ..errors import DepthkitError
from ..metrics import DepthScores, choose_alignment
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
    """Results of an entry's measurements, as in `Row`; empty until measured."""

    memory: MemoryUse | None = None
    parity: Parity | None = None
    phases: dict[Phase, tuple[float, ...]] = field(default_factory=dict)
    throughput: Throughput | None = None
    energy_j: float | None = None
    roofline: Roofline | None = None
    layers: tuple[LayerTime, ...] = ()
    accuracy: Accuracy | None = None


class Entry:
    """Measures a contender, one method per measurement, and makes its row.

    Attributes:
        error: why it takes no further part; empty: it does.
        notes: what could not be measured, and why.
        session: set by `open`.
        depths: its depth for the reference frames, set by `compare`.
        fp32: FP32 scores to compare its accuracy with; None: there are none.
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
        """Turn an exception into this entry's error; or into a note that names the measurement, if it is `optional`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a vendor may raise anything, and the other entries go on
            words = str(error) if isinstance(error, DepthkitError) else f"{type(error).__name__}: {error}"
            if optional:
                self.notes.append(f"no {optional.removesuffix(' of')}: {words}")
            else:
                self.error = words

    @property
    def scores(self) -> DepthScores | None:
        """Accuracy against measured depth, set by `score`."""
        return None if self._found.accuracy is None else self._found.accuracy.scores

    def rehearse(self) -> None:
        """Measure its memory in a separate process."""
        self._found.memory = measure_memory(self.contender.open)

    def open(self, stack: ExitStack) -> None:
        """Open its session, which `stack` closes."""
        self.session = stack.enter_context(self.contender.open())
        self._opened = True

    def compare(self) -> None:
        """Measure parity with the reference, and keep the depth."""
        self._found.parity, self.depths = measure_parity(self.session, self.contender.reference)

    def time_paper(self) -> None:
        """Measure latency by the paper's protocol."""
        self.times = time_paper(self.session)

    def require_times(self) -> None:
        """Raise the error that ended its timing in turns, if any."""
        if self.times.error is not None:
            raise self.times.error

    def find_phases(self, pictures: Sequence[np.ndarray], seconds: float) -> None:
        """Measure the phases of its runs on `pictures`, or else on its reference frames."""
        shown = pictures or self.contender.reference.images
        self._found.phases = measure_phases(self.session, shown, seconds=seconds)

    def stream(self, streams: int, seconds: float) -> None:
        """Measure throughput of `streams` sessions side by side."""
        self._found.throughput = measure_throughput(
            self.contender.open, self.contender.reference.images, streams, seconds=seconds
        )

    def find_energy(self) -> None:
        """Measure joules per frame."""
        self._found.energy_j = measure_energy(self.session, self.contender.reference.images)

    def measure_roofline(self) -> None:
        """Compute its roofline, if its ONNX file is there."""
        if self.contender.onnx is not None:
            self._found.roofline = find_roofline(self.session, self.contender.onnx)

    def profile(self) -> None:
        """Time its layers, the slowest first."""
        if self.contender.profile is not None:
            layers = self.contender.profile(self.contender.reference.images)
            self._found.layers = tuple(sorted(layers, key=lambda layer: layer.ms, reverse=True))

    def score(self, samples: SampleSet, tell: Callable[[str, float], None]) -> None:
        """Measure accuracy against measured depth."""

        def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for index, pair in enumerate(samples.pairs()):
                tell(f"accuracy of {self.contender.name}", index / samples.frames)
                yield pair

        scores = measure_accuracy(self.session, watched(), samples.crop)
        how = choose_alignment("auto", self.session.spec.answers)
        self._found.accuracy = Accuracy(samples.data, samples.frames, samples.available, scores, how)

    def row(self) -> Row:
        """The row, from what was measured so far."""
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
            resized_to=contender.reference.resized_to,
            answers=None if spec is None else spec.answers,
        )
        return replace(row, notes=(*self.notes, *doubts(row)))


def doubts(row: Row) -> tuple[str, ...]:
    """Reasons to doubt a row's figures, by trtexec's thresholds."""
    found = []
    if row.cv is not None and row.cv > MOST_VARIATION:
        found.append(f"latency varies: CV {row.cv:.1%} > {MOST_VARIATION:.1%}")
    device, enqueue = row.phases.get("device"), row.phases.get("enqueue")
    if device and enqueue and np.median(enqueue) > HOST_BOUND * np.median(device):
        share = np.median(enqueue) / np.median(device)
        found.append(f"host-bound: enqueueing a run takes {share:.0%} of the device's time, more than {HOST_BOUND:.0%}")
    if row.roofline is not None and row.p50_ms is not None and row.p50_ms < row.roofline.floor_ms:
        found.append("faster than its roofline: the machine was busier while its peaks were measured")
    return tuple(found)
