"""A bench as one HTML file that opens offline: verdict, charts, tables, and what each engine sees."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from jinja2 import Environment as Templates
from markupsafe import Markup

from ..bench.results import PHASES, BenchResult, Row
from ..bench.statistics import Interval
from ..files import write_text
from ..reference import Reference
from . import charts
from .pictures import error_maps, scenes
from .svg import Curve, Mark, linear_axis, short
from .tables import TABLES, headline, verdict

__all__ = ["write_report"]

_WIDE, _NARROW = 860, 360  # pixels of a plot on a desk and on a phone
_MOST_LAYERS: Final = 10
_SERIAL: Final = tuple(phase for phase in PHASES if phase != "enqueue")
"""Phases that follow each other; the host starts a run while the device works."""


def write_report(
    path: Path, result: BenchResult, references: Sequence[Reference], answers: Sequence[np.ndarray | None]
) -> None:
    """Write the report of a bench.

    Args:
        path: the HTML file.
        result: the bench.
        references: each row's reference.
        answers: each row's depth for its reference frames, N x H x W metres; None: it gave none.

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
        groups=_groups(result),
        phase_groups=_phase_groups(result),
        roofline=_roofline(result),
        layered=_layered(result),
        errors=error_maps(result.rows, references, answers),
        scenes=scenes(result.rows, references, answers),
        tables=[table for table in TABLES if table.wanted(result)],
        phases=PHASES,
        state=_state,
    )
    write_text(path, text)


def _source(name: str) -> str:
    return package_files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy: this page's own style and script, pictures that are in it, and nothing else."""
    own = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return f"default-src 'none'; img-src data:; style-src 'sha256-{own[0]}'; script-src 'sha256-{own[1]}'"


def _state(row: Row) -> str:
    """pass, fail, error, or none where there is no gate."""
    return verdict(row).partition(":")[0].lower() or "none"


def _summary(result: BenchResult) -> dict[str, Any]:
    """What a reader must know who reads nothing else."""
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
                    "p50": _ms(best.percentile(50)).split(),
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
    """Groups that may be compared; of rows whose model is not told each stands alone."""
    groups: list[list[Row]] = []
    for group in result.groups:
        groups += [group] if group[0].model else [[row] for row in group]
    return groups


def _label(row: Row) -> str:
    return ", ".join(filter(None, (row.backend, row.precision)))


def _error(row: Row, *, measured: bool) -> float | None:
    """What a row's answers are off by: AbsRel, or 1 - SSIM to torch of the worst frame."""
    if measured:
        value = None if row.accuracy is None else row.accuracy.scores.pooled.abs_rel
    else:
        value = None if row.parity is None else max(1 - row.parity.worst_ssim, charts.FLOOR)
    return value if value is not None and math.isfinite(value) else None


def _pareto(result: BenchResult) -> dict[str, Any] | None:
    """Both widths of the plot, with its legend; None: no row has both latency and error."""
    measured = any(_error(row, measured=True) is not None for row in result.rows)
    errors = [(row, _error(row, measured=measured)) for row in result.rows if row.wall_ms]
    found = [(row, error) for row, error in errors if error is not None]
    if not found:
        return None
    models = list(dict.fromkeys(row.model for row, _ in found))
    colours = {model: f"c{index % 6}" for index, model in enumerate(models)}
    name = "AbsRel against measured depth" if measured else "1 − SSIM to torch FP32, worst frame"
    marks = [
        Mark(
            row.percentile(50), error, _label(row), f"{row.name}: {row.percentile(50):.3g} ms, {error:.3g}",
            charts.precision_shape(row.precision), colours[row.model], hollow=not row.passed,
        )
        for row, error in found
    ]  # fmt: skip
    rivals: dict[object, list[tuple[float, float]]] = {}
    for (row, _), mark in zip(found, marks, strict=True):
        if _state(row) == "pass":
            # Each model has a torch of its own to be like; against measured depth all may compete.
            rivals.setdefault(row.batch if measured else row.model, []).append((mark.x, mark.y))
    fronts = [
        Curve(charts.front(points), f"front {'' if measured else colours[str(rival)]}", stepped=True)
        for rival, points in rivals.items()
    ]
    draw = [charts.pareto(marks, fronts, y_title=name, log_y=not measured, width=width) for width in (_WIDE, _NARROW)]
    shapes = dict.fromkeys((row.precision, charts.precision_shape(row.precision)) for row, _ in found)
    return {
        "plots": draw,
        "models": [(model or "model not told", charts.key("circle", colours[model])) for model in models],
        "shapes": [(precision, charts.key(shape, "ink")) for precision, shape in shapes],
        "hollow": charts.key("circle", "ink", hollow=True) if any(mark.hollow for mark in marks) else None,
        "measured": measured,
        "left_out": [row.name for row in result.rows if row.name not in {row.name for row, _ in found}],
    }


