"""Open anything that gives frames: a picture, folder, video, camera or stream.

Pictures and raw frames need no more than Pillow; everything else is decoded by PyAV (extra `video`).
"""

from __future__ import annotations

import os
import re
import sys
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, cast

from ..data.images import looks_like_picture
from ..errors import DataError, UserError
from .live import open_camera, open_rtsp, paced
from .pictures import open_folder, open_glob, open_pictures, open_raw, open_sequence, sequence_pattern
from .source import Frame, Sound, Source
from .video import import_av, open_video

__all__ = ["Frame", "Sound", "Source", "is_address", "is_camera", "open_source", "paced"]

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_GLOB: Final = re.compile(r"[*?\[]")
_CAMERA: Final = re.compile(r"\d{1,3}|/dev/video\d+")


def open_source(
    place: str | Path,
    *,
    input_size: tuple[int, int] | None = None,
    fps: float | None = None,
    timeout: float = 10.0,
    threads: int = 1,
) -> Source:
    """Open a source of frames.

    | `place` | frames |
    |---|---|
    | a picture, a folder, a glob (`"*.jpg"`) | all pictures, by name |
    | `frames/%05d.png` | a numbered sequence of one size |
    | any other file | a video: all frames, in order |
    | `0`, `/dev/video0` | a camera: the newest frame |
    | `rtsp://…`, `http(s)://…` | a stream: the newest frame; a video file on a web server: all, in order |
    | `-` | standard input: raw rgb24 with `input_size`, otherwise a video |

    A file that exists is opened by its name, whatever else the name could mean.

    Args:
        place: path, address, pattern, number of a camera, or `-`.
        input_size: height and width of raw frames, or to ask a camera for.
        fps: frames a second of pictures and raw frames (otherwise 30), or to ask a camera for.
        timeout: seconds to wait for a stream's answer, and after which one without frames is lost.
        threads: of the video decoder; 0 for as many as there are cores.

    Raises:
        DataError: it does not exist, does not answer, is damaged, or holds no picture.
        UserError: a library is missing, or an option does not fit.
    """
    if not isinstance(place, str | os.PathLike | int):  # an int as OpenCV has it: the camera's number
        kind = type(place).__name__
        raise UserError(
            f"a source is a path, an address or a camera, not {kind}; for frames, call the predictor itself"
        )
    place = str(place)
    if place == "-":
        return _open_stdin(input_size, fps=fps, threads=threads)
    is_file = os.path.exists(place)  # noqa: PTH110 - pathlib raises for names that are no paths
    if not is_file and (scheme := _SCHEME.match(place)):
        return _open_address(place, scheme[1].lower(), timeout=timeout, threads=threads)
    if _CAMERA.fullmatch(place) and not (is_file and place.isdigit()):
        import_av()
        return open_camera(place, timeout=timeout, input_size=input_size, fps=fps)
    if is_file:
        return _open_path(Path(place), fps=fps, threads=threads)
    if sequence_pattern(place):
        return open_sequence(place, fps=fps)
    if _GLOB.search(place):
        return open_glob(place, fps=fps)
    raise DataError(f"no such file or folder: {place}")


def is_address(place: str) -> bool:
    """Whether it has the form of an address, such as `rtsp://…`."""
    return _SCHEME.match(place) is not None


def is_camera(place: str) -> bool:
    """Whether it has the form of a camera: `0`, `/dev/video0`."""
    return _CAMERA.fullmatch(place) is not None


def _open_path(path: Path, *, fps: float | None, threads: int) -> Source:
    if path.is_dir():
        return open_folder(path, fps=fps)
    if looks_like_picture(path):
        return open_pictures(str(path), [path], fps=fps)
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty; replace or remove it")
    if not os.access(path, os.R_OK):
        raise DataError(f"no permission to read {path}; chmod +r {path}")
    # `file:`, so that a name with a colon is no address.
    return open_video(f"file:{path}", str(path), threads=threads)


def _open_address(place: str, scheme: str, *, timeout: float, threads: int) -> Source:
    from .http_stream import open_http, shown

    if not timeout > 0:
        raise UserError(f"--timeout {timeout:g}: it must be above 0 seconds")
    if scheme in {"http", "https"}:
        return open_http(place, timeout=timeout, threads=threads)
    if scheme in {"rtsp", "rtsps"}:
        import_av()
        return open_rtsp(place, shown(place), timeout=timeout, threads=threads)
    raise DataError(f"{scheme}:// is not an address that depthkit opens; use rtsp://, http:// or https://")


def _open_stdin(size: tuple[int, int] | None, *, fps: float | None, threads: int) -> Source:
    buffered = cast("BufferedReader", sys.stdin.buffer)
    if buffered.isatty():
        raise UserError("standard input is a terminal; pipe frames into it: ffmpeg -i INPUT -f matroska - | depthkit …")
    # Unbuffered: a thread that waits in the buffer's read holds its lock, which Python asks for when it exits.
    stream = cast("BinaryIO", buffered.raw)
    if size is not None:
        return open_raw(stream, size, fps=fps)
    return open_video("-", "standard input", file=_Pipe(stream), threads=threads)


class _Pipe:
    """Standard input for PyAV. It cannot seek, and gives what has arrived instead of waiting for more."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        return self._stream.read(size)
