"""Sheets of thumbnails with their depth, and the training curve, for paper.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from paper_numbers import Group

from depthkit.data.images import resize_depth, resize_image
from depthkit.files import atomic_write
from depthkit.metrics import VALID_DEPTH, valid_pixels

__all__ = ["SheetRow", "draw_curve", "draw_sheet"]

_DPI: Final = 100
_THUMBNAIL: Final = (96, 128)  # height and width in pixels: NYU's frames are shown small, as a citation
_LEVELS: Final = 24  # steps of a colour scale: a third of the bytes of smooth colours, and easier to read
_GAP: Final = 4
_MARGIN: Final = {"left": 118, "top": 26, "bottom": 50}
_ERROR_SCALE: Final = 2.0  # metres at the end of the error's colour bar


@dataclass(frozen=True)
class SheetRow:
    """A frame: what stands beside it, picture (H x W x 3 uint8), truth and predictions (H x W metres)."""

    label: str
    image: np.ndarray
    truth: np.ndarray
    predictions: tuple[np.ndarray, ...]


def draw_sheet(path: Path, rows: Sequence[SheetRow], names: Sequence[str]) -> None:
    """Write a PNG of picture, truth, each prediction, and the error of the last one. Raises OutputError.

    Args:
        path: the file.
        rows: frames.
        names: of the predictions.
    """
    titles = ("picture", "truth", *names, "its |error|")
    width, height = _place(len(titles), 0)[0] + _GAP, _place(0, len(rows))[1] + _MARGIN["bottom"]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def axes(left: int, top: int, wide: int, high: int) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    for index, row in enumerate(rows):
        tiles, span = _tiles(row)
        for column, (tile, scale) in enumerate(tiles):
            cell = axes(*_place(column, index), _THUMBNAIL[1], _THUMBNAIL[0])
            cell.imshow(tile, interpolation="nearest", **scale)
            cell.set_axis_off()
            if index == 0:
                cell.set_title(titles[column], fontsize=9, pad=4)
        left, top = _place(0, index)
        text = f"{row.label}\n\n{span[0]:.1f} to {span[1]:.1f} m"
        figure.text((left - 8) / width, 1 - (top + _THUMBNAIL[0] / 2) / height, text, ha="right", va="center", size=8)
    last = len(titles) - 1
    for column, name, ends in (
        (1, "turbo", ("near", "far")),
        (last, "magma", ("0", f"≥ {_ERROR_SCALE:g} m")),
    ):
        left, top = _place(column, len(rows))
        bar = axes(left, top + 6, _THUMBNAIL[1], 10)
        bar.imshow(np.linspace(0, 1, _LEVELS)[None], cmap=_colours(name), aspect="auto")
        bar.set(yticks=[], xticks=[])
        bar.text(0, -0.6, ends[0], transform=bar.transAxes, ha="left", va="top", fontsize=8)
        bar.text(1, -0.6, ends[1], transform=bar.transAxes, ha="right", va="top", fontsize=8)
    _save(figure, path)


def _place(column: int, row: int) -> tuple[int, int]:
    """Left and top edge of a thumbnail, in pixels."""
    return _MARGIN["left"] + column * (_THUMBNAIL[1] + _GAP), _MARGIN["top"] + row * (_THUMBNAIL[0] + _GAP)


def _tiles(row: SheetRow) -> tuple[list[tuple[np.ndarray, dict[str, Any]]], tuple[float, float]]:
    """Each thumbnail with its colour scale, and the metres that the depth's scale spans: 2nd to 98th percentile."""
    truth = resize_depth(row.truth, _THUMBNAIL, smooth=False)
    predictions = [resize_depth(depth, _THUMBNAIL, smooth=True) for depth in row.predictions]
    measured = valid_pixels(truth)
    low, high = np.percentile(truth[measured], (2, 98)) if measured.any() else VALID_DEPTH
    depth_scale: dict[str, Any] = {"cmap": _colours("turbo"), "vmin": low, "vmax": high}
    error_scale: dict[str, Any] = {"cmap": _colours("magma"), "vmin": 0, "vmax": _ERROR_SCALE}
    error = np.where(measured, np.abs(predictions[-1] - truth), np.nan)
    return [
        (resize_image(row.image, _THUMBNAIL), {}),
        (np.where(measured, truth, np.nan), depth_scale),
        *((depth, depth_scale) for depth in predictions),
        (error, error_scale),
    ], (float(low), float(high))


def _colours(name: str) -> Colormap:
    return colormaps[name].resampled(_LEVELS)


def draw_curve(path: Path, groups: Sequence[Group]) -> None:
    """Write the training curve as PNG: the mean over seeds, with a band from the lowest to the highest.

    The loss is shown for the paper's preset only: another preset's has other terms. Raises OutputError.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=_DPI)
    left, right = figure.subplots(1, 2)
    for number, members in enumerate(groups):
        colour = f"C{number}"
        if members.first.preset == "paper":
            _line(left, members, [[e.train_loss for e in run.curve] for run in members.runs], f"{colour}--", "training")
            _line(left, members, [[e.val_loss for e in run.curve] for run in members.runs], colour, "validation")
        _line(right, members, [[e.val_delta1 for e in run.curve] for run in members.runs], colour, "")
    left.set(xlabel="epoch", ylabel="loss (training: augmented)", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation δ1", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def _line(axes: Axes, members: Group, values: Sequence[Sequence[float]], style: str, what: str) -> None:
    length = min(map(len, values))
    table = np.array([line[:length] for line in values])
    epochs = [epoch.epoch for epoch in members.first.curve[:length]]
    seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
    label = ", ".join(filter(None, (members.name, what))) + seeds
    axes.plot(epochs, table.mean(0), style, marker=".", markersize=4, label=label)
    axes.fill_between(epochs, table.min(0), table.max(0), color=style.removesuffix("--"), alpha=0.15, linewidth=0)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, pil_kwargs={"optimize": True})
