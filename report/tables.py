"""A bench as tables, with the same columns for the terminal, Markdown and HTML."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Final

from ..bench.results import PHASES, BenchResult, MemoryUse, Phase, Roofline, Row, Throughput
from ..metrics import METRICS, Metric, number
from ..parity import Parity

__all__ = ["PAPER", "TABLES", "Column", "Table", "csv_text", "headline", "markdown", "verdict"]


@dataclass(frozen=True)
class Column:
    """A column: its heading, and a function that formats a row's cell; an empty cell was not measured.

    `optional`: left out if all its cells are empty.
    """

    heading: str
    cell: Callable[[Row], str]
    number: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """A table that fits in a terminal of 80 columns.

    `wanted`: whether a result has data for it; `note`: shown after the title.
    """

    title: str
    columns: tuple[Column, ...]
    wanted: Callable[[BenchResult], bool] = lambda _result: True
    note: Callable[[BenchResult], str] = lambda _result: ""

    def heading(self, result: BenchResult) -> str:
        """The title with its note."""
        note = self.note(result)
        return f"{self.title} ({note})" if note else self.title

    def shown(self, rows: Sequence[Row]) -> list[Column]:
        """The columns without optional ones that are empty."""
        return [column for column in self.columns if not column.optional or any(column.cell(row) for row in rows)]


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def verdict(row: Row) -> str:
    """PASS, FAIL with the reasons, ERROR with the reason; empty for rows without a gate, which are not depthkit's."""
    if row.error:
        return f"ERROR: {row.error}"
    if row.faults:
        return f"FAIL: {'; '.join(row.faults)}"
    return "PASS" if row.kind == "engine" else ""


def headline(result: BenchResult) -> str:
    """How many rows pass their gate, and the largest error of a pixel of the reference frames; empty without gates."""
    judged = [row for row in result.rows if row.kind == "engine"]
    if not judged:
        return ""
    compared = [(row.parity, row) for row in judged if row.parity is not None]
    errors = []
    for is_metric in (True, False):  # millimetres and percent cannot be compared
        kind = [found for found in compared if found[0].is_metric == is_metric]
        if kind:
            parity, row = max(kind, key=lambda found: _badness(found[0]))
            errors.append(f"{_largest(parity)}, {row.precision_asked.upper()}")
    passed = f"{sum(row.passed for row in judged)} of {len(judged)} pass"
    return f"{passed} (largest error {'; '.join(errors)})" if errors else passed


def _badness(parity: Parity) -> float:
    error = parity.max_abs_mm if parity.is_metric else parity.max_abs_percent
    return error if isfinite(error) else float("inf")


def _largest(parity: Parity) -> str:
    if not isfinite(_badness(parity)):
        return "not finite"
    if not parity.is_metric:
        return f"{parity.max_abs_percent:.2g} % of the reference's span"
    return f"{parity.max_abs_mm / 1000:.2f} m" if parity.max_abs_mm >= 10 else f"{parity.max_abs_mm:.2g} mm"


def _percentile(percent: float, least: int) -> Callable[[Row], str]:
    """A percentile of the latency; empty with fewer than `least` runs."""
    return lambda row: f"{row.percentile(percent):.2f}" if len(row.wall_ms) >= least else ""


def _figure(find: Callable[[Row], float | None], form: str) -> Callable[[Row], str]:
    """A formatted figure; empty if it is None."""

    def cell(row: Row) -> str:
        value = find(row)
        return "" if value is None else number(value, form)

    return cell


def _parity(find: Callable[[Parity], float | None], form: str) -> Callable[[Row], str]:
    return _figure(lambda row: None if row.parity is None else find(row.parity), form)


def _accuracy(metric: Metric) -> Callable[[Row], str]:
    return _figure(lambda row: None if row.accuracy is None else metric.of(row.accuracy.scores), metric.form)


def _throughput(find: Callable[[Throughput], float], form: str) -> Callable[[Row], str]:
    return _figure(lambda row: None if row.throughput is None else find(row.throughput), form)


def _roofline(find: Callable[[Roofline, float], float], form: str) -> Callable[[Row], str]:
    """A figure computed from a row's roofline and its median latency in ms."""
    return _figure(lambda row: find(row.roofline, row.p50_ms) if row.roofline and row.p50_ms else None, form)