def _groups(result: BenchResult) -> list[dict[str, Any]]:
    """Latencies of the groups that ran, and of every row its distribution."""
    groups = []
    for group in _models(result):
        rows = [row for row in group if row.wall_ms]
        if rows:
            axis = charts.latency_axis([row.wall_ms for row in rows])
            groups.append(
                {
                    "title": rows[0].model or "model not told",
                    "axis": charts.axis_below(axis, "ms"),
                    "rows": [_latency(result, row, axis) for row in rows],
                }
            )
    return groups


def _latency(result: BenchResult, row: Row, axis: Any) -> dict[str, Any]:
    sure = row.p50_interval
    told = f"{row.name}: median {row.percentile(50):.3g} ms of {len(row.wall_ms)} runs"
    if sure is not None:
        told += f", 95 % interval {_between(sure)} ms"
    times = result.speedups.get(row.name)
    others = [other for other in result.rows if other is not row]
    return {
        "row": row,
        "label": _label(row),
        "strip": charts.strip(row.wall_ms, sure, axis, alt=told),
        "histogram": charts.histogram(row.wall_ms, sure, alt=f"how often a run took how long, {told}"),
        "p50": _ms(row.percentile(50)),
        "interval": _between(sure) if sure is not None else "",
        "speedup": f"{times.middle:.2f}×" if times is not None else "",
        "speedup_interval": _between(times) if times is not None else "",
        "baseline": result.baseline(row) is row and any(result.baseline(other) is row for other in others),
    }


def _ms(value: float) -> str:
    """Milliseconds, of which no small one reads as zero."""
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3g} ms"


def _between(found: Interval) -> str:
    form = ".2f" if found.high >= 10 else ".3f" if found.low >= 1 else ".3g"
    return f"{found.low:{form}} to {found.high:{form}}"


def _phase_groups(result: BenchResult) -> list[dict[str, Any]]:
    groups = []
    for group in _models(result):
        rows = [(row, {name: median(times) for name, times in row.phases.items()}) for row in group if row.phases]
        if rows:
            axis = linear_axis([max(sum(_serial(found).values()), *found.values()) for _, found in rows])
            groups.append(
                {
                    "title": rows[0][0].model or "model not told",
                    "axis": charts.axis_below(axis, "ms"),
                    "rows": [_stack(row, found, axis) for row, found in rows],
                }
            )
    return groups


def _serial(found: dict[Any, float]) -> dict[str, float]:
    return {phase: found[phase] for phase in _SERIAL if phase in found}


def _stack(row: Row, found: dict[Any, float], axis: Any) -> dict[str, Any]:
    serial, enqueue = _serial(found), found.get("enqueue")
    told = ", ".join(f"{name} {value:.3g} ms" for name, value in {**serial, **found}.items())
    return {
        "label": _label(row),
        "bar": charts.stack(serial, enqueue, axis, alt=f"{row.name}: {told}"),
        "total": _ms(sum(serial.values())) if serial else "",
        "enqueue": f"enqueue {_ms(enqueue)}" if enqueue is not None else "",
        "names": list(found),
    }


def _roofline(result: BenchResult) -> dict[str, Any] | None:
    rows = [row for row in result.rows if row.roofline is not None and row.wall_ms]
    if not rows:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    marks, lines, roofs = [], [], {}
    for row in rows:
        roof = row.roofline
        assert roof is not None
        share = roof.floor_ms / row.percentile(50)
        reached = roof.macs / row.percentile(50) / 1e6
        title = f"{row.name}: {short(reached)} GMAC/s at {short(roof.intensity)} MAC a byte, {share:.0%} of its roof"
        shape, colour = charts.precision_shape(row.precision), f"c{models.index(row.model) % 6}"
        marks.append(Mark(roof.intensity, reached, f"{_label(row)} {share:.0%}", title, shape, colour))
        roofs[f"{roof.peaks.precision} by {roof.peaks.by}"] = (roof.peaks.gmacs, roof.peaks.gbytes)
        lines.append((row, _label(row), f"{share:.0%}", charts.bar(share, colour=colour), roof))
    return {"plots": [charts.roofline(marks, roofs, width=width) for width in (_WIDE, _NARROW)], "rows": lines}


def _layered(result: BenchResult) -> list[dict[str, Any]]:
    """The dearest layers of rows that were profiled, with their share of all layers' time."""
    found = []
    for row in result.rows:
        total = sum(layer.ms for layer in row.layers)
        if not total:
            continue
        shown = sorted(row.layers, key=lambda layer: layer.ms, reverse=True)[:_MOST_LAYERS]
        most = shown[0].ms
        layers = [(layer, f"{layer.ms / total:.1%}", charts.bar(layer.ms / most)) for layer in shown]
        rest = 1 - sum(layer.ms for layer in shown) / total
        found.append({"row": row, "layers": layers, "others": len(row.layers) - len(shown), "rest": f"{rest:.1%}"})
    return found
