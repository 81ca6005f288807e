"""Cameras and streams: a thread reads all frames, and whoever iterates gets the newest one."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final

from ..errors import DataError, UserError
from .source import Frame, Slot, Source, Tally, join
from .video import Video, open_container

__all__ = ["Connection", "Opened", "held", "open_camera", "open_live", "open_rtsp", "paced"]

_RETRIES: Final = 5  # times that a lost stream is tried again, before it is given up
_FIRST_WAIT: Final = 0.5  # seconds before the first of them; doubles each time
_GLANCE: Final = 0.1  # seconds after which a source that stands still looks whether it was closed
_POLL: Final = 0.5  # seconds that a read may block before it is asked whether to go on


@dataclass(frozen=True)
class Opened:
    """An open container of a live source.

    Attributes:
        container: PyAV's.
        interrupt: ends a read that blocks in another thread.
        close: frees what the container reads from, after the container.
    """

    container: Any
    interrupt: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


class Connection:
    """Reads a live source in a thread, and connects again where it is lost.

    A stream that is lost for good raises DataError for whoever iterates.
    """

    def __init__(
        self, connect: Callable[[], Opened], name: str, *, patience: float, retries: int = _RETRIES, threads: int = 1
    ) -> None:
        """Connect and decode the first frame. Raises DataError, UserError."""
        self.tally = Tally()
        self._connect, self._name, self._patience, self._retries = connect, name, patience, retries
        self._threads = threads
        self._slot, self._closing = Slot(self.tally), threading.Event()
        self._heard, self._index = monotonic(), 0
        self._opened: Opened
        self._video: Video = self._open(None)
        self.size, self.fps = self._video.size, self._video.fps
        self._begin = perf_counter()
        self._thread = threading.Thread(target=self._run, name=f"depthkit source {name}", daemon=True)

    def frames(self) -> Iterator[Frame]:
        """Start reading, and yield the newest frame each time. Raises DataError."""
        if not self._closing.is_set():
            self._thread.start()
        yield from self._slot.frames()

    def close(self) -> None:
        """End the thread, also one that waits for a frame. It closes the container itself."""
        self._closing.set()
        self._slot.end(discard=True)
        if self._thread.ident is None:
            self._disconnect()
            return
        self._opened.interrupt()
        join(self._thread)

    def _open(self, seen: int | None) -> Video:
        self._opened = self._connect()
        self._heard = monotonic()
        try:
            return Video(
                self._opened.container,
                self._name,
                self.tally,
                threads=self._threads,
                keep_waiting=self._may_wait,
                seen=seen,
            )
        except BaseException:
            self._opened.close()
            raise

    def _disconnect(self) -> None:
        self._video.close()
        self._opened.close()

    def _may_wait(self) -> bool:
        return not self._closing.is_set() and monotonic() - self._heard < self._patience

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._read()
                if not self._closing.is_set():
                    self._reconnect()
        except DataError as error:
            self._slot.end(error)
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            self._slot.end(DataError(f"{self._name} cannot be read further: {error}"))
        finally:
            self._disconnect()
            self._slot.end()

    def _read(self) -> None:
        """Give every frame of this connection to the slot. Raises DataError if the size changes."""
        for frame in self._video.frames():
            if self._closing.is_set():
                return
            self._heard = monotonic()
            now = perf_counter()
            index, self._index = self._index, self._index + 1
            self._slot.put(Frame(self.size, now - self._begin, index, f"{index:06d}", self._video.rgb(frame), now))

    def _reconnect(self) -> None:
        """Connect again, up to the bound. Raises DataError: it did not come back, or with another size."""
        self._disconnect()
        wait = _FIRST_WAIT
        for _ in range(self._retries):
            if self._closing.wait(wait):
                return
            wait *= 2
            try:
                video = self._open(self._video.mark)
            except DataError:
                continue
            self._video = video
            if video.size != self.size:
                raise DataError(
                    f"{self._name} came back with the size {video.size[0]}x{video.size[1]} instead of "
                    f"{self.size[0]}x{self.size[1]} (HxW); open it again"
                )
            self.tally.count("time the stream was lost and came back", "times the stream was lost and came back")
            return
        raise DataError(
            f"{self._name} was lost after {self._index} frames and did not come back in {self._retries} tries; "
            "check the camera and its network"
        )


def open_live(
    connect: Callable[[], Opened],
    name: str,
    *,
    patience: float,
    has_rate: bool = True,
    retries: int = _RETRIES,
    threads: int = 1,
) -> Source:
    """A source of the newest frame. Times are those of arrival, since a stream's own clock starts anew when it is lost.

    Args:
        connect: opens it.
        name: what messages call it.
        patience: seconds without a frame after which it is lost.
        has_rate: whether the stream states its rate.
        retries: how often a lost stream is tried again.
        threads: of the decoder.

    Raises DataError, UserError: the first connection fails.
    """
    reader = Connection(connect, name, patience=patience, retries=retries, threads=threads)
    return Source(
        name,
        reader.frames(),
        reader.size,
        live=True,
        fps=reader.fps if has_rate else None,
        tally=reader.tally,
        close=reader.close,
    )


def open_rtsp(address: str, name: str, *, timeout: float, retries: int = _RETRIES, threads: int = 1) -> Source:
    """Open `rtsp://` or `rtsps://`: by TCP, or by UDP where the server refuses that. Raises DataError, UserError."""

    def connect() -> Opened:
        options = {"rtsp_flags": "prefer_tcp", "fflags": "nobuffer", "fpsprobesize": "0"}
        limits = (timeout, min(timeout, _POLL))
        return Opened(open_container(address, name, options=options, timeout=limits))

    return open_live(connect, name, patience=timeout, retries=retries, threads=threads)


def open_camera(
    place: str, *, timeout: float, input_size: tuple[int, int] | None = None, fps: float | None = None
) -> Source:
    """Open a camera of Linux (Video4Linux2): `0`, or `/dev/video0`.

    Args:
        place: its number or path.
        timeout: seconds without a frame after which it is lost.
        input_size: height and width to ask the camera for; it may choose others.
        fps: frames a second to ask it for.

    Raises:
        DataError: there is no such camera, no permission, or it is in use.
        UserError: this system has no Video4Linux2, or PyAV is not installed.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(f"camera {place}: cameras are read by Video4Linux2, which only Linux has; name a stream")
    path = Path(f"/dev/video{place}") if place.isdigit() else Path(place)
    require_camera(path)
    options = {}
    if input_size is not None:
        options["video_size"] = f"{input_size[1]}x{input_size[0]}"
    if fps is not None:
        options["framerate"] = f"{fps:g}"

    def connect() -> Opened:
        return Opened(open_container(str(path), f"camera {path}", container="v4l2", options=options, timeout=timeout))

    return open_live(connect, f"camera {path}", patience=timeout)


