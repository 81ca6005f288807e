"""Short trainings, cut short or not, and what the tests of fitting read of a run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.data.sources import open_dataset
from depthkit.train.bundle import read_bundle
from depthkit.train.document import TrainingRecord
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.history import EpochRecord
from depthkit.train.torch_session import TorchSession


class KilledError(Exception):
    """What ends a training from outside."""


def train_options(data: Path, out: Path, /, **changes: Any) -> TrainOptions:
    """An epoch of `compact` at 32x48 in batches of four, unless `changes` say otherwise."""
    return replace(TrainOptions("compact", str(data), (32, 48), epochs=1, batch=4, out=out), **changes)


def fitted(options: TrainOptions) -> Path:
    """The folder of a run that is whole when this returns."""
    folder = fit(options)
    assert folder == options.folder
    return folder


def cut_short(options: TrainOptions, after: int = 1) -> None:
    """Train, and end the training from outside after that epoch."""

    def kill(record: EpochRecord) -> None:
        if record.epoch == after:
            raise KilledError

    with pytest.raises(KilledError):
        fit(replace(options, on_epoch=kill))


def record_of(folder: Path) -> TrainingRecord:
    """What a run's bundle says of its training."""
    record = read_bundle(folder).training
    assert record is not None
    return record


def curve_of(folder: Path) -> list[dict[str, str]]:
    """The lines of `metrics.csv` without what depends on the clock."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if key not in {"seconds", "images_per_second"}}
            for row in csv.DictReader(stream)
        ]


def weights_of(folder: Path) -> dict[str, list[float]]:
    """Every value of a run's weights, by name."""
    return {name: tensor.flatten().tolist() for name, tensor in read_bundle(folder).network.state_dict().items()}


def abs_rel_of(folder: Path, data: Path) -> float:
    """AbsRel of a run over the pooled valid pixels of the validation split, in NumPy."""
    errors = []
    with TorchSession(folder) as session:
        samples = open_dataset(str(data), "val", size=(32, 48))
        for image, depth, _ in (samples[index] for index in range(len(samples))):
            measured = (depth > 1e-3) & (depth <= 10)
            errors.append((np.abs(session(image) - depth) / np.where(measured, depth, 1))[measured])
    return float(np.concatenate(errors).mean())
