"""A thread that writes frames while the next ones are computed, with a bounded queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Final, Generic, TypeVar

from typing_extensions import Self

__all__ = ["Recorder"]

_Item = TypeVar("_Item")

_AHEAD: Final = 4  # items that wait to be written
_POLL: Final = 0.2  # seconds after which a waiting caller looks for an error


class Recorder(Generic[_Item]):
    """Calls `write` for each item that is put, in order, in a thread of its own.

    Leaving the context with an error forgets what waits; otherwise call `finish` before.

    Attributes:
        done: how many were written.
    """

    def __init__(self, write: Callable[[_Item], None]) -> None:
        self.done = 0
        self._write = write
        self._waiting: Queue[_Item | None] = Queue(_AHEAD)
        self._stopped = Event()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="depthkit writes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        # However long the last write takes: whoever closes the files must not do it meanwhile.
        self._thread.join()

    def finish(self) -> None:
        """Wait until all is written. Raises what `write` raised."""
        self.put(None)
        while self._thread.is_alive():
            self._thread.join(_POLL)
        self._raise()

    def put(self, item: _Item | None) -> None:
        """Give an item, waiting while the queue is full; None is the last. Raises what `write` raised before."""
        while True:
            self._raise()
            try:
                return self._waiting.put(item, timeout=_POLL)
            except Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._items():
                self._write(item)
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - it is raised for the caller
            self._error = error

    def _items(self) -> Iterable[_Item]:
        while not self._stopped.is_set():
            try:
                item = self._waiting.get(timeout=_POLL)
            except Empty:
                continue
            if item is None:
                return
            yield item
