"""Measurements of a row beside its latency."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..metrics import Alignment, DepthScores

__all__ = ["Accuracy", "MemoryUse", "Peaks", "Roofline", "Throughput"]


@dataclass(frozen=True, config=STRICT)
class Accuracy:
    """Scores against measured depth, on `frames` of the `available` frames in the test split of `data`.

    `alignment`: how predictions were aligned to measured depth first; "none" for depth in metres.
    """

    data: str
    frames: int
    available: int
    scores: DepthScores
    alignment: Alignment = "none"


@dataclass(frozen=True, config=STRICT)
class MemoryUse:
    """Memory of a separate process, see `bench.memory`.

    Attributes:
        load_bytes: peak increase of resident memory while loading the engine and running it once.
        steady_bytes: increase of resident memory after some more runs.
        device_bytes: GPU memory in use after these runs; None: no GPU.
    """

    load_bytes: int
    steady_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True, config=STRICT)
class Throughput:
    """Throughput of several sessions at a time.

    Attributes:
        streams: sessions side by side, each in its own thread.
        batch: frames per run.
        frames: frames computed in total.
        seconds: from the start of the first run to the end of the last (trtexec's definition).
    """

    streams: int
    batch: int
    frames: int
    seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds


@dataclass(frozen=True, config=STRICT)
class Peaks:
    """Peaks of this machine, measured in the same bench: computing in one precision, and copying memory.

    Attributes:
        precision: of the factors.
        gmacs: 10⁹ multiply-accumulates per second.
        gbytes: 10⁹ bytes per second, counting both reads and writes.
        by: the library and operation that reached `gmacs`.
    """

    precision: str
    gmacs: float
    gbytes: float
    by: str


@dataclass(frozen=True, config=STRICT)
class Roofline:
    """Roofline of an engine on this machine (Williams, Waterman and Patterson, CACM 2009).

    Attributes:
        macs: multiply-accumulates per run.
        bytes_moved: minimum bytes per run: weights, and every layer's activations read once and written once.
        peaks: the machine's peaks.
    """

    macs: int
    bytes_moved: int
    peaks: Peaks

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte."""
        return self.macs / self.bytes_moved

    @property
    def floor_ms(self) -> float:
        """Roofline time: the larger of computing time and memory time at the peaks, in ms."""
        return max(self.macs / self.peaks.gmacs, self.bytes_moved / self.peaks.gbytes) / 1e6

    @property
    def limit(self) -> Literal["arithmetic", "memory"]:
        """Which of the two times is larger."""
        arithmetic = self.macs / self.peaks.gmacs > self.bytes_moved / self.peaks.gbytes
        return "arithmetic" if arithmetic else "memory"
