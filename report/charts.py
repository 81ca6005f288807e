"""Charts of the report and of `depthkit tune`, drawn with matplotlib.

A chart is a function that draws on axes and returns its text alternative. In the report it is an SVG in an `<img>`:
matplotlib's SVG needs inline styles, which the content security policy forbids.
"""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..bench.results import PHASES, Row
from ..bench.statistics import pareto_front
from ..files import atomic_write
from ..precisions import PRECISIONS, stored_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "Chart", "Point", "chart", "latencies", "milliseconds", "model", "pareto", "phases", "png", "roofline",
    "short_name",
]  # fmt: skip

_WIDE, _NARROW = 860, 360  # pixels on a desktop and on a phone
_COLOURS: Final = ("#1f57c3", "#c2410c", "#0f766e", "#8b33d6", "#b8246a", "#5c6a10")
_INK, _SOFT, _GRID = "#171b21", "#545d69", "#e3e7ed"
_PHASE_COLOURS: Final = dict(zip(PHASES, ("#b07d12", "#0f8f84", "#1f57c3", "#8b5bd6", "#c2410c", _SOFT), strict=True))
_HALF: Final = 0.25
"""Half the height of a row's drawing; its name takes the rest."""
_FEW: Final = 40
"""With fewer runs, each is drawn instead of a histogram."""
_STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True, "axes.edgecolor": _SOFT, "axes.facecolor": "none", "axes.grid": True,
    "axes.labelcolor": _SOFT, "axes.spines.right": False, "axes.spines.top": False, "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"], "font.size": 8.25, "grid.color": _GRID, "legend.frameon": False,
    "legend.labelcolor": _SOFT, "svg.fonttype": "none", "svg.hashsalt": "depthkit", "text.color": _INK,
    "text.parse_math": False, "xtick.color": _SOFT, "ytick.color": _SOFT,
}  # fmt: skip

Draw = Callable[["Axes"], str]


@dataclass(frozen=True)
class Chart:
    """An SVG as data URI in two widths, with its text alternative."""

    wide: str
    narrow: str
    alt: str


@dataclass(frozen=True)
class Point:
    """An engine in a scatter plot.

    Attributes:
        x, y: values.
        name: in the legend, if it is on a Pareto front.
        series: determines its colour; named in the legend.
        precision: gives its marker (`PrecisionFacts`); for "fp16→fp32" that of FP16, for unknown ones a hexagon.
        rivals: points with the same value compete for a Pareto front; None: it does not compete.
        filled: False: draw only the outline.
        note: text beside it.
    """

    x: float
    y: float
    name: str
    series: str
    precision: str
    rivals: object = None
    filled: bool = True
    note: str = ""

    @property
    def marker(self) -> str:
        """The marker's code in matplotlib."""
        stored = stored_in(self.precision)
        return "h" if stored is None else PRECISIONS[stored].marker


def milliseconds(value: float) -> str:
    """Format a latency; small ones do not become zero.

    >>> milliseconds(12.345), milliseconds(0.00012)
    ('12.35 ms', '0.00012 ms')
    """
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3g} ms"


def model(row: Row) -> str:
    """The name of a row's model in the report."""
    return row.model or "unknown model"


def short_name(row: Row) -> str:
    """A row's name without its model."""
    return ", ".join(filter(None, (row.backend, row.precision)))


def chart(draw: Draw, *, height: int) -> Chart:
    """Draw a chart for the report, `height` pixels high without its legend."""
    wide, alt = _svg(draw, _WIDE, height)
    return Chart(wide, _svg(draw, _NARROW, height)[0], alt)


def png(path: Path, draw: Draw) -> None:
    """Write a chart as PNG. Raises OutputError."""
    with atomic_write(path) as temporary:
        _save(temporary, draw, _WIDE, 480, format="png", dpi=192, facecolor="white")


def _svg(draw: Draw, width: int, height: int) -> tuple[str, str]:
    stream = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # so that equal results give equal files
    alt = _save(stream, draw, width, height, format="svg", metadata=nothing)
    # To shorten the file: hundredths of a point suffice in paths, and spaces between elements are not needed.
    text = re.sub(r">\s+<", "><", stream.getvalue().decode())
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+|\s*\n", r"\1", path[0]), text)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}", alt


