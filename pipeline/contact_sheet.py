"""The contact sheet of an adopted model: pictures beside its answers, read in different ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..files import atomic_write

__all__ = ["write_sheet"]


def write_sheet(
    path: Path, images: Sequence[np.ndarray], readings: Mapping[str, Sequence[np.ndarray]], title: str
) -> None:
    """Write pictures (H x W x 3 uint8) beside each reading's answers (h x w float32), as PNG. Raises OutputError.

    Every answer is coloured from its own 2nd to its 98th percentile.
    """
    from matplotlib.figure import Figure

    height, width = images[0].shape[:2]
    columns = len(readings) + 1
    figure = Figure(figsize=(2.6 * columns, 2.6 * height / width * len(images) + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(images), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, heading in zip(grid[0], ("picture", *readings), strict=True):
        axes.set_title(heading, fontsize=9)
    for row, image, answers in zip(grid, images, zip(*readings.values(), strict=True), strict=True):
        row[0].imshow(image)
        for axes, answer in zip(row[1:], answers, strict=True):
            low, high = np.nanpercentile(np.where(np.isfinite(answer), answer, np.nan), (2, 98))
            axes.imshow(answer, cmap="turbo", vmin=low, vmax=high)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
