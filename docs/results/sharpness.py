"""How much of a step of measured depth a network's depth has within 8 pixels, for nano.md.

    python docs/results/sharpness.py path/to/nyu compact nano

A step is a pair of pixels, 8 apart in a row or column of the frame, both measured, of which one is at least 1.25 times
as far as the other. A network that blurs its edges has the step over more pixels, so that less of it lies within 8.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
import numpy as np

from depthkit.data.sources import open_dataset
from depthkit.frames import predict_frames
from depthkit.pipeline.targets import open_target

APART: Final = 8  # pixels
STEP: Final = np.log(1.25)


@click.command()
@click.argument("data")
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(data: str, targets: tuple[Path, ...]) -> None:
    """Print the shares on the validation split in Markdown."""
    frames = open_dataset(data, "val")
    samples = [frames[index] for index in range(len(frames))]
    click.echo("| weights | share of a step within 8 pixels |")
    click.echo("|---|---:|")
    for target in targets:
        with open_target(target) as session:
            depths = predict_frames(session, (sample.image for sample in samples))
            found = [_steps(sample.depth, depth) for sample, depth in zip(samples, depths, strict=True)]
        predicted, measured = np.sum(found, axis=0)
        click.echo(f"| {target} {'x'.join(map(str, session.spec.size))} | {predicted / measured:.3f} |")


def _steps(measured: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """The sum of the predicted steps, in the direction of the measured ones, and the sum of these; in log depth."""
    ours, theirs = 0.0, 0.0
    for truth, depth in ((measured, predicted), (measured.T, predicted.T)):
        valid = truth > 0
        log = np.log(np.where(valid, truth, 1))
        step = log[APART:] - log[:-APART]
        counted = valid[APART:] & valid[:-APART] & (np.abs(step) > STEP)
        answer = np.log(depth[APART:]) - np.log(depth[:-APART])
        ours += float((answer * np.sign(step))[counted].sum())
        theirs += float(np.abs(step)[counted].sum())
    return ours, theirs


if __name__ == "__main__":
    sys.exit(main())
