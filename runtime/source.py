"""What every source of frames has in common: its frames, what it counts, and its life from opening to closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
from typing_extensions import Self

from ..errors import DataError, FrameError

__all__ = ["Frame", "Slot", "Sound", "Source", "Tally", "Timeline", "join"]

Image = Callable[[tuple[int, int] | None, bool], np.ndarray]

_SENTENCES: Final = 20  # that a tally keeps besides its counts
_JUMP: Final = 1.0  # seconds: a clock that goes back by more was set anew
_TICK: Final = 0.001  # seconds between two frames whose times are not in order


class Frame:
    """One picture of a source.

    Attributes:
        size: its height and width, upright.
        time: presentation time in seconds; the first frame has 0.
        index: position in the source; frames that were dropped are counted.
        name: a name for files of this frame, without suffix; unique in its source.
        arrived: when the frame was decoded or captured, on the clock of `time.perf_counter`.
    """

    __slots__ = ("_image", "arrived", "index", "name", "size", "time")

    def __init__(
        self, size: tuple[int, int], time: float, index: int, name: str, image: Image, arrived: float | None = None
    ) -> None:
        self.size, self.time, self.index, self.name, self._image = size, time, index, name, image
        self.arrived = perf_counter() if arrived is None else arrived

    def image(self, size: tuple[int, int] | None = None, *, exact: bool = True) -> np.ndarray:
        """H x W x 3 uint8 RGB, upright; a new, C-contiguous array each time. Any thread may call it.

        It also works after the source was closed.

        Args:
            size: height and width of the result; otherwise the frame's own. Video is converted and resized
                (antialiased) in one step, without an RGB picture at full size in between.
            exact: whether colours of video are interpolated between pixels. Without it video is converted up to ten
                times faster at its own size, and differs by 1 to 2 of 255 levels.

        Raises:
            DataError: a picture file cannot be read.
            FrameError: a size that is not positive.
        """
        if size is not None and min(size) < 1:
            raise FrameError(f"a frame cannot be resized to {size[0]}x{size[1]} (HxW)")
        return self._image(size, exact)

    def at(self, time: float, index: int) -> Frame:
        """The same picture at another time and position, captured now."""
        return Frame(self.size, time, index, self.name, self._image)

    def __repr__(self) -> str:
        return f"<Frame {self.index} {self.name!r} {self.size[0]}x{self.size[1]} at {self.time:.3f} s>"


@dataclass(frozen=True)
class Sound:
    """Where the sound of a source is, for an output that carries it over.

    Attributes:
        place: path or address to open.
        stream: index of the audio stream among all streams in it.
        codec: FFmpeg's name of its codec.
        start: time of the source's first frame in seconds on the clock of `place`: sound at this time belongs to
            `Frame.time` 0.
    """

    place: str
    stream: int
    codec: str
    start: float


class Tally:
    """What a source dropped, skipped or repaired. One thread may write while others read."""

    def __init__(self) -> None:
        self.dropped = 0
        self.cut: str | None = None
        self._counts: dict[tuple[str, str], int] = {}
        self._sentences: list[str] = []

    def count(self, one: str, many: str) -> None:
        """Count an event, which is reported as "1 `one`" or "N `many`"."""
        self._counts[one, many] = self._counts.get((one, many), 0) + 1

    def say(self, sentence: str) -> None:
        """Report a sentence, once; after 20 different ones, no more."""
        if sentence not in self._sentences and len(self._sentences) < _SENTENCES:
            self._sentences.append(sentence)

    def end_early(self, sentence: str) -> None:
        """Report that the source ended before its end."""
        self.cut = sentence
        self.say(sentence)

    def faults(self) -> list[str]:
        """All reports, one sentence each."""
        counted = [f"{n} {one if n == 1 else many}" for (one, many), n in list(self._counts.items())]
        return [*self._sentences, *counted]


class Source:
    """Frames of a picture, folder, video, camera or stream; made by `open_source`. A context manager.

    It can be iterated once. `close` ends an iteration in another thread. It is not for several consumers.

    Attributes:
        name: the place, without a password.
        live: whether it delivers the latest frame and drops older ones; otherwise it delivers all, in order.
        size: height and width of its frames, upright; folders and globs may hold other sizes after the first.
        fps: nominal frames a second; None if unknown.
        count: number of frames as the source states it; None if unknown.
        audio: its sound; None if there is none, or none that can be read again.
    """

    def __init__(
        self,
        name: str,
        frames: Iterator[Frame],
        size: tuple[int, int],
        *,
        live: bool = False,
        fps: float | None = None,
        count: int | None = None,
        audio: Sound | None = None,
        tally: Tally | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.size, self.live, self.fps, self.count, self.audio = name, size, live, fps, count, audio
        self.tally = tally or Tally()
        self._frames, self._close = frames, close
        self._read, self._closed = False, False
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Frames that were given and never taken. Only live sources drop."""
        return self.tally.dropped

    @property
    def faults(self) -> list[str]:
        """What was skipped or repaired so far, one sentence each; at most about 30."""
        return self.tally.faults()

    @property
    def cut(self) -> str | None:
        """The fault by which it ended before its end, as a truncated file does; None: it did not, or is live."""
        return None if self.live else self.tally.cut

    def __iter__(self) -> Iterator[Frame]:
        """The frames. Raises DataError: it was read or closed before, or cannot be read further."""
        with self._lock:
            if self._read or self._closed:
                raise DataError(f"{self.name} was {'closed' if self._closed else 'read'} before; open it again")
            self._read = True
        return self._until_closed()

    def _until_closed(self) -> Iterator[Frame]:
        for frame in self._frames:
            if self._closed:
                return
            yield frame

    def close(self) -> None:
        """Free the file, camera or connection. Does nothing the second time."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.size
        length = "live" if self.live else f"{'?' if self.count is None else self.count} frames"
        return f"<Source {self.name!r} {height}x{width} {length}>"


class Slot:
    """Room for one frame between a thread that gives and one that takes: the newest one replaces an older one."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._changed = tally, threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._ended = False

    def put(self, frame: Frame) -> None:
        """Give the newest frame. One that was not taken, or that comes after the end, counts as dropped."""
        with self._changed:
            if self._frame is not None or self._ended:
                self._tally.dropped += 1
            if not self._ended:
                self._frame = frame
            self._changed.notify()

    def end(self, error: BaseException | None = None, *, discard: bool = False) -> None:
        """Say that no frame follows; `error` is raised for whoever takes. With `discard`, the last one is dropped."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            if discard and self._frame is not None:
                self._frame = None
                self._tally.dropped += 1
            self._changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        """The newest frame each time, waiting for one that was not taken yet, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frame is not None or self._ended)
                frame, self._frame = self._frame, None
            if frame is None:
                if self._error is not None:
                    raise self._error
                return
            yield frame


class Timeline:
    """Turns a video's time stamps into times that start at 0 and always increase.

    >>> line = Timeline(0.1)
    >>> [round(line.at(stamp), 3) for stamp in (5.0, 5.1, None, 5.15, 0.0, 0.1)]
    [0.0, 0.1, 0.2, 0.201, 0.301, 0.401]
    """

    def __init__(self, step: float) -> None:
        self.repaired = 0
        self._step, self._offset, self._last = step, 0.0, -1.0

    def at(self, stamp: float | None) -> float:
        """The time of the next frame, whose time stamp in seconds is `stamp`; None where it has none."""
        if self._last < 0:
            self._offset = stamp or 0.0
            time = 0.0
        elif stamp is None:
            time = self._last + self._step
        else:
            time = stamp - self._offset
            if time <= self._last:
                self.repaired += 1
                reset = self._last - time > _JUMP
                time = self._last + (self._step if reset else _TICK)
                if reset:
                    self._offset = stamp - time
        self._last = time
        return time


def join(thread: threading.Thread, seconds: float = 1.0) -> None:
    """Wait for a daemon thread; one that is blocked longer in a library ends by itself later."""
    if thread is not threading.current_thread():
        with suppress(RuntimeError):  # it was never started
            thread.join(seconds)
