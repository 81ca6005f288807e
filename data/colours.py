"""Depth as colours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from ..spec import Answers

__all__ = ["Span", "colour", "colour_planes", "describe_span", "oriented", "palette"]

Span = tuple[float, float]
"""The nearest and the farthest depth: metres, or answers without metres. Of inverse depth, the nearest is larger."""

_LEAST_REACH: Final = 1e-30  # of a span whose ends are equal
_STRIP: Final = 64  # rows mapped at a time, which stay in the processor's cache; even


def oriented(ends: tuple[float, float], answers: Answers | None) -> Span:
    """A smallest and a largest value as nearest and farthest depth.

    >>> oriented((0.5, 5.0), "metres"), oriented((3.2, 18.0), "inverse")
    ((0.5, 5.0), (18.0, 3.2))
    """
    low, high = ends
    return (high, low) if answers == "inverse" else (low, high)


def describe_span(span: Span, *, is_metric: bool) -> str:
    """A span as text.

    >>> describe_span((0.5, 5.0), is_metric=True), describe_span((18.04, 3.2), is_metric=False)
    ('0.50 to 5.00 m', '18.04 (near) to 3.2 (far), no unit')
    """
    near, far = span
    return f"{near:.2f} to {far:.2f} m" if is_metric else f"{near:.4g} (near) to {far:.4g} (far), no unit"


def colour(depth: np.ndarray, span: Span, colormap: str = "turbo") -> np.ndarray:
    """Map H x W depth to H x W x 3 uint8, from near to far over `span`; beyond it the colours end.

    Args:
        depth: finite; metres or other answers.
        span: the nearest and the farthest depth.
        colormap: one of matplotlib's; `turbo` is blue (near) to red (far), with 256 colours.

    Raises:
        UserError: matplotlib has no such colormap.
    """
    colours = palette(colormap)
    coloured = np.empty((*depth.shape, 3), np.uint8)
    for rows, level in _levels(depth, span):
        # Its indices are within bounds; "clip" spares NumPy a buffered copy of `out`.
        np.take(colours, level, axis=0, out=coloured[rows], mode="clip")
    return coloured


def colour_planes(depth: np.ndarray, span: Span, colormap: str = "turbo") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same colours as video: planes Y, Cb, Cr by BT.709, 16 to 235 and 240, of which Cb and Cr have half the size.

    Sides are made even by repeating the last row and column. Without an RGB picture in between it takes a third of the
    time. Cb and Cr are those of each square's first pixel, so that no colour appears that the colormap lacks.

    Raises UserError: see `colour`.

    >>> [plane.shape for plane in colour_planes(np.ones((3, 5), np.float32), (0, 2))]
    [(4, 6), (2, 3), (2, 3)]
    """
    luma, blue, red = _video_levels(colormap)
    height, width = (side + side % 2 for side in depth.shape)
    y = np.empty((height, width), np.uint8)
    cb, cr = (np.empty((height // 2, width // 2), np.uint8) for _ in range(2))
    for rows, level in _levels(depth, span):
        y[rows, : depth.shape[1]] = luma[level]
        quarter, first = slice(rows.start // 2, (rows.stop + 1) // 2), level[::2, ::2]
        np.take(blue, first, out=cb[quarter], mode="clip")
        np.take(red, first, out=cr[quarter], mode="clip")
    y[:, depth.shape[1] :] = y[:, depth.shape[1] - 1 : depth.shape[1]]
    y[depth.shape[0] :] = y[depth.shape[0] - 1]
    return y, cb, cr


def _levels(depth: np.ndarray, span: Span) -> Iterator[tuple[slice, np.ndarray]]:
    """For each strip of rows, from which to which it is, and its 256 levels over `span` (uint8)."""
    low, high = span
    scale = np.float32(256 / np.copysign(max(abs(high - low), _LEAST_REACH), high - low))
    for top in range(0, len(depth), _STRIP):
        rows = slice(top, min(top + _STRIP, len(depth)))
        level = (depth[rows] - np.float32(low)) * scale
        np.clip(level, 0, 255, out=level)
        yield rows, level.astype(np.uint8)


@cache
def _video_levels(colormap: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, Cb and Cr of each of the 256 colours: ITU-R BT.709-6, 8 bits. Raises UserError."""
    red, green, blue = (palette(colormap) / 255).T
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    levels = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    y, cb, cr = (np.rint(each).astype(np.uint8) for each in levels)
    return y, cb, cr


@cache
def palette(colormap: str) -> np.ndarray:
    """The colours of a colormap from near to far, 256 x 3 uint8; not to be changed. Raises UserError."""
    from matplotlib import colormaps

    if colormap not in colormaps:
        raise UserError(
            f"matplotlib has no colormap {colormap!r}; take turbo, viridis, magma, inferno, gray or Spectral_r"
        )
    found: np.ndarray = colormaps[colormap](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return np.ascontiguousarray(found)
