"""Who may ask the live page's server, and what its answers let a browser do."""

from __future__ import annotations

import socket

import pytest

from .pages import Serve, a_file, get


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        (None, None, True),
        ("localhost:PORT", "http://localhost:PORT", True),
        ("localhost:9000", "http://localhost:9000", True),  # a forwarded port
        ("[::1]:PORT", "http://[::1]:PORT", True),
        ("192.168.1.2:PORT", None, True),
        ("robot:PORT", None, True),
        ("evil.example:PORT", None, False),
        ("evil.example:PORT", "http://evil.example:PORT", False),  # DNS rebinding
        (None, "http://evil.example", False),
        (None, "null", False),
        ("localhost:PORT", "http://localhost:1", False),
        ("[::1", None, False),
    ],
)
def test_only_its_own_page_may_ask(serve: Serve, host: str | None, origin: str | None, allowed: bool) -> None:
    page = serve(a_file(), name="robot")
    port = page.address.rstrip("/").rpartition(":")[2]
    headers = {
        name: value.replace("PORT", port) for name, value in (("Host", host), ("Origin", origin)) if value is not None
    }
    assert get(page.address, **headers)[0] == (200 if allowed else 403)
    connection = raw_handshake(page.address, {"Host": f"127.0.0.1:{port}", **headers})
    assert connection.startswith(b"HTTP/1.1 101" if allowed else b"HTTP/1.1 403")


def raw_handshake(address: str, headers: dict[str, str]) -> bytes:
    """What a server answers to the opening of a WebSocket with these headers."""

    port = int(address.rstrip("/").rpartition(":")[2])
    lines = [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join((
        "GET /frames HTTP/1.1", *lines, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "",
    ))  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode())
        return connection.recv(200)


def test_answers_let_a_browser_do_no_more_than_needed(serve: Serve) -> None:
    page = serve(a_file())
    for path, kind in (
        ("", "html"),
        ("view.css", "css"),
        ("view.js", "javascript"),
        ("depth.js", "javascript"),
        ("stage.js", "javascript"),
    ):
        status, headers, text = get(page.address + path)
        assert status == 200
        assert kind in headers["content-type"]
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "http://" not in text
        assert "https://" not in text
    for path in ("nowhere", "view.py", "../view.py", "frames"):
        status, headers, text = get(page.address + path)
        assert status == 404
        assert "content-security-policy" in headers
        assert "/" not in text
