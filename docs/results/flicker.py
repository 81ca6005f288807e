"""How much depth flickers on clips of a moving camera, with and without smoothing, and what that costs: flicker.md.

    python docs/results/flicker.py CLIP.mp4 FOLDER FIRST STEP --engine compact

FOLDER has measured depth NN.png (uint16, millimetres, 0 where not measured) of the clip's frames FIRST, FIRST + STEP, …
Between these frames no depth is measured. So flicker is the mean change of log depth from a frame to the next at the
same place of the room: the picture before is shifted by the camera's turn (phase correlation of the two pictures). That
counts the little that truth changes in a 30th of a second as well, with and without smoothing alike.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import click
import numpy as np

from depthkit.data.images import read_depth
from depthkit.metrics import aggregate, score_frame
from depthkit.pipeline.predictor import Predictor
from depthkit.runtime.smooth import find_shift

MILLIMETRES = 1000


@click.command()
@click.argument("clip", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("first", type=int)
@click.argument("step", type=int)
@click.option("--engine", default="compact", show_default=True)
def main(clip: Path, folder: Path, first: int, step: int, engine: str) -> None:
    """Print two rows of a table in Markdown."""
    files = sorted(folder.glob("*.png"))
    truth = {first + step * at: np.float32(read_depth(file) / MILLIMETRES) for at, file in enumerate(files)}
    flickers = []
    with Predictor(engine) as predictor:
        for smooth in (False, True):
            changes, errors, before = [], [], None
            for result in predictor.stream(clip, smooth=smooth):
                grey, log = result.image.mean(axis=2), np.log(result.small)
                if before is not None:
                    changes.append(change(*before, grey, log))
                before = grey, log
                if (measured := truth.get(result.frame.index)) is not None:
                    errors.append(
                        [score_frame(result.at(measured.shape), measured, None, how) for how in ("none", "median")]
                    )
            flickers.append(mean(changes))
            metres, aligned = (aggregate(scores).pooled.abs_rel for scores in zip(*errors, strict=True))
            click.echo(
                f"| {clip.stem} | {engine} | {'on' if smooth else 'off'} | {len(changes) + 1} | {mean(changes):.4f} | "
                f"{flickers[-1] / flickers[0] - 1:+.0%} | {len(errors)} | {metres:.3f} | {aligned:.3f} |"
            )


def change(grey_before: np.ndarray, before: np.ndarray, grey: np.ndarray, now: np.ndarray) -> float:
    """Mean |change| of log depth where the picture before, shifted by the camera's turn, overlaps this one."""
    moved = find_shift(grey_before, grey)
    old, new = (
        tuple(slice(max(sign * by, 0), size + min(sign * by, 0)) for by, size in zip(moved, now.shape, strict=True))
        for sign in (-1, 1)
    )
    return float(np.abs(now[new] - before[old]).mean())


if __name__ == "__main__":
    sys.exit(main())
