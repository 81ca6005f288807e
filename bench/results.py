"""What a bench found: raw samples, and everything that was true while they were taken."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, computed_field
from pydantic.dataclasses import dataclass

from ..metrics import DepthScores
from ..parity import Parity
from ..spec import STRICT
from .environment import Environment

__all__ = ["Accuracy", "BenchResult", "Row"]


@dataclass(frozen=True, config=STRICT)
class Accuracy:
    """Scores against measured depth, and of how much: `frames` of the `available` in the test split of `data`."""

    data: str
    frames: int
    available: int
    scores: DepthScores


@dataclass(frozen=True, config=STRICT)
class Row:
    """One session of the bench.

    Attributes:
        network, backend, target: what ran; target is the file, or the run folder for torch.
        provider: what really computed, in the vendor's own words.
        precision_asked, precision: what was asked for, and what really computed.
        size, batch: height and width; frames a run.
        parameters, macs: of the network; macs for one frame.
        file_bytes: size of the engine on disk.
        peak_memory_bytes: see `bench.memory`; None: not measured.
        wall_ms: host time of each run that counted, in order.
        macs_share: how much of the convolutions' work runs in the precision that was asked for; None: not told.
        parity: against torch FP32 on the reference frames.
        accuracy: against measured depth; None: no data were given.
        faults: why the gate fails; empty: it passes.
    """

    network: str
    backend: str
    target: str
    provider: str
    precision_asked: str
    precision: str
    size: tuple[int, int]
    batch: int
    parameters: int
    macs: int
    file_bytes: int
    peak_memory_bytes: int | None
    macs_share: float | None
    wall_ms: Annotated[tuple[float, ...], Field(min_length=1)]
    parity: Parity
    accuracy: Accuracy | None
    faults: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the gate holds."""
        return not self.faults

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_ms(self) -> float:
        """Mean latency of a run."""
        return float(np.mean(self.wall_ms))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50_ms(self) -> float:
        """Median latency of a run."""
        return self.percentile(50)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p95_ms(self) -> float:
        """95th percentile of the latency."""
        return self.percentile(95)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return self.percentile(99)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fps(self) -> float:
        """Frames a second: frames that were run, over the time that they took."""
        return self.batch * len(self.wall_ms) / (sum(self.wall_ms) / 1000)

    def percentile(self, percent: float) -> float:
        """A percentile of the latency, interpolated between runs."""
        return float(np.percentile(self.wall_ms, percent))


@dataclass(frozen=True, config=STRICT)
class BenchResult:
    """A whole bench. `to_json` gives the raw samples and, beside them, the figures derived from them."""

    environment: Environment
    protocol: Literal["steady", "paper"]
    rows: tuple[Row, ...]
    schema_version: Literal[3] = 3

    @property
    def failed(self) -> list[Row]:
        """Rows whose gate does not hold."""
        return [row for row in self.rows if not row.passed]
