"""Train `best` with each of its ingredients left out, for the ablation table of paper.md.

    python docs/results/ablation.py --data path/to/nyu --out runs/ablation
    python docs/results/paper.py ablate --data path/to/nyu 'best=runs/ablation/best/compact' ...

Every variant has the same epochs, size and seed. The second command, which this script prints in full when it ends,
measures them on the validation split: the test split has no say in a choice. A run that is there already is kept, so
that the script can be stopped and started again.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from depthkit.commands.options import size_option
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.losses import LossWeights
from depthkit.train.presets import PRESETS, Preset, Stage

BEST: Final = PRESETS["best"]
VARIANTS: Final[dict[str, Preset]] = {
    "best": BEST,
    "without scenes": replace(BEST, stages=(Stage(1.0),)),
    "scenes at two thirds of the size": replace(BEST, stages=(Stage(0.5, scenes=True, scale=2 / 3), Stage(0.5))),
    "without terms on log depth": replace(BEST, loss=LossWeights()),
    "without strong augmentation": replace(BEST, augmentation="paper"),
    "without averaging": replace(BEST, average_share=None),
    "Adam at 1e-4": replace(BEST, optimizer="adam", learning_rate=1e-4),
    "paper": PRESETS["paper"],
}


@click.command()
@click.option("--data", required=True, help="Data set whose training split is used.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@size_option("Training size.", default="48x64")
@click.option("--epochs", default=30, show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.argument("variants", nargs=-1)
def main(data: str, out: Path, size: tuple[int, int], epochs: int, precision: str, variants: tuple[str, ...]) -> None:
    """Train VARIANTS (all of them where none is named), and print the command that measures them."""
    rows = []
    for name in variants or VARIANTS:
        folder = out / name.replace(" ", "-")
        rows.append(f"{name}={folder / 'compact'}")
        if not (folder / "compact" / "model.json").is_file():
            click.echo(name)
            fit(
                TrainOptions(
                    "compact",
                    data,
                    size,
                    epochs=epochs,
                    preset=VARIANTS[name],
                    precision=precision,
                    resume=True,
                    out=folder,
                )
            )
    click.echo(shlex.join(["python", "docs/results/paper.py", "ablate", "--data", data, *rows]))


if __name__ == "__main__":
    sys.exit(main())
