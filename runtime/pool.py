"""A pool of things that serve one thread at a time, for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Generic, Protocol, TypeVar

from ..errors import EngineError

__all__ = ["Pool"]


class _Closable(Protocol):
    def close(self) -> None: ...


_Item = TypeVar("_Item", bound=_Closable)


class Pool(Generic[_Item]):
    """At most `most` items, opened when they are first needed; threads wait while all are lent.

    Args:
        open_item: opens one; it may be called by several threads at once.
        most: the largest number of items.
        name: of the pool's owner, for the error after `close`.
    """

    def __init__(self, open_item: Callable[[], _Item], most: int, name: str) -> None:
        self._open = open_item
        self._most = most
        self._name = name
        self._changed = Condition()
        self._free: list[_Item] = []
        self._opened = 0
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[_Item]:
        """An item for this thread alone; it comes back whatever happens in the block.

        Raises:
            EngineError: the pool is closed. Errors of opening an item pass through, and leave its place free.
        """
        item = self._take()
        try:
            yield item
        finally:
            with self._changed:
                self._free.append(item)
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse further loans, wait for the items that are lent, and close all. Closing again is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == self._opened)
            items, self._free, self._opened = self._free, [], 0
        for item in items:
            item.close()

    def _take(self) -> _Item:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free or self._opened < self._most)
            if self._closed:
                raise EngineError(f"this {self._name} is closed; make another one")
            if self._free:
                return self._free.pop()
            self._opened += 1
        try:
            return self._open()
        except BaseException:
            with self._changed:
                self._opened -= 1
                self._changed.notify_all()
            raise
