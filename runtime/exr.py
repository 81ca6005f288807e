"""Write depth as OpenEXR: one channel `Y` of 32-bit floats, losslessly compressed, by FFmpeg's encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_write
from .video import import_av
from .video_writer import frame_of

__all__ = ["write_exr"]


def write_exr(path: Path, depth: np.ndarray) -> None:
    """Write H x W float32 metres atomically. Raises OutputError; UserError: PyAV is not installed.

    >>> write_exr(Path("depth.exr"), np.ones((480, 640), np.float32))  # doctest: +SKIP
    """
    av = import_av()
    encoder: Any = av.CodecContext.create("exr", "w")
    encoder.height, encoder.width = depth.shape
    encoder.pix_fmt, encoder.time_base = "grayf32le", Fraction(1, 1)
    encoder.options = {"compression": "zip16", "format": "float"}
    frame = frame_of([np.asarray(depth, np.float32)], "grayf32le")
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"".join(map(bytes, packets)))
