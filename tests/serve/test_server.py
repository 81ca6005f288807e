"""Listening: which port, and what is said if it cannot be had."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("uvicorn", reason="pip install 'depthkit[serve]'")

from depthkit.errors import UserError
from depthkit.serve.server import is_loopback, listen


def test_the_next_free_port_is_taken_only_by_default() -> None:
    with listen("127.0.0.1", 0, 0) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", None, port) as second:
            assert port < second.getsockname()[1] < port + 20
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is taken; .*--port 0"):
            listen("127.0.0.1", port, 8080)


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.host.invalid", "there is no such address"), ("192.0.2.1", "not an address of this")]
)
def test_a_host_that_is_not_here_is_refused(host: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        listen(host, 0, 0)


def test_connections_send_at_once() -> None:
    """Without TCP_NODELAY the second part of an answer waits for the acknowledgement of its first, up to 40 ms."""
    with listen("127.0.0.1", 0, 0) as sock, socket.create_connection(sock.getsockname()):
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_loopback_is_told_from_the_world() -> None:
    with listen("localhost", 0, 0) as here, listen("0.0.0.0", 0, 0) as everywhere:
        assert is_loopback(here)
        assert not is_loopback(everywhere)
