"""`depthkit data`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..names import DEPTH_UNITS
from .options import CountType, DataType, PathType, depth_units_option, size_option

if TYPE_CHECKING:
    from ..data.prepared import PreparedSplit

_NAMED = 10  # samples of a kind that are named; the rest is only counted
_LOOKED_AT = 8  # samples whose depth is checked


@click.group()
def data() -> None:
    """Prepare data sets for training.

    \b
    Examples:
      depthkit data prepare path/to/nyu --size 96x128 --out nyu-96x128
      depthkit train --data nyu-96x128 --size 96x128
    """


@data.command()
@click.argument("source", type=DataType(), metavar="scenes|PATH")
@size_option("Size of the samples: the largest training size.", default="240x320")
@click.option("--out", type=PathType(), required=True, help="A new or empty folder.")
@click.option(
    "--teacher",
    type=PathType(),
    metavar="RUN|FILE",
    help="Also store this network's depth of the training pictures, for `train --teacher`.",
)
@click.option("--skip-bad", is_flag=True, help="Skip samples that cannot be read, and name them.")
@click.option("--workers", type=CountType(1, 1024), help="Decoding threads.  [default: one per CPU]")
@depth_units_option
def prepare(
    source: str,
    size: tuple[int, int],
    out: Path,
    teacher: Path | None,
    skip_bad: bool,
    workers: int | None,
    depth_units: float | None,
) -> None:
    """Decode and resize a data set once, so that training never waits for it.

    Writes memory-mapped arrays of the training and validation splits (5 bytes per pixel). If samples cannot be read, it
    counts them and writes nothing, unless --skip-bad skips them. Samples without measured depth are always skipped.
    Scores are still measured on the source.

    With --teacher (a run, `compact`, an ONNX file or an engine, of any size), training with the same --teacher uses the
    stored depth (2 bytes per pixel), and does not run the teacher in every step.

    \b
    Examples:
      depthkit data prepare path/to/nyu --size 240x320 --out nyu-240x320
      depthkit data prepare my-rooms --out my-rooms-240x320 --skip-bad
      depthkit data prepare path/to/nyu --teacher runs/large --out nyu-taught
    """
    from rich.text import Text

    from ..data.prepare import prepare as write
    from ..packages import require_packages
    from .console import out as console
    from .console import progress

    guide = None
    if teacher is not None:
        require_packages("torch")
        from ..pipeline.targets import open_teacher

        guide = open_teacher(teacher)
    with progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        document = write(
            source,
            out,
            size=size,
            depth_units=depth_units or DEPTH_UNITS,
            skip_bad=skip_bad,
            workers=workers,
            teacher=guide,
            on_progress=lambda share: bar.update(task, completed=share),
        )
    for split, part in (("train", document.train), ("val", document.val)):
        console.print(f"{split}: {len(part.sources)} samples at {size[0]}x{size[1]}")
        for line in _left_out(part):
            console.print(Text(f"  {line}", style="yellow"))
    if teacher is not None:
        console.print(Text(f"train: with the depth of {teacher}"))
    if doubt := _doubt(out):
        console.print(Text(f"{source}: {doubt}", style="yellow"))
    following = _next_command(out, size, len(document.train.sources), teacher)
    console.print(Text.assemble(("prepared ", "green"), f"{out}  ({following})"))


def _doubt(out: Path) -> str | None:
    """A warning if the prepared depth is implausible; else None."""
    from ..data.dataset import evenly_spaced
    from ..data.sources import open_dataset
    from ..metrics import implausible_depth

    data = open_dataset(out, "train")
    return implausible_depth(data[index].depth for index in evenly_spaced(data, _LOOKED_AT))


def _next_command(out: Path, size: tuple[int, int], samples: int, teacher: Path | None) -> str:
    """A `train` command for these data: a size that built-in networks take, not larger, and at most one batch."""
    height, width = (max(side // 16, 1) * 16 for side in size)
    batch = f" --batch {samples}" if samples < 8 else ""
    guide = "" if teacher is None else f" --teacher {shlex.quote(str(teacher))}"
    return f"depthkit train --data {shlex.quote(str(out))} --size {height}x{width}{batch}{guide}"


def _left_out(part: PreparedSplit) -> list[str]:
    lines = []
    for what, samples in (("cannot be read", part.unreadable), ("without measured depth", part.unmeasured)):
        if samples:
            lines.append(f"skipped {len(samples)} {what}:")
            lines += [f"  {sample}" for sample in samples[:_NAMED]]
        if len(samples) > _NAMED:
            lines.append(f"  and {len(samples) - _NAMED} more, all in prepared.json")
    return lines
