"""The output of `depthkit bench`, and its exit code 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import numpy as np

    from ..bench.contender import Contender, SampleSet
    from ..bench.results import BenchResult, Row
    from ..bench.suite import SuiteOptions
    from ..errors import OutputError
    from ..report.tables import Table

__all__ = ["Outputs", "compare_and_show", "require_any", "require_gate", "run_and_show"]

SLOWEST: Final = 10
"""Number of layers on the terminal; the report and the JSON file have all."""


@dataclass(frozen=True)
class Outputs:
    """Files to write, if any; `paper`: print the paper's table too."""

    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    csv: Path | None = None
    paper: bool = False

    @property
    def files(self) -> list[Path]:
        """The files to write."""
        return [path for path in (self.json, self.html, self.markdown, self.csv) if path]


def run_and_show(
    chosen: list[Contender],
    samples: SampleSet | None,
    options: SuiteOptions,
    outputs: Outputs,
    *,
    others: Sequence[Row] = (),
    bisect: bool = False,
) -> BenchResult:
    """Bench, write the files, print the tables.

    Args:
        chosen, samples, options: see `run_suite`.
        outputs: what to write.
        others: rows that were measured elsewhere.
        bisect: find the layer where engines that fail their gate diverge.

    Raises:
        OutputError: a file cannot be written; raised before the bench if possible.
        KeyboardInterrupt: while bisecting; everything else is written and printed.
    """
    from ..bench.suite import run_suite
    from ..files import require_writable
    from .console import err, progress

    for path in outputs.files:
        require_writable(path)
    models = {contender.model for contender in chosen}
    if len(models) > 1:
        err.print(
            f"{len(models)} models (weights, size, batch) in one bench: rows are only compared within a model",
            style="yellow",
        )
    with progress() as bar:
        task = bar.add_task("starting", total=1.0)
        result, answers = run_suite(
            chosen, samples, options, lambda what, share: bar.update(task, description=what, completed=share)
        )
    result = replace(result, rows=(*result.rows, *others))
    answers += [None] * len(others)
    # Files first: printing may fail.
    refused = _write(result, outputs, chosen, answers)
    stopped = False
    if bisect:
        result, stopped = _bisect(result, chosen)
        refused = _write(result, outputs, chosen, answers)
    _print(result, outputs)
    if refused is not None:
        raise refused
    _print_end(result, outputs)
    if stopped:
        raise KeyboardInterrupt
    return result


def require_any(result: BenchResult) -> None:
    """Raise UserError if no engine could be benched: then no gate was checked."""
    from ..errors import UserError

    engines = [row for row in result.rows if row.kind == "engine"]
    if result.complete and all(row.error for row in engines):
        raise UserError("; ".join(dict.fromkeys(row.error for row in engines)))


def require_gate(result: BenchResult) -> None:
    """Raise GateError if a row could not be benched, or fails its gate."""
    from ..errors import GateError

    if result.failed:
        rows = "; ".join(f"{row.target}: {row.error or ', '.join(row.faults)}" for row in result.failed)
        raise GateError(f"{len(result.failed)} of {len(result.rows)} rows failed: {rows}")


def compare_and_show(old: Path, new: Path, *, fail_above: float, relative_to: str, markdown_file: Path | None) -> None:
    """Compare two results; `relative_to`: a backend, "auto" or "none". Raises GateError on a regression."""
    from ..bench.compare import common_peer, compare, markdown
    from ..bench.results import read_result
    from ..errors import GateError
    from ..files import write_text
    from .console import out

    before, after = read_result(old), read_result(new)
    backend = {"auto": common_peer(before, after), "none": None}.get(relative_to, relative_to)
    found = compare(before, after, fail_above=fail_above, relative_to=backend)
    text = markdown(found)
    if markdown_file:
        write_text(markdown_file, text)
    out.print(text, markup=False)
    if found.regressions:
        raise GateError(f"{new} is worse than {old}: {'; '.join(map(str, found.regressions))}")


