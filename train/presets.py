"""Training presets: what `--preset` decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .augment import Strength

__all__ = ["PRESETS", "Preset", "PresetName"]

PresetName = Literal["paper", "best"]


@dataclass(frozen=True)
class Preset:
    """Optimiser, schedule, augmentation and averaging.

    Attributes:
        optimizer: `adam` at a constant rate, or `adamw` (weight decay 0.01) under one cycle (Smith and Topin 2018: up
            over 15 % of the steps, then down along a cosine).
        learning_rate: the constant rate, or the peak of the cycle.
        augmentation: see `Augmentation`.
        average_share: time constant of the weights' exponential moving average, as a share of all steps, so that a
            short run averages over few; None: no averaging.
    """

    optimizer: Literal["adam", "adamw"]
    learning_rate: float
    augmentation: Strength
    average_share: float | None


PRESETS: Final[dict[PresetName, Preset]] = {
    "paper": Preset("adam", 1e-4, "paper", None),
    "best": Preset("adamw", 2e-3, "strong", 0.1),
}
