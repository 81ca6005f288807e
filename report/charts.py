"""The report's charts: values in, SVG out.

Charts of one bar or strip a row have no viewBox and place everything in percent, so that they fit any width and their
text keeps its size. What is not measured is not passed, and so not drawn: never as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from markupsafe import Markup

from ..bench.statistics import Interval
from .svg import Axis, Curve, Mark, linear_axis, log_axis, mark_shape, scatter, short, tag

__all__ = [
    "FLOOR",
    "Mark",
    "axis_below",
    "bar",
    "front",
    "histogram",
    "key",
    "latency_axis",
    "pareto",
    "precision_shape",
    "roofline",
    "stack",
    "strip",
]

FLOOR: Final = 1e-7
"""1 - SSIM below which two pictures are the same in float32; a log axis needs an end."""

_SHAPES: Final = {"fp32": "circle", "fp16": "square", "bf16": "diamond", "int8": "triangle"}
_TICKS: Final = 240
_LEAST_FOR_BINS: Final = 40
_SHOWN: Final = 99.0


def precision_shape(precision: str) -> str:
    """A mark's shape; of "fp16→fp32" that of what is stored.

    >>> precision_shape("fp16→fp32"), precision_shape("tf32")
    ('square', 'hexagon')
    """
    return _SHAPES.get(precision.partition("→")[0], "hexagon")


def key(shape: str, colour: str = "c0", *, hollow: bool = False) -> Markup:
    """A mark alone, for a legend."""
    mark = mark_shape(shape, 8, 8, colour=colour, hollow=hollow)
    return tag("svg", mark, width=16, height=16, aria_hidden="true")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both, both the less the better, by the first.

    >>> front([(3, 1), (1, 5), (2, 6), (4, 1)])
    [(1, 5), (3, 1)]
    """
    found: list[tuple[float, float]] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def pareto(marks: Sequence[Mark], fronts: Sequence[Curve], *, y_title: str, log_y: bool, width: int) -> Markup:
    """Latency against error, both the less the better, with the fronts that were found.

    Args:
        marks: x in ms; y the error.
        fronts: each of marks that may be compared.
        y_title: what the error is.
        log_y: the errors differ by powers of ten; they are at least `FLOOR` then.
        width: see `chart_svg.scatter`.
    """
    x = log_axis([mark.x for mark in marks])
    errors = [mark.y for mark in marks]
    if log_y:
        y = log_axis(errors)
    else:
        room = max(max(errors) - min(errors), 0.05 * max(errors), 1e-6) * 0.15
        y = linear_axis([max(min(errors) - room, 0.0), max(errors) + room], zero=False)
    best = ", ".join(mark.label for mark in sorted(marks, key=lambda mark: mark.x) if _on(mark, fronts))
    alt = f"Median latency against {y_title}. On the Pareto front, the fastest first: {best or 'nothing'}."
    return scatter(marks, fronts, x, y, titles=("p50 latency of a run, ms", y_title), alt=alt, width=width)


def _on(mark: Mark, fronts: Sequence[Curve]) -> bool:
    return any((mark.x, mark.y) in curve.points for curve in fronts)


def roofline(marks: Sequence[Mark], roofs: Mapping[str, tuple[float, float]], *, width: int) -> Markup:
    """Engines under the machine's limits.

    Args:
        marks: x in multiply-accumulates a byte; y in 10⁹ of them a second.
        roofs: by what they hold for: 10⁹ multiply-accumulates a second, 10⁹ bytes a second.
        width: see `chart_svg.scatter`.
    """
    ridges = [gmacs / gbytes for gmacs, gbytes in roofs.values()]
    x = log_axis([mark.x for mark in marks] + [0.5 * ridge for ridge in ridges] + [2 * ridge for ridge in ridges])
    tops = [gmacs for gmacs, _ in roofs.values()]
    feet = [min(gmacs, x.low * gbytes) for gmacs, gbytes in roofs.values()]
    y = log_axis([mark.y for mark in marks] + tops + feet, margin=0.05)
    curves = []
    for index, (name, (gmacs, gbytes)) in enumerate(roofs.items()):
        ridge = min(max(gmacs / gbytes, x.low), x.high)
        points = [(x.low, min(gmacs, x.low * gbytes)), (ridge, min(gmacs, ridge * gbytes))]
        end = (x.high, min(gmacs, x.high * gbytes))
        curves.append(Curve([*points, end], f"c{index % 6} roof", f"{name}: {short(gmacs)} GMAC/s"))
    alt = "Work a byte against work a second. " + "; ".join(mark.title for mark in marks)
    return scatter(marks, curves, x, y, titles=("MAC a byte", "10⁹ MAC a second"), alt=alt, width=width)


def latency_axis(rows: Sequence[Sequence[float]]) -> Axis:
    """From zero to what nearly all runs of all rows stay below, so that one stray run does not flatten the rest."""
    return linear_axis([1.04 * float(np.percentile(samples, _SHOWN)) for samples in rows])


