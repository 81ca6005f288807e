"""Small videos that tests write with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

Rgb = tuple[float, float, float]

RATE = 10
SIZE = (48, 64)
PATCHES: Sequence[Rgb] = (
    (0.8, 0.2, 0.1),
    (0.1, 0.7, 0.3),
    (0.2, 0.3, 0.9),
    (0.5, 0.5, 0.5),
    (0.9, 0.9, 0.2),
    (0.05, 0.05, 0.05),
)
"""Signals, 0 to 1, each of which fills 32 x 32 pixels of `patches`."""


def numbered(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Grey pictures, each lighter than the one before by 8 levels (see `number`), with a dark top left corner."""
    made = []
    for index in range(count):
        image = np.full((*size, 3), 20 + 8 * (index % 28), np.uint8)
        image[: size[0] // 3, : size[1] // 3] = 0
        made.append(image)
    return made


def number(image: np.ndarray) -> int:
    """The position of a picture of `numbered`, modulo 28, also after a lossy codec."""
    return round((float(image[-8:, -8:].mean()) - 20) / 8)


def write_clip(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[float] | None = None,
    rotation: tuple[float, bool] | None = None,
    sound: bool = False,
    options: dict[str, str] | None = None,
    container: str | None = None,
    file_options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures at 10 frames a second, or at `times` in seconds; `rotation` is degrees and mirroring."""
    pending = list(images)
    with av.open(str(path), "w", format=container, options=file_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = pending[0].shape[:2]
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        audio: Any = out.add_stream("aac", rate=8000) if sound else None
        for index, image in enumerate(pending):
            # One thread: with several, swscale sometimes gets a row of 10-bit pictures wrong.
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels, threads=1)
            frame.pts = round(1000 * (times[index] if times else index / RATE))
            frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None:
            _write_sound(out, audio, seconds=len(pending) / RATE)
    return path


def write_sound(path: Path) -> Path:
    """A file with sound and no video."""
    with av.open(str(path), "w") as out:
        _write_sound(out, out.add_stream("aac", rate=8000), seconds=1)
    return path


def _write_sound(out: Any, stream: Any, seconds: float) -> None:
    for index in range(int(seconds * 8000 / 1024) + 1):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, index * 1024, Fraction(1, 8000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def matrix(red: float, blue: float) -> np.ndarray:
    """RGB to Y, Cb, Cr, from the weights of red and blue in luma."""
    green = 1 - red - blue
    luma = np.array([red, green, blue])
    return np.stack([luma, (np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))])


def patches(weights: tuple[float, float], *, pixels: str, full: bool, width: int = 32) -> Any:
    """A frame of `PATCHES`, whose samples are computed here and not by FFmpeg; its tags are the caller's to set."""
    values = np.array(PATCHES) @ matrix(*weights).T
    step = 4 if "10le" in pixels else 1
    if full:
        levels = values * (256 * step - 1) + np.array([0, 128, 128]) * step
    else:
        levels = (values * np.array([219, 224, 224]) + np.array([16, 128, 128])) * step
    frame = av.VideoFrame(width * len(PATCHES), 32, pixels)
    for plane, row in zip(frame.planes, np.rint(levels).T, strict=True):
        samples = np.zeros(
            (plane.height, plane.line_size // (2 if step == 4 else 1)), np.uint16 if step == 4 else np.uint8
        )
        samples[:, : plane.width] = np.repeat(row, plane.width // len(PATCHES))
        plane.update(samples.tobytes())
    return frame


def write_frames(path: Path, frames: Sequence[Any], *, codec: str = "ffv1") -> Path:
    """Encode frames as they are, with the tags of the first."""
    first = frames[0]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(stream.codec_context, tag, getattr(first, tag))
        for frame in frames:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size in bytes of each video packet of a file."""
    with av.open(str(path)) as opened:
        return [(each.pos or 0, each.size) for each in opened.demux(video=0) if each.size]


def replace_bytes(path: Path, before: bytes, after: bytes) -> None:
    """Replace bytes of a file, wherever they are."""
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))


def tilt(path: Path, degrees: float) -> None:
    """Turn an MP4 of one track by an angle, in its header."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    cos, sin = (round(65536 * value) for value in (np.cos(np.radians(degrees)), np.sin(np.radians(degrees))))
    struct.pack_into(">9i", data, place, cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
