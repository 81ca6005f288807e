"""Depth as colours."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from ..errors import UserError

__all__ = ["colour", "palette"]

_STRIP: Final = 64  # rows mapped at a time, which stay in the processor's cache


def colour(depth: np.ndarray, span: tuple[float, float], colormap: str = "turbo") -> np.ndarray:
    """Map H x W metres to H x W x 3 uint8, from near to far over `span` in metres; beyond it the colours end.

    Args:
        depth: finite metres.
        span: the nearest and the farthest depth.
        colormap: one of matplotlib's; `turbo` is blue (near) to red (far), with 256 colours.

    Raises:
        UserError: matplotlib has no such colormap.
    """
    low, high = span
    colours, scale = palette(colormap), np.float32(256 / max(high - low, 1e-6))
    coloured = np.empty((*depth.shape, 3), np.uint8)
    for top in range(0, len(depth), _STRIP):
        level = (depth[top : top + _STRIP] - np.float32(low)) * scale
        np.clip(level, 0, 255, out=level)
        # Its indices are within bounds; "clip" spares NumPy a buffered copy of `out`.
        np.take(colours, level.astype(np.uint8), axis=0, out=coloured[top : top + _STRIP], mode="clip")
    return coloured


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
