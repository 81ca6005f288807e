"""`http(s)://`: a stream without end (MJPEG cameras) is live; a file on a web server is read whole and in order."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPBasicAuthHandler,
    HTTPDigestAuthHandler,
    HTTPPasswordMgrWithPriorAuth,
    build_opener,
)

from ..errors import DataError
from .live import Opened, open_live
from .source import Source
from .video import import_av, open_container, open_video, refusal

__all__ = ["open_http", "shown"]

# Without it FFmpeg reads a stream for seconds to measure its rate.
_OPTIONS: Final = {"fpsprobesize": "0", "analyzeduration": "500000"}


def shown(address: str) -> str:
    """An address without user, password and query, which often holds one. Raises DataError: it is none.

    >>> shown("http://me:secret@camera.local:8080/video?token=1")
    'http://camera.local:8080/video'
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # its text may hold the password
        scheme = address.partition("://")[0]
        raise DataError(
            f"{scheme}:// is not followed by a valid host; write {scheme}://HOST:PORT/PATH, with an IPv6 address in [ ]"
        ) from None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_http(address: str, *, timeout: float, retries: int = 5, threads: int = 1) -> Source:
    """Open an address. What has a known length and is no multipart is a file; all else is a live stream.

    Raises:
        DataError: it does not answer within `timeout` seconds, refuses, is a web page, or holds no video.
        UserError: PyAV is not installed.
    """
    import_av()
    name = shown(address)
    first: list[HTTPResponse] = [_request(address, name, timeout)]
    if first[0].length is not None and not _is_multipart(first[0]):
        first.pop().close()
        return open_video(address, name, timeout=timeout, threads=threads)

    def connect() -> Opened:
        response = first.pop() if first else _request(address, name, timeout)
        stream = _Stream(response)
        try:
            container = open_container(
                stream, name, container="mpjpeg" if _is_multipart(response) else None, options=_OPTIONS
            )
        except BaseException:
            stream.close()
            raise
        return Opened(container, stream.interrupt, stream.close)

    return open_live(connect, name, patience=timeout, has_rate=False, retries=retries, threads=threads)


def _is_multipart(response: HTTPResponse) -> bool:
    return response.headers.get_content_type().startswith("multipart/")


class _Stream:
    """The body of a response, for PyAV to read."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        # Of our own, because `response` gives its socket up where it ends.
        self._socket = socket.socket(fileno=os.dup(response.fileno()))

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end, and where the connection broke."""
        with suppress(OSError, ValueError, HTTPException):
            return self._response.read1(size)
        return b""

    def interrupt(self) -> None:
        """End a read in another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the connection. No thread may be reading."""
        self._response.close()
        self._socket.close()


def _request(address: str, name: str, timeout: float) -> HTTPResponse:
    """Ask for an address. Raises DataError."""
    parts = urlsplit(address)
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    handlers: list[Any] = []
    if parts.username is not None:
        known = HTTPPasswordMgrWithPriorAuth()
        known.add_password(None, plain, unquote(parts.username), unquote(parts.password or ""))
        handlers = [HTTPBasicAuthHandler(known), HTTPDigestAuthHandler(known)]
    ask: Callable[..., HTTPResponse] = build_opener(*handlers).open
    try:
        response = ask(plain, timeout=timeout)
    except HTTPError as error:
        error.close()
        wanted = "give user and password: http://USER:PASSWORD@HOST/…" if error.code == 401 else "check the address"
        raise DataError(f"{name} answers {error.code} {error.reason}; {wanted}") from error
    except (OSError, ValueError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise DataError(f"{name} {refusal(reason, timeout)}") from error
        text = getattr(reason, "strerror", None) or str(reason)
        raise DataError(f"{name} does not answer: {text}; check the address and the network") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DataError(f"{name} is a web page, not a stream; ask the camera's manual for the address of its MJPEG")
    return response
