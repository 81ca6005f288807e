"""Listen on a port and run an application there until it is stopped."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

import uvicorn

from ..errors import UserError

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp

__all__ = ["Server", "is_loopback", "listen"]

_TRIED: Final = 20  # ports that are tried from the default on
_GRACE_S: Final = 1  # for answers that are under way when it is stopped
_IDLE_S: Final = 75  # that a client may wait before its next request, as nginx allows
_LONGEST_MESSAGE: Final = 4096  # bytes that a page may send at once


def listen(host: str, port: int | None, default: int) -> socket.socket:
    """A socket that listens on `host`.

    Args:
        host: name or address of one of this machine's interfaces.
        port: 0 for any free one; None for the first free one from `default` on.
        default: only used without `port`.

    Raises:
        UserError: the port is taken or not allowed, or the host is not of this machine.
    """
    ports = range(default, default + _TRIED) if port is None else (port,)
    for each in ports[:-1]:
        with suppress(OSError):
            return _listen(host, each)
    try:
        return _listen(host, ports[-1])
    except socket.gaierror as error:
        raise UserError(f"--host {host}: there is no such address; take 127.0.0.1 or one of this machine's") from error
    except OSError as error:
        raise UserError(_why(error, host, ports)) from error


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.create_server(address[:2], family=family)
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these do not; without it,
    # the body of an answer waits 40 ms for the acknowledgement of its head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _why(error: OSError, host: str, ports: range | tuple[int, ...]) -> str:
    taken = str(ports[0]) if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
    if error.errno == errno.EADDRINUSE:
        return f"port {taken} of {host} is taken; choose another with --port, or any free one with --port 0"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"no permission to listen on port {taken} of {host}; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is not an address of this machine; take 127.0.0.1, or 0.0.0.0 for all of them"
    return f"cannot listen on port {taken} of {host}: {error.strerror}; choose another with --host and --port"


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine reaches a listening socket."""
    import ipaddress

    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


class Server:
    """Runs an application on a listening socket. Nothing is logged but errors.

    Messages of a WebSocket are not compressed: pictures are, and depth would cost more CPU than a network saves.

    Args:
        app: what answers.
        sock: closed at the end.
        http: handles a connection; "auto": uvicorn's choice.
        grace_s: seconds that requests have to end when the server is stopped.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        http: type[asyncio.Protocol] | Literal["auto"] = "auto",
        grace_s: int = _GRACE_S,
    ) -> None:
        self._sock = sock
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                http=http,
                ws="websockets-sansio",
                ws_max_size=_LONGEST_MESSAGE,
                ws_per_message_deflate=False,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=grace_s,
            )
        )

    @property
    def address(self) -> str:
        """The URL to open. For a socket that listens everywhere, it is that of this machine."""
        host, port = self._sock.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def run(self) -> None:
        """Serve until `stop`, or until Ctrl-C in the main thread."""
        try:
            with suppress(KeyboardInterrupt):  # which uvicorn raises again after it has stopped
                self._server.run([self._sock])
        finally:
            self._sock.close()

    def stop(self) -> None:
        """End `run`. Any thread may call it."""
        self._server.should_exit = True
