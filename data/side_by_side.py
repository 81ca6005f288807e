"""A picture beside its depth in colours, and a bar that says which colour is how many metres, or near and far."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colours import Span, colour

__all__ = ["bar_width", "side_by_side", "side_size"]

_MARKS: Final = 5  # numbers, fewer on a low picture
_BACKGROUND: Final = (24, 24, 24)
_INK: Final = (230, 230, 230)


def side_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what `side_by_side` makes of a picture of `size`; both even.

    >>> side_size((480, 640)), side_size((255, 341))
    ((480, 1366), (256, 744))
    """
    height, width = size
    wide = 2 * width + bar_width(height)
    return height + height % 2, wide + wide % 2


def side_by_side(
    image: np.ndarray, depth: np.ndarray, span: Span, colormap: str = "turbo", *, is_metric: bool = True
) -> np.ndarray:
    """The picture, its depth in colours, and the bar: H x W x 3 uint8 of `side_size`.

    Args:
        image: h x w x 3 uint8 RGB.
        depth: of the picture's size.
        span: the nearest and farthest depth in colours.
        colormap: see `colour`.
        is_metric: whether depth is in metres; otherwise the bar has no numbers.
    """
    (height, width), (tall, wide) = depth.shape, side_size((depth.shape[0], depth.shape[1]))
    made = np.empty((tall, wide, 3), np.uint8)
    made[:height, :width] = image
    made[:height, width : 2 * width] = colour(depth, span, colormap)
    made[height:, : 2 * width] = made[height - 1, : 2 * width]
    made[:, 2 * width :] = _bar((tall, wide - 2 * width), span, colormap, is_metric)
    return made


def bar_width(height: int) -> int:
    """Columns of the bar with its numbers, beside a picture of this height."""
    return 4 * _letter(height) + 22


def _letter(height: int) -> int:
    return int(min(max(height / 30, 10), 48))


@lru_cache(maxsize=8)
def _bar(size: tuple[int, int], span: Span, colormap: str, is_metric: bool) -> np.ndarray:
    """The nearest depth below, the farthest above."""
    (height, width), (near, far) = size, span
    letter = _letter(height)
    margin, thick = letter, max(letter // 2, 6)
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    shades = np.linspace(far, near, max(height - 2 * margin, 1), dtype=np.float32)[:, None]
    picture.paste(Image.fromarray(colour(np.repeat(shades, thick, axis=1), span, colormap)), (6, margin))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(letter)
    marks = min(max((height - 2 * margin) // (2 * letter) + 1, 2), _MARKS)
    texts = [f"{metres:.{2 if far - near < 10 else 1}f} m" for metres in np.linspace(near, far, marks)]
    if not is_metric:
        texts = ["near", "far"]
    for index, text in enumerate(texts):
        row = margin + (1 - index / (len(texts) - 1)) * (height - 2 * margin - 1)
        draw.text((6 + thick + 6, row), text, _INK, font, anchor="lm")
    return np.asarray(picture)
