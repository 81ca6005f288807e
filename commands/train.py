"""`depthkit train`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click
from click.core import ParameterSource

from ..names import DEPTH_UNITS
from .options import (
    MOST_FRAMES_A_RUN,
    CountType,
    DevicesType,
    NetworkType,
    NumberType,
    PathType,
    SectionedCommand,
    data_option,
    depth_units_option,
    size_option,
)

if TYPE_CHECKING:
    from ..train.fit_options import LoggerName
    from ..train.history import EpochRecord

_DEFAULT: Final = ParameterSource.DEFAULT
_NAMES: Final = {"network": "networks"}  # options whose parameters have other names


@click.command(
    cls=SectionedCommand,
    sections={
        "What to train": ("--network", "--answers", "--output", "--data", "--depth-units", "--skip-bad", "--size"),
        "From what": ("--init", "--teacher", "--unlabelled", "--quantize"),
        "How long, and how": ("--preset", "--epochs", "--steps", "--batch", "--accumulate", "--lr", "--seed"),
        "The run": ("--out", "--resume", "--force", "--logger"),
        "Hardware": ("--devices", "--num-nodes", "--precision", "--compile", "--workers"),
    },
)
@click.option(
    "--network",
    "networks",
    type=NetworkType(),
    multiple=True,
    help="Built-in network, or your own (see docs/networks.md); may be repeated.  [default: compact and unet]",
)
@click.option(
    "--answers",
    type=click.Choice(["share", "metres"]),
    help="What your network answers: a share (0 to 1) of 10 m, or metres.  [default: share; with --init, as that run]",
)
@click.option(
    "--output",
    metavar="NAME",
    help="Depth among the tensors that your network returns: a key, field or index.  [default: the only one that fits]",
)
@data_option("Built-in scenes, or a data set (see docs/data.md).", default="scenes")
@size_option("Training size; the built-in networks need multiples of 16.", default="240x320")
@click.option("--epochs", type=CountType(1, 1_000_000), default=50, show_default=True, help="Passes over the data.")
@click.option("--steps", type=CountType(1, 1_000_000_000), help="Maximum number of steps, in equal epochs.")
@click.option(
    "--batch", type=CountType(1, MOST_FRAMES_A_RUN), default=8, show_default=True, help="Pictures per pass and device."
)
@click.option(
    "--accumulate", type=CountType(1, 1_000_000), default=1, show_default=True, help="Passes per optimiser step."
)
@click.option("--lr", type=NumberType(0, 1000, above=True), help="Learning rate.  [default: the preset's]")
@click.option(
    "--preset",
    type=click.Choice(["paper", "best", "refine"]),
    default="paper",
    show_default=True,
    help="paper: Adam at 1e-4; flips, rotation, light colour jitter. best: on built-in scenes, then on the data "
    "at half size, then at full size; AdamW, one cycle, zoom, blur, noise, averaged weights. refine: like best, for "
    "--init: on the data at 0.6 of the size, then at full size.",
)
@click.option("--init", type=PathType(), help="Start from the weights of this run, or of `nano` or `compact`.")
@click.option(
    "--teacher",
    type=PathType(),
    metavar="RUN|FILE",
    help="Also follow the depth of this network: a run, `compact`, an ONNX file or an engine, of any size.",
)
@click.option(
    "--unlabelled",
    type=PathType(file_okay=False),
    help="With --teacher: also train on the pictures in this folder, which need no depth.",
)
@click.option(
    "--quantize",
    type=PathType(),
    metavar="RUN",
    help="Continue training this run (or `compact`) for INT8, with its network and, by default, its size and data; a "
    "few epochs suffice.",
)
@click.option("--out", type=PathType(), default=Path("runs"), show_default=True, help="Folder of the runs.")
@click.option("--resume", is_flag=True, help="Continue from OUT/<network>/last.ckpt if it exists.")
@click.option("--force", is_flag=True, help="Replace a finished run in OUT/<network> when the new one is complete.")
@click.option(
    "--seed",
    type=CountType(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed for weights, order and augmentation.",
)
@click.option(
    "--devices",
    type=DevicesType(),
    default="auto",
    show_default=True,
    help="Devices per node; with more than one, DDP.",
)
@click.option("--num-nodes", type=CountType(1, 10_000), default=1, show_default=True, help="Number of nodes, for DDP.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "32-true", "16-mixed", "bf16-mixed"]),
    default="auto",
    show_default=True,
    help="Lightning's precision; auto: bf16-mixed on a GPU that has it, else FP32.",
)
@click.option("--compile", "compiled", is_flag=True, help="Train through torch.compile.")
@click.option(
    "--workers",
    type=CountType(0, 1024),
    help="Data-loading processes per device.  [default: number of cores on a GPU, else 0]",
)
@click.option("--skip-bad", is_flag=True, help="Skip pictures that cannot be read, and name them.")
@click.option(
    "--logger",
    "loggers",
    type=click.Choice(["csv", "tensorboard", "wandb"]),
    multiple=True,
    help="Lightning logger, besides metrics.csv and curve.png; may be repeated.",
)
@depth_units_option
def train(
    networks: tuple[str, ...],
    answers: Literal["share", "metres"] | None,
    output: str | None,
    data: str,
    size: tuple[int, int],
    epochs: int,
    steps: int | None,
    batch: int,
    accumulate: int,
    lr: float | None,
    preset: str,
    init: Path | None,
    teacher: Path | None,
    unlabelled: Path | None,
    quantize: Path | None,
    out: Path,
    resume: bool,
    force: bool,
    seed: int,
    devices: str,
    num_nodes: int,
    precision: str,
    compiled: bool,
    workers: int | None,
    skip_bad: bool,
    loggers: tuple[LoggerName, ...],
    depth_units: float | None,
) -> None:
    """Train networks, each into its own run folder.

    A finished run is only replaced with --force, when the new one is complete; until then the new one is in
    OUT/<network>/unfinished.

    \b
    Examples:
      depthkit train                          both networks on the built-in scenes
      depthkit train --network compact --data path/to/nyu --size 96x128 --preset best --epochs 30
      depthkit train --resume --network compact --data path/to/nyu ...
      depthkit train --force --network compact   replace the finished run
      depthkit train --network mypackage.module:MyNet --data path/to/pairs
      depthkit train --quantize runs/compact --epochs 5 --out runs/int8
      torchrun --nproc-per-node 8 -m depthkit train --devices 8 ...   see docs/training.md
    """
    from rich.markup import escape

    from ..errors import UserError
    from ..packages import TRAINING, require_packages

    require_packages(*TRAINING)
    from ..pipeline.targets import depth_units_of, locate, open_teacher
    from ..train.fit import fit
    from ..train.fit_options import TrainOptions
    from ..train.networks import build_network
    from ..train.presets import PRESETS
    from ..train.workplace import require_free
    from .console import out as console

    chosen = networks or ("compact", "unet")
    units = DEPTH_UNITS if quantize is None else depth_units_of([quantize], None)
    if quantize is not None:
        network, init, data, size = _continued(quantize, out, data, size)
        chosen, preset = (network,), "int8"
    if init is not None and len(chosen) > 1:
        raise UserError("--init has the weights of one network; name it with --network")
    guide = None if teacher is None else open_teacher(teacher)
    trainings = [
        TrainOptions(
            network=network,
            answers=answers,
            output=output,
            data=data,
            size=size,
            epochs=epochs,
            steps=steps,
            batch=batch,
            accumulate=accumulate,
            learning_rate=lr,
            preset=next(name for name in PRESETS if name == preset),
            init=None if init is None else locate(init),
            teacher=guide,
            unlabelled=unlabelled,
            out=out,
            resume=resume,
            force=force,
            seed=seed,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            compiled=compiled,
            workers=workers,
            skip_bad=skip_bad,
            loggers=loggers,
            depth_units=units if depth_units is None else depth_units,
            progress=console.is_terminal,
            on_epoch=None if console.is_terminal else epoch_line,
            on_warning=_warn if _is_first() else None,
        )
        for network in chosen
    ]
    for options in trainings:  # refuse before the first is trained for hours
        build_network(options.network)
        require_free(options.folder, options.network, resume=resume, force=force)
    folders = []
    for options in trainings:
        if _is_first():
            name = f"[bold]{options.network}[/] on {escape(data)} at {size[0]}x{size[1]}, preset {preset}"
            scale = f", {options.depth_units:g} depth units per metre" if options.depth_units != DEPTH_UNITS else ""
            console.print(name + scale)
        folder = fit(options)
        if folder is not None:
            folders.append(folder)
            _say_skipped(folder)
            console.print(f"[green]trained[/] {escape(str(folder))}  (see curve.png and samples.png)")
    if folders:
        runs = " ".join(shlex.quote(str(folder)) for folder in folders)
        console.print(f"next: depthkit export {'' if quantize is None else '--int8 '}{runs}", markup=False)


def _is_first() -> bool:
    """Whether this process prints: Lightning starts the command again for each further device."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _warn(sentence: str) -> None:
    from .console import err

    err.print(sentence, style="yellow", markup=False)


