"""Live pages with an engine that answers at once, and what a page of them sees."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="pip install 'depthkit[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'depthkit[serve]'")
pytest.importorskip("websockets", reason="pip install 'depthkit[serve]'")

from websockets.exceptions import ConnectionClosed as Closed
from websockets.sync.client import connect

from depthkit.pipeline.stream import Result
from depthkit.pipeline.stream import stream as compute
from depthkit.runtime.source import Frame, Source
from depthkit.serve.player import Playlist
from depthkit.serve.server import listen
from depthkit.serve.view import Look, View

__all__ = ["FRAME", "SIZE", "Client", "Closed", "Look", "Page", "Serve", "Shown", "a_file", "connect", "served"]

SIZE = (24, 32)
"""Of the engine."""
FRAME = (48, 64)
"""Of the source."""


@dataclass
class Shown:
    """A message with a frame, taken apart."""

    header: dict[str, Any]
    depth: np.ndarray
    jpeg: bytes


def decode(message: bytes) -> Shown:
    length = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + length])
    height, width = header["depth"]
    begin, end = 4 + length, 4 + length + 2 * height * width
    return Shown(header, np.frombuffer(message[begin:end], "<u2").reshape(height, width), message[end:])


class Client:
    """A page: it says that it has drawn a frame when the test says so."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.texts: list[dict[str, Any]] = []
        self.hello = self.text("hello")

    def next(self, timeout: float = 10) -> Shown | dict[str, Any]:
        message = self.connection.recv(timeout=timeout)
        if isinstance(message, bytes):
            return decode(message)
        self.texts.append(json.loads(message))
        return self.texts[-1]

    def text(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of a kind with these fields; frames in between count as drawn."""
        while True:
            found = self.next()
            if isinstance(found, Shown):
                self.ask("drawn")
            elif found["kind"] == kind and fields.items() <= found.items():
                return found

    def frame(self, *, drawn: bool = True) -> Shown:
        """The next frame."""
        while not isinstance(found := self.next(), Shown):
            pass
        if drawn:
            self.ask("drawn")
        return found

    def has_frame(self, seconds: float) -> bool:
        """Whether a frame comes within this time."""
        end = time.monotonic() + seconds
        with suppress(TimeoutError):
            while True:
                if isinstance(self.next(max(end - time.monotonic(), 0)), Shown):
                    return True
        return False

    def ask(self, do: str, **more: Any) -> None:
        """Send a wish; as in a browser, nothing happens if the connection is closed. Its messages can still be read."""
        with suppress(Closed):
            self.connection.send(json.dumps({"do": do, **more}))


class Page:
    """A live page that is served in a thread."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.address = view.address
        self.socket = f"{view.address.replace('http', 'ws', 1)}frames"
        self.error: BaseException | None = None
        self._clients = ExitStack()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.view.run()
        except BaseException as error:  # noqa: BLE001 - for the test
            self.error = error

    def open(self) -> Client:
        """Connect a page."""
        return Client(self._clients.enter_context(connect(self.socket, max_size=None)))

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float = 10) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.view.stop()
        assert self.wait()
        self._clients.close()


Serve = Callable[..., Page]


def metres(image: np.ndarray) -> np.ndarray:
    """An engine: its first channel in decimetres."""
    return image[..., 0].astype(np.float32) / 10


def grey_frames(count: int, size: tuple[int, int] = FRAME, failure: Exception | None = None) -> Iterator[Frame]:
    """Grey frames, the i-th of level i + 1."""
    for index in range(count):

        def image(at: tuple[int, int] | None, _: bool, level: int = index % 255 + 1) -> np.ndarray:
            return np.full((*(at or size), 3), level, np.uint8)

        yield Frame(size, index / 100, index, f"{index}", image)
    if failure is not None:
        raise failure


def a_file(
    count: int = 1000, *, fps: float = 100, name: str = "/home/me/clips/clip.mp4", size: tuple[int, int] = FRAME,
    failure: Exception | None = None,
) -> Source:  # fmt: skip
    """A file of grey frames."""
    return Source(name, grey_frames(count, size, failure), size, fps=fps, count=count)


@contextmanager
def served(
    source: Source,
    *,
    engine: Callable[[np.ndarray], np.ndarray] = metres,
    reopen: Callable[[], Source] | None = None,
    look: Look | None = None,
    size: tuple[int, int] = SIZE,
    stream: Callable[[Source], Iterator[Result]] | None = None,
    port: int = 0,
    **more: Any,
) -> Iterator[Page]:
    """Serve a source until the block ends; by `engine`, or by `stream` of a predictor."""
    listed = {key: more.pop(key) for key in ("fps", "loop", "unit") if key in more}
    playlist = Playlist(source, reopen, stream or partial(compute, predict=engine, size=size), **listed)
    page = Page(View(playlist, listen("127.0.0.1", port, 0), look, **more))
    page.start()
    try:
        yield page
    finally:
        page.close()


def get(address: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer."""
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()
