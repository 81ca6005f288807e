"""Draw photographs beside their depth by each of the built-in weights: nano.png in nano.md.

    python docs/results/nano_sheet.py photos/*.jpg --out docs/results/nano.png

Depth is at the size of the tile. One scale of colours for all depth of a photograph: the 2nd to 98th percentile of the
last column. The photographs are shown small, as a citation; the page names their sources.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
import numpy as np
from matplotlib.figure import Figure

from depthkit.data.images import read_image, resize_depth, resize_image
from depthkit.files import atomic_write
from depthkit.frames import predict_frames
from depthkit.pipeline.targets import open_target

_TILE: Final = (180, 240)
_GAP, _TOP, _DPI = 4, 22, 100


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", "names", multiple=True, default=("compact", "nano"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(photos: tuple[Path, ...], names: tuple[str, ...], out: Path) -> None:
    """Draw the sheet."""
    images = [read_image(photo) for photo in photos]
    titles, columns = ["picture"], []
    for name in names:
        with open_target(Path(name)) as session:
            titles.append(f"{name}, {'x'.join(map(str, session.spec.size))}")
            columns.append(list(predict_frames(session, images)))
    (rows, wide), (height, width) = (len(images), len(titles)), _TILE
    total = (wide * (width + _GAP), rows * (height + _GAP) + _TOP)
    figure = Figure(figsize=(total[0] / _DPI, total[1] / _DPI), dpi=_DPI)
    for row, (image, depths) in enumerate(zip(images, zip(*columns, strict=True), strict=True)):
        low, high = np.percentile(depths[-1], (2, 98))
        tiles = [resize_image(image, _TILE), *(resize_depth(depth, _TILE, smooth=True) for depth in depths)]
        for column, tile in enumerate(tiles):
            left, top = column * (width + _GAP), _TOP + row * (height + _GAP)
            cell = figure.add_axes(
                (left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1])
            )
            cell.imshow(tile, interpolation="nearest", cmap="turbo", vmin=low, vmax=high)
            cell.set_axis_off()
            if row == 0:
                cell.set_title(titles[column], fontsize=10, pad=4)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    sys.exit(main())