def _continued(run: Path, out: Path, data: str, size: tuple[int, int]) -> tuple[str, Path, str, tuple[int, int]]:
    """The network, initial weights, data and size for `--quantize`; the run's own unless given as options.

    Raises UserError for options that have no effect, and if the run itself would be overwritten.
    """
    from ..errors import UserError
    from ..names import file_name
    from ..pipeline.targets import locate
    from ..train.document import read_document
    from ..train.origin import find_data

    typed = click.get_current_context().get_parameter_source
    unused = [f"--{name}" for name in ("network", "preset", "init") if typed(_NAMES.get(name, name)) is not _DEFAULT]
    if unused:
        raise UserError(f"{', '.join(unused)} has no effect with --quantize, which continues a run; leave it out")
    folder = locate(run)
    document = read_document(folder)
    network = document.model.network
    if (out / file_name(network)).resolve() == folder.resolve():
        raise UserError(f"the result would replace {run}; choose another folder with --out")
    if typed("data") is _DEFAULT:
        data = find_data(document, "give --data")
    return network, folder, data, document.model.size if typed("size") is _DEFAULT else size


def _say_skipped(folder: Path) -> None:
    """Name the samples that `--skip-bad` skipped."""
    from rich.markup import escape

    from ..train.document import MODEL, read_document
    from .console import out as console

    record = read_document(folder).training
    if record is not None and record.skipped:
        shown = ", ".join(record.skipped[:10])
        rest = f" and {len(record.skipped) - 10} more, see {folder / MODEL}" if len(record.skipped) > 10 else ""
        console.print(f"[yellow]skipped[/] {len(record.skipped)} samples that cannot be read: {escape(shown + rest)}")


def epoch_line(record: EpochRecord) -> None:
    """Print an epoch's figures, for outputs without a progress bar."""
    from .console import out as console

    console.print(
        f"  epoch {record.epoch:3d}  {record.stage}  loss {record.train_loss:.4f}  val loss {record.val_loss:.4f}  "
        f"val AbsRel {record.val_abs_rel:.3f}  val δ1 {record.val_delta1:.3f}  "
        f"{record.images_per_second:.1f} images/s, {record.seconds:.1f} s"
    )