def _save(file: Path | BytesIO, draw: Draw, width: int, height: int, **how: Any) -> str:
    """Draw and save a figure of this size in CSS pixels (1/96 inch), with a legend above; return its alternative."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        # A name may have letters that matplotlib's font lacks, but the browser's has.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        alt = draw(axes)
        labels = axes.get_legend_handles_labels()[1]
        columns = max(width // (7 * max(map(len, labels), default=1) + 45), 1)
        if labels:
            figure.legend(loc="outside upper left", ncols=columns, columnspacing=1.4, handletextpad=0.4)
        figure.set_size_inches(width / 96, (height + 16 * math.ceil(len(labels) / columns)) / 96)
        figure.savefig(file, **how)
    return alt


def pareto(
    axes: Axes, points: Sequence[Point], *, x: str, y: str, hollow: str, log_y: bool = False, limit: float | None = None
) -> str:
    """Draw latency against error (lower is better in both) with Pareto fronts.

    Args:
        axes: to draw on.
        points: x is latency in ms, y the error.
        x, y: axis titles.
        hollow: legend of points that are not filled.
        log_y: use a log scale for the errors, which must be positive.
        limit: the latency limit, if any.
    """
    beside: dict[str, Any] = {"textcoords": "offset points", "fontweight": "bold"}
    colours = _marks(axes, points, hollow)
    best: list[Point] = []
    for rivals in dict.fromkeys(point.rivals for point in points if point.rivals is not None):
        front = pareto_front((point for point in points if point.rivals == rivals), lambda point: (point.x, point.y))
        steps = [point.x for point in front], [point.y for point in front]
        axes.step(*steps, color=_SOFT, linestyle="--", linewidth=1, where="post", zorder=1)
        best += front
    # Names would overlap, so points have numbers and the legend names.
    for number, point in enumerate(best, 1):
        axes.annotate(f"{number}", (point.x, point.y), (-4, -4), ha="right", va="top", **beside)
        axes.plot([], [], point.marker, color=colours[point.series], label=f"{number}: {point.name}")
    for point in points:
        if point.note:
            axes.annotate(point.note, (point.x, point.y), (4, 4), **beside)
    if limit is not None:
        axes.axvline(limit, color=_COLOURS[1], linewidth=1, label="latency limit")
    axes.set(xlabel=x, ylabel=y)
    axes.margins(x=0.1, y=0.15)
    _log(axes, "xy" if log_y else "x")
    return f"{x}, against {y}. On the Pareto front: {', '.join(point.name for point in best) or 'nothing'}."


def roofline(axes: Axes, rows: Sequence[Row]) -> str:
    """Draw rows under the rooflines of their precisions."""
    points, shares, roofs = [], [], {}
    for row in rows:
        roof, ms = row.roofline, row.percentile(50)
        assert roof is not None
        points.append(Point(roof.intensity, roof.macs / ms / 1e6, "", model(row), row.precision))
        shares.append(f"{row.name}: {roof.floor_ms / ms:.0%} of roofline")
        roofs[f"{roof.peaks.precision} by {roof.peaks.by}: {roof.peaks.gmacs:.0f} GMAC/s"] = roof.peaks
    _marks(axes, points, "")
    ridges = sorted(peaks.gmacs / peaks.gbytes for peaks in roofs.values())
    spots = [*ridges, *(point.x for point in points)]
    x = np.array([min(spots) / 2, *ridges, 2 * max(spots)])
    for index, (name, peaks) in enumerate(roofs.items()):
        line = (0, (2 + 4 * index, 1.5)) if index else "solid"
        y = np.minimum(peaks.gmacs, x * peaks.gbytes)
        axes.plot(x, y, color=_SOFT, linestyle=line, linewidth=1, label=name, zorder=1)
    axes.set(xlabel="multiply-accumulates (MAC) per byte", ylabel="10⁹ MAC per second")
    _log(axes, "xy")
    return f"MAC per byte against MAC per second. {'; '.join(shares)}."


def _marks(axes: Axes, points: Sequence[Point], hollow: str) -> Mapping[str, str]:
    """Draw points with a legend of colours, markers and hollow points; return each series' colour."""
    series = dict.fromkeys(point.series for point in points)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(series)}
    markers = {point.precision: point.marker for point in points}
    marks = [(point.x, point.y, point.marker, colours[point.series], point.filled, "") for point in points]
    marks += [(np.nan, np.nan, "o", colour, True, name) for name, colour in colours.items()]
    marks += [(np.nan, np.nan, marker, _INK, True, precision) for precision, marker in markers.items()]
    marks += [] if all(point.filled for point in points) else [(np.nan, np.nan, "o", _INK, False, hollow)]
    for x, y, marker, colour, filled, label in marks:
        fill, edge, width = (colour, "white", 0.5) if filled else ("none", colour, 1)
        axes.plot([x], [y], marker, ms=7, mfc=fill, mec=edge, mew=width, label=label)
    return colours


