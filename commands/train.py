"""`depthkit train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import SizeType, data_option, depth_units_option

if TYPE_CHECKING:
    from ..train.module import EpochRecord


@click.command()
@click.option(
    "--network",
    "networks",
    type=click.Choice(["compact", "unet"]),
    multiple=True,
    help="Network to train; may be repeated.  [default: both]",
)
@data_option("Built-in scenes, or a data set: NYU as csv or .mat, or images/ beside depth/.", default="scenes")
@click.option(
    "--size",
    type=SizeType(),
    metavar="HxW",
    default="240x320",
    show_default=True,
    help="Training size, divisible by 16.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=50, show_default=True, help="Passes over the data.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps if that is sooner.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures a step and device.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate.  [default: the preset's]")
@click.option(
    "--preset",
    type=click.Choice(["paper", "best"]),
    default="paper",
    show_default=True,
    help="paper: Adam at 1e-4; flips, rotation, light colour jitter. best: AdamW, one cycle, zoom, averaged weights.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
@click.option("--resume", is_flag=True, help="Go on from OUT/<network>/last.ckpt where there is one.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed of weights, order, augmentation.",
)
@click.option("--devices", default="auto", show_default=True, help="Devices a node; more than one: distributed (DDP).")
@click.option("--num-nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes, for DDP.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "32-true", "16-mixed", "bf16-mixed"]),
    default="auto",
    show_default=True,
    help="Lightning's precision; auto: bf16-mixed on a GPU that has it, else FP32.",
)
@depth_units_option
def train(
    networks: tuple[str, ...],
    data: str,
    size: tuple[int, int],
    epochs: int,
    steps: int | None,
    batch: int,
    lr: float | None,
    preset: str,
    out: Path,
    resume: bool,
    seed: int,
    devices: str,
    num_nodes: int,
    precision: str,
    depth_units: float,
) -> None:
    """Train networks and leave a run bundle for each.

    \b
    Examples:
      depthkit train                          both networks on the built-in scenes
      depthkit train --network compact --data path/to/nyu --size 96x128 --preset best --epochs 30
      depthkit train --resume --network compact --data path/to/nyu ...
    """
    from rich.markup import escape

    from ..train.fit import TrainOptions, fit
    from ..train.presets import PRESETS
    from .console import out as console

    for network in networks or ("compact", "unet"):
        options = TrainOptions(
            network=network,
            data=data,
            size=size,
            epochs=epochs,
            steps=steps,
            batch=batch,
            learning_rate=lr,
            preset=next(name for name in PRESETS if name == preset),
            out=out,
            resume=resume,
            seed=seed,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            depth_units=depth_units,
            progress=console.is_terminal,
            on_epoch=None if console.is_terminal else epoch_line,
        )
        if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts this command anew for each further process
            console.print(f"[bold]{network}[/] on {escape(data)} at {size[0]}x{size[1]}, preset {preset}")
        folder = fit(options)
        if folder is not None:
            console.print(f"[green]trained[/] {escape(str(folder))}  (curve.png and samples.png show how it went)")


def epoch_line(record: EpochRecord) -> None:
    """Print a line of the curve, where no progress bar shows it."""
    from .console import out as console

    console.print(
        f"  epoch {record.epoch:3d}  loss {record.train_loss:.4f}  val loss {record.val_loss:.4f}  "
        f"val AbsRel {record.val_abs_rel:.3f}  val δ1 {record.val_delta1:.3f}  {record.seconds:.1f} s"
    )
