"""Plays a source through an engine in a thread, and can be paused, smoothed and started again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ..pipeline.stream import Result
from ..runtime.live import held, paced
from ..runtime.pictures import FPS
from ..runtime.smooth import Smoother
from ..runtime.source import Source, join
from .wire import Shot, pack, without_paths

__all__ = ["Player", "Playlist"]

_LEAVING_S: Final = 5.0  # that the thread may need to finish a frame


@dataclass(frozen=True)
class Playlist:
    """What is played.

    Attributes:
        source: opened.
        reopen: opens it again; None: it can be read only once.
        stream: the results of a source's frames (`Predictor.stream`).
        unit: see `pack`.
        fps: rate of a file; None for its own.
        loop: start again at the end.
        smoother: for what `stream` gives (`Predictor.smoother`).
    """

    source: Source
    reopen: Callable[[], Source] | None
    stream: Callable[[Source], Iterator[Result]]
    unit: float | None = 0.001
    fps: float | None = None
    loop: bool = False
    smoother: Smoother = field(default_factory=Smoother)


class Player:
    """Plays while somebody watches: a file at its own rate, so that frames are dropped if the engine is slower.

    Attributes:
        error: what ended it; None while it runs, and if it was closed.
        shown: frames that were computed.
        dropped: frames that the engine or the page was too slow for; those of a pause do not count.
    """

    def __init__(
        self,
        playlist: Playlist,
        *,
        smooth: bool,
        show: Callable[[Shot], None],
        tell: Callable[[dict[str, Any]], None],
        over: Callable[[str], None],
    ) -> None:
        """The thread calls `show` with every frame, `tell` with a changed `state`, and `over` if it fails."""
        self.error: BaseException | None = None
        self.shown = 0
        self._list, self._source = playlist, playlist.source
        self._timed = playlist.source  # the same one at its own rate, once it plays
        self._show, self._tell, self._over = show, tell, over
        self._smoother = playlist.smoother
        self._smooth, self._paused, self._ended = smooth, False, False
        self._watchers, self._ignored, self._before, self._held_at = 0, 0, 0, 0
        self._playing, self._again, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="depthkit player", daemon=True)

    @property
    def dropped(self) -> int:
        """See the class."""
        return self._before + self._source.dropped - self._ignored

    @property
    def is_still(self) -> bool:
        """Whether there is only one picture."""
        return self._list.source.count == 1 and not self._list.source.live

    def state(self) -> dict[str, Any]:
        """What every page shows alike."""
        name = self._source.name
        return {
            "paused": self._paused,
            "smooth": self._smooth,
            "ended": self._ended,
            "again": self._list.reopen is not None and not self._list.source.live and not self.is_still,
            "faults": [without_paths(fault, name) for fault in self._source.faults],
        }

    def start(self) -> None:
        """Start the thread; it waits until somebody watches."""
        self._thread.start()

    def watched(self, count: int) -> None:
        """So many pages are visible."""
        self._watchers = count
        self._set_playing()

    def pause(self, on: bool) -> None:
        """Stand still, or go on."""
        self._paused = on
        self._set_playing()
        self._tell(self.state())

    def smooth(self, on: bool) -> None:
        """Smooth the next frames over time, or not."""
        self._smooth = on
        self._tell(self.state())

    def again(self) -> None:
        """After the end, play once more."""
        if self._ended and self._list.reopen is not None:
            self._again.set()

    def close(self) -> None:
        """End the thread and close the source."""
        self._closing.set()
        self._again.set()
        self._timed.close()
        self._source.close()
        if self._thread.ident is not None:
            join(self._thread, _LEAVING_S)

    def _set_playing(self) -> None:
        playing = self._watchers > 0 and not self._paused
        if playing == self._playing.is_set():
            return
        if playing:
            if self._source.live:
                self._ignored += self._source.dropped - self._held_at
            self._playing.set()
        else:
            self._playing.clear()
            self._held_at = self._source.dropped

    def _run(self) -> None:
        try:
            self._play()
            while self._wait_for_again():
                assert self._list.reopen is not None
                opened = self._list.reopen()
                self._before, self._source = self._before + self._source.dropped, opened
                if self._closing.is_set():
                    self._source.close()
                    return
                self._play()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever runs the server
            if not self._closing.is_set():
                self.error = error
                self._over(without_paths(str(error), self._source.name))

    def _play(self) -> None:
        """One pass over the source. Raises DataError, EngineError."""
        source = self._source
        if source.live:
            self._timed = held(source, self._playing)
        else:
            self._timed = paced(source, self._list.fps or source.fps or FPS, self._playing)
        if self._closing.is_set():
            self._timed.close()
            return
        self._smoother.reset()
        faults: list[str] = []
        for result in self._list.stream(self._timed):
            if self._closing.is_set():
                return
            if self._smooth and not self.is_still:
                result.small = self._smoother(result.small, result.image)
            else:
                self._smoother.reset()
            self.shown += 1
            self._show(pack(result, self._list.unit, dropped=self.dropped, shown=self.shown))
            if faults != source.faults:
                faults = source.faults
                self._tell(self.state())

    def _wait_for_again(self) -> bool:
        """Say that it is the end; whether to start again."""
        if self._closing.is_set():
            return False
        if not self._list.loop or self._list.reopen is None:
            self._ended = True
            self._tell(self.state())
            self._again.wait()
            self._again.clear()
            self._ended = False
        if not self._closing.is_set():
            self._tell(self.state())
        return not self._closing.is_set()
