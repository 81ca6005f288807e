"""`depthkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from .options import command_line, data_option, depth_units_option, runs_option

if TYPE_CHECKING:
    from ..bench.results import BenchResult
    from ..bench.suite import Contender, SampleSet, SuiteOptions


@click.command()
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Engine or ONNX file; may be repeated.  [default: every engine in the runs]",
)
@data_option("Data set whose test split fills the accuracy columns.")
@click.option(
    "--frames", type=click.IntRange(min=1), default=100, show_default=True, help="Frames of it, evenly spaced."
)
@click.option(
    "--protocol",
    type=click.Choice(["steady", "paper"]),
    default="steady",
    show_default=True,
    help="steady: real frames, engines in turns. paper: random, 100 warm-ups, mean of 10.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Steady: time for each row, and at least 10 runs.",
)
@click.option(
    "--torch/--no-torch",
    "with_torch",
    default=True,
    show_default=True,
    help="Bench torch eager beside engines whose run is there.",
)
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, each in a process of its own."
)
@click.option("--gate/--no-gate", default=True, show_default=True, help="Exit 3 when a row fails its gate.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all samples and figures to this file.",
)
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a report to this file."
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file.",
)
@depth_units_option
@runs_option
def bench(
    engines: tuple[Path, ...],
    data: str | None,
    frames: int,
    protocol: str,
    seconds: float,
    with_torch: bool,
    memory: bool,
    gate: bool,
    json_file: Path | None,
    html_file: Path | None,
    markdown_file: Path | None,
    depth_units: float,
    runs: Path,
) -> None:
    """Measure latency, parity and accuracy of engines, side by side.

    Parity: every engine answers the reference frames that travel with its model, and must agree with what torch
    answered in FP32, as closely as its precision allows (docs/precision.md). A row that does not, or an ONNX file that
    is not the one its engine was built from, fails its gate, and the command exits 3.

    \b
    Examples:
      depthkit bench                                        every engine in runs/, and torch
      depthkit bench --data path/to/nyu --html bench.html   accuracy too, and a report
      depthkit bench --engine e.ort.onnx                    one engine; needs no torch
    """
    from ..bench.suite import SuiteOptions
    from ..bench.timing import Steady
    from .targets import contenders, find_engines, sample_set

    options = SuiteOptions(
        cast("Literal['steady', 'paper']", protocol), Steady(duration_s=seconds), memory, command_line()
    )
    samples = sample_set(data, frames, depth_units) if data else None
    chosen = contenders(list(engines) or find_engines(runs), with_torch=with_torch)
    result = run_and_show(
        chosen, samples, options, json_file=json_file, html_file=html_file, markdown_file=markdown_file
    )
    if gate:
        require_gate(result)


def run_and_show(
    chosen: list[Contender],
    samples: SampleSet | None,
    options: SuiteOptions,
    *,
    json_file: Path | None = None,
    html_file: Path | None = None,
    markdown_file: Path | None = None,
) -> BenchResult:
    """Bench, print the tables, write the files that were asked for."""
    from rich.markup import escape

    from ..bench.suite import run_suite
    from ..files import write_text
    from .console import out, progress

    with progress() as bar:
        task = bar.add_task("starting", total=1.0)
        result, answers = run_suite(
            chosen, samples, options, lambda what, share: bar.update(task, description=what, completed=share)
        )
    _print(result)
    if json_file:
        from ..spec import to_json

        write_text(json_file, to_json(result))
    if markdown_file:
        from ..bench.table import markdown

        write_text(markdown_file, markdown(result))
    if html_file:
        from ..bench.report import write_report

        write_report(html_file, result, [contender.reference for contender in chosen], answers)
    for path in (json_file, markdown_file, html_file):
        if path:
            out.print(f"[green]wrote[/] {escape(str(path))}")
    return result


def require_gate(result: BenchResult) -> None:
    """Raise GateError when a row fails."""
    from ..errors import GateError

    if result.failed:
        rows = "; ".join(f"{row.target}: {', '.join(row.faults)}" for row in result.failed)
        raise GateError(f"{len(result.failed)} of {len(result.rows)} rows fail their gate: {rows}")


def _print(result: BenchResult) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..bench.table import TABLES
    from .console import out

    for table in TABLES:
        if not table.wanted(result):
            continue
        # Narrow: at 80 columns no cell is cut, above all not the precision.
        look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
        shown = Table(title=table.heading(result), title_justify="left", title_style="bold", **look)  # type: ignore[arg-type]
        for column in table.columns:
            wraps = column.heading in {"gate", "provider"}
            justify: Literal["left", "right"] = "right" if column.number else "left"
            shown.add_column(column.heading, justify=justify, no_wrap=not wraps, overflow="fold")
        for row in result.rows:
            cells = [Text(column.cell(row)) for column in table.columns]
            for column, cell in zip(table.columns, cells, strict=True):
                if column.heading == "gate":
                    cell.stylize("green" if row.passed else "bold red")
            shown.add_row(*cells)
        out.print(shown)
