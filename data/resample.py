"""Resizing with the answers of Pillow's bilinear filter: fast by NumPy, and the weights for graphs that resize.

Networks are trained on pictures that Pillow shrank with antialiasing (`images.resize_image`). Where the sizes divide,
`shrink` takes the same weighted means in a third of the time. docs/results/resize.md compares the alternatives.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

__all__ = ["can_shrink", "enlarge", "neighbours", "shrink", "weights"]

_MOST_RATIO: Final = 11  # beyond it, a weighted sum of 8-bit pixels exceeds 16 bits
_MOST_SUM: Final = 65535
_STRIP_BYTES: Final = 1 << 19  # worked on at a time, so that every step finds the last one's result in the L2 cache


def can_shrink(size: tuple[int, int], goal: tuple[int, int]) -> bool:
    """Whether `shrink` applies: both sides are divided by a whole number up to 11, one of them by more than 1.

    >>> can_shrink((480, 640), (240, 320)), can_shrink((1080, 1920), (240, 320)), can_shrink((9, 9), (9, 9))
    (True, False, False)
    """
    whole = all(n % to == 0 and n // to <= _MOST_RATIO for n, to in zip(size, goal, strict=True))
    return whole and size != goal


def shrink(image: np.ndarray, target: np.ndarray, *, flip: bool = False) -> None:
    """Write `image` (H x W x 3 uint8) into `target` (h x w x 3 uint8), whose sizes `can_shrink` accepts.

    Means are weighted by a triangle twice as wide as the ratio, as by Pillow's antialiased BILINEAR. At the border they
    are of the pixels that exist. Pillow rounds between its two passes, so levels differ by 1 at most in practice.

    Args:
        image: of any memory layout.
        target: of any memory layout; written.
        flip: reverse the order of the channels.
    """
    (tall, wide), (height, width) = image.shape[:2], target.shape[:2]
    down, across = tall // height, wide // width
    strip = max(1, _STRIP_BYTES // (6 * wide * down))
    for top in range(0, height, strip):
        count = min(strip, height - top)
        rows = _padded(image, (top * down, (top + count) * down), (down // 2, across // 2))
        sums = _weighted(rows, down, [slice(tap, tap + (count - 1) * down + 1, down) for tap in range(len(rows))])
        for row, factor in _border(down, height):
            if top <= row < top + count:
                sums[row - top] = np.rint(sums[row - top] * factor)
        total = _total(down)
        if total * _total(across) * 256 > _MOST_SUM:
            sums += total // 2
            sums //= total
            total = 1
        # At every pixel, though every `across`-th is used: contiguous memory saves more time than fewer sums would.
        length = 3 * (across * (width - 1) + 1)
        sums = _weighted(sums.T, across, [slice(3 * tap, 3 * tap + length) for tap in range(2 * across)]).T
        total *= _total(across)
        for channel in range(3):
            part = np.ascontiguousarray(sums[:, channel :: 3 * across])
            for column, factor in _border(across, width):
                part[:, column] = np.rint(part[:, column] * factor)
            part += total // 2
            part //= total
            target[top : top + count, :, 2 - channel if flip else channel] = part


def enlarge(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate H x W float32 to a `size` (height, width) that is not smaller, as Pillow's BILINEAR; a new array."""
    (_, width), (tall, wide) = depth.shape, size
    left, right, share = neighbours(width, wide)
    # Rows are gathered much faster than columns, so that columns become rows first.
    turned = _between(np.ascontiguousarray(depth.T), left, right, share)
    stretched = np.ascontiguousarray(turned.T)
    upper, lower, share = neighbours(depth.shape[0], tall)
    whole = np.empty(size, np.float32)
    strip = max(1, _STRIP_BYTES // (4 * wide))
    for top in range(0, tall, strip):
        rows = slice(top, top + strip)
        whole[rows] = _between(stretched, upper[rows], lower[rows], share[rows])
    return whole


def _between(rows: np.ndarray, before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """For each i, the point between rows `before[i]` and `after[i]`, of which the second has `share[i]`."""
    found: np.ndarray = rows[before]
    other = rows[after]
    other -= found
    other *= share
    found += other
    return found


def weights(length: int, goal: int) -> np.ndarray:
    """`goal` x `length` float32, to shrink: row i has the weights of the pixels in output pixel i, whose sum is 1.

    They are those of a triangle twice as wide as the ratio, as by Pillow's antialiased BILINEAR.
    """
    centre = (np.arange(goal) + 0.5) * length / goal
    distance = np.abs(np.arange(length) + 0.5 - centre[:, None]) * goal / length
    triangle = np.maximum(1 - distance, 0)
    return np.asarray(triangle / triangle.sum(axis=1, keepdims=True), np.float32)


@lru_cache(maxsize=64)
def neighbours(length: int, goal: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `goal` points: the two of `length` points around it, and the second one's share, as a column."""
    centre = (np.arange(goal) + 0.5) * length / goal - 0.5
    before = np.floor(centre).astype(np.intp)
    share = (centre - before).astype(np.float32)[:, None]
    return before.clip(0, length - 1), (before + 1).clip(0, length - 1), share


@lru_cache(maxsize=64)
def _triangle(ratio: int) -> tuple[int, ...]:
    """Whole weights of the pixels around an output pixel, the first at `-(ratio // 2)` from the first it covers.

    >>> _triangle(1), _triangle(2), _triangle(3)
    ((1,), (1, 3, 3, 1), (1, 2, 3, 2, 1))
    """
    half = range(1, ratio + 1) if ratio % 2 else range(1, 2 * ratio, 2)
    return (*half, *reversed(half[: len(half) - ratio % 2]))


def _total(ratio: int) -> int:
    return sum(_triangle(ratio))


def _border(ratio: int, length: int) -> list[tuple[int, float]]:
    """The outputs that have fewer pixels, and what their sums are multiplied by for that."""
    missing = sum(_triangle(ratio)[: ratio // 2])
    if length == 1:
        return [(0, _total(ratio) / (_total(ratio) - 2 * missing))]
    factor = _total(ratio) / (_total(ratio) - missing)
    return [(0, factor), (length - 1, factor)]


def _padded(image: np.ndarray, rows: tuple[int, int], margin: tuple[int, int]) -> np.ndarray:
    """Rows from `rows[0]` to `rows[1]` with a margin around them, 0 beyond the picture: R x (W * 3) uint16."""
    (first, last), (tall, wide), (above, beside) = rows, image.shape[:2], margin
    padded = np.zeros((last - first + 2 * above, wide + 2 * beside, 3), np.uint16)
    start, stop = max(first - above, 0), min(last + above, tall)
    padded[start - first + above :][: stop - start, beside : beside + wide] = image[start:stop]
    return padded.reshape(len(padded), -1)


def _weighted(values: np.ndarray, ratio: int, taps: list[slice]) -> np.ndarray:
    """The sum of the values in each tap, times the triangle's weights."""
    weights = _triangle(ratio)
    middle, last = len(weights) // 2, len(weights) - 1
    sums = values[taps[middle]] * weights[middle] if ratio % 2 else None
    for tap in range(middle):
        pair = values[taps[tap]] + values[taps[last - tap]]
        pair *= weights[tap]
        sums = pair if sums is None else np.add(sums, pair, out=sums)
    assert sums is not None
    return sums
