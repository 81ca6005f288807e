"""Smooth the depth of a clip over time: less flicker, and edges and moving things stay where they are.

A network judges every frame anew, so its depth trembles although the room does not. The filter keeps the logarithm of
depth, or answers without metres as they are. For each frame it

1. finds by how much the camera's turn has shifted the picture (phase correlation, Kuglin and Hines, 1975), and shifts
   what it keeps;
2. trusts it where the picture is as before (colour) and so is the depth: at the edge of a thing that moves neither
   holds, and there the frame's own depth counts;
3. moves the frame's depth towards it by that trust.

It looks back only, so a live source is not delayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

__all__ = ["Smoother", "Smoothing", "find_shift"]

_ROWS: Final = 96  # of the picture in which the camera's turn is sought, at least: finer costs time and gains nothing
_NEAREST: Final = np.float32(1e-3)  # metres: smaller ones have no useful logarithm
_AROUND: Final = 5  # pixels: the side of the square whose brightness is compared


@dataclass(frozen=True)
class Smoothing:
    """How strongly to smooth.

    Attributes:
        keep: share of the kept depth where it is trusted fully, 0 to below 1; depth then follows a real change with a
            delay of keep / (1 - keep) frames.
        colour: difference of brightness, 0 to 1, at which trust has fallen to 1/e.
        depth: the same of log depth, a relative change; without metres, of answers as a share of their span.
    """

    keep: float = 0.85
    colour: float = 0.12
    depth: float = 0.35

    def __post_init__(self) -> None:
        if not (0 <= self.keep < 1 and self.colour > 0 and self.depth > 0):
            raise ValueError(f"keep must be from 0 to below 1, colour and depth above 0, not {self}")


class Smoother:
    """Smooths the frames of one clip, in order. A frame of another size begins anew, as after `reset`.

    Args:
        how: None: the defaults.
        span: None: depth is in metres. Otherwise about the largest minus the smallest answer, above 0.
    """

    def __init__(self, how: Smoothing | None = None, *, span: float | None = None) -> None:
        self._how, self._span = how or Smoothing(), span
        self._kept: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # log depth; the picture, grey and coarse

    def reset(self) -> None:
        """Forget all frames, for example at a cut or after a stream was lost."""
        self._kept = None

    def __call__(self, depth: np.ndarray, image: np.ndarray) -> np.ndarray:
        """The smoothed depth of the next frame, a new array.

        Args:
            depth: H x W float32, in metres of 0 or more, or answers.
            image: H x W x 3 uint8, the picture at the size of the depth.
        """
        picture = Image.fromarray(image).convert("L")
        grey = np.asarray(picture, np.float32) / 255
        step = max(1, image.shape[0] // _ROWS)
        coarse = np.asarray(picture.reduce(step), np.float32)
        fresh = np.log(np.maximum(depth, _NEAREST)) if self._span is None else depth / np.float32(self._span)
        if self._kept is None or self._kept[0].shape != fresh.shape:
            self._kept = fresh, grey, coarse
            return depth.copy()
        (kept, before, coarse_before), how = self._kept, self._how
        rows, columns = (step * by for by in find_shift(coarse_before, coarse))
        kept, before, known = _shifted(kept, rows, columns), _shifted(before, rows, columns), _seen(kept, rows, columns)
        change = fresh - kept
        strange = (uniform_filter(np.abs(grey - before), _AROUND) / how.colour) ** 2 + (change / how.depth) ** 2
        fresh -= how.keep * np.exp(-strange) * known * change
        self._kept = fresh, grey, coarse
        smoothed: np.ndarray = np.exp(fresh) if self._span is None else fresh * np.float32(self._span)
        return smoothed


def find_shift(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """By how many rows and columns the content of H x W `before` has moved in `after`; (0, 0) if that is not clear."""
    window = np.outer(np.hanning(before.shape[0]), np.hanning(before.shape[1])).astype(np.float32)
    old, new = (np.fft.rfft2((each - each.mean()) * window) for each in (before, after))
    cross = new * old.conj()
    peak = np.fft.irfft2(cross / (np.abs(cross) + 1e-6), s=before.shape)
    row, column = np.unravel_index(int(peak.argmax()), peak.shape)
    rows, columns = (
        int(at) - length if at > length // 2 else int(at) for at, length in zip((row, column), peak.shape, strict=True)
    )
    moved = abs(rows) <= before.shape[0] // 4 and abs(columns) <= before.shape[1] // 4
    return (rows, columns) if moved else (0, 0)


def _shifted(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.roll(values, (rows, columns), (0, 1)) if rows or columns else values


def _seen(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Where a shifted array has values of before, and not those that came in from the other side."""
    seen = np.ones(values.shape, np.float32)
    for axis, by in enumerate((rows, columns)):
        border = slice(0, by) if by > 0 else slice(values.shape[axis] + by, None)
        if by:
            seen[(slice(None),) * axis + (border,)] = 0
    return seen
