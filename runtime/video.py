"""Decode video by PyAV (FFmpeg): a file is read whole and in order, and what is broken in it is skipped and counted."""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from itertools import count as count_up
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from ..errors import DataError
from ..packages import require_packages
from .colour import Converter, orientation
from .source import Frame, Sound, Source, Tally, Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Video", "import_av", "open_container", "open_video", "refusal"]

_FPS: Final = 30.0  # for the step between frames of a video that states no rate
_READ_ERRORS: Final = 20  # in a row, after which nothing more is expected of a file
_EARLY: Final = 1.0  # seconds that a video may end before the length it states
_TEXT: Final = frozenset({"ansi", "bintext", "idf", "xbin"})  # FFmpeg draws text files as pictures
_SQUARE: Final = (None, 0, 1)  # aspect ratios of pixels that are square, or not stated

BROKEN: Final = ("broken packet was skipped", "broken packets were skipped")
DAMAGED: Final = (
    "damaged frame is shown as the decoder repaired it",
    "damaged frames are shown as the decoder repaired them",
)
UNORDERED: Final = ("time stamp went backwards and was moved", "time stamps went backwards and were moved")


def import_av() -> ModuleType:
    """The module `av`. Raises UserError if it is not installed."""
    require_packages("av")
    import av

    return av


