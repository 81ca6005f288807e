"""Figures of a run: the training curve and the sample sheet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from ..data.dataset import RGBDDataset, evenly_spaced
from ..files import atomic_write
from ..metrics import METRICS, VALID_DEPTH, valid_pixels
from ..spec import ModelSpec
from .camera_ready import CameraReady
from .history import EpochRecord

__all__ = ["plot_curve", "plot_samples"]

_ROWS: Final = 6
_ERROR_SCALE: Final = 2.0  # metres at the end of the error's colour bar


def plot_curve(path: Path, history: Sequence[EpochRecord]) -> None:
    """Plot loss and validation accuracy over epochs, as PNG. Raises OutputError."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    left.plot(epochs, [record.train_loss for record in history], marker=".", label="training (augmented)")
    left.plot(epochs, [record.val_loss for record in history], marker=".", label="validation")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend()
    for metric in METRICS:
        if (name := f"val_{metric.name}") in EpochRecord.__dataclass_fields__:
            figures = [getattr(record, name) for record in history]
            right.plot(epochs, figures, marker=".", label=f"{metric.heading} ({metric.better} is better)")
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    right.legend()
    begins = [record for before, record in pairwise(history) if record.stage != before.stage]
    for axes in (left, right):
        axes.grid(alpha=0.3)
        for record in begins:
            axes.axvline(record.epoch - 0.5, color="grey", linewidth=0.8)
            axes.annotate(
                record.stage,
                (record.epoch - 0.5, 1),
                (2, -9),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color="grey",
                fontsize=7,
            )
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_samples(path: Path, network: nn.Module, spec: ModelSpec, data: RGBDDataset) -> None:
    """Plot picture, truth, prediction and error of evenly spaced samples as PNG. Raises OutputError, DataError."""
    chosen = evenly_spaced(data, _ROWS)
    rows = len(chosen)
    camera = CameraReady(network, spec).eval()
    figure = Figure(figsize=(10, 1.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes, title in zip(grid[0], ("picture", "truth", "prediction", "|error|"), strict=True):
        axes.set_title(title)
    for row, index in zip(grid, chosen, strict=True):
        image, truth, _ = data[index]
        with torch.no_grad():
            prediction = camera(torch.from_numpy(np.ascontiguousarray(image))[None])[0].numpy()
        measured = valid_pixels(truth)
        span = np.percentile(truth[measured], (2, 98)) if measured.any() else VALID_DEPTH
        row[0].imshow(image)
        row[1].imshow(np.where(measured, truth, np.nan), cmap="turbo", vmin=span[0], vmax=span[1])
        depth = row[2].imshow(prediction, cmap="turbo", vmin=span[0], vmax=span[1])
        figure.colorbar(depth, ax=[row[1], row[2]], label="m", fraction=0.02)
        error = row[3].imshow(
            np.where(measured, np.abs(prediction - truth), np.nan), cmap="magma", vmax=_ERROR_SCALE, vmin=0
        )
        figure.colorbar(error, ax=row[3], label="m", fraction=0.04)
        for axes in row:
            axes.set_axis_off()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