def _bisect(result: BenchResult, chosen: Sequence[Contender]) -> tuple[BenchResult, bool]:
    """Set `diverges`, or a note why not, for engines that fail their gate; also return whether it was interrupted."""
    from ..pipeline.contenders import find_divergence
    from .console import progress

    rows = list(result.rows)
    stopped = False
    with progress() as bar:
        task = bar.add_task("bisecting", total=len(chosen))
        try:
            for index, contender in enumerate(chosen):
                row = rows[index]
                if row.faults and row.parity is not None and Path(row.target).is_file():
                    try:
                        rows[index] = replace(row, diverges=find_divergence(contender))
                    except Exception as error:  # noqa: BLE001 - a vendor may raise anything, and the bench is done
                        rows[index] = replace(
                            row, notes=(*row.notes, f"not bisected: {str(error) or type(error).__name__}")
                        )
                bar.advance(task)
        except KeyboardInterrupt:
            stopped = True
    return replace(result, rows=tuple(rows)), stopped


def _write(
    result: BenchResult, outputs: Outputs, chosen: Sequence[Contender], answers: Sequence[np.ndarray | None]
) -> OutputError | None:
    """Write all files, even if some cannot be written; return the first error."""
    from ..documents import to_json
    from ..errors import OutputError
    from ..files import write_text
    from ..report.html import write_report
    from ..report.tables import csv_text, markdown

    refused = None
    for path, text in ((outputs.json, to_json), (outputs.markdown, markdown), (outputs.csv, csv_text)):
        try:
            if path:
                write_text(path, text(result))
        except OutputError as error:
            refused = refused or error
    try:
        if outputs.html:
            write_report(outputs.html, result, [contender.reference for contender in chosen], answers)
    except OutputError as error:
        refused = refused or error
    return refused


def _print_end(result: BenchResult, outputs: Outputs) -> None:
    """Print which files were written, and the verdict."""
    from rich.markup import escape

    from ..report.tables import headline
    from .console import out

    for path in outputs.files:
        out.print(f"[green]wrote[/] {escape(str(path))}")
    if verdict := headline(result):
        out.print(verdict, style="bold red" if result.failed else "bold green", markup=False)


def _print(result: BenchResult, outputs: Outputs) -> None:
    from ..report.tables import PAPER, TABLES
    from .console import err, out

    for table in (*TABLES, *([PAPER] if outputs.paper else [])):
        if table.wanted(result):
            for group in result.groups:
                out.print(_shown(table, result, group))
    for row in result.rows:
        if row.layers:
            out.print(_slowest(row))
    for row in result.rows:
        for note in (*row.notes, *([f"bisected: {row.diverges}"] if row.diverges else [])):
            err.print(f"note: {row.name}: {note}", style="yellow", markup=False)
    for note in result.notes:
        err.print(f"note: {note}", style="yellow", markup=False)
    if not result.complete:
        err.print("interrupted: only what was measured until then", style="yellow")


def _slowest(row: Row) -> object:
    """A table of the slowest layers."""
    from rich import box
    from rich.table import Table as Shown

    whole = sum(layer.ms for layer in row.layers)
    shown = Shown(
        title=f"Layers of {row.name}: the {SLOWEST} slowest of {len(row.layers)}, {whole:.2f} ms in all",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("layer", "kind", "ms", "share"):
        shown.add_column(heading, justify="right" if heading in {"ms", "share"} else "left", overflow="fold")
    for layer in row.layers[:SLOWEST]:
        shown.add_row(layer.name, layer.kind, f"{layer.ms:.3f}", f"{layer.ms / whole:.1%}")
    return shown


def _shown(table: Table, result: BenchResult, group: Sequence[Row]) -> object:
    """A table of the rows of one model, without empty columns."""
    from rich import box
    from rich.table import Table as Shown
    from rich.text import Text

    # At 80 columns words wrap, and figures are not cut.
    look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    title = f"{group[0].model or group[0].target}: {table.heading(result)}"
    shown = Shown(title=title, title_justify="left", title_style="bold", **look)  # type: ignore[arg-type]
    filled = [each for each in table.columns if each.heading != "model" and any(each.cell(row) for row in group)]
    for column in filled:
        justify: Literal["left", "right"] = "right" if column.number else "left"
        shown.add_column(column.heading, justify=justify, no_wrap=column.number, overflow="fold")
    for row in group:
        cells = [Text(column.cell(row)) for column in filled]
        for column, cell in zip(filled, cells, strict=True):
            if column.heading == "gate":
                cell.stylize("green" if row.passed else "bold red")
        shown.add_row(*cells)
    return shown