def _phase(phase: Phase) -> Column:
    return Column(phase, _figure(lambda row: median(row.phases[phase]) if phase in row.phases else None, ".2f"))


def _interval(row: Row) -> str:
    found = row.p50_interval
    return "" if found is None else f"±{found.width:.1%}"


def _bytes(find: Callable[[MemoryUse], int | None]) -> Callable[[Row], str]:
    return lambda row: "" if row.memory is None else _mebibytes(find(row.memory))


def _test_set(result: BenchResult) -> str:
    found = next(row.accuracy for row in result.rows if row.accuracy)
    return f"{found.frames} of {found.available} test frames of {Path(found.data).name}"


_HEAD: Final = (
    Column("model", lambda row: row.model, number=False),
    Column("engine", lambda row: row.backend, number=False),
    Column("precision", lambda row: row.precision, number=False),
)

_ALIGNED: Final = Column(
    "aligned",
    lambda row: "" if row.accuracy is None or row.accuracy.alignment == "none" else row.accuracy.alignment,
    number=False,
    optional=True,
)
"""How predictions without metres were aligned to measured depth before they were scored."""

_PAPER_NAMES: Final = {"unet": "baseline", "compact": "proposed"}

TABLES: Final = (
    Table(
        "Speed",
        (
            *_HEAD,
            Column("p50 ms", _percentile(50, 1)),
            Column("95 %", _interval),
            Column("p90", _percentile(90, 10)),
            Column("p95", _percentile(95, 20)),
            Column("p99", _percentile(99, 100)),
            Column("CV", _figure(lambda row: row.cv, ".1%")),
            Column("FPS", _figure(lambda row: row.fps, ".1f")),
            Column("runs", lambda row: str(len(row.wall_ms) or "")),
        ),
        wanted=lambda result: result.protocol == "steady",
    ),
    Table(
        "Speed by the paper's protocol",
        (
            *_HEAD,
            Column("mean ms", _figure(lambda row: row.mean_ms, ".2f")),
            Column("FPS", _figure(lambda row: row.fps, ".1f")),
            Column("runs", lambda row: str(len(row.wall_ms) or "")),
        ),
        wanted=lambda result: result.protocol == "paper",
    ),
    Table(
        "Phases, median ms; empty: not measured",
        (*_HEAD, *map(_phase, PHASES)),
        wanted=lambda result: any(row.phases for row in result.rows),
    ),
    Table(
        "Throughput",
        (
            *_HEAD,
            Column("streams", _throughput(lambda found: found.streams, "d")),
            Column("FPS", _throughput(lambda found: found.fps, ".1f")),
        ),
        wanted=lambda result: any(row.throughput for row in result.rows),
    ),
    Table(
        "Cost",
        (
            *_HEAD,
            Column("params M", _figure(lambda row: row.parameters and row.parameters / 1e6, ".2f")),
            Column("GMAC", _figure(lambda row: row.macs and row.macs / 1e9, ".2f")),
            Column("file MiB", lambda row: _mebibytes(row.file_bytes)),
            Column("load MiB", _bytes(lambda memory: memory.load_bytes)),
            Column("steady", _bytes(lambda memory: memory.steady_bytes)),
            Column("GPU MiB", _bytes(lambda memory: memory.device_bytes)),
            Column("J/frame", _figure(lambda row: row.energy_j, ".3g")),
        ),
    ),
    Table(
        "Roofline: against this machine's peaks, measured by a convolution of that precision and a copy",
        (
            *_HEAD,
            Column("GMAC/s", _roofline(lambda roof, ms: roof.macs / ms / 1e6, ".0f")),
            Column("of", _roofline(lambda roof, _ms: roof.peaks.gmacs, ".0f")),
            Column("GB/s", _roofline(lambda roof, ms: roof.bytes_moved / ms / 1e6, ".1f")),
            Column("of", _roofline(lambda roof, _ms: roof.peaks.gbytes, ".1f")),
            Column("roofline ms", _roofline(lambda roof, _ms: roof.floor_ms, ".2f")),
            Column("% of roofline", _roofline(lambda roof, ms: roof.floor_ms / ms, ".0%")),
            Column("bound", lambda row: row.roofline.limit if row.roofline else "", number=False),
        ),
        wanted=lambda result: any(row.roofline and row.wall_ms for row in result.rows),
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
        "Parity with the reference: worst frame's SSIM, worst pixel",
        (
            *_HEAD,
            Column("max |Δ|", lambda row: "" if row.parity is None else row.parity.difference),
            Column("MSE", _parity(lambda parity: parity.mse, ".1e")),
            Column("SSIM", _parity(lambda parity: parity.worst_ssim, ".5f")),
            Column("AbsRel", _parity(lambda parity: parity.abs_rel_loss, "+.4f")),
            Column("δ1", _parity(lambda parity: None if parity.delta1_loss is None else -parity.delta1_loss, "+.4f")),
            Column("gate", verdict, number=False),
        ),
    ),
    Table(
        "Accuracy against measured depth",
        (
            *_HEAD,
            _ALIGNED,
            *(Column(metric.heading, _accuracy(metric)) for metric in METRICS if metric.brief),
        ),
        wanted=lambda result: any(row.accuracy for row in result.rows),
        note=_test_set,
    ),
)


