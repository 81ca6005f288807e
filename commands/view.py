"""`depthkit view`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .options import (
    CountType,
    NumberType,
    built_in_engine,
    colormap_option,
    input_size_option,
    near_first,
    range_option,
    timeout_option,
)

if TYPE_CHECKING:
    import socket

    from ..pipeline.predictor import Predictor

PORT: Final = 8080
"""The first one that is tried."""
SLIDES_A_SECOND: Final = 0.5
"""For pictures of a folder or glob."""


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[ENGINE] SOURCE")
@click.option(
    "--port", type=CountType(0, 65535), help=f"Port; 0: any free one.  [default: {PORT}, or the next free one]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("--loop", is_flag=True, help="Start a file again at its end.")
@click.option("--fps", type=NumberType(0, 1000, above=True), help="Frames a second.  [default: those of the source]")
@range_option("follows the scene")
@colormap_option
@click.option("--smooth", is_flag=True, help="Smooth depth over time, against flicker.")
@timeout_option
@input_size_option
def view(
    arguments: tuple[str, ...],
    port: int | None,
    host: str,
    open_browser: bool,
    loop: bool,
    fps: float | None,
    span: tuple[float, float] | None,
    colormap: str,
    smooth: bool,
    timeout: float,
    input_size: tuple[int, int] | None,
) -> None:
    """Show a source and its depth on a live page.

    SOURCE is a picture, a folder, a glob, a numbered sequence (x/%05d.png), a video, a camera (0), an rtsp:// or
    http(s):// stream, or - for standard input. ENGINE is an engine, an ONNX file that depthkit exported, a run, or the
    name of built-in weights: nano or compact. Without it, the more accurate built-in weights are used.

    The page shows metres under the pointer; of a model without metres, its answers. It needs no display here: open it
    in any browser on this machine, or forward the port (ssh -L 8080:localhost:8080 HOST). A file plays at its own rate,
    and frames that the engine is too slow for are dropped; it stops at the end, where the page offers to play it again.
    A camera gives its newest frame. The engine works while a page is visible. Ctrl-C ends.

    \b
    Examples:
      depthkit view clip.mp4
      depthkit view runs/compact/compact-240x320.int8.ov.blob 0
      depthkit view nano rtsp://camera.local/live --range 0.5,5 --smooth
    """
    from ..packages import require_packages

    require_packages("starlette", "uvicorn", "websockets")
    from ..data.colours import palette
    from ..pipeline.predictor import Predictor
    from ..runtime.sources import open_source
    from ..serve.player import Playlist
    from ..serve.server import listen
    from ..serve.view import Look, View
    from ..serve.wire import metres_per_level
    from .console import out as console

    engine, place = _split(arguments)
    palette(colormap)  # before anything is opened
    opening = partial(open_source, place, input_size=input_size, fps=fps or _slides(place), timeout=timeout)
    target = engine or built_in_engine("name others before the source")
    with listen(host, port, PORT) as sock, opening() as source, Predictor(target) as predictor:
        spec, reopen = predictor.spec, None if place == "-" else opening
        look = Look(near_first(span, spec), colormap, _describe(predictor), spec.answers)
        playlist = Playlist(source, reopen, predictor.stream, metres_per_level(spec), fps, loop, predictor.smoother())
        page = View(playlist, sock, look, smooth=smooth, name=host)
        if predictor.scale is not None:
            console.print(predictor.scale.describe(), markup=False)
        _say_where(page.address, sock, port)
        if open_browser:
            click.launch(page.address)
        page.run()
        shown = page.player.shown
        console.print(f"{shown} frame{'' if shown == 1 else 's'} shown, {page.player.dropped} dropped")


def _split(arguments: tuple[str, ...]) -> tuple[Path | None, str]:
    """The engine, None for the built-in one, and the source. Raises UserError."""
    from ..errors import UserError
    from ..pipeline.targets import is_run
    from ..train.shipped import shipped_names

    *engine, place = arguments
    if len(engine) > 1:
        raise UserError(f"{len(arguments)} arguments are given; name one source: `depthkit view [ENGINE] SOURCE`")
    if not place:
        raise UserError("the source is empty; name a file, a camera (0) or an address")
    if not engine and (place in shipped_names() or is_run(Path(place)) or Path(f"{place}.json").is_file()):
        raise UserError(f"{place} is an engine; name a source after it: `depthkit view {place} SOURCE`")
    return (Path(engine[0]) if engine else None), place


def _slides(place: str) -> float | None:
    """The rate of pictures that are no film; None for everything else."""
    return SLIDES_A_SECOND if any(letter in place for letter in "*?[") or Path(place).is_dir() else None


def _describe(predictor: Predictor) -> str:
    (height, width), spec = predictor.size, predictor.spec
    what = "" if spec.is_metric else f", {spec.answers} depth without metres"
    if predictor.scale is not None:
        what = f", metres by a scale from {predictor.scale.picture}"
    return f"{spec.network} {height}x{width}, {predictor.precision}, {predictor.provider}{what}"


def _say_where(address: str, sock: socket.socket, asked: int | None) -> None:
    """Print the URL, and a warning where others can open it. Another port than the usual one is said on stderr."""
    from ..serve.server import is_loopback
    from .console import err
    from .console import out as console

    port = sock.getsockname()[1]
    if asked is None and port != PORT:
        err.print(f"port {PORT} is taken; this is port {port} (choose one with --port)", style="yellow", markup=False)
    if not is_loopback(sock):
        err.print(
            "everybody who reaches this machine can open the page, without a password; for yourself alone, leave "
            f"--host out and forward the port: ssh -L {port}:localhost:{port} HOST",
            style="yellow",
            markup=False,
        )
    console.print(f"{address}   Ctrl-C ends", markup=False)
