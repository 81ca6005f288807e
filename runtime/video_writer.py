"""Write video by PyAV (FFmpeg): it grows beside its goal, and gets the goal's name when it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from typing_extensions import Self

from ..errors import OutputError
from ..files import atomic_write, refused_write
from .sound import SoundTrack
from .source import Sound
from .video import import_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["COLOUR", "DEPTH", "Coding", "VideoWriter", "frame_of", "frame_of_rgb"]

_FPS: Final = 30  # stated where the source's rate is unknown; every frame has a time of its own
_THREADS: Final = 2  # of the encoder, so that large frames do not wait for it; the engine has the other cores
_BT709: Final = 1  # ITU-T H.273: primaries, transfer and matrix alike
_LIMITED: Final = 1  # 16 to 235


@dataclass(frozen=True)
class Coding:
    """How video is stored.

    Attributes:
        container: FFmpeg's name of the format.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        ticks: of its clock in a second.
        options: of the encoder.
        container_options: of the container.
        is_colour: whether it is tagged as BT.709.
    """

    container: str
    codec: str
    pixels: str
    ticks: int
    options: Mapping[str, str]
    container_options: Mapping[str, str]
    is_colour: bool


COLOUR: Final = Coding(
    "mp4",
    "libx264",
    "yuv420p",
    90_000,
    {"preset": "ultrafast", "crf": "20"},
    {"movflags": "+faststart"},
    is_colour=True,
)
"""H.264 that browsers play while they load it. Slower presets take several times the CPU time of this one."""

DEPTH: Final = Coding("matroska", "ffv1", "gray16le", 1000, {"level": "3", "slicecrc": "1"}, {}, is_colour=False)
"""Lossless 16-bit grey, with a checksum for each slice (RFC 9043)."""


class VideoWriter:
    """A video file that is being written. A context manager: what is not finished leaves no file.

    It may be used by one thread after the other.

    Args:
        path: the goal, replaced when the context ends without an error.
        coding: how it is stored.
        size: height and width of its frames.
        fps: frames a second that it states; None: unknown.
        sound: carried over as far as the frames reach.

    Attributes:
        notes: what could not be carried over, one sentence each.

    Raises:
        OutputError: the file cannot be written; also from `write` and `finish`.
        UserError: PyAV is not installed.
    """

    def __init__(
        self, path: Path, coding: Coding, size: tuple[int, int], *, fps: float | None = None, sound: Sound | None = None
    ) -> None:
        import_av()
        self.notes: list[str] = []
        self._path, self._coding, self._size, self._sound_place = path, coding, size, sound
        self._step = 1 / (fps or _FPS)
        self._last = -1
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._temporary = self._held.enter_context(atomic_write(self._path))
        try:
            with self._refusals():
                self._open(self._temporary)
        except BaseException as error:
            self._held.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError, ValueError):
            self._container.close()
        if self._sound is not None:
            self._sound.close()
        self._held.__exit__(kind, error, at)

    def write(self, frame: VideoFrame, time: float) -> None:
        """Add the next frame, of the writer's size and pixel format, shown from `time` seconds on."""
        self._last = max(round(time * self._coding.ticks), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, self._coding.ticks)
        with self._refusals():
            self._mux(frame)
            if self._sound is not None:
                self._sound.until(self._last / self._coding.ticks)

    def finish(self, *, whole: bool = True) -> None:
        """End the file after at least one frame; with `whole`, sound that is longer than the frames is kept too."""
        with self._refusals():
            self._mux(None)
            if self._sound is not None:
                self._sound.until(None if whole else self._last / self._coding.ticks + self._step)
                self.notes += self._sound.notes
            self._container.close()

    def _open(self, temporary: Path) -> None:
        import av

        coding = self._coding
        self._sound: SoundTrack | None = None
        self._container = av.open(str(temporary), "w", format=coding.container, options=dict(coding.container_options))
        rate = Fraction(1 / self._step).limit_denominator(1001)
        stream: Any = self._container.add_stream(coding.codec, rate=max(rate, Fraction(1, 1001)))
        stream.height, stream.width = self._size
        stream.pix_fmt, stream.options = coding.pixels, dict(coding.options)
        stream.time_base = stream.codec_context.time_base = Fraction(1, coding.ticks)
        stream.codec_context.thread_count = _THREADS
        if coding.is_colour:
            for tag in ("colorspace", "color_primaries", "color_trc"):
                setattr(stream.codec_context, tag, _BT709)
            stream.codec_context.color_range = _LIMITED
        self._stream = stream
        if self._sound_place is not None:
            self._sound = SoundTrack(self._container, self._sound_place)

    def _mux(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """FFmpeg's errors as OutputError."""
        from av.error import FFmpegError

        try:
            yield
        except OSError as error:
            raise refused_write(self._path, error) from error
        except (FFmpegError, ValueError) as error:
            raise OutputError(f"cannot write {self._path}: FFmpeg's {self._coding.codec} says: {error}") from error


def frame_of(planes: Sequence[np.ndarray], pixels: str) -> VideoFrame:
    """A frame of these planes, each rows x columns of the pixel format's integers."""
    from av.video.frame import VideoFrame

    height, width = planes[0].shape
    frame = VideoFrame(width, height, pixels)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, values.dtype).reshape(plane.height, -1)  # type: ignore[call-overload]
        rows[:, : values.shape[1]] = values
    return frame


def frame_of_rgb(image: np.ndarray) -> VideoFrame:
    """A yuv420p frame by BT.709 of H x W x 3 uint8 RGB with even sides."""
    from av.video.frame import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace

    frame = VideoFrame.from_ndarray(image, format="rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
    )
