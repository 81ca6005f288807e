"""`depthkit demo`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import click

from .options import DAY, CountType, NumberType, command_line, size_option

if TYPE_CHECKING:
    from ..tolerances import Precision

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything.",
)
@size_option("Size of frames and engines.", default="96x128")
@click.option(
    "--steps",
    type=CountType(8, 1_000_000),
    default=120,
    show_default=True,
    help="Training steps of compact; unet takes a quarter.",
)
@click.option(
    "--seconds",
    type=NumberType(0, DAY),
    default=3.0,
    show_default=True,
    help="Time for each row of the bench, and at least 10 runs.",
)
def demo(out: Path, size: tuple[int, int], steps: int, seconds: float) -> None:
    """Run the whole line on the built-in scenes: train, export, check, build, bench, report, tune.

    Takes a few minutes on two CPU cores. A network that was trained for so short a time is not accurate yet; what the
    demo shows is that its engines are still exactly that network, and how fast they are.

    \b
    Example:
      depthkit demo        then open demo/report.html
    """
    from rich.markup import escape

    from ..bench.suite import SuiteOptions
    from ..bench.timing import Steady
    from ..bench.tune import Budget
    from ..export.recipe import ExportOptions
    from ..train.bundle import read_bundle
    from ..train.document import read_document
    from ..train.fit import fit
    from ..train.options import TrainOptions
    from .bench_output import Outputs, require_gate, run_and_show
    from .console import out as console
    from .contenders import contenders, sample_set
    from .export import EngineOptions, export_run
    from .precision import PrecisionOptions
    from .train import epoch_line
    from .tune import tune_run
    from .workshop import Scope, read_panel

    started = perf_counter()
    engines: list[Path] = []
    for network, share in (("compact", 1), ("unet", 4)):
        console.rule(f"{network}: train on built-in scenes")
        options = TrainOptions(
            network,
            size=size,
            steps=steps // share,
            epochs=1000,
            preset="best",
            out=out,
            progress=console.is_terminal,
            on_epoch=None if console.is_terminal else epoch_line,
        )
        folder = fit(options)
        if folder is None:
            return
        console.rule(f"{network}: export, check, build")
        calibration = PrecisionOptions(int8=True).calibration(read_document(folder), size)
        for precision in PRECISIONS:
            wanted = ExportOptions(precision)
            if precision == "int8":
                wanted = ExportOptions(precision, calibration=calibration, keep="auto")
            engines += export_run(folder, wanted, EngineOptions(("all",)))
    console.rule("bench")
    result = run_and_show(
        contenders(engines, with_torch=True),
        sample_set("scenes", 32, 1000.0),
        SuiteOptions(steady=Steady(duration_s=seconds), command=command_line()),
        Outputs(json=out / "bench.json", html=out / "report.html"),
    )
    require_gate(result)
    console.rule("tune")
    bundle = read_bundle(out / "compact")
    tune_run(bundle, Budget(), Scope(precisions=PRECISIONS, sizes=[size]), read_panel(bundle), seconds=60)
    console.print(f"[bold]open {escape(str(out / 'report.html'))}[/]   ({perf_counter() - started:.0f} s in all)")
