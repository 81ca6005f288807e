"""The report: one HTML file, readable offline, with verdict, charts, tables and depth maps."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jinja2 import Environment as Templates
from markupsafe import Markup

from ..bench.results import BenchResult, Row
from ..bench.statistics import Interval
from ..files import write_text
from ..reference import Reference
from . import charts
from .charts import milliseconds, model, short_name
from .depth_maps import error_maps, scenes
from .tables import TABLES, headline, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_report"]

_MOST_LAYERS: Final = 10
_FLOOR: Final = 1e-7
"""1 - SSIM of pictures that are equal in float32; a log axis needs a lower end."""


def write_report(
    path: Path, result: BenchResult, references: Sequence[Reference], answers: Sequence[np.ndarray | None]
) -> None:
    """Write the report of a bench.

    Args:
        path: the HTML file.
        result: the bench.
        references: each row's reference.
        answers: each row's depth for its reference frames, N x H x W float32; None: not computed.

    Raises:
        OutputError: the file cannot be written.
    """
    style, script = _source("report.css"), _source("report.js")
    templates = Templates(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = templates.from_string(_source("report.html.j2")).render(
        result=result,
        style=Markup(style),  # noqa: S704 - both are files of this package
        script=Markup(script),  # noqa: S704
        policy=_policy(style, script),
        summary=_summary(result),
        pareto=_pareto(result),
        groups=_groups(result, charts.latencies, lambda row: row.wall_ms),
        phase_groups=_groups(result, charts.phases, lambda row: row.phases),
        latency=partial(_latency, result),
        roofline=_roofline(result),
        layered=_layered(result),
        errors=error_maps(result.rows, references, answers),
        scenes=scenes(result.rows, references, answers),
        tables=[table for table in TABLES if table.wanted(result)],
        state=_state,
        short_name=short_name,
    )
    write_text(path, text)


def _source(name: str) -> str:
    return package_files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that allows only this page's style, script and embedded pictures."""
    own = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return f"default-src 'none'; img-src data:; style-src 'sha256-{own[0]}'; script-src 'sha256-{own[1]}'"


def _state(row: Row) -> str:
    """pass, fail, error, or none without a gate."""
    return verdict(row).partition(":")[0].lower() or "none"


def _summary(result: BenchResult) -> dict[str, Any]:
    """Data for the summary at the top."""
    judged = [row for row in result.rows if _state(row) != "none"]
    fastest = []
    for group in _models(result):
        within = [row for row in group if _state(row) == "pass" and row.p50_ms is not None]
        if within:
            best = min(within, key=lambda row: row.percentile(50))
            times = result.speedups.get(best.name)
            fastest.append(
                {
                    "row": best,
                    "p50": milliseconds(best.percentile(50)).split(),
                    "speedup": times,
                    "base": result.baseline(best),
                    "of": len(within),
                }
            )
    return {
        "headline": headline(result),
        "passed": sum(row.passed for row in judged),
        "judged": len(judged),
        "ungated": len(result.rows) - len(judged),
        "failed": [(row, verdict(row)) for row in result.failed],
        "fastest": fastest,
        "doubts": [(row, row.notes) for row in result.rows if row.notes],
    }


def _models(result: BenchResult) -> list[list[Row]]:
    """Groups of rows that may be compared; a row of unknown model is a group of its own."""
    groups: list[list[Row]] = []
    for group in result.groups:
        groups += [group] if group[0].model else [[row] for row in group]
    return groups


def _error(row: Row, *, measured: bool) -> float | None:
    """A row's error: AbsRel against measured depth, or 1 - SSIM to the reference in the worst frame."""
    if measured:
        value = None if row.accuracy is None else row.accuracy.scores.pooled.abs_rel
    else:
        value = None if row.parity is None else max(1 - row.parity.worst_ssim, _FLOOR)
    return value if value is not None and math.isfinite(value) else None


def _pareto(result: BenchResult) -> dict[str, Any] | None:
    """The Pareto chart, and the rows not in it; None: no row has both latency and error."""
    measured = any(_error(row, measured=True) is not None for row in result.rows)
    errors = [(row, _error(row, measured=measured)) for row in result.rows if row.wall_ms]
    found = [(row, error) for row, error in errors if error is not None]
    if not found:
        return None
    points = []
    for row, error in found:
        how = row.accuracy.alignment if measured and row.accuracy is not None else "none"
        series = model(row) if how == "none" else f"{model(row)}, aligned ({how})"
        # Against measured depth, all rows of a batch size compete that are aligned alike; else rows of one model.
        rivals = (row.batch, how) if measured else row.model
        point = charts.Point(row.percentile(50), error, short_name(row), series, row.precision, filled=row.passed)
        points.append(replace(point, rivals=rivals if _state(row) == "pass" else None))
    name = "AbsRel against measured depth" if measured else "1 − SSIM to the reference, worst frame"

    def draw(axes: Axes) -> str:
        return charts.pareto(axes, points, x="p50 latency of a run, ms", y=name, hollow="fails", log_y=not measured)

    shown = {row.name for row, _ in found}
    left_out = [row.name for row in result.rows if row.name not in shown]
    return {"chart": charts.chart(draw, height=400), "measured": measured, "left_out": left_out}


def _groups(result: BenchResult, draw: Callable[..., str], has: Callable[[Row], object]) -> list[dict[str, Any]]:
    """A chart per model, of the rows that have its data."""
    groups = [[row for row in group if has(row)] for group in _models(result)]
    return [
        {
            "title": model(rows[0]),
            "chart": charts.chart(partial(draw, rows=rows), height=60 + 42 * len(rows)),
            "rows": rows,
        }
        for rows in groups
        if rows
    ]


def _latency(result: BenchResult, row: Row) -> dict[str, Any]:
    """A row's median and speedup, with their intervals."""
    median, times = row.p50_interval, result.speedups.get(row.name)
    others = [other for other in result.rows if other is not row]
    return {
        "p50": milliseconds(row.percentile(50)),
        "interval": f"{_between(median)} ms" if median is not None else "too few turns",
        "speedup": f"{times.middle:.2f}×" if times is not None else "",
        "speedup_interval": _between(times) if times is not None else "",
        "baseline": result.baseline(row) is row and any(result.baseline(other) is row for other in others),
    }


def _between(found: Interval) -> str:
    form = ".2f" if found.high >= 10 else ".3f" if found.low >= 1 else ".3g"
    return f"{found.low:{form}} to {found.high:{form}}"


def _roofline(result: BenchResult) -> dict[str, Any] | None:
    """The roofline chart, and each row's % of roofline; None: no row has one."""
    rows = [row for row in result.rows if row.roofline is not None and row.wall_ms]
    if not rows:
        return None
    shares = [(row, row.roofline.floor_ms / row.percentile(50)) for row in rows if row.roofline is not None]
    return {"chart": charts.chart(partial(charts.roofline, rows=rows), height=400), "rows": shares}


def _layered(result: BenchResult) -> list[dict[str, Any]]:
    """The slowest layers of profiled rows, with their share of all layers' time."""
    found = []
    for row in result.rows:
        total = sum(layer.ms for layer in row.layers)
        if not total:
            continue
        shown = sorted(row.layers, key=lambda layer: layer.ms, reverse=True)[:_MOST_LAYERS]
        layers = [(layer, layer.ms / total) for layer in shown]
        rest = 1 - sum(layer.ms for layer in shown) / total
        found.append({"row": row, "layers": layers, "others": len(row.layers) - len(shown), "rest": f"{rest:.1%}"})
    return found
