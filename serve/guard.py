"""What stands before every answer: who may ask, and what a browser may do with the answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Token", "refusal"]

_HEADERS: Final = tuple(
    (name.lower().encode(), value.encode())
    for name, value in {
        # Everything comes from this server; `connect-src 'self'` covers its WebSocket.
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }.items()
)


class Guard:
    """ASGI middleware that refuses foreign pages with 403, and adds the security headers to all answers.

    Args:
        app: what it stands before.
        name: a name under which the server may be asked for, besides `localhost` and IP addresses; None: any name.
    """

    def __init__(self, app: ASGIApp, name: str | None) -> None:
        self._app, self._name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        headers = Headers(scope=scope)
        why = refusal(headers.get("host", ""), headers.get("origin"), self._name)
        if why is None:
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees 403
        else:
            await JSONResponse({"error": why}, 403)(scope, receive, send_guarded)


class Token:
    """ASGI middleware that refuses requests without `Authorization: Bearer TOKEN` with 401.

    Args:
        app: what it stands before.
        token: the secret.
        public: paths that need none.
    """

    def __init__(self, app: ASGIApp, token: str, public: Collection[str]) -> None:
        self._app, self._digest, self._public = app, _digest(token), public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "http" and scope["path"] not in self._public:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # Of digests, so that the time tells neither how much of the secret is right nor its length.
            if not (hmac.compare_digest(_digest(given.strip()), self._digest) and scheme.lower() == "bearer"):
                why = "this server wants its token: send the header Authorization: Bearer TOKEN"
                refused = JSONResponse({"error": why}, 401, {"WWW-Authenticate": "Bearer"})
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def refusal(host: str, origin: str | None, name: str | None) -> str | None:
    """Why a request is refused; None if it is not.

    A page of another site could point its own name at this machine (DNS rebinding). An IP address cannot be pointed
    elsewhere, so only names have to be known.

    Args:
        host: its header `Host`.
        origin: its header `Origin`, which browsers send and other programs need not.
        name: see `Guard`.

    >>> refusal("localhost:8080", "http://localhost:8080", ""), refusal("[::1]:8080", None, "")
    (None, None)
    >>> refusal("evil.example:8080", None, "")
    'open this page as localhost or by an IP address, not as evil.example'
    >>> refusal("localhost:8080", "http://evil.example", "")
    'only its own page may ask this server, not http://evil.example'
    """
    asked = _hostname(host)
    # Without any host, it is no browser that asks, but an old program, for instance a health check of HTTP/1.0.
    if host and not (name is None or asked in {"localhost", name.lower()} or _is_address(asked)):
        return f"open this page as localhost or by an IP address, not as {asked or 'a host without a name'}"
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return f"only its own page may ask this server, not {origin}"
    return None


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a broken IPv6 address
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