class Video:
    """The largest video stream of an open container, decoded in order. For one thread at a time.

    Attributes:
        first: its first frame, which `frames` yields first.
        size: height and width, upright.
        convert: its frames to RGB.
    """

    def __init__(
        self,
        container: InputContainer,
        name: str,
        tally: Tally,
        *,
        threads: int = 1,
        keep_waiting: Callable[[], bool] = lambda: False,
        seen: int | None = None,
    ) -> None:
        """Decode the first frame.

        Args:
            container: is closed by `close`, or if this raises.
            name: for messages.
            tally: where faults are counted.
            threads: of the decoder; 0 for as many as there are cores.
            keep_waiting: asked when a read timed out.
            seen: `mark` of an earlier connection, whose last picture is not given again.

        Raises:
            DataError: there is no video in it, no decoder for it, or no frame that can be decoded.
        """
        self.name, self.tally, self.mark = name, tally, seen
        self._container, self._keep_waiting = container, keep_waiting
        self._packets = 0
        try:
            self.stream = self._chosen()
            self.stream.codec_context.thread_count = threads
            if threads != 1:
                self.stream.codec_context.thread_type = "AUTO"
            self._frames = self._decoded()
            self.first = self._first()
        except BaseException:
            container.close()
            raise
        self._stored = (self.first.height, self.first.width)
        upright = orientation(self.first)
        self._name_oddities(self.first, tilted=upright is None)
        swaps = upright is not None and upright[0] == 0
        self.size = self._stored[::-1] if swaps else self._stored
        self.convert = Converter(upright or (1, 0, 0, 1))

    @property
    def fps(self) -> float | None:
        """Average frames a second, as the container states it."""
        rate = self.stream.average_rate
        return float(rate) if rate else None

    def frames(self) -> Iterator[VideoFrame]:
        """All frames in the order of presentation.

        Raises:
            DataError: their size changes.
        """
        yield self.first
        for frame in self._frames:
            if (frame.height, frame.width) != self._stored:
                raise DataError(
                    f"{self.name} changes its size from {self._stored[0]}x{self._stored[1]} to "
                    f"{frame.height}x{frame.width} (HxW); cut it where it changes, or scale it to one size first"
                )
            yield frame

    def sound(self, place: str) -> Sound | None:
        """The sound that belongs to it, found at `place`."""
        streams = self._container.streams
        best = streams.best("audio", related=self.stream) if streams.audio else None
        if best is None or best.codec_context is None:
            return None
        start = 0.0 if self.first.time is None else self.first.time
        return Sound(place, best.index, best.codec_context.name, start)

    def rgb(self, frame: VideoFrame) -> Callable[[tuple[int, int] | None, bool], Any]:
        """What converts this frame, for `Frame`. It works after `close` too. Raises DataError."""
        convert, name = self.convert, self.name

        def image(size: tuple[int, int] | None, exact: bool) -> Any:
            try:
                return convert.rgb(frame, size, exact)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{name} has pixels ({frame.format.name}) that cannot be converted to RGB: {error}; "
                    "re-encode it as yuv420p"
                ) from error

        return image

    def close(self) -> None:
        """Close the container. No thread may be reading."""
        self._container.close()

    def _chosen(self) -> VideoStream:
        """The video stream with the most pixels that is no cover of a sound file. Raises DataError."""
        from av.stream import Disposition

        streams = self._container.streams
        videos = [each for each in streams.video if not each.disposition & Disposition.attached_pic]
        videos = [each for each in videos if each.codec_context is None or each.codec_context.name not in _TEXT]
        if not videos:
            kind = "only sound" if streams.audio else "no video stream"
            raise DataError(f"{self.name} has {kind}; name a video or a picture")
        readable = [each for each in videos if each.codec_context is not None]
        if not readable:
            raise DataError(
                f"{self.name} has video in a codec that this FFmpeg does not know or does not decode; re-encode it as "
                "H.264: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            )
        return max(readable, key=lambda each: each.codec_context.width * each.codec_context.height)

    def _first(self) -> VideoFrame:
        for frame in self._frames:
            return frame
        raise DataError(f"no frame of {self.name} could be decoded; it is damaged or truncated: replace it")

    def _decoded(self) -> Iterator[VideoFrame]:
        from av.error import FFmpegError

        for packet in self._demuxed():
            try:
                frames = packet.decode()
            except EOFError:
                return
            except FFmpegError:
                if packet.size:
                    self.tally.count(*BROKEN)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.tally.count(*DAMAGED)
                yield frame

    def _demuxed(self) -> Iterator[Packet[VideoStream]]:
        """Packets to the end; errors between them are counted, and end it if they repeat."""
        from av.error import ExitError, FFmpegError

        errors = 0
        while True:
            try:
                for packet in self._container.demux(self.stream):
                    errors = 0
                    if packet.size:
                        self._packets += 1
                        if self._is_repeat(packet):
                            continue
                    yield packet
            except (ExitError, TimeoutError):
                if self._keep_waiting():
                    continue
                self.tally.end_early("the server stopped answering")
            except FFmpegError as error:
                errors += 1
                if errors < _READ_ERRORS and not isinstance(error, OSError):
                    self.tally.count("part of the file could not be read", "parts of the file could not be read")
                    continue
                self.tally.end_early(f"reading stopped early: {error.strerror or error}")
            return

    def _is_repeat(self, packet: Packet[VideoStream]) -> bool:
        """Whether the first picture of a new connection is the last one of the connection before."""
        if self.stream.codec_context.name != "mjpeg":
            return False
        before, self.mark = self.mark, zlib.crc32(bytes(packet))
        return self._packets == 1 and before == self.mark

    def _name_oddities(self, frame: VideoFrame, *, tilted: bool) -> None:
        if tilted:
            self.tally.say(f"it is turned by {frame.rotation} degrees; its frames are given as stored")
        ratio = self.stream.sample_aspect_ratio
        if ratio not in _SQUARE:
            assert ratio is not None
            self.tally.say(
                f"its pixels are not square ({ratio.numerator}:{ratio.denominator}); its frames are given as stored"
            )
        if frame.interlaced_frame:
            self.tally.say("it is interlaced; its frames are given as stored")

    def name_missing(self, last: float) -> None:
        """After the last frame, shown at `last` seconds: say whether the container promised more."""
        if self.stream.frames > self._packets:
            self.tally.end_early(f"the file ends early, after {self._packets} of {self.stream.frames} frames")
            return
        streams = self._container.streams
        length = self.stream.duration and float(self.stream.duration * (self.stream.time_base or 0))
        if not length and not streams.audio and self._container.duration:
            length = self._container.duration / 1e6
        if length and not self.stream.frames and last + _EARLY < length:
            self.tally.end_early(f"the file ends early, after {last:.1f} of {length:.1f} s")


def open_video(place: str, name: str, *, file: Any = None, timeout: float | None = None, threads: int = 1) -> Source:
    """Open a video that is delivered whole and in order.

    Args:
        place: its path or address.
        name: what messages call it.
        file: an object with `read`, instead of `place`, that can be read once.
        timeout: seconds to wait for an answer.
        threads: of the decoder.

    Raises:
        DataError: it cannot be opened, has no video, or no frame can be decoded.
        UserError: PyAV is not installed.
    """
    tally = Tally()
    # A playlist that lies on the disk must not read other places.
    options = {"protocol_whitelist": "file"} if place.startswith("file:") else {}
    container = open_container(file or place, name, options=options, timeout=timeout)
    video = Video(container, name, tally, threads=threads)
    count, sound = video.stream.frames or None, video.sound(place)
    if file is not None and sound is not None:
        tally.say("its sound cannot be carried over, because it is read once")
        sound = None
    reading, closed = threading.Lock(), threading.Event()
    stem = Path(name).stem or "frame"

    def frames() -> Iterator[Frame]:
        line = Timeline(1 / (video.fps or _FPS))
        decoded, time = video.frames(), 0.0
        for index in count_up():
            with reading:
                frame = None if closed.is_set() else next(decoded, None)
            if frame is None:
                break
            time = line.at(frame.time)
            if line.repaired:
                line.repaired = 0
                tally.count(*UNORDERED)
            yield Frame(video.size, time, index, f"{stem}_{index:06d}", video.rgb(frame))
        with reading:
            if not closed.is_set():
                video.name_missing(time)

    def close() -> None:
        closed.set()
        # A container must not be closed while a thread reads it; one that is blocked in a pipe keeps it.
        if reading.acquire(timeout=1):
            video.close()
            reading.release()

    return Source(name, frames(), video.size, fps=video.fps, count=count, audio=sound, tally=tally, close=close)


def open_container(
    place: Any, name: str, *, container: str | None = None, options: dict[str, str] | None = None, timeout: Any = None
) -> InputContainer:
    """`av.open`, whose errors become one sentence.

    Args:
        place: an address, a path, or an object with `read`.
        name: what messages call it.
        container: FFmpeg's name of the format; otherwise it is recognised.
        options: FFmpeg's options.
        timeout: seconds, or seconds to open and seconds for each read.

    Raises:
        DataError: it cannot be opened.
        UserError: PyAV is not installed.
    """
    av = import_av()
    try:
        return av.open(place, "r", format=container, options=options or {}, timeout=timeout)  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError, av.error.FFmpegError) as error:
        seconds = timeout[0] if isinstance(timeout, tuple) else timeout
        raise DataError(f"{name} {refusal(error, seconds)}") from error


def refusal(error: BaseException, seconds: float | None) -> str:
    """Why FFmpeg or the network did not open it, to follow its name, and what to do."""
    from av.error import DecoderNotFoundError, ExitError, InvalidDataError

    number = getattr(error, "errno", None)
    if isinstance(error, ExitError | TimeoutError) or number == errno.ETIMEDOUT:
        return f"did not answer within {seconds:g} s; check the address, or give it more time with --timeout"
    if isinstance(error, InvalidDataError | EOFError):
        return "is not a video that FFmpeg knows, or is truncated; replace it"
    if isinstance(error, DecoderNotFoundError):
        return "has a codec that this FFmpeg does not decode; re-encode it as H.264"
    if number == errno.EBUSY:
        return "is in use; end the other program that uses it"
    reason = os.strerror(number) if isinstance(number, int) and 0 < number < 200 else str(error)
    return f"cannot be opened: {reason}; check that it exists and may be read"
