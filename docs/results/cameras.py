"""Score the built-in weights on pictures of other cameras, as they are and aligned, for cameras.md.

    python docs/results/cameras.py path/to/rgbd_tum_fr1_rpy path/to/rgbd_hololens

A folder has pictures NAME.jpg, each beside its depth NAME.png (uint16, millimetres, 0 where not measured).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np
from PIL import Image

from depthkit.bench.accuracy import measure_accuracy
from depthkit.metrics import Alignment
from depthkit.pipeline.targets import open_target
from depthkit.train.shipped import shipped_names

ALIGNMENTS: Final[tuple[Alignment, ...]] = ("none", "median", "affine")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print a table in Markdown."""
    click.echo("| pictures | weights | aligned | AbsRel | RMSE m | δ1 |")
    click.echo("|---|---|---|---:|---:|---:|")
    for folder in folders:
        for name in shipped_names():
            with open_target(Path(name)) as session:
                for how in ALIGNMENTS:
                    scores = measure_accuracy(session, _pairs(folder), None, how).pooled
                    figures = f"{scores.abs_rel:.3f} | {scores.rmse:.3f} | {scores.delta1:.3f}"
                    click.echo(
                        f"| {folder.name} | {name} {'x'.join(map(str, session.spec.size))} | {how} | {figures} |"
                    )


def _pairs(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for picture in sorted(folder.glob("*.jpg")):
        depth = np.asarray(Image.open(picture.with_suffix(".png")), np.float32) / 1000
        yield np.asarray(Image.open(picture).convert("RGB")), depth


if __name__ == "__main__":
    sys.exit(main())
