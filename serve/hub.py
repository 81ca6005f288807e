"""Hands the newest frame to every page, and no page waits for another.

A page gets the next frame when it says that it has drawn the last one. Frames that come in between replace each other,
so a slow page shows fewer frames and never an old one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from .wire import Shot

__all__ = ["Hub", "Page"]


class Page:
    """What is to be sent to one page: room for one frame and one text of each kind. Belongs to the event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._texts: dict[str, str] = {}
        self._shot: Shot | None = None
        self._ready, self._ended = True, False
        self._skipped = 0
        self.watching = True

    def offer(self, shot: Shot) -> None:
        """The newest frame."""
        if self._shot is not None:
            self._skipped += 1
        self._shot = shot
        self._changed.set()

    def tell(self, kind: str, **fields: Any) -> None:
        """A JSON message; it replaces one of the same kind that was not sent yet."""
        self._texts[kind] = json.dumps({"kind": kind, **fields})
        self._changed.set()

    def drawn(self) -> None:
        """The page has drawn its frame."""
        self._ready = True
        self._changed.set()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """What to send, in order, as it comes."""
        while not (self._ended and not self._texts):
            await self._changed.wait()
            self._changed.clear()
            while self._texts:
                yield self._texts.pop(next(iter(self._texts)))
            if self._ready and self._shot is not None:
                shot, self._shot, self._ready = self._shot, None, False
                yield shot.message(self._skipped)


class Hub:
    """All pages that are open. Its methods belong to the event loop, except `post`.

    Attributes:
        pages: which are open.
        on_watchers: is told how many pages are visible, whenever that may have changed.
    """

    def __init__(self) -> None:
        self.pages: set[Page] = set()
        self.on_watchers: Callable[[int], None] = lambda _: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._newest: Shot | None = None
        self._ended = False

    def start(self) -> None:
        """Take the running event loop."""
        self._loop = asyncio.get_running_loop()

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a method of this hub from another thread; nothing happens where the loop has ended."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def join(self) -> Page:
        """A new page, which gets the newest frame at once."""
        page = Page()
        self.pages.add(page)
        if self._newest is not None:
            page.offer(self._newest)
        if self._ended:
            page.end()
        self._count()
        return page

    def leave(self, page: Page) -> None:
        """A page was closed."""
        self.pages.discard(page)
        self._count()

    def watch(self, page: Page, *, on: bool) -> None:
        """A page became visible, or hidden: then it gets no frames."""
        page.watching = on
        if on and self._newest is not None:
            page.offer(self._newest)
        self._count()

    def show(self, shot: Shot) -> None:
        """Offer the newest frame to all pages."""
        self._newest = shot
        for page in self.pages:
            if page.watching:
                page.offer(shot)

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """Tell all pages."""
        for page in self.pages:
            page.tell(kind, **fields)

    def end(self) -> None:
        """Close all pages, once they were sent what they were told."""
        self._ended = True
        for page in self.pages:
            page.end()

    def _count(self) -> None:
        self.on_watchers(sum(page.watching for page in self.pages))
