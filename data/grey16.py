"""Depth as 16-bit grey: millimetres, or levels between two ends. All 16-bit files of depth go through this module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from ..files import atomic_write

__all__ = ["levels", "millimetres", "write_depth_png", "write_grey16"]

_MILLIMETRES: Final = 1000
_STRIP: Final = 256  # rows converted at a time, so that no whole copy of a large picture is made


def millimetres(depth: np.ndarray) -> np.ndarray:
    """H x W metres as uint16 millimetres, rounded; 0 for NaN, and 65535 for 65.535 m and more."""
    found = np.empty(depth.shape, np.uint16)
    for top in range(0, len(depth), _STRIP):
        rows = np.nan_to_num(depth[top : top + _STRIP], nan=0.0) * _MILLIMETRES
        found[top : top + _STRIP] = np.clip(np.rint(rows), 0, 65535)
    return found


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """H x W values as uint16 from 0 at `low` to 65535 at `high`, rounded; the same beyond them, and 0 for NaN.

    >>> levels(np.array([[1.0, 2.0, 3.0, 9.0, np.nan]]), 1, 3).tolist()
    [[0, 32768, 65535, 65535, 0]]
    """
    found = np.empty(values.shape, np.uint16)
    scale = 65535 / ((high - low) or 1.0)
    for top in range(0, len(values), _STRIP):
        rows = (np.nan_to_num(values[top : top + _STRIP].astype(np.float64), nan=low) - low) * scale
        found[top : top + _STRIP] = np.clip(np.rint(rows), 0, 65535)
    return found


def write_depth_png(path: Path, depth: np.ndarray) -> None:
    """Write H x W metres atomically as 16-bit PNG in `millimetres`. Raises OutputError."""
    write_grey16(path, millimetres(depth))


def write_grey16(path: Path, values: np.ndarray) -> None:
    """Write H x W uint16 atomically, in the format of the suffix. Raises OutputError."""
    with atomic_write(path) as temporary:
        Image.fromarray(values).save(temporary)