def strip(samples: Sequence[float], middle: Interval | None, axis: Axis, *, alt: str) -> Markup:
    """A row's runs as ticks over a bar to their median, with the interval of the median as a box."""
    values = np.sort(np.asarray(samples, np.float64))
    p50, beyond = float(np.median(values)), int((values > axis.high).sum())
    if len(values) > _TICKS:
        values = values[np.linspace(0, len(values) - 1, _TICKS).round().astype(int)]
    ticks = "".join(f"M{1000 * axis.at(value):.0f} 0V1" for value in values if value <= axis.high)
    parts = [
        *_grid(axis),
        tag("rect", x=0, y=9, width=_percent(axis.at(p50)), height=14, rx=2, class_="median"),
    ]
    if middle is not None:
        parts.append(_sure(middle, axis, 3, 26))
    look = "runs" if len(values) > _LEAST_FOR_BINS else "runs few"
    parts.append(_stretched(tag("path", d=ticks, class_=look), 1000, y=5, height=22))
    parts.append(_line(axis.at(p50), 3, 29, "p50"))
    told = f"{alt}; {beyond} runs lie beyond the axis" if beyond else alt
    return tag("svg", tag("title", told), *parts, height=32, role="img", aria_label=told, class_="strip")


def histogram(samples: Sequence[float], middle: Interval | None, *, alt: str) -> Markup:
    """How often a run took how long, on an axis of its own; of few runs every one."""
    values = np.asarray(samples, np.float64)
    last = float(np.percentile(values, _SHOWN)) if len(values) >= _LEAST_FOR_BINS else float(values.max())
    axis = linear_axis([float(values.min()), last], zero=False, ticks=4)
    shown = values[values <= axis.high]
    parts = []
    if middle is not None:
        parts.append(_sure(middle, axis, 4, 84))
    if len(values) >= _LEAST_FOR_BINS:
        bins = min(max(int(math.sqrt(len(values))), 12), 40)
        counts, _ = np.histogram(shown, bins, (axis.low, axis.high))
        outline = "M0 1" + "".join(f"V{1 - count / counts.max():.3f}h1" for count in counts) + "V1Z"
        parts.append(_stretched(tag("path", d=outline, class_="area"), bins, y=8, height=80))
    else:
        runs = "".join(f"M{1000 * axis.at(value):.0f} 0V1" for value in shown)
        parts.append(_stretched(tag("path", d=runs, class_="runs few"), 1000, y=48, height=40))
    for percent, least in ((50, 1), (95, 20)):
        if len(values) >= least:
            parts.append(_line(axis.at(float(np.percentile(values, percent))), 4, 88, f"p{percent}"))
    parts.append(tag("line", x1="0", x2="100%", y1=88.5, y2=88.5, class_="axis"))
    parts += _numbers(axis, 104)
    return tag("svg", tag("title", alt), *parts, height=110, role="img", aria_label=alt, class_="histogram")


def stack(parts: Mapping[str, float], apart: float | None, axis: Axis, *, alt: str) -> Markup:
    """Milliseconds one after the other as a bar; `apart` runs beside them, as a thin bar below."""
    drawn, start = [*_grid(axis)], 0.0
    for name, milliseconds in parts.items():
        place = {"x": _percent(axis.at(start)), "width": _percent(axis.at(start + milliseconds) - axis.at(start))}
        title = tag("title", f"{name} {milliseconds:.3g} ms")
        drawn.append(tag("rect", title, y=3, height=18, class_=f"phase {name}", **place))
        start += milliseconds
    if apart is not None:
        title = tag("title", f"enqueue {apart:.3g} ms")
        drawn.append(tag("rect", title, x=0, y=24, width=_percent(axis.at(apart)), height=5, class_="phase enqueue"))
    return tag("svg", *drawn, height=32, role="img", aria_label=alt, class_="strip")


def bar(share: float, *, colour: str = "c0") -> Markup:
    """A bar of `share` of the width on its whole length, beside figures that say the same."""
    track = tag("rect", width="100%", height=8, rx=2, class_="track")
    filled = tag("rect", width=_percent(min(share, 1.0)), height=8, rx=2, class_=f"fill {colour}")
    return tag("svg", track, filled, height=8, aria_hidden="true", class_="bar")


def axis_below(axis: Axis, unit: str) -> Markup:
    """The figures of an axis, for under its strips."""
    return tag("svg", *_numbers(axis, 14, unit), height=18, aria_hidden="true", class_="strip")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _line(at: float, top: float, bottom: float, kind: str) -> Markup:
    return tag("line", x1=_percent(at), x2=_percent(at), y1=top, y2=bottom, class_=kind)


def _sure(found: Interval, axis: Axis, y: int, height: int) -> Markup:
    """An interval as a box, which is seen however narrow it is."""
    low, width = axis.at(found.low), max(axis.at(found.high) - axis.at(found.low), 0.003)
    return tag("rect", x=_percent(low), y=y, width=_percent(width), height=height, class_="sure")


def _grid(axis: Axis) -> list[Markup]:
    return [_line(axis.at(tick), 0, 32, "grid") for tick in axis.ticks]


def _numbers(axis: Axis, y: float, unit: str = "") -> list[Markup]:
    texts = []
    for tick, words in axis.labelled:
        at = axis.at(tick)
        anchor = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
        text = f"{words} {unit}" if unit and tick == axis.ticks[-1] else words
        texts.append(tag("text", text, x=_percent(at), y=y, text_anchor=anchor, class_="tick"))
    return texts


def _stretched(drawing: Markup, units: int, *, y: int, height: int) -> Markup:
    """A drawing of `units` x 1 that fills the width, whatever that is."""
    look = {"viewBox": f"0 0 {units} 1", "preserveAspectRatio": "none", "width": "100%"}
    return tag("svg", drawing, y=y, height=height, **look)