PAPER: Final = Table(
    "As the paper's Table 2 (its figures: baseline 163.45 ms, 6.1 FPS, 17.26 M, MSE 0.04781, SSIM 0.7549; "
    "proposed 28.11 ms, 35.5 FPS, 1.22 M, 0.04588, 0.7779)",
    (
        Column("method", lambda row: _PAPER_NAMES.get(row.network, row.network), number=False),
        *_HEAD,
        Column("ms", _figure(lambda row: row.mean_ms, ".2f")),
        Column("FPS", _figure(lambda row: row.fps, ".1f")),
        Column("parameters", _figure(lambda row: row.parameters and row.parameters / 1e6, ".2f")),
        _ALIGNED,
        *(Column(metric.heading, _accuracy(metric)) for metric in METRICS if not metric.pooled),
    ),
)
"""`depthkit bench --table paper`. The paper used other test pictures and another GPU (docs/results/paper.md)."""


def markdown(result: BenchResult) -> str:
    """All tables as Markdown, followed by the command and the machine."""
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
    columns = table.shown(rows)
    lines = [
        "| " + " | ".join(column.heading.replace("|", "\\|") for column in columns) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in columns) + "|",
    ]
    lines += ["| " + " | ".join(column.cell(row).replace("|", "\\|") for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def csv_text(result: BenchResult) -> str:
    """Every row's figures as CSV (RFC 4180) with a header, in full precision; empty: not measured."""
    rows = [_csv_cells(row) for row in result.rows]
    stream = StringIO()
    writer = csv.DictWriter(stream, rows[0] if rows else ("name",))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_cells(row: Row) -> dict[str, object]:
    """A row's cells by column; the csv module writes None as an empty cell."""
    height, width = row.size or (None, None)
    interval, memory, parity = row.p50_interval, row.memory, row.parity
    scores = None if row.accuracy is None else row.accuracy.scores
    return {
        "name": row.name,
        "network": row.network,
        "backend": row.backend,
        "kind": row.kind,
        "target": row.target,
        "provider": row.provider,
        "precision_asked": row.precision_asked,
        "precision": row.precision,
        "height": height,
        "width": width,
        "batch": row.batch,
        "runs": len(row.wall_ms),
        **{name: getattr(row, name) for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms")},
        "p50_low_ms": interval and interval.low,
        "p50_high_ms": interval and interval.high,
        "cv": row.cv,
        "fps": row.fps,
        **{f"{phase}_ms": median(row.phases[phase]) if phase in row.phases else None for phase in PHASES},
        "throughput_fps": row.throughput and row.throughput.fps,
        "parameters": row.parameters,
        "macs": row.macs,
        "macs_share": row.macs_share,
        "file_bytes": row.file_bytes,
        "load_bytes": memory and memory.load_bytes,
        "steady_bytes": memory and memory.steady_bytes,
        "device_bytes": memory and memory.device_bytes,
        "energy_j": row.energy_j,
        "answers": row.answers,
        "max_abs_mm": parity.max_abs_mm if parity and parity.is_metric else None,
        "max_abs_percent": None if parity is None or parity.is_metric else parity.max_abs_percent,
        "worst_ssim": parity and parity.worst_ssim,
        "alignment": row.accuracy and row.accuracy.alignment,
        **{metric.name: scores and metric.of(scores) for metric in METRICS},
        "passed": row.passed,
        "faults": "; ".join(row.faults),
        "notes": "; ".join(row.notes),
        "error": row.error,
    }
