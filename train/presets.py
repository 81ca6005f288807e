"""Training presets: what `--preset` decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..sizes import SIZE_MULTIPLE, smaller_size
from .augment import Strength
from .losses import LossWeights

__all__ = ["PRESETS", "Preset", "PresetName", "Stage", "stage_at"]

PresetName = Literal["paper", "best", "int8"]


@dataclass(frozen=True)
class Stage:
    """A part of a run's epochs.

    Attributes:
        share: how much of the epochs.
        scenes: on freshly rendered built-in scenes instead of the run's own data.
        scale: of the run's height and width; a smaller picture costs less, and shows a convolution more of the room.
        least_rows: a picture that has no more rows than this is not made smaller, and none is made smaller than this.
    """

    share: float
    scenes: bool = False
    scale: float = 1.0
    least_rows: int = SIZE_MULTIPLE

    def size(self, full: tuple[int, int]) -> tuple[int, int]:
        """Height and width of this stage, in a run whose are `full`."""
        return smaller_size(full, self.scale, self.least_rows)


@dataclass(frozen=True)
class Preset:
    """Optimiser, schedule, loss, augmentation, averaging and stages.

    Attributes:
        optimizer: `adam` at a constant rate, or `adamw` (weight decay 0.01) under one cycle (Smith and Topin 2018: up
            over 15 % of the steps, then down along a cosine).
        learning_rate: the constant rate, or the peak of the cycle.
        loss: weights of the loss's terms.
        augmentation: see `Augmentation`.
        average_share: time constant of the weights' exponential moving average, as a share of all steps, so that a
            short run averages over few; None: no averaging.
        stages: in their order; the shares add up to 1.
        aware: of INT8, see `train.aware`.
    """

    optimizer: Literal["adam", "adamw"]
    learning_rate: float
    loss: LossWeights
    augmentation: Strength
    average_share: float | None
    stages: tuple[Stage, ...] = (Stage(1.0),)
    aware: bool = False


PRESETS: Final[dict[PresetName, Preset]] = {
    "paper": Preset("adam", 1e-4, LossWeights(), "paper", None),
    "best": Preset(
        "adamw",
        2e-3,
        LossWeights(scale_invariant=0.1, gradient=0.1),
        "strong",
        0.02,
        # Under 48 rows the built-in networks' coarsest level, 1/16, has nothing left to see.
        (Stage(0.5, scenes=True, scale=0.5, least_rows=48), Stage(0.1, scale=0.5, least_rows=48), Stage(0.4)),
    ),
    # From the weights of another run, for `--quantize`: a twentieth of the rate, so that little is unlearnt.
    "int8": Preset("adamw", 1e-4, LossWeights(scale_invariant=0.1, gradient=0.1), "strong", 0.02, aware=True),
}


def stage_at(stages: tuple[Stage, ...], epoch: int, epochs: int) -> Stage:
    """The stage of an epoch (from 0) of so many; where epochs are few, the early stages are left out.

    >>> early, late = Stage(0.5, scale=0.5), Stage(0.5)
    >>> [stage_at((early, late), epoch, 3) is late for epoch in range(3)]
    [False, True, True]
    """
    begins = [int(sum(stage.share for stage in stages[:index]) * epochs + 1e-9) for index in range(len(stages))]
    return next(stage for stage, begin in reversed(list(zip(stages, begins, strict=True))) if begin <= epoch)
