"""The server of `depthkit serve`: the two APIs, the page, metrics, and what happens at start, reload and stop."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import UserError
from .bodies import Bodies, Memory
from .connection import Connection
from .depth import DepthApi
from .guard import Guard, Token
from .server import Server
from .telemetry import Access, Metrics
from .v2 import V2
from .wire import COLORMAPS, palettes, without_folders

if TYPE_CHECKING:
    import socket

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from .repository import Repository
    from .telemetry import Log

__all__ = ["Limits", "Service"]

_FILES: Final = {
    "/": ("serve.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/serve.css": ("serve.css", "text/css"),
    "/serve.js": ("serve.js", "text/javascript"),
    "/stage.js": ("stage.js", "text/javascript"),
    "/depth.js": ("depth.js", "text/javascript"),
}
_HEALTH: Final = ("/v2/health/live", "/v2/health/ready")
_GRACE_S: Final = 30  # that accepted requests have when the server is stopped
_LEAST_MEMORY: Final = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        body: bytes of a request's body.
        body_s: seconds to send it.
    """

    body: int = 16 << 20
    body_s: float = 30.0

    @property
    def memory(self) -> int:
        """Bytes of all bodies, kept pictures and answers together."""
        return max(8 * self.body, _LEAST_MEMORY)


class Service:
    """Serves loaded models until SIGTERM, Ctrl-C or `stop`; then it answers what it has accepted.

    SIGHUP opens all engines again (`Repository.reload`), and so does a changed file its own.

    Args:
        repository: loaded.
        sock: where to listen (`listen`). It is closed at the end.
        log: writes a line for each request.
        limits: what a client may take.
        name: see `Guard`.
        token: that clients have to send; empty: none.

    Attributes:
        repository: its methods belong to `loop`.
        memory: what is held of bodies, pictures and answers.
        loop: while it serves.
    """

    loop: asyncio.AbstractEventLoop | None = None

    def __init__(
        self,
        repository: Repository,
        sock: socket.socket,
        log: Log,
        *,
        limits: Limits | None = None,
        name: str | None = "",
        token: str = "",
    ) -> None:
        limits = limits or Limits()
        self.repository = repository
        self.memory = Memory(limits.memory)
        bodies = Bodies(limits.body, limits.body_s, self.memory)
        self._v2 = V2(repository, bodies, self.memory)
        self._depth = DepthApi(repository, bodies, self.memory)
        self._metrics = Metrics(repository, self.memory)
        # Around Starlette, so that they see the answer to a fault as well.
        app: ASGIApp = self._app()
        if token:
            app = Token(app, token, {*_FILES, *_HEALTH})
        app = Access(Guard(app, name), self._metrics, log)
        self._server = Server(app, sock, http=Connection, grace_s=_GRACE_S)
        self.address = self._server.address

    def run(self) -> None:
        """Serve."""
        self._server.run()

    def stop(self) -> None:
        """End `run`. Any thread may call it."""
        self._server.stop()

    def _app(self) -> Starlette:
        routes = [
            *self._v2.routes(),
            Route("/v1/depth", self._depth.answer, methods=["POST"]),
            Route("/metrics", self._show_metrics),
            Route("/palettes", _show_palettes),
            *(Route(path, _file(*file)) for path, file in _FILES.items()),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            HTTPException: _refuse,
            UserError: _refuse_request,
            Exception: _admit_fault,
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.loop = loop = asyncio.get_running_loop()
        tasks = {asyncio.create_task(self.repository.watch())}

        def reload() -> None:
            task = asyncio.create_task(self.repository.reload(changed=False))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGHUP, reload)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.repository.close()
        self._depth.close()

    async def _show_metrics(self, _: Request) -> Response:
        return self._metrics.response()


async def _refuse(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _refuse_request(_: Request, error: UserError) -> Response:
    return JSONResponse({"error": without_folders(str(error))}, 400)


async def _admit_fault(*_: Any) -> Response:
    """Its traceback is in the server's log only."""
    return JSONResponse({"error": "this request met a fault of the server, which is in its log"}, 500)


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    content = (Path(__file__).parent / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _show_palettes(_: Request) -> Response:
    return Response(await asyncio.to_thread(_palettes), media_type="application/json")


@cache
def _palettes() -> bytes:
    """The colormaps that the page offers."""
    return json.dumps(palettes(COLORMAPS)).encode()
