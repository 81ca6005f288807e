"""The live page: its files, its WebSocket, and the player behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .guard import Guard
from .hub import Hub, Page
from .player import Player, Playlist
from .server import Server
from .wire import COLORMAPS, palettes, title

if TYPE_CHECKING:
    import socket

    from starlette.requests import Request

    from ..spec import Answers

__all__ = ["Look", "View"]

_FILES: Final = {
    "/": ("view.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/view.js": ("view.js", "text/javascript"),
    "/stage.js": ("stage.js", "text/javascript"),
    "/depth.js": ("depth.js", "text/javascript"),
}
_TELLING_S: Final = 1.0  # that pages get to read why the source ended


@dataclass(frozen=True)
class Look:
    """How the page draws depth at first; each page can change it for itself.

    Attributes:
        range: nearest and farthest depth; None follows the scene.
        colormap: one of matplotlib's.
        model: what is said about the engine.
        answers: what depth is, see `ModelSpec`.
    """

    range: tuple[float, float] | None = None
    colormap: str = "turbo"
    model: str = ""
    answers: Answers = "metres"


class View:
    """The live page of a source: `run` serves it until Ctrl-C, `stop`, or the end of a source that fails.

    Args:
        playlist: what is played.
        sock: where to listen (`listen`). It is closed at the end.
        look: how depth is drawn at first.
        smooth: whether depth is smoothed over time at first.
        name: see `Guard`.

    Raises:
        UserError: matplotlib has no such colormap.
    """

    def __init__(
        self,
        playlist: Playlist,
        sock: socket.socket,
        look: Look | None = None,
        *,
        smooth: bool = False,
        name: str = "",
    ) -> None:
        look = look or Look()
        self._hub = Hub()
        self.player = Player(
            playlist,
            smooth=smooth,
            show=lambda shot: self._hub.post(self._hub.show, shot),
            tell=lambda state: self._hub.post(self._hub.tell, "state", state),
            over=self._fail,
        )
        self._hub.on_watchers = self.player.watched
        self._hello = {
            "title": title(playlist.source.name),
            "model": look.model,
            "live": playlist.source.live,
            "still": self.player.is_still,
            "loop": playlist.loop,
            "metric": playlist.unit is not None,
            "inverse": look.answers == "inverse",
            "range": look.range,
            "colormap": look.colormap,
            "palettes": palettes(dict.fromkeys((look.colormap, *COLORMAPS))),
        }
        self._server = Server(self._app(name), sock)
        self.address = self._server.address

    def run(self) -> None:
        """Serve. Raises what ended the source: DataError, EngineError."""
        try:
            self._server.run()
        finally:
            self.player.close()
        if self.player.error is not None:
            raise self.player.error

    def stop(self) -> None:
        """End `run`. Any thread may call it."""
        self._server.stop()

    def _app(self, name: str) -> Starlette:
        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self._hub.start()
            self.player.start()
            yield

        routes = [Route(path, _file(*file)) for path, file in _FILES.items()]
        return Starlette(
            routes=[*routes, WebSocketRoute("/frames", self._serve_page)],
            middleware=[Middleware(Guard, name=name)],
            lifespan=lifespan,
        )

    def _fail(self, sentence: str) -> None:
        """From the player's thread: tell the pages, then stop."""

        def tell() -> None:
            self._hub.tell("error", {"text": sentence})
            self._hub.end()
            asyncio.get_running_loop().call_later(_TELLING_S if self._hub.pages else 0, self.stop)

        self._hub.post(tell)

    async def _serve_page(self, socket: WebSocket) -> None:
        await socket.accept()
        page = self._hub.join()
        page.tell("hello", **self._hello)
        page.tell("state", **self.player.state())
        sending = asyncio.create_task(_send(socket, page))
        try:
            while True:
                self._obey(page, await socket.receive_text())
        except WebSocketDisconnect:
            pass
        except (KeyError, TypeError, ValueError):  # the page sent something else
            with suppress(RuntimeError, WebSocketDisconnect):  # it has gone in the meantime
                await socket.close(1008)
        finally:
            self._hub.leave(page)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    def _obey(self, page: Page, text: str) -> None:
        """Do what a page asks for. Raises KeyError, TypeError, ValueError: it is nothing that can be done."""
        wish = json.loads(text)
        match wish["do"], wish.get("on"):
            case "drawn", _:
                page.drawn()
            case "watch", bool(on):
                self._hub.watch(page, on=on)
            case "pause", bool(on):
                self.player.pause(on)
            case "smooth", bool(on):
                self.player.smooth(on)
            case "again", _:
                self.player.again()
            case other:
                raise ValueError(f"no such wish: {other}")


async def _send(socket: WebSocket, page: Page) -> None:
    """Send a page its messages, then close it."""
    with suppress(RuntimeError, WebSocketDisconnect):  # it has gone; whoever receives is told so
        async for message in page.messages():
            if isinstance(message, str):
                await socket.send_text(message)
            else:
                await socket.send_bytes(message)
        await socket.close()


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    content = (Path(__file__).parent / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer
