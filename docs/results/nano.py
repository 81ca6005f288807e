"""Choose `nano`: train every candidate alike, for a short time; score on the validation split; time all engines.

    cd docs/results
    python nano.py train --data path/to/nyu --out runs/nano
    python nano.py time --out runs/nano --json nano.json
    python nano.py render nano.json > nano.md

A candidate that is trained already is kept, so the first command can be stopped and started again. The test split has
no say in a choice.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import nano_candidates

from depthkit.commands.options import size_option
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.presets import PRESETS, Stage

SHORT: Final = replace(PRESETS["best"], stages=(Stage(0.5, scale=0.5), Stage(0.5)))
"""Without built-in scenes, whose rendering takes longer than a step of these networks."""


@click.group()
def main() -> None:
    """Choose `nano`."""


@main.command()
@click.option("--data", required=True, help="Data set whose training split is used.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/nano"), show_default=True)
@size_option("Training size.", default="240x320")
@click.option("--epochs", default=12, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.argument("names", nargs=-1)
def train(data: str, out: Path, size: tuple[int, int], epochs: int, seed: int, names: tuple[str, ...]) -> None:
    """Train the candidates NAMES (all of them, if none is named)."""
    for name in nano_candidates.names(names):
        if not (out / name / "model.json").is_file():
            click.echo(name)
            network = f"nano_candidates:{name}"
            fit(TrainOptions(network, data, size, epochs=epochs, preset=SHORT, seed=seed, resume=True, out=out))


if __name__ == "__main__":
    sys.exit(main())
