"""Servers for tests: with engines that answer at once, or as slowly as a test lets them, or with real ones."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="pip install 'depthkit[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'depthkit[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'depthkit[serve]'")

from depthkit.parity import Parity
from depthkit.pipeline.proven import Proven
from depthkit.pipeline.tell import Tell, silent
from depthkit.reference import Reference
from depthkit.runtime import kserve
from depthkit.serve.repository import Repository, entries_of
from depthkit.serve.server import listen
from depthkit.serve.service import Limits, Service
from depthkit.session import Session
from depthkit.spec import Dim

from ..support import Recorded

SIZE = (16, 32)
"""Of `Recorded`'s frames."""
PARITY = Parity(1e-9, 1.0, 0.999, 0.5, 0, 1, finite=True, frames=8, abs_rel_loss=0.001, delta1_loss=None)


def first_channel(frame: np.ndarray) -> np.ndarray:
    """An engine: its first channel in decimetres."""
    return frame[..., 0].astype(np.float32) / 10


def proven(*sessions: Session, hashes: Mapping[str, str] | None = None) -> Proven:
    """As if these sessions had passed."""
    blank = np.zeros((1, *SIZE), np.float32)
    reference = Reference(np.zeros((1, *SIZE, 3), np.uint8), blank, blank)
    return Proven(sessions, "fake", "fp32", reference, PARITY, dict(hashes or {"engine": "e" * 64, "onnx": "0" * 64}))


def fake(count: int = 1, answer: Callable[[np.ndarray], np.ndarray] = first_channel, **options: Any) -> Proven:
    """Sessions that answer so; see `Recorded`."""
    return proven(*(Recorded([], answer=answer, **options) for _ in range(count)))


@dataclass
class Answered:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal, which shows no path and no traceback."""
        sentence = str(self.json["error"])
        assert "Traceback" not in sentence
        assert "/tmp" not in sentence
        assert "\n" not in sentence
        return sentence


class Client:
    """Asks a server over one connection, which is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answered:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, named, encode_chunked=True)
        response = self._connection.getresponse()
        return Answered(response.status, response.headers, response.read())

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body: bytes, **headers: str) -> Answered:
        return self.ask("POST", path, body, **headers)

    def infer(
        self, image: np.ndarray, path: str = "/v2/models/a/infer", *, binary: bool = True, **more: Any
    ) -> Answered:
        """Ask for the depth of N x H x W x 3 images."""
        spec = Recorded([]).spec
        length, parts = kserve.write_request(image, spec.input, spec.output, binary=binary, **more)
        headers = {} if length is None else {kserve.HEADER_LENGTH: str(length)}
        return self.post(path, b"".join(parts), **headers)

    def close(self) -> None:
        self._connection.close()


class Served:
    """A server in a thread."""

    def __init__(self, service: Service, lines: list[dict[str, Any]]) -> None:
        self.service, self.lines = service, lines
        self.address = service.address
        self.port = int(service.address.rstrip("/").rpartition(":")[2])
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=service.run, name="depthkit served")

    @property
    def repository(self) -> Repository:
        return self.service.repository

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, to which the repository belongs."""
        assert self.service.loop is not None
        return self.service.loop

    def start(self) -> None:
        self._thread.start()
        self.client().get("/v2/health/live")

    def client(self) -> Client:
        self._clients.append(Client(self.port))
        return self._clients[-1]

    def raw(self) -> socket.socket:
        """A connection for bytes that are no request."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, with these labels and any others, added up; 0: there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.client().get("/metrics").body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait(self, seconds: float = 20) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.service.stop()
        assert self.wait()
        assert self.service.memory.held == 0  # whatever happened


@contextmanager
def serving(
    engines: Mapping[str, Proven | Callable[[], Proven]],
    *,
    queue: int = 16,
    limits: Limits | None = None,
    tell: Tell = silent,
    **more: Any,
) -> Iterator[Served]:
    """Serve engines by their names until the block ends."""

    entries = entries_of(list(engines))
    by_target = {entry.target: found for entry, found in zip(entries, engines.values(), strict=True)}

    def open_engine(target: Path) -> Proven:
        found = by_target[target]
        return found() if callable(found) else found

    repository = Repository(entries, open_engine, queue, tell)
    repository.load()
    lines: list[dict[str, Any]] = []
    service = Service(repository, listen("127.0.0.1", 0, 0), lines.append, limits=limits, **more)
    served = Served(service, lines)
    served.start()
    try:
        yield served
    finally:
        served.close()


def images(count: int = 1, seed: int = 0) -> np.ndarray:
    """Random frames for `Recorded`."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


def depth_of(answer: Answered) -> np.ndarray:
    """The depth in the answer to `Client.infer`."""
    assert answer.status == 200, answer.body
    length = answer.headers[kserve.HEADER_LENGTH]
    spec = Recorded([]).spec.with_batch(Dim("batch", 1, 1, 64))
    return kserve.read_response(answer.body, None if length is None else int(length), spec.output)
