"""More requests than sessions, clients that are slow or leave, engines that fail, and stopping."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from depthkit.errors import BackendError
from depthkit.runtime import kserve
from depthkit.serve.connection import Connection
from depthkit.serve.model import REASONS
from depthkit.serve.service import Limits
from depthkit.spec import Dim

from ..support import Recorded
from .services import Answered, Served, depth_of, fake, first_channel, images, proven, serving

POST = "/v2/models/a/infer"


class Gate:
    """An engine that computes only while the test lets it."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Semaphore(0)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.entered.release()
        assert self.open.wait(20)
        return first_channel(frame)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens elsewhere."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def crowded(served: Served, gate: Gate, count: int) -> Iterator[list[Answered]]:
    """So many requests are in the server while the block runs; afterwards, their answers."""
    answers: list[Answered] = []
    clients = [served.client() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(client.infer, images(seed=seed)) for seed, client in enumerate(clients)]
        until(lambda: sum(model.accepted for model in served.repository.models()) == count)
        try:
            yield answers
        finally:
            gate.open.set()
        answers += [each.result() for each in asked]


@pytest.mark.parametrize("sessions", [1, 2])
def test_beyond_the_queue_is_503_at_once_and_all_others_are_answered(sessions: int) -> None:
    gate = Gate()
    with serving({"a": fake(sessions, gate)}, queue=3) as served:
        with crowded(served, gate, 3 + sessions) as answers:
            refused = served.client().infer(images())
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.error == f"model a has {3 + sessions} requests, as many as it accepts; try again"
            assert served.metric("depthkit_queue_length") == 3
            assert served.metric("depthkit_sessions_running") == sessions
        for seed, answer in enumerate(answers):
            np.testing.assert_array_equal(depth_of(answer)[0], first_channel(images(seed=seed)[0]))
        depth_of(served.client().infer(images()))
        assert served.metric("depthkit_dropped_total", reason="queue") == 1
        assert served.metric("depthkit_queue_length") == 0


@pytest.mark.parametrize("path", [POST, "/v1/depth"])
def test_beyond_the_queue_no_body_is_waited_for(path: str) -> None:
    gate = Gate()
    with serving({"a": fake(1, gate)}, queue=0) as served, crowded(served, gate, 1), served.raw() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 503")
        connection.sendall(bytes(5000) + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: b"HTTP/1.1 200" in connection.recv(5000))  # over the same connection


def test_a_queue_of_none_accepts_what_sessions_compute() -> None:
    gate = Gate()
    with serving({"a": fake(1, gate)}, queue=0) as served, crowded(served, gate, 1):
        assert served.client().infer(images()).status == 503


def test_a_full_model_delays_no_other() -> None:
    gate = Gate()
    with serving({"a": fake(1, gate), "b": fake()}, queue=1) as served, crowded(served, gate, 2):
        depth_of(served.client().infer(images(), "/v2/models/b/infer"))


def test_sessions_take_batches_of_any_size_in_turn() -> None:
    """Sessions belong to the threads that bound them: a batch of another size in another thread was a fault."""
    with serving({"a": fake(2, batch=Dim("batch", 1, 1, 4))}) as served, ThreadPoolExecutor(4) as pool:

        def ask(seed: int) -> None:
            client, sizes = served.client(), np.random.default_rng(seed).integers(1, 5, 50)
            for size in map(int, sizes):
                many = images(size, seed)
                np.testing.assert_array_equal(depth_of(client.infer(many)), many[..., 0].astype(np.float32) / 10)

        list(pool.map(ask, range(4)))
        assert served.metric("depthkit_ready") == 1


def test_a_request_is_refused_when_its_time_has_passed() -> None:
    gate = Gate()
    recorded = Recorded([], answer=gate)
    with serving({"a": proven(recorded)}) as served:
        model = next(iter(served.repository.models()))
        with crowded(served, gate, 1):
            answer = served.client().infer(images(), timeout_us=20_000)
            assert model.accepted == 1, "its place is free again, although the session still computes"
        assert answer.status == 503
        assert answer.error == "the request's timeout passed before a session was free; try again"
        assert answer.headers["retry-after"] == "1"
        assert len(recorded.log) == 1
        depth_of(served.client().infer(images(), timeout_us=20_000_000))
        assert served.metric("depthkit_dropped_total", reason="timeout") == 1


