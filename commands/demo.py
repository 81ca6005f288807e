"""`depthkit demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import click

from ..names import DEPTH_UNITS
from .options import DAY, CountType, NumberType, PathType, command_line, size_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from ..export.recipe import Calibration, ExportOptions
    from ..precisions import Precision

TRAINED: Final[tuple[tuple[str, int, tuple[Precision, ...]], ...]] = (
    ("compact", 1, ("fp32", "int8")),
    ("unet", 6, ("fp32",)),
)
"""Networks to train: name, divisor of the number of steps, and precisions of the export."""
FRAMES: Final = 16
"""Number of scenes that calibrate INT8, and of those that verify it."""
SEARCHING_S: Final = 10.0
"""Seconds for `tune`."""
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
"""Precisions in which the shipped weights are exported."""


@click.command()
@click.option(
    "--out",
    type=PathType(file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything.",
)
@size_option("Size of frames and engines.", default="96x128")
@click.option(
    "--steps",
    type=CountType(6, 1_000_000),
    default=12,
    show_default=True,
    help="Training steps of compact; unet gets a sixth.",
)
@click.option(
    "--seconds",
    type=NumberType(0, DAY),
    default=0.5,
    show_default=True,
    help="Time per row of the bench (at least 10 runs).",
)
def demo(out: Path, size: tuple[int, int], steps: int, seconds: float) -> None:
    """Run the whole pipeline on built-in scenes, from training to tune.

    It exports the built-in weights of compact, whose depth is good, and then trains both networks for a few steps on
    the built-in scenes. These are not accurate yet, so INT8 may fail its gate; the table at the end says so.

    \b
    Example:
      depthkit demo        then open demo/report.html
    """
    from rich.markup import escape

    from ..packages import EXPORTING, TRAINING, require_packages

    require_packages(*TRAINING, *EXPORTING)
    from ..bench.suite import SuiteOptions
    from ..bench.timing import Steady
    from ..errors import GateError
    from ..export.recipe import ExportOptions
    from ..pipeline.budget import Budget
    from ..pipeline.candidates import Scope, read_panel, read_runs
    from ..pipeline.contenders import contenders
    from ..pipeline.samples import sample_set
    from ..pipeline.targets import resolve_run
    from ..sizes import check_size
    from .bench_output import Outputs, require_any, run_and_show
    from .console import err, tell
    from .console import out as console
    from .tune import tune_runs

    check_size(*size)
    started = perf_counter()
    console.rule("compact, built-in weights: export, check, build")
    shipped = resolve_run(Path("compact"), out, tell)
    rooms = _rooms(size)
    built = {("compact-pretrained", p): _export(shipped, ExportOptions(p, size), rooms) for p in PRECISIONS}
    for network, share, precisions in TRAINED:
        console.rule(f"{network}: train on built-in scenes, export, check, build")
        folder = _train(network, out, size, steps // share)
        if folder is None:
            return
        built |= {(network, p): _export(folder, ExportOptions(p, size), rooms) for p in precisions}
    console.rule("bench")
    engines = [engine for made in built.values() if not isinstance(made, str) for engine in made]
    result = run_and_show(
        contenders(engines, tell, with_torch=True),
        sample_set("scenes", 8, DEPTH_UNITS),
        SuiteOptions(steady=Steady(duration_s=seconds), memory=False, command=command_line()),
        Outputs(json=out / "bench.json", html=out / "report.html"),
    )
    require_any(result)
    console.rule("tune")
    sources = read_runs([shipped])
    # INT8 first: the time is short, and the search tries candidates in this order.
    scope = Scope(precisions=("int8", "fp32"), sizes=[sources[""].document.model.size])
    try:
        tune_runs(sources, Budget(), scope, read_panel(sources), calibrate=rooms, seconds=SEARCHING_S)
    except GateError as error:  # possible at sizes that the weights were not trained for
        err.print(str(error), style="yellow", markup=False)
    console.print(_summary(built))
    console.print(f"[bold]open {escape(str(out / 'report.html'))}[/]   ({perf_counter() - started:.0f} s in all)")


def _rooms(size: tuple[int, int]) -> Calibration:
    """A calibration with few frames, to keep the demo short."""
    from ..export.recipe import Calibration, Frames
    from ..pipeline.pictures import read_pictures

    chosen, proof = (read_pictures("scenes", split, FRAMES, size=size) for split in ("train", "val"))
    return Calibration.of("scenes", Frames(chosen.images, chosen.depths), Frames(proof.images, proof.depths))


def _train(network: str, out: Path, size: tuple[int, int], steps: int) -> Path | None:
    """Train a few steps on the built-in scenes; None in a process that is not the first."""
    from ..train.fit import fit
    from ..train.fit_options import TrainOptions
    from .console import out as console
    from .train import epoch_line

    options = TrainOptions(
        network,
        size=size,
        steps=steps,
        epochs=1000,
        preset="best",
        out=out,
        force=True,
        progress=console.is_terminal,
        on_epoch=None if console.is_terminal else epoch_line,
    )
    return fit(options)


def _export(folder: Path, options: ExportOptions, rooms: Calibration) -> list[Path] | str:
    """Build a run's engines for every backend that runs here; or return why its gate failed."""
    from ..errors import GateError
    from ..pipeline.export import EngineOptions, export_run
    from .console import err, tell

    if options.precision == "int8":
        options = replace(options, calibration=rooms)
    try:
        return export_run(folder, options, EngineOptions(("all",)), tell)
    except GateError as error:
        err.print(str(error), style="yellow", markup=False)
        return str(error)


def _summary(built: Mapping[tuple[str, Precision], list[Path] | str]) -> Table:
    """A table of the engines built, and of the gates that failed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("network", "precision", "outcome", box=box.SIMPLE_HEAD)
    for (network, precision), made in built.items():
        outcome = f"gate failed: {made}" if isinstance(made, str) else f"{len(made)} engines, each passed its gate"
        table.add_row(network, precision, Text(outcome))
    return table
