"""Bodies of requests and answers, within a size, a time, and the memory that all of them may take together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .model import RETRY

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = ["Answer", "Bodies", "Memory"]

_CHUNK: Final = 1 << 18  # of an answer; more than that does not wait in the connection


class Memory:
    """Counts the bytes of bodies, pictures and answers. Belongs to the event loop.

    Args:
        most: bytes that may be held at a time.

    Attributes:
        most: these.
        held: bytes that are held.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, size: int) -> None:
        """Count `size` bytes, which have to be given back. Raises HTTPException: 503, there are too many."""
        if self.held + size > self.most:
            why = "the server holds as many bytes as it may at this moment; send a smaller picture, or try again"
            raise HTTPException(503, why, RETRY)
        self.held += size

    def give_back(self, size: int) -> None:
        """They are no longer held."""
        self.held -= size

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count them until the block ends. Raises HTTPException: see `take`."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


class Bodies:
    """Belongs to the event loop.

    Args:
        most: bytes of one body.
        seconds: that a client may take to send one.
        memory: where they are counted.
    """

    def __init__(self, most: int, seconds: float, memory: Memory) -> None:
        self._most, self._seconds, self._memory = most, seconds, memory

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body; its memory counts until the block ends.

        Raises:
            HTTPException: 413 too large, 408 too slow, 415 compressed, 503 no memory for it now. What is declared too
                large is not read; what is only declared takes no memory.
            ClientDisconnect: the client has gone.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "the body is compressed (Content-Encoding); send it as it is")
        self._require_fit(int(request.headers.get("content-length", 0)))  # h11 has checked that it is a number
        received = 0
        try:
            chunks, more = [], True
            with anyio.move_on_after(self._seconds) as limit:
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk = message.get("body", b"")
                    self._require_fit(received + len(chunk))
                    self._memory.take(len(chunk))
                    received += len(chunk)
                    chunks.append(chunk)
                    more = message.get("more_body", False)
            if limit.cancelled_caught:
                why = f"the body did not come within {self._seconds:g} s; send it faster"
                raise HTTPException(408, why, {"Connection": "close"})
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._memory.give_back(received)

    def _require_fit(self, size: int) -> None:
        if size > self._most:
            raise HTTPException(413, f"the body has more than {self._most} bytes, the limit of this server")


class Answer(Response):
    """An answer that is sent as the client reads it, and whose memory is counted until then.

    Its maker has held as much memory until now, so there is enough of it.
    """

    def __init__(self, content: bytes | memoryview, media_type: str, headers: dict[str, str], memory: Memory) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body = memoryview(self.body)
        with self._memory.hold(len(body)):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(body), _CHUNK):
                part, more = body[start : start + _CHUNK], start + _CHUNK < len(body)
                await send({"type": "http.response.body", "body": part, "more_body": more})
