"""Training presets, for `--preset`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..sizes import SIZE_MULTIPLE, smaller_size
from .augment import Strength
from .losses import LossWeights

__all__ = ["PRESETS", "Preset", "PresetName", "Stage", "stage_at"]

PresetName = Literal["paper", "best", "refine", "int8"]


@dataclass(frozen=True)
class Stage:
    """A part of a run's epochs.

    Attributes:
        share: its fraction of the epochs.
        scenes: train on freshly rendered built-in scenes instead of the run's own data.
        scale: scale of the run's height and width; smaller pictures are faster, and a convolution covers more of the
            room.
        least_rows: smallest number of rows after scaling; pictures with no more rows are not scaled.
    """

    share: float
    scenes: bool = False
    scale: float = 1.0
    least_rows: int = SIZE_MULTIPLE

    def size(self, full: tuple[int, int]) -> tuple[int, int]:
        """Height and width of this stage, given the run's (`full`)."""
        return smaller_size(full, self.scale, self.least_rows)


@dataclass(frozen=True)
class Preset:
    """Optimiser, schedule, loss, augmentation, averaging and stages.

    Attributes:
        optimizer: `adam` at a constant rate, or `adamw` (weight decay 0.01) with a one-cycle schedule (Smith and Topin
            2018: up over 15 % of the steps, then down along a cosine).
        learning_rate: the constant rate, or the peak of the cycle.
        loss: weights of the loss's terms.
        augmentation: see `Augmentation`.
        average_share: time constant of the weights' exponential moving average, as a fraction of all steps; None: no
            averaging.
        stages: in order; the shares add up to 1.
        aware: quantisation-aware training, see `train.aware`.
        teacher: weights of `losses.follow` at the first and at the last step, linear between them, if there is a
            teacher: early it guides, and late measured depth decides.
    """

    optimizer: Literal["adam", "adamw"]
    learning_rate: float
    loss: LossWeights
    augmentation: Strength
    average_share: float | None
    stages: tuple[Stage, ...] = (Stage(1.0),)
    aware: bool = False
    teacher: tuple[float, float] = (1.0, 0.1)


PRESETS: Final[dict[PresetName, Preset]] = {
    "paper": Preset("adam", 1e-4, LossWeights(), "paper", None),
    "best": Preset(
        "adamw",
        2e-3,
        LossWeights(scale_invariant=0.1, gradient=0.1),
        "strong",
        0.02,
        # With fewer than 48 rows, the built-in networks' coarsest level (1/16) is too small.
        (Stage(0.5, scenes=True, scale=0.5, least_rows=48), Stage(0.1, scale=0.5, least_rows=48), Stage(0.4)),
    ),
    # From the weights of another run: they know what the scenes teach, and need to be told about edges.
    "refine": Preset(
        "adamw",
        2e-3,
        LossWeights(scale_invariant=0.1, gradient=0.5, step=0.3),
        "strong",
        0.02,
        (Stage(0.5, scale=0.6), Stage(0.5)),
    ),
    # For `--quantize`, from the weights of another run: 1/20 of the rate, so that they change little.
    "int8": Preset("adamw", 1e-4, LossWeights(scale_invariant=0.1, gradient=0.1), "strong", 0.02, aware=True),
}


def stage_at(stages: tuple[Stage, ...], epoch: int, epochs: int) -> Stage:
    """The stage of an epoch (from 0) out of `epochs`; with few epochs, early stages are skipped.

    >>> early, late = Stage(0.5, scale=0.5), Stage(0.5)
    >>> [stage_at((early, late), epoch, 3) is late for epoch in range(3)]
    [False, True, True]
    """
    begins = [int(sum(stage.share for stage in stages[:index]) * epochs + 1e-9) for index in range(len(stages))]
    return next(stage for stage, begin in reversed(list(zip(stages, begins, strict=True))) if begin <= epoch)
