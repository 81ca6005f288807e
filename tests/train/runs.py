"""What the tests of fitting read of a run."""

from __future__ import annotations

import csv
from pathlib import Path

from depthkit.train.bundle import read_bundle
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions

__all__ = ["KilledError", "curve_of", "fitted", "weights_of"]


class KilledError(Exception):
    """What ends a training from outside."""


def fitted(options: TrainOptions) -> Path:
    """The folder of a run that is whole when this returns."""
    folder = fit(options)
    assert folder == options.folder
    return folder


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