def test_a_time_that_has_passed_before_a_session_is_asked_is_refused_too() -> None:
    recorded = Recorded([])
    with serving({"a": proven(recorded)}) as served:
        assert served.metric("depthkit_dropped_total", reason="timeout") == 0
        for _ in range(20):
            assert served.client().post("/v1/depth?timeout_ms=0.001", png_of(4, 4)).status == 503
        assert recorded.log == []
        metrics = served.client().get("/metrics").body.decode()
        assert all(f'reason="{reason}"' in metrics for reason in REASONS)  # also those that never happened


def test_a_body_that_comes_slowly_holds_no_session_and_ends() -> None:
    with serving({"a": fake()}, queue=0, limits=Limits(body_s=0.3)) as served, served.raw() as slow:
        slow.sendall(f"POST {POST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{{".encode())
        until(lambda: served.service.memory.held == 1)
        for _ in range(3):
            depth_of(served.client().infer(images()))
        answer = b"".join(iter(lambda: slow.recv(4096), b""))  # it is closed
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body did not come within 0.3 s" in answer
        until(lambda: served.service.memory.held == 0)


def test_a_client_that_leaves_within_its_body_frees_its_memory() -> None:
    with serving({"a": fake()}) as served:
        with served.raw() as gone:
            gone.sendall(f"POST {POST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{{".encode())
            until(lambda: served.service.memory.held == 1)
        until(lambda: served.service.memory.held == 0)
        until(lambda: bool(served.lines))
        assert served.lines[-1]["status"] == 499
        depth_of(served.client().infer(images()))


def test_a_client_that_leaves_before_its_answer_frees_its_place() -> None:
    gate = Gate()
    recorded = Recorded([], answer=gate)
    with serving({"a": proven(recorded)}) as served:
        spec = Recorded([]).spec
        length, parts = kserve.write_request(images(), spec.input, spec.output)
        body = b"".join(parts)
        head = f"POST {POST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{kserve.HEADER_LENGTH}: "
        model = next(iter(served.repository.models()))
        with served.raw() as gone:
            gone.sendall(f"{head}{length}\r\n\r\n".encode() + body)
            assert gate.entered.acquire(timeout=20)
            with served.raw() as waiting:
                waiting.sendall(f"{head}{length}\r\n\r\n".encode() + body)
                until(lambda: model.accepted == 2)
            until(lambda: model.accepted == 1)  # at once, and nothing is computed for it
        for _ in range(2):
            served.client().get("/v2/health/live")  # meanwhile, the server sees that the other one has gone, too
        gate.open.set()
        until(lambda: model.accepted == 0)
        assert len(recorded.log) == 1
        assert [line["status"] for line in served.lines if line["method"] == "POST"] == [499, 499]
        depth_of(served.client().infer(images()))


@pytest.mark.parametrize("text", [b"", b"POST /v2 HTTP/1.1\r\nHost: loc"])
def test_a_head_that_never_ends_is_cut_off(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_s", 0.2)
    with serving({"a": fake()}) as served, served.raw() as silent:
        silent.sendall(text)
        assert silent.recv(10) == b""
        client = served.client()
        depth_of(client.infer(images()))
        time.sleep(0.4)
        depth_of(client.infer(images()))  # between two requests, a client has longer


def test_nothing_is_kept_of_a_connection_that_was_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Connection]] = []
    begin = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        made.append(weakref.ref(self))
        begin(self, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    with serving({"a": fake()}) as served:
        made.clear()
        with served.raw() as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            rude.recv(10)
        until(lambda: gc.collect() >= 0 and made[0]() is None)


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "reading_s", 0.2)
    picture = png_of(2000, 3000)
    with serving({"a": fake()}) as served, served.raw() as deaf:
        ask_and_read_nothing(served, deaf, picture)
        depth_of(served.client().infer(images()))
        until(lambda: served.service.memory.held == 0)


def test_an_answer_that_is_read_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "reading_s", 0.4)
    with serving({"a": fake()}) as served, served.raw() as slow:
        ask_and_read_nothing(served, slow, png_of(2000, 3000))
        end = time.monotonic() + 10
        while served.service.memory.held and time.monotonic() < end:
            slow.recv(10_000)  # there is always progress, but a chunk takes longer than 0.4 s
            time.sleep(0.05)
        assert time.monotonic() < end


def test_bodies_that_are_only_announced_take_no_memory() -> None:
    with serving({"a": fake()}, limits=Limits(1 << 24)) as served, ExitStack() as stack:
        for _ in range(80):  # of 1 GiB for all
            announced = stack.enter_context(served.raw())
            announced.sendall(f"POST {POST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777216\r\n\r\n".encode())
        depth_of(served.client().infer(images()))


