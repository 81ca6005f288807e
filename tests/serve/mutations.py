"""Requests that were valid before somebody changed them: bytes replaced, cut out, repeated or put in."""

from __future__ import annotations

import io
import random
import socket
from typing import Final

import numpy as np
from PIL import Image

from depthkit.runtime import kserve
from depthkit.spec import camera_ready

__all__ = ["answer_to", "http_post", "mutated", "valid_requests"]

_WORDS: Final = (
    b"\0", b"\r\n", b"\r\n\r\n", b"\xff" * 9, b"{", b"]" * 40, b"-1", b"1e999", b"NaN", b"9" * 30, b"chunked", b"%00",
    b"../" * 9, b"null", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
)  # fmt: skip
_MOST: Final = 1 << 20


def valid_requests(model: str, size: tuple[int, int]) -> list[bytes]:
    """One of each kind, as bytes of HTTP."""
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    requests = []
    for binary in (True, False):
        length, parts = kserve.write_request(image, *camera_ready(*size), binary=binary, timeout_us=10_000_000)
        header = "" if length is None else f"{kserve.HEADER_LENGTH}: {length}\r\n"
        requests.append(http_post(f"/v2/models/{model}/infer", b"".join(parts), header))
    for kind in ("JPEG", "PNG", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(image[0]).save(stream, kind)
        accept = "Accept: application/x-npy;q=0.9, image/png;colormap=magma\r\n"
        requests.append(http_post(f"/v1/depth?model={model}&intrinsics=fov=63&range=1,5", stream.getvalue(), accept))
    return requests


def http_post(path: str, body: bytes, headers: str) -> bytes:
    """A request as bytes of HTTP; each of the further headers ends with a line break."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def mutated(request: bytes, rng: random.Random) -> bytes:
    """Change it in one to four places, more often in its head and at the start of its body than later."""
    content = bytearray(request)
    for _ in range(rng.randint(1, 4)):
        at = min(int(rng.paretovariate(1) * rng.randint(0, 200)), len(content))
        length = rng.choice((0, 1, 1, 4, 60))
        put = rng.choice((b"", bytes([rng.randrange(256)]), rng.choice(_WORDS), bytes(content[at : at + length]) * 2))
        content[at : at + length] = put
    return bytes(content[: rng.randint(0, len(content))] if rng.random() < 0.1 else content)


def answer_to(port: int, request: bytes, seconds: float) -> bytes:
    """All that a server sends until it has answered or closed the connection; TimeoutError if it does neither."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        found = b""
        try:
            connection.sendall(request)
            while len(found) < _MOST and not _is_whole(found):
                if not (part := connection.recv(1 << 16)):
                    break
                found += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return found


def _is_whole(answer: bytes) -> bool:
    """Whether it is a head and as many bytes as it says."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and lengths) and len(body) >= int(lengths[0])
