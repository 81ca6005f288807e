"""A connection that gives a client limited time: to send the head of a request, and to read an answer.

It also notices that a client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from .telemetry import record_of

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = ["Connection"]

_HEAD_S: Final = 10.0  # from the connection, or the first byte of a request, to the end of its head
_READING_S: Final = 30.0  # that a client may delay an answer in all
_A_CHUNK_S: Final = 3.0  # of these that it gets back for each chunk (256 kB) that it reads: below 87 kB/s they run out


class Connection(H11Protocol):
    """uvicorn's protocol with these two limits; idle connections between requests have uvicorn's own.

    Without them, a client that sends one byte a minute, or never reads, keeps a connection and an answer's memory for
    ever. (uvicorn's parser in C, httptools, was no faster for requests with a frame: docs/decisions/0016-serve.md.)
    """

    head_s, reading_s = _HEAD_S, _READING_S

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head, self._reading = _Timer(self.loop), _Timer(self.loop)
        self._patience = self.reading_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read what came; the head may be complete now."""
        super().data_received(data)
        self._expect_head()

    def on_response_complete(self) -> None:
        """From here on uvicorn waits for a next request, or has begun it."""
        self._head.stop()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limits; whoever computes an answer to this client is told."""
        self._head.stop()
        self._reading.stop()
        # After a reset, uvicorn leaves this timer, which would keep the connection and its last body for 75 s.
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            record_of(cast("Scope", self.cycle.scope)).leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        super().pause_writing()
        self._reading.start(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._patience = min(self.reading_s, self._reading.stop() + _A_CHUNK_S)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, even if its last answer is never read."""
        super().timeout_keep_alive_handler()
        self._reading.start(self.reading_s, self.transport.abort)

    def _expect_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.stop()
        elif not self._head.running:
            self._head.start(self.head_s, self.transport.abort)


class _Timer:
    """At most one call that is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, call)

    def stop(self) -> float:
        """The seconds that were left."""
        if self._handle is None:
            return 0.0
        left = self._handle.when() - self._loop.time()
        self._handle.cancel()
        self._handle = None
        return left
