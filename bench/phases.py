"""Time per phase of a frame: preprocessing, the run's phases, postprocessing."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from time import perf_counter
from typing import Final

import numpy as np

from ..data.images import fill_image, resize_depth
from ..session import Session
from .results import PHASES, Phase
from .timing import allocate

__all__ = ["measure_phases"]

_WARM_UPS: Final = 3


def measure_phases(
    session: Session, pictures: Iterable[np.ndarray], *, seconds: float = 1.0, min_runs: int = 5
) -> dict[Phase, tuple[float, ...]]:
    """Milliseconds of each phase in each run after the warm-up; phases that cannot be measured are missing.

    `preprocess` resizes a picture to the session's size, `postprocess` resizes the depth to the picture's; see
    `Row.phases` for the others. Pictures fill a batch in turn.

    Args:
        session: open; it is bound here.
        pictures: H x W x 3 uint8, used in turn.
        seconds, min_runs: minimum duration and number of runs.
    """
    shown = cycle(pictures)
    image, depth = allocate(session)
    found: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    end = perf_counter() + seconds
    runs = -_WARM_UPS
    while runs < min_runs or perf_counter() < end:
        group = [next(shown) for _ in image]
        start = perf_counter()
        for target, picture in zip(image, group, strict=True):
            fill_image(target, picture)
        filled = perf_counter()
        times: dict[Phase, float] = {phase: ms for phase, ms in session.run_phases().items()}  # noqa: C416 - other keys
        times["preprocess"] = (filled - start) * 1000
        ran = perf_counter()
        for each, picture in zip(depth, group, strict=True):
            resize_depth(each, picture.shape[:2], smooth=True)
        times["postprocess"] = (perf_counter() - ran) * 1000
        if runs >= 0:
            for name, each_ms in times.items():
                found[name].append(each_ms)
        runs += 1
    return {phase: tuple(times) for phase, times in found.items() if times}
