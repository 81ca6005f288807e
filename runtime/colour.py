"""Decoded video frames to upright RGB, by FFmpeg's swscale.

Bilinear with full chroma interpolation is the scaler that is nearest to the antialiased resize of training
(`data.images.resize_image`): mean difference 0.25 to 0.33 of 255 levels, at a third of the time
(tests/perf_sources.py).
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

__all__ = ["Converter", "orientation", "turned"]

# Codes of ITU-T H.273.
_UNKNOWN_MATRIX: Final = 2
_BT2020: Final = 9  # primaries
_PQ: Final = 16  # transfer
_TURNS: Final = 65536  # 1.0 in a display matrix
_SCALERS: Final = 8  # kept per thread; more sizes than that are not asked for in turn
_STRIP: Final = 64  # rows mapped at a time
_WHITE_NITS: Final = 203  # of a PQ signal that a BT.709 screen shows as white: ITU-R BT.2408

# Light of BT.2020's primaries in BT.709's: ITU-R BT.2087.
_TO_BT709: Final = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)

Orientation = tuple[int, int, int, int]


class Converter:
    """Converts the frames of one video. Any thread may use it; each has scalers of its own."""

    def __init__(self, upright: Orientation = (1, 0, 0, 1)) -> None:
        self._upright = upright
        self._own = threading.local()

    def rgb(self, frame: VideoFrame, size: tuple[int, int] | None, exact: bool) -> np.ndarray:
        """H x W x 3 uint8, at the height and width `size` or the frame's own, upright; a new contiguous array.

        Matrix and range are the frame's. A frame of unknown matrix is BT.709 if it is wider than 1279 or higher than
        576 pixels, otherwise BT.601, as players do it. BT.2020's primaries become BT.709's.

        Raises:
            FFmpegError: swscale does not convert this pixel format.
        """
        from av.video.reformatter import Colorspace, Interpolation

        swaps = self._upright[0] == 0
        height, width = (frame.height, frame.width) if size is None else size[::-1] if swaps else size
        flags = Interpolation.BILINEAR
        if exact:
            flags |= Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
        large = frame.width >= 1280 or frame.height > 576
        scaled = self._scaler(height, width, exact).reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if large and frame.colorspace == _UNKNOWN_MATRIX else None,
            interpolation=flags,
            threads=1,
        )
        # Without a copy if swscale's rows have no padding, except if `frame` was RGB already and is returned itself.
        pixels = scaled.to_ndarray()
        image = np.ascontiguousarray(turned(pixels, self._upright))
        if scaled is frame and np.shares_memory(image, pixels):
            image = image.copy()
        if frame.color_primaries == _BT2020:
            _to_bt709(image, pq=frame.color_trc == _PQ)
        return image

    def _scaler(self, height: int, width: int, exact: bool) -> VideoReformatter:
        from av.video.reformatter import VideoReformatter

        scalers: dict[tuple[int, int, bool], VideoReformatter] = vars(self._own).setdefault("scalers", {})
        if len(scalers) >= _SCALERS:
            scalers.clear()
        return scalers.setdefault((height, width, exact), VideoReformatter())


def orientation(frame: VideoFrame) -> Orientation | None:
    """How the frame must be turned and mirrored to be upright; None if it is tilted by another angle than 90 degrees.

    The numbers a, b, c, d take a stored pixel (x, y) to (a x + c y, b x + d y): FFmpeg's display matrix.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(stored), np.int32) / _TURNS  # type: ignore[call-overload]
    found = (round(a), round(b), round(c), round(d))
    is_exact = np.allclose((a, b, c, d), found, atol=0.01)
    straight = sorted(map(abs, found)) == [0, 0, 1, 1] and abs(found[0]) == abs(found[3])
    return found if is_exact and straight else None


def turned(image: np.ndarray, upright: Orientation) -> np.ndarray:
    """A view of H x W x 3, turned and mirrored.

    >>> turned(np.arange(6).reshape(2, 3, 1), (0, -1, 1, 0))[..., 0].tolist()  # counterclockwise
    [[2, 5], [1, 4], [0, 3]]
    """
    a, b, c, d = upright
    if a == 0:
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _to_bt709(image: np.ndarray, *, pq: bool) -> None:
    """Change H x W x 3 uint8 from BT.2020's primaries to BT.709's, in place; colours out of range are clipped.

    Signals are read as a BT.1886 screen shows them (gamma 2.4), HLG too, which is made for that; PQ by its own curve,
    with white at 203 nits and brighter light clipped.
    """
    to_light, to_signal = _light(pq), _signal()
    for top in range(0, len(image), _STRIP):
        strip = image[top : top + _STRIP]
        light = np.clip(to_light[strip] @ _TO_BT709.T, 0, 1)
        strip[:] = to_signal[np.rint(np.sqrt(light) * 4095).astype(np.intp)]


@cache
def _light(pq: bool) -> np.ndarray:
    """Light, 1 is white, of each of the 256 levels."""
    signal = np.arange(256) / 255
    if not pq:
        return np.asarray(signal**2.4, np.float32)
    # SMPTE ST 2084
    root = signal ** (1 / 78.84375)
    nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return np.asarray(np.minimum(nits / _WHITE_NITS, 1), np.float32)


@cache
def _signal() -> np.ndarray:
    """The level of light x * x for x = 0, 1/4095, ... 1: finer in the dark, where the eye is."""
    root = np.arange(4096) / 4095
    return np.rint(255 * root ** (2 / 2.4)).astype(np.uint8)
