"""What a bench measures of a row beside its latency."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..metrics import DepthScores

__all__ = ["Accuracy", "MemoryUse", "Peaks", "Roofline", "Throughput"]


@dataclass(frozen=True, config=STRICT)
class Accuracy:
    """Scores against measured depth, and of how much: `frames` of the `available` in the test split of `data`."""

    data: str
    frames: int
    available: int
    scores: DepthScores


@dataclass(frozen=True, config=STRICT)
class MemoryUse:
    """Of a process of its own, see `bench.memory`; None: the machine does not tell.

    Attributes:
        load_bytes: by which its resident memory rose at its highest, to load the engine and run it the first time.
        steady_bytes: by which it has risen after some more runs.
        device_bytes: of the GPU's memory that the engine took at its highest.
    """

    load_bytes: int
    steady_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True, config=STRICT)
class Throughput:
    """Several inputs under way at a time.

    Attributes:
        streams: sessions that ran side by side, each in a thread of its own.
        batch: frames of a run.
        frames: that were answered.
        seconds: from the first run's beginning to the last one's end (trtexec's definition).
    """

    streams: int
    batch: int
    frames: int
    seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


@dataclass(frozen=True, config=STRICT)
class Peaks:
    """What this machine reached in the same bench: by a convolution of one precision, and by copying memory.

    Attributes:
        precision: of the convolution's factors.
        gmacs: 10⁹ multiply-accumulates a second.
        gbytes: 10⁹ bytes a second, read and written ones counted.
        by: what computed it.
    """

    precision: str
    gmacs: float
    gbytes: float
    by: str


@dataclass(frozen=True, config=STRICT)
class Roofline:
    """An engine under the machine's limits (Williams, Waterman and Patterson, CACM 2009).

    Attributes:
        macs: multiply-accumulates of a run.
        bytes_moved: of a run at the least: weights, and every layer's activations read once and written once.
        peaks: what the machine reached.
    """

    macs: int
    bytes_moved: int
    peaks: Peaks

    @property
    def intensity(self) -> float:
        """Multiply-accumulates a byte."""
        return self.macs / self.bytes_moved

    @property
    def floor_ms(self) -> float:
        """No run can be faster than this by these peaks: all its work, or all its bytes."""
        return max(self.macs / self.peaks.gmacs, self.bytes_moved / self.peaks.gbytes) / 1e6

    @property
    def limit(self) -> Literal["arithmetic", "memory"]:
        """Which of the two takes longer."""
        arithmetic = self.macs / self.peaks.gmacs > self.bytes_moved / self.peaks.gbytes
        return "arithmetic" if arithmetic else "memory"
