"""`depthkit serve`."""

from __future__ import annotations

import json
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .options import CountType, PathType, read_token

if TYPE_CHECKING:
    import socket

    from ..pipeline.tell import Mark

PORT: Final = 8000
"""Triton's."""
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


class _BytesType(click.ParamType[int]):
    """`16MB`, or a number of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse "16MB" into 16000000."""
        match = re.fullmatch(r"(\d{1,12})\s*([kmg]?)b?", str(value).strip().lower())
        size = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 1000 <= size <= 4 * 10**9:
            self.fail(f"{value!r} is not a size from 1kB to 4GB; write it as 16MB", param, ctx)
        return size


@click.command()
@click.argument("engines", nargs=-1, required=True, metavar="[NAME=]ENGINE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=CountType(0, 65535), default=PORT, show_default=True, help="Port; 0: any free one.")
@click.option(
    "--sessions", type=CountType(1, 256), default=1, show_default=True, help="Sessions of each engine, for that many "
    "requests at a time.",
)  # fmt: skip
@click.option(
    "--queue", type=CountType(0, 100_000), default=16, show_default=True, help="Requests that wait for each engine; "
    "more are answered with 503.",
)  # fmt: skip
@click.option("--max-body", type=_BytesType(), default="16MB", show_default=True, help="Largest body of a request.")
@click.option(
    "--token", "token_file", type=PathType(dir_okay=False), metavar="FILE", help="Answer only requests with "
    "`Authorization: Bearer` and the text of this file.",
)  # fmt: skip
def serve(
    engines: tuple[str, ...],
    host: str,
    port: int,
    sessions: int,
    queue: int,
    max_body: int,
    token_file: Path | None,
) -> None:
    """Serve engines over HTTP: KServe's protocol v2, pictures in and depth out, and a page.

    ENGINE is an engine, an ONNX file that depthkit exported, a run with one, or the name of built-in weights: nano or
    compact. Its name is what stands before the first dot of the file's, unless NAME= is given. Engines of one name are
    its versions 1, 2, … and clients that name none get the last.

    Before the server listens, every session computes the reference frames: an engine that fails its gate exits 3. When
    an engine's file changes, or at SIGHUP, it is opened anew behind the same gate; if it fails, the old one goes on.
    Ctrl-C and SIGTERM answer what was accepted, then end.

    Standard output has one line of JSON for each request. docs/serve.md describes requests, answers and metrics.

    \b
    Examples:
      depthkit serve nano
      curl --data-binary @photo.jpg localhost:8000/v1/depth > depth.png
      depthkit serve runs/compact/compact-96x128.int8.ov.blob --sessions 2
      depthkit serve depth=old.ov.blob depth=new.ov.blob --host 0.0.0.0 --token FILE
    """
    from ..packages import require_packages

    require_packages("prometheus_client", "starlette", "uvicorn")
    from ..pipeline.proven import prove
    from ..serve.repository import Repository, entries_of
    from ..serve.server import is_loopback, listen
    from ..serve.service import Limits, Service

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server handles it, and not the end
    token = "" if token_file is None else read_token(token_file)
    entries = entries_of(engines)
    listen(host, port, PORT).close()  # a port that is taken is said before engines are opened
    repository = Repository(entries, partial(prove, sessions=sessions), queue, _tell)
    repository.load()
    with listen(host, port, PORT) as sock:
        # By name only where DNS rebinding could reach what nobody else can; elsewhere a service has names of its own.
        name = host if is_loopback(sock) and not token else None
        service = Service(repository, sock, _log, limits=Limits(body=max_body), name=name, token=token)
        _say_where(service.address, sock, token=bool(token))
        signal.signal(signal.SIGTERM, lambda *_: service.stop())  # until the server handles it; the exit code is 0
        service.run()


def _say_where(address: str, sock: socket.socket, *, token: bool) -> None:
    """Print the URL, and a warning where others can use it."""
    from ..serve.server import is_loopback
    from .console import err

    if not is_loopback(sock) and not token:
        err.print(
            "everybody who reaches this machine can use these models; ask for a token with --token FILE",
            style="yellow",
            markup=False,
        )
    err.print(f"{address}   Ctrl-C ends", markup=False)


def _tell(mark: Mark, text: str) -> None:
    """Print what happens to a model, on standard error."""
    from .console import err

    err.print(f"{mark:<5} {text}", style="red" if mark == "FAIL" else None, markup=False)


def _log(line: dict[str, Any]) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
