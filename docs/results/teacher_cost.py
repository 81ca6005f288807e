"""What a teacher costs in training: asked in every step, or once by `data prepare --teacher`; none, for comparison.

The three take turns, a run of 20 steps each, in one process, so that a busy machine slows all of them alike. CPU time
is of the whole run, with its 8 validation samples and the bundle.

    python docs/results/teacher_cost.py [ROUNDS [NETWORK]]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Final

import click

from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.data.prepare import prepare
from depthkit.data.scenes.render import render_scenes
from depthkit.pipeline.targets import open_teacher
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.history import EpochRecord

SIZE: Final = (240, 320)
BATCH, STEPS = 8, 20
TEACHER: Final = Path("compact")


def write_pairs(folder: Path) -> None:
    """Scenes as files: enough for the steps, and a batch to validate."""
    for split, count in (("train", STEPS * BATCH), ("val", BATCH)):
        for first in range(0, count, BATCH):
            images, depths = render_scenes(range(first, first + BATCH), SIZE)
            for index, image, depth in zip(range(first, first + BATCH), images, depths, strict=True):
                write_image(folder / "images" / split / f"{index:05}.png", image.numpy())
                write_depth_png(folder / "depth" / split / f"{index:05}.png", depth.numpy())


def main() -> int:
    """Print seconds of the 20 steps, by the clock and of CPU time."""
    rounds, network = int([*sys.argv[1:], "3"][0]), [*sys.argv[2:], "compact"][0]
    with tempfile.TemporaryDirectory() as name:
        folder, teacher = Path(name), open_teacher(TEACHER)
        write_pairs(folder / "pairs")
        for data, guide in (("plain", None), ("taught", teacher)):
            start = process_time()
            prepare(folder / "pairs", folder / data, size=SIZE, teacher=guide)
            click.echo(f"prepare {data}: {process_time() - start:.1f} s of CPU time")
        kinds = {"no teacher": ("plain", None), "asked": ("plain", teacher), "stored": ("taught", teacher)}
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(rounds):
            for kind, (data, guide) in kinds.items():
                epochs: list[EpochRecord] = []
                options = TrainOptions(network, str(folder / data), SIZE, epochs=1, steps=STEPS, batch=BATCH)
                out = folder / f"{kind} {turn}"
                start = process_time()
                fit(replace(options, teacher=guide, out=out, on_epoch=epochs.append))
                times[kind].append((STEPS * BATCH / epochs[0].images_per_second, process_time() - start))
                click.echo(f"{network}, {kind}: {times[kind][-1][0]:.1f} s, {times[kind][-1][1]:.1f} s of CPU")
        for kind, found in times.items():
            wall, cpu = (median(each) for each in zip(*found, strict=True))
            click.echo(f"{network}, {kind}: median {wall:.1f} s, {cpu:.1f} s of CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
