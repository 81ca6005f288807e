"""SVG written by hand: it takes the page's colours, stays small, and needs nothing at view time.

Colours are classes of report.css. Everything that came from outside is escaped by `tag`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from markupsafe import Markup

__all__ = ["Axis", "Curve", "Mark", "linear_axis", "log_axis", "mark_shape", "scatter", "short", "tag"]

_LETTER: Final = 6.9  # mean width of a letter at 11 pixels in the widest font that `system-ui` may be
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 30, 50
_CORNERS: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-5, -5), (5, -5), (5, 5), (-5, 5)],
    "diamond": [(0, -7), (7, 0), (0, 7), (-7, 0)],
    "triangle": [(0, -7), (6, 5), (-6, 5)],
}
_HEXAGON: Final = [(6 * math.cos(n * math.pi / 3), 6 * math.sin(n * math.pi / 3)) for n in range(6)]
_Box = tuple[float, float, float, float]


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element. An attribute's `_` is written `-`, one at its end is dropped; None leaves it out.

    >>> tag("text", "a < b", x=1 / 3, class_="soft", stroke_width=None)
    Markup('<text x="0.33" class="soft">a &lt; b</text>')
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(inside))


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def short(value: float, digits: int = 3) -> str:
    """A figure for a tick or a label: some digits, no exponent where it can be read without.

    >>> short(1234.5), short(0.05), short(2.0), short(1e-7)
    ('1230', '0.05', '2', '1e-7')
    """
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    if not exponent:
        return mantissa
    return f"{float(f'{value:.{digits}g}'):.0f}" if int(exponent) > 0 else f"{mantissa}e{int(exponent)}"


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` as shares of a length, 0 to 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @property
    def labelled(self) -> list[tuple[float, str]]:
        """Ticks in words, with digits enough to tell them apart."""
        for digits in range(3, 10):
            words = [short(tick, digits) for tick in self.ticks]
            if len(set(words)) == len(words):
                break
        return list(zip(self.ticks, words, strict=True))

    def at(self, value: float) -> float:
        """Where a value stands; what is beyond an end stands at that end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = (math.log(max(value, self.low)) if self.log else value) - low
        return min(max(place / (high - low), 0.0), 1.0)


def linear_axis(values: Iterable[float], *, zero: bool = True, ticks: int = 5) -> Axis:
    """Around finite values, with ticks at 1, 2 or 5 times a power of ten.

    >>> linear_axis([3.0, 9.2]).ticks
    (0.0, 2.0, 4.0, 6.0, 8.0)
    """
    found = list(values)
    low, high = (0.0 if zero else min(found)), max(found)
    if high <= low:
        low, high = (0.0, 1.0) if zero else (low - abs(low) * 0.01 - 1e-9, low + abs(low) * 0.01 + 1e-9)
    return Axis(low, high, _nice(low, high, ticks))


def _nice(low: float, high: float, count: int) -> tuple[float, ...]:
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= count)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1))


def log_axis(values: Iterable[float], *, margin: float = 0.08) -> Axis:
    """Around positive values, and `margin` of its length beyond them at either end.

    >>> log_axis([1.0, 1000.0]).ticks
    (1.0, 10.0, 100.0, 1000.0)
    >>> log_axis([3.0]).ticks
    (2.5, 3.0, 3.5)
    """
    found = [math.log10(value) for value in values]
    room = max(margin * (max(found) - min(found)), 0.1)
    low, high = min(found) - room, max(found) + room
    factors = (1, 2, 5) if high - low < 2.8 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    if len(ticks) < 3 and high - low < 1:
        ticks = list(_nice(10**low, 10**high, 5))
    every = -(-len(ticks) // 8)
    return Axis(10**low, 10**high, tuple(float(f"{tick:.6g}") for tick in ticks[::every]), log=True)


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot.

    Attributes:
        x, y: values.
        label: written beside it.
        title: shown when it is pointed at.
        shape: see `mark_shape`.
        colour: class of the mark.
        hollow: its gate does not hold.
    """

    x: float
    y: float
    label: str
    title: str
    shape: str = "circle"
    colour: str = "c0"
    hollow: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through values, with `label` at its last point; `stepped`: level until the next point."""

    points: Sequence[tuple[float, float]]
    colour: str = "c0"
    label: str = ""
    stepped: bool = False


def mark_shape(shape: str, x: float, y: float, *, colour: str = "c0", hollow: bool = False, title: str = "") -> Markup:
    """A mark of about 12 pixels: circle, square, diamond, triangle, or a hexagon for anything else."""
    look = {"class": f"mark {colour}{' hollow' if hollow else ''}"}
    inside = [tag("title", title)] if title else []
    if shape == "circle":
        return tag("circle", *inside, cx=x, cy=y, r=6, **look)
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS.get(shape, _HEXAGON))
    return tag("polygon", *inside, points=corners, **look)


