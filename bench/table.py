"""A bench as tables: the same columns for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..spec import file_name
from .results import BenchResult, Row

__all__ = ["TABLES", "Column", "Table", "markdown", "row_name", "verdict"]


@dataclass(frozen=True)
class Column:
    """A heading and how a row's cell is written; an empty cell was not measured."""

    heading: str
    cell: Callable[[Row], str]
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Some columns under a title, narrow enough for a terminal of 80 columns.

    `wanted` says whether a result has anything to show in it; `note` follows the title.
    """

    title: str
    columns: tuple[Column, ...]
    wanted: Callable[[BenchResult], bool] = lambda _result: True
    note: Callable[[BenchResult], str] = lambda _result: ""

    def heading(self, result: BenchResult) -> str:
        """Title and note."""
        note = self.note(result)
        return f"{self.title} ({note})" if note else self.title


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def verdict(row: Row) -> str:
    """PASS, or FAIL and why."""
    return "PASS" if row.passed else f"FAIL: {'; '.join(row.faults)}"


def _model(row: Row) -> str:
    return f"{file_name(row.network)} {row.size[0]}x{row.size[1]}" + (f" x{row.batch}" if row.batch > 1 else "")


def row_name(row: Row) -> str:
    """What tells a row from the others, in words."""
    return f"{_model(row)}, {row.backend}, {row.precision}"


def _percentile(percent: float, least: int) -> Callable[[Row], str]:
    """A cell that stays empty where there are too few runs for the percentile to be one of them."""
    return lambda row: f"{row.percentile(percent):.2f}" if len(row.wall_ms) >= least else ""


def _test_set(result: BenchResult) -> str:
    found = next(row.accuracy for row in result.rows if row.accuracy)
    return f"{found.frames} of {found.available} test frames of {Path(found.data).name}"


_HEAD: Final = (
    Column("model", _model, number=False),
    Column("engine", lambda row: row.backend, number=False),
    Column("precision", lambda row: row.precision, number=False),
)

TABLES: Final = (
    Table(
        "Speed",
        (
            *_HEAD,
            Column("p50 ms", _percentile(50, 1)),
            Column("p95", _percentile(95, 20)),
            Column("p99", _percentile(99, 100)),
            Column("FPS", lambda row: f"{row.fps:.1f}"),
            Column("runs", lambda row: str(len(row.wall_ms))),
        ),
        wanted=lambda result: result.protocol == "steady",
    ),
    Table(
        "Speed by the paper's protocol",
        (
            *_HEAD,
            Column("mean ms", lambda row: f"{row.mean_ms:.2f}"),
            Column("FPS", lambda row: f"{row.fps:.1f}"),
            Column("runs", lambda row: str(len(row.wall_ms))),
        ),
        wanted=lambda result: result.protocol == "paper",
    ),
    Table(
        "Cost",
        (
            *_HEAD,
            Column("params M", lambda row: f"{row.parameters / 1e6:.2f}"),
            Column("GMAC", lambda row: f"{row.macs / 1e9:.2f}"),
            Column("file MiB", lambda row: _mebibytes(row.file_bytes)),
            Column("peak MiB", lambda row: _mebibytes(row.peak_memory_bytes)),
        ),
    ),
    Table(
        "What ran",
        (
            *_HEAD,
            Column("of the MACs", lambda row: "" if row.macs_share is None else f"{row.macs_share:.1%}"),
            Column("provider", lambda row: row.provider, number=False),
        ),
    ),
    Table(
        "Parity with torch FP32 on the reference frames: worst frame's SSIM, worst pixel",
        (
            *_HEAD,
            Column("max |Δ| mm", lambda row: f"{row.parity.max_abs_mm:.3g}"),
            Column("MSE", lambda row: f"{row.parity.mse:.1e}"),
            Column("SSIM", lambda row: f"{row.parity.worst_ssim:.5f}"),
            Column("AbsRel", lambda row: "" if row.parity.abs_rel_loss is None else f"{row.parity.abs_rel_loss:+.4f}"),
            Column("δ1", lambda row: "" if row.parity.delta1_loss is None else f"{0 - row.parity.delta1_loss:+.4f}"),
            Column("gate", verdict, number=False),
        ),
    ),
    Table(
        "Accuracy against measured depth",
        (
            *_HEAD,
            Column("MSE", lambda row: f"{row.accuracy.scores.mse:.5f}" if row.accuracy else ""),
            Column("SSIM", lambda row: f"{row.accuracy.scores.ssim:.4f}" if row.accuracy else ""),
            Column("AbsRel", lambda row: f"{row.accuracy.scores.pooled.abs_rel:.3f}" if row.accuracy else ""),
            Column("RMSE m", lambda row: f"{row.accuracy.scores.pooled.rmse:.3f}" if row.accuracy else ""),
            Column("δ1", lambda row: f"{row.accuracy.scores.pooled.delta1:.3f}" if row.accuracy else ""),
        ),
        wanted=lambda result: any(row.accuracy for row in result.rows),
        note=_test_set,
    ),
)


def markdown(result: BenchResult) -> str:
    """All tables as Markdown, with the command and the machine under them."""
    wanted = [table for table in TABLES if table.wanted(result)]
    parts = [f"**{table.heading(result)}**\n\n{_markdown_table(table, result.rows)}" for table in wanted]
    e = result.environment
    packages = ", ".join(f"{name} {version}" for name, version in e.packages.items())
    parts.append(
        f"`{e.command}`  \nprotocol {result.protocol}; "
        f"{e.gpu + ', ' if e.gpu else ''}{e.cpu.name}, {e.cores} cores, {e.memory_gib} GiB, load {e.load} before, "
        f"OMP_NUM_THREADS {e.omp_num_threads or 'not set'}; "
        f"Python {e.python}, {packages}; depthkit {e.depthkit} {e.commit}; {e.time}"
    )
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table, rows: Sequence[Row]) -> str:
    lines = [
        "| " + " | ".join(column.heading.replace("|", "\\|") for column in table.columns) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|",
    ]
    lines += [
        "| " + " | ".join(column.cell(row).replace("|", "\\|") for column in table.columns) + " |" for row in rows
    ]
    return "\n".join(lines)