def test_answers_that_are_not_read_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "memory", 110_000_000)
    picture = png_of(2000, 3000)
    with serving({"a": fake()}) as served, served.raw() as deaf:
        ask_and_read_nothing(served, deaf, picture)
        refused = served.client().post("/v1/depth", picture, Accept="application/x-npy")
        assert refused.status == 503
        assert "the server holds as many bytes as it may" in refused.error
        too_large = served.client().post("/v1/depth", png_of(2000, 4000), Accept="application/x-npy")
        assert too_large.status == 413
        assert "has 8.0 million pixels, and application/x-npy of this server may have 6.9" in too_large.error
        assert served.client().post("/v1/depth", png_of(200, 300)).status == 200


def ask_and_read_nothing(served: Served, deaf: socket.socket, picture: bytes) -> None:
    """Ask for the depth of a picture, and wait until the server holds the answer that is not read."""
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"POST /v1/depth HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-npy\r\nContent-Length: {len(picture)}"
    deaf.sendall(f"{head}\r\n\r\n".encode() + picture)
    until(lambda: served.service.memory.held > 20_000_000)


def png_of(height: int, width: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def test_an_engine_that_fails_is_opened_again() -> None:
    broken, opened = threading.Event(), []
    told: list[str] = []

    def lost(frame: np.ndarray) -> np.ndarray:
        if broken.is_set():
            raise BackendError("the device was lost; see /dev/nvidia0")
        return first_channel(frame)

    def open_engine() -> object:
        opened.append(1)
        if len(opened) == 2:
            raise BackendError("still lost")
        broken.clear()
        return fake(1, lost)

    with serving({"a": open_engine}, tell=lambda _, text: told.append(text)) as served:  # type: ignore[dict-item]
        client = served.client()
        depth_of(client.infer(images()))
        broken.set()
        for _ in range(2):
            answer = client.infer(images())
            assert answer.status == 503
            assert answer.error.startswith("the engine of model a has failed")
        assert client.get("/v2/health/ready").status == 503
        assert client.get("/v2/models/a/ready").status == 503
        assert client.get("/v2/health/live").status == 200
        until(lambda: client.get("/v2/health/ready").status == 200)
        depth_of(client.infer(images()))
        assert len(opened) == 3
        assert told.count("a 1: the engine failed while it computed: the device was lost; see /dev/nvidia0") == 1
        assert served.metric("depthkit_dropped_total", reason="engine") == 2  # also if another engine is there now


def test_what_was_accepted_is_answered_when_the_server_stops() -> None:
    gate = Gate()
    with serving({"a": fake(1, gate)}) as served:
        with crowded(served, gate, 4) as answers:
            idle = served.client()
            idle.get("/v2/health/live")
            served.service.stop()
            until(lambda: refuses(served.port))
            gate.open.set()
        assert served.wait()
    for seed, answer in enumerate(answers):
        np.testing.assert_array_equal(depth_of(answer)[0], first_channel(images(seed=seed)[0]))


def test_an_old_program_names_no_host() -> None:
    with serving({"a": fake()}, name="127.0.0.1") as served, served.raw() as probe:
        probe.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
        assert probe.recv(100).startswith(b"HTTP/1.1 200")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_with_a_token_only_health_and_the_page_are_public() -> None:
    with serving({"a": fake()}, token="s3cret", name=None) as served:
        client = served.client()
        for path in ("/", "/serve.js", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status == 200
        for path in ("/v2", "/v2/models/a", "/metrics", "/palettes", "/nowhere"):
            wrong = ("s3cret", "Bearer s3cre", "Basic s3cret", "Bearer", "ü")
            for given in ({}, *({"Authorization": text} for text in wrong)):
                answer = client.get(path, **given)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "token" in answer.error
        assert client.post(POST, b"{}").status == 401
        assert client.get("/v2", Authorization="Bearer s3cret").status == 200
        assert client.get("/v2", Authorization="bearer  s3cret").status == 200
        assert client.get("/v2", Authorization="Bearer s3cret", Host="depth.example.com").status == 200


def test_foreign_pages_and_names_are_refused() -> None:
    with serving({"a": fake()}, name="127.0.0.1") as served:
        client = served.client()
        refused = client.get("/v2", Host="evil.example")
        assert refused.status == 403
        assert refused.error == "open this page as localhost or by an IP address, not as evil.example"
        assert client.get("/v2", Origin="http://evil.example").status == 403
        assert client.post("/v1/depth", b"", Origin="http://evil.example").status == 403
        assert client.get("/v2", Host="localhost").status == 200