def scatter(
    marks: Sequence[Mark], curves: Sequence[Curve], x: Axis, y: Axis, *, titles: tuple[str, str], alt: str, width: int
) -> Markup:
    """Marks and curves over two axes.

    Args:
        marks, curves: what to draw.
        x, y: axes; y goes up.
        titles: of the axes.
        alt: what a reader who sees nothing is told.
        width: in pixels at which it is meant to be seen; the text keeps its size.
    """
    height = 430 if width > 500 else 360
    plot = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)

    def place(value_x: float, value_y: float) -> tuple[float, float]:
        return plot[0] + x.at(value_x) * (plot[2] - plot[0]), plot[3] - y.at(value_y) * (plot[3] - plot[1])

    parts = _grid(x, y, plot, titles)
    taken: list[_Box] = []
    for curve in curves:
        parts.append(_curve(curve, [place(*point) for point in curve.points], plot, taken))
    spots = [place(mark.x, mark.y) for mark in marks]
    taken += [(px - 8, py - 8, px + 8, py + 8) for px, py in spots]
    parts += [_label(mark.label, spot, plot, taken) for mark, spot in zip(marks, spots, strict=True)]
    parts += [
        mark_shape(mark.shape, *spot, colour=mark.colour, hollow=mark.hollow, title=mark.title)
        for mark, spot in zip(marks, spots, strict=True)
    ]
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=alt, class_="scatter")


def _grid(x: Axis, y: Axis, plot: tuple[int, int, int, int], titles: tuple[str, str]) -> list[Markup]:
    left, top, right, bottom = plot
    parts = []
    for tick, words in x.labelled:
        at = left + x.at(tick) * (right - left)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        parts.append(tag("text", words, x=at, y=bottom + 18, text_anchor="middle", class_="tick"))
    for tick, words in y.labelled:
        at = bottom - y.at(tick) * (bottom - top)
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", words, x=left - 8, y=at + 4, text_anchor="end", class_="tick"))
    parts.append(tag("path", d=f"M{left} {top}V{bottom}H{right}", class_="axis"))
    parts.append(tag("text", titles[0], x=right, y=bottom + 40, text_anchor="end", class_="title"))
    parts.append(tag("text", titles[1], x=4, y=14, class_="title"))
    return parts


def _curve(
    curve: Curve, points: Sequence[tuple[float, float]], plot: tuple[int, int, int, int], taken: list[_Box]
) -> Markup:
    corners = list(points)
    if curve.stepped:
        corners = [points[0]]
        for px, py in points[1:]:
            corners += [(px, corners[-1][1]), (px, py)]
        corners.append((plot[2], points[-1][1]))
        taken += [(a[0] - 2, min(a[1], b[1]) - 2, b[0] + 2, max(a[1], b[1]) + 2) for a, b in pairwise(corners)]
    steps = "L".join(f"{px:.1f} {py:.1f}" for px, py in corners)
    line = tag("path", d=f"M{steps}", class_=f"curve {curve.colour}")
    if not curve.label:
        return line
    end_x, end_y = points[-1]
    taken.append((end_x - len(curve.label) * _LETTER, end_y - 18, end_x, end_y + 2))
    name = tag("text", curve.label, x=end_x - 2, y=end_y - 7, text_anchor="end", class_=f"name {curve.colour}")
    return tag("g", line, name)


def _label(text: str, spot: tuple[float, float], plot: tuple[int, int, int, int], taken: list[_Box]) -> Markup:
    """The text at the nearest free place, with a leader where that is not beside the mark; nothing where none is free.

    Its mark still has a title then, and its row stands in the tables.
    """
    px, py = spot
    wide = len(text) * _LETTER
    for distance in (0, 12, 26, 42, 60):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            x = px + dx * (11 + distance) - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            y = py + dy * (16 + distance)
            box = (x - 2, y - 8, x + wide + 2, y + 7)
            inside = box[0] >= plot[0] and box[2] <= plot[2] + _RIGHT and box[1] >= plot[1] - 8 and box[3] <= plot[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts = [tag("text", text, x=x, y=y + 4, class_="label")]
                if distance:
                    end = (x + wide if dx < 0 else x + wide / 2 if dx == 0 else x, y - 6 * dy)
                    parts.insert(0, tag("line", x1=px, y1=py, x2=end[0], y2=end[1], class_="leader"))
                return tag("g", *parts)
    return Markup("")


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
