"""Bootstrap intervals of medians and of their ratios; and the Pareto front.

Runs of one turn share the machine's state, so they are not independent samples. Whole turns are therefore resampled,
not single runs (cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
Rows that took turns are compared round by round: a machine that is slow for some seconds is slow for both, which the
ratio of their medians in that round cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import numpy as np
from pydantic.dataclasses import dataclass

from ..documents import STRICT

__all__ = [
    "LEAST_TURNS",
    "Interval",
    "bootstrap_medians",
    "bootstrap_ratios",
    "coefficient_of_variation",
    "interval",
    "pareto_front",
    "turn_medians",
]

T = TypeVar("T")

DRAWS: Final = 1000
CONFIDENCE: Final = 0.95
LEAST_TURNS: Final = 5
"""With fewer turns an interval would be too narrow, so none is given."""


@dataclass(frozen=True, config=STRICT)
class Interval:
    """A 95 % confidence interval from `low` to `high`; `middle` is the estimate."""

    low: float
    middle: float
    high: float

    @property
    def width(self) -> float:
        """Half width as a share of the estimate: 0.01 for ±1 %."""
        return (self.high - self.low) / 2 / self.middle


def bootstrap_medians(samples: Sequence[float], turns: Sequence[int], *, seed: int = 0) -> np.ndarray:
    """Medians (float64, `DRAWS`) of bootstrap samples, each made of whole turns drawn with replacement.

    Args:
        samples: of all turns, in order.
        turns: number of samples of each turn.
        seed: of the draws.

    >>> medians = bootstrap_medians([1.0, 3.0] * 10, [2] * 10)
    >>> medians.shape, float(medians.min()), float(medians.max())
    ((1000,), 2.0, 2.0)
    """
    parts = _split(samples, turns)
    return np.array([np.median(np.concatenate([parts[turn] for turn in draw])) for draw in _draw(len(parts), seed)])


def turn_medians(samples: Sequence[float], turns: Sequence[int]) -> np.ndarray:
    """The median of every turn.

    >>> turn_medians([1.0, 3.0, 5.0], [2, 1]).tolist()
    [2.0, 5.0]
    """
    return np.array([np.median(part) for part in _split(samples, turns)])


def bootstrap_ratios(over: np.ndarray, under: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, float]:
    """Ratio `over` / `under` of two rows that took turns in the same rounds.

    Args:
        over, under: the rows' `turn_medians`; the longer one is cut to the other's length.
        seed: of the draws.

    Returns:
        Bootstrap draws (float64, `DRAWS`) of the median over rounds of the ratio in each round; and that median.

    >>> draws, middle = bootstrap_ratios(np.array([2.0, 40.0, 6.0]), np.array([1.0, 20.0, 3.0]))
    >>> float(draws.min()), middle
    (2.0, 2.0)
    """
    rounds = min(len(over), len(under))
    ratios = over[:rounds] / under[:rounds]
    return np.median(ratios[_draw(rounds, seed)], axis=1), float(np.median(ratios))


def _split(samples: Sequence[float], turns: Sequence[int]) -> list[np.ndarray]:
    if sum(turns) != len(samples) or not samples:
        raise ValueError(f"{len(samples)} samples, but turns has {sum(turns)}")
    return np.split(np.asarray(samples, np.float64), np.cumsum(turns)[:-1])


def _draw(turns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, turns, (DRAWS, turns))


def interval(draws: np.ndarray, middle: float) -> Interval:
    """The percentile interval of bootstrap draws around a figure."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, (tail, 100 - tail))
    return Interval(min(float(low), middle), middle, max(float(high), middle))


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean, as trtexec reports it.

    >>> round(coefficient_of_variation([9.0, 11.0]), 3)
    0.1
    """
    values = np.asarray(samples, np.float64)
    return float(values.std() / values.mean())


def pareto_front(items: Iterable[T], figures: Callable[[T], tuple[float, float]]) -> list[T]:
    """Items that no other beats in both figures (lower is better), sorted by the first; of equal items only one.

    >>> pareto_front([(3, 1), (1, 5), (2, 6), (4, 1)], lambda point: point)
    [(1, 5), (3, 1)]
    """
    front: list[T] = []
    for item in sorted(items, key=figures):
        if not front or figures(item)[1] < figures(front[-1])[1]:
            front.append(item)
    return front
