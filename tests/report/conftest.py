"""A bench whose rows have everything, or nothing, that a report shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depthkit.bench.results import Accuracy, BenchResult, Peaks, Phase, Roofline, Row
from depthkit.metrics import DepthScores, Scores
from depthkit.session import LayerTime

Benched = tuple[BenchResult, list[np.ndarray | None]]
FULL: dict[Phase, tuple[float, ...]] = {
    "preprocess": (1.0, 1.5),
    "h2d": (0.25,),
    "device": (7.0,),
    "d2h": (0.125,),
    "postprocess": (0.5,),
    "enqueue": (0.75,),
}


def timed(row: Row, middle: float, turns: int = 8) -> Row:
    """The row as if its runs had taken so long, in turns enough for an interval."""
    wall = tuple(middle * (1 + 0.01 * (n % 7 - 3)) for n in range(20 * turns))
    return replace(row, wall_ms=wall, turns=(20,) * turns)


def judged(row: Row, abs_rel: float) -> Row:
    scores = Scores(abs_rel, 0.5, 0.06, 0.8, 0.95, 0.99)
    return replace(row, accuracy=Accuracy("data/nyu", 10, 654, DepthScores(0.05, 0.7, scores, scores, 10)))


@pytest.fixture
def rich(benched: Benched) -> BenchResult:
    """Of those rows one with everything, one that fails, one that could not be opened, and one that nobody knows."""
    full, other, broken, unknown = benched[0].rows
    roof = Roofline(10**9, 10**7, Peaks("fp32", 500.0, 20.0, "NumPy"))
    layers = tuple(LayerTime(f"layer{n}", "Conv", 1.0 / (n + 1)) for n in range(12))
    full = judged(replace(timed(full, 20.0), phases=FULL, roofline=roof, layers=layers, notes=("it was warm",)), 0.15)
    other = judged(replace(timed(other, 10.0), phases={"device": (9.0,)}, faults=("SSIM 0.5 < 0.98",)), 0.2)
    broken = replace(broken, wall_ms=(), turns=(), parity=None, phases={}, error="no such provider")
    unknown = replace(
        timed(unknown, 5.0), network="", kind="trtexec", size=None, parameters=None, macs=None, parity=None, faults=(),
        phases={},
    )  # fmt: skip
    return replace(benched[0], rows=(full, other, broken, unknown), complete=False, notes=("the clock moved",))