def require_camera(path: Path) -> None:
    """Raise DataError if there is no such camera, or no permission to read it."""
    if not path.exists():
        found = sorted(str(each) for each in path.parent.glob("video*")) if path.parent == Path("/dev") else []
        here = f"here are {', '.join(found)}" if found else "there is none on this machine"
        raise DataError(f"no such camera: {path}; {here}")
    if not stat.S_ISCHR(path.stat().st_mode):
        raise DataError(f"{path} is not a camera; name a device such as /dev/video0")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DataError(
            f"no permission to read camera {path}; add yourself to its group (sudo usermod -aG video $USER) and log in "
            "again"
        )


def paced(source: Source, fps: float, playing: threading.Event | None = None) -> Source:
    """Make a file behave like a camera of `fps` frames a second: frames that nobody takes in time are dropped.

    It starts at the first iteration, closes `source` with itself, and ends with the file.

    Args:
        source: a file.
        fps: frames a second.
        playing: while it is clear, the file stands still.

    Raises:
        UserError: `source` is live already, or `fps` is not positive.
    """
    if source.live or not fps > 0:
        raise UserError(f"{source.name} cannot be paced at {fps:g} frames a second; name a file and a rate above 0")
    slot, closing = Slot(source.tally), threading.Event()

    def run() -> None:
        beat = _Beat(fps, closing, playing)
        try:
            for index, frame in enumerate(source):
                if not beat.wait(index):
                    return
                slot.put(frame.at(index / fps, index))
        except Exception as error:  # noqa: BLE001 - raised again where the frames are taken
            slot.end(error)
        finally:
            slot.end()

    thread = threading.Thread(target=run, name=f"depthkit paced {source.name}", daemon=True)

    def frames() -> Iterator[Frame]:
        if not closing.is_set():
            thread.start()
        yield from slot.frames()

    def close() -> None:
        closing.set()
        slot.end(discard=True)
        if thread.ident is not None:
            join(thread)
        source.close()

    return Source(
        source.name, frames(), source.size, live=True, fps=fps, audio=source.audio, tally=source.tally, close=close
    )


class _Beat:
    """When the frames of a paced file are due. Time stands still while `playing` is clear."""

    def __init__(self, fps: float, closing: threading.Event, playing: threading.Event | None) -> None:
        self._fps, self._closing, self._playing = fps, closing, playing
        self._begin = perf_counter()

    def wait(self, index: int) -> bool:
        """Wait until frame `index` is due; False if it is closing instead."""
        if self._closing.wait(max(self._begin + index / self._fps - perf_counter(), 0)):
            return False
        if self._playing is None or self._playing.is_set():
            return True
        stopped = perf_counter()
        goes_on = _resumed(self._playing, self._closing)
        self._begin += perf_counter() - stopped
        return goes_on


def held(source: Source, playing: threading.Event) -> Source:
    """A live source that is not asked for frames while `playing` is clear; the first one afterwards is new.

    It closes `source` with itself.
    """
    closing = threading.Event()

    def frames() -> Iterator[Frame]:
        given = iter(source)
        while _resumed(playing, closing):
            frame = next(given, None)
            if frame is None:
                return
            yield frame

    def close() -> None:
        closing.set()
        source.close()

    return Source(source.name, frames(), source.size, live=True, fps=source.fps, tally=source.tally, close=close)


def _resumed(playing: threading.Event, closing: threading.Event) -> bool:
    """Wait until `playing` is set; False if it is closing instead."""
    while not closing.is_set():
        if playing.wait(_GLANCE):
            return not closing.is_set()
    return False
