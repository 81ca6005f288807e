"""The curve of a run, `metrics.csv`, with a line per epoch. Needs no torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..files import atomic_write

__all__ = ["EpochRecord", "write_history"]


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.csv`. Losses have no unit; `val_abs_rel` and `val_delta1` are pooled over valid pixels.

    Training and validation use the size of the epoch's stage; validation always uses the run's own data.
    `images_per_second` is for training alone, over all processes; `seconds` is for the whole epoch.
    """

    epoch: int
    step: int
    stage: str
    learning_rate: float
    train_loss: float
    val_loss: float
    val_abs_rel: float
    val_delta1: float
    images_per_second: float
    seconds: float


def write_history(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write `metrics.csv`. Raises OutputError."""
    with atomic_write(folder / "metrics.csv") as path, path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)