def latencies(axes: Axes, rows: Sequence[Row]) -> str:
    """Draw the distribution of each row's latencies.

    The axis ends at the largest 99th percentile, so that outliers do not flatten the rest; their number is written.
    """
    low = max(min(min(row.wall_ms) for row in rows) / 1.02, 1e-6)
    high = 1.04 * max(row.percentile(99) for row in rows)
    medians = [milliseconds(row.percentile(50)) for row in rows]
    beyond = [sum(ms > high for ms in row.wall_ms) for row in rows]
    places = _rows(axes, rows, [f"{p50}, {n} beyond" if n else p50 for p50, n in zip(medians, beyond, strict=True)])
    edges = np.geomspace(low, high, 70)
    for y, row in zip(places, rows, strict=True):
        if len(row.wall_ms) < _FEW:
            axes.plot(row.wall_ms, [y] * len(row.wall_ms), "|", color=_COLOURS[0], markersize=9)
            continue
        counts, _ = np.histogram(row.wall_ms, edges)
        first, last = np.flatnonzero(counts)[[0, -1]]
        tops = y + _HALF * (2 * counts[first : last + 1] / counts.max() - 1)
        axes.stairs(tops, edges[first : last + 2], baseline=y - _HALF, fill=True, facecolor=_COLOURS[0] + "73")
    for percent, least, name, line in ((50, 1, "median", "-"), (95, 20, "95th percentile", ":")):
        some = [index for index, row in enumerate(rows) if len(row.wall_ms) >= least]
        spots = [rows[index].percentile(percent) for index in some]
        if some:
            axes.plot([spots] * 2, [places[some] - _HALF, places[some] + _HALF], line, color=_INK)
            axes.plot([], [], line, color=_INK, label=name)
    intervals = [(y, row.p50_interval) for y, row in zip(places, rows, strict=True) if row.p50_interval]
    if intervals:
        axes.barh(
            [y for y, _ in intervals], [found.high - found.low for _, found in intervals], 2 * _HALF,
            [found.low for _, found in intervals], facecolor=_COLOURS[1] + "38", edgecolor=_COLOURS[1],
            label="95 % interval of the median",
        )  # fmt: skip
    axes.set(xlabel="latency of a run, ms", xlim=(low, high))
    _log(axes, "x")
    parts = (f"{short_name(row)} median {p50}" for row, p50 in zip(rows, medians, strict=True))
    return f"Distribution of the latencies of {model(rows[0])}: {'; '.join(parts)}."


def phases(axes: Axes, rows: Sequence[Row]) -> str:
    """Draw the medians of successive phases, stacked; enqueue, which overlaps them, as a thin bar below."""
    found = [{name: median(row.phases[name]) for name in PHASES if name in row.phases} for row in rows]
    serial = [sum(ms for name, ms in each.items() if name != "enqueue") for each in found]
    places = _rows(axes, rows, [milliseconds(ms) if ms else "" for ms in serial])
    left = np.zeros(len(rows))
    for name, colour in _PHASE_COLOURS.items():
        some = [index for index, each in enumerate(found) if name in each]
        values = [found[index][name] for index in some]
        if some and name == "enqueue":
            axes.barh(places[some] - _HALF, values, 0.08, color=colour, label=name)
        elif some:
            axes.barh(places[some], values, 1.6 * _HALF, left[some], color=colour, label=name)
            left[some] += values
    axes.set(xlabel="ms")
    parts = [", ".join(f"{name} {ms:.3g} ms" for name, ms in each.items()) for each in found]
    return "; ".join(f"{short_name(row)}: {part}" for row, part in zip(rows, parts, strict=True))


def _rows(axes: Axes, rows: Sequence[Row], figures: Sequence[str]) -> np.ndarray:
    """Place rows on the y axis, the first at the top, with name and figure above each; return their positions."""
    places = np.arange(len(rows))[::-1]
    for y, row, figure in zip(places, rows, figures, strict=True):
        for x, text, side in ((0, short_name(row), "left"), (1, figure, "right")):
            axes.annotate(text, (x, y + _HALF + 0.03), xycoords=("axes fraction", "data"), ha=side, va="bottom")
    axes.set_yticks(places - _HALF - 0.08, [""] * len(rows))
    axes.set_ylim(-_HALF - 0.08, len(rows) - _HALF - 0.08)
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    return places


def _log(axes: Axes, names: str) -> None:
    """Set a log scale on "x", "y" or "xy", with plain tick labels, even if it spans less than a decade."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator, StrMethodFormatter

    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(axes, f"{name}axis")
        low, high = sorted(axis.get_view_interval())
        steps = (1, 2, 5) if high / low < 500 else (1,)
        axis.set_major_locator(AutoLocator() if high / low < 10 else LogLocator(subs=steps))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
