"""What the live page is sent: frames as one binary message each, and everything else as JSON.

    bytes 0 to 3    length n of the header, little-endian
    n bytes         JSON (`Shot.message`), padded with spaces to a multiple of 4
    2 h w bytes     depth as levels, uint16 little-endian: `offset` + `unit` * level; level 0 where there is none
    the rest        the picture as JPEG

`unit` and `offset` are in the header. Depth in metres has the same ones in every frame; without metres, the levels of
each frame reach from its smallest to its largest answer. The page colours the depth and reads numbers from it, so that
both are right after every change of the range.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from ..data.colours import palette
from ..pipeline.stream import Result
from ..runtime.source import Frame

if TYPE_CHECKING:
    from ..spec import ModelSpec

__all__ = ["COLORMAPS", "Shot", "metres_per_level", "pack", "palettes", "title", "without_folders", "without_paths"]

COLORMAPS: Final = ("turbo", "viridis", "magma", "inferno", "gray", "Spectral_r")
"""What the page offers to choose from."""

_LARGEST: Final = 960  # pixels of the longer side of a picture: more than a page shows of two side by side
_QUALITY: Final = 80
_LEVELS: Final = 65535
_MILLIMETRE: Final = 0.001
_FOLDERS: Final = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[^\s/:;,]+/)+")


class Shot:
    """A frame and its depth, ready to be sent."""

    def __init__(self, arrived: float, fields: dict[str, Any], body: bytes) -> None:
        self._arrived, self._fields, self._body = arrived, fields, body

    def message(self, skipped: int = 0) -> bytes:
        """The message; its header has `age`, the milliseconds since the frame was captured or decoded.

        Args:
            skipped: frames that this page was not sent, because it was busy.
        """
        age = (perf_counter() - self._arrived) * 1000
        header = json.dumps(self._fields | {"age": round(age, 1), "skipped": skipped}).encode()
        header += b" " * (-len(header) % 4)
        return b"".join((len(header).to_bytes(4, "little"), header, self._body))


def pack(result: Result, unit: float | None, *, dropped: int, shown: int) -> Shot:
    """Encode a result.

    Depth is sent at the engine's size, from which the page interpolates as `Result.depth` does; for a frame that is
    smaller than that, at the frame's size.

    Args:
        result: is only read.
        unit: metres per level of the depth that is sent; None: it has no metres.
        dropped: frames that the source has dropped so far.
        shown: frames that were computed so far, with this one.
    """
    frame = result.frame
    is_smaller = any(have < engine for have, engine in zip(frame.size, result.small.shape, strict=True))
    depth = result.depth if is_smaller else result.small
    unit, offset = (unit, 0.0) if unit is not None else _whole_scale(depth)
    fields = {
        "unit": unit,
        "offset": offset,
        "index": frame.index,
        "time": round(frame.time, 3),
        "size": frame.size,
        "depth": depth.shape,
        "engine": round(result.spent["engine"] * 1000, 2),
        "dropped": dropped,
        "shown": shown,
    }
    return Shot(frame.arrived, fields, levels(depth, unit, offset) + encode(visible(frame)))


def visible(frame: Frame) -> np.ndarray:
    """A frame as RGB, at its own size or so that its longer side fits."""
    share = _LARGEST / max(frame.size)
    size = None if share >= 1 else (max(1, round(frame.size[0] * share)), max(1, round(frame.size[1] * share)))
    return frame.image(size, exact=False)


def encode(image: np.ndarray) -> bytes:
    """H x W x 3 uint8 as JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()


def levels(depth: np.ndarray, unit: float, offset: float = 0.0) -> bytes:
    """H x W depth as uint16; what is not finite or beyond the scale is 0 or its end."""
    scaled = depth - np.float32(offset)
    scaled *= np.float32(1 / unit)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=_LEVELS, neginf=0.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, _LEVELS, out=scaled)
    encoded: bytes = scaled.astype("<u2").tobytes()
    return encoded


def _whole_scale(depth: np.ndarray) -> tuple[float, float]:
    """Unit and offset by which all finite values of a frame have a level of 1 or more."""
    finite = depth[np.isfinite(depth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # Of answers that are nearly equal, the least that float32 tells apart.
    unit = max((high - low) / (_LEVELS - 1), 1e-6 * max(abs(low), abs(high)), 1e-30)
    return unit, low - unit


def metres_per_level(spec: ModelSpec) -> float | None:
    """Of depth that is sent: 0.001, or more for a range that goes beyond 65 m; None: the model answers no metres."""
    return max(_MILLIMETRE, spec.depth_range[1] / _LEVELS) if spec.is_metric else None


def palettes(names: Iterable[str]) -> dict[str, str]:
    """256 RGB colours of each colormap, near to far, in base64. Raises UserError for an unknown name."""
    return {name: base64.b64encode(palette(name).tobytes()).decode() for name in names}


def title(name: str) -> str:
    """What a page may call a source of this name: an address as it is, a file or camera without its folder.

    >>> title("/home/me/clip.mp4"), title("camera /dev/video0"), title("rtsp://door.local/live"), title("photos/")
    ('clip.mp4', 'camera video0', 'rtsp://door.local/live', 'photos')
    """
    if "://" in name:
        return name
    before, _, path = name.rpartition(" /dev/")
    return f"{before} {path}" if before else name.rstrip("/").rpartition("/")[2] or "folder"


def without_paths(sentence: str, name: str) -> str:
    """A message about the source `name` as a page may show it: folders are left out.

    >>> without_paths("my clips/a.mp4 is damaged; see /var/log/x.txt or http://a.b/c/d", "my clips/a.mp4")
    'a.mp4 is damaged; see x.txt or http://a.b/c/d'
    """
    return without_folders(sentence.replace(name, title(name)))


def without_folders(sentence: str) -> str:
    """A message in which paths are only the names of files.

    >>> without_folders("cannot read /home/me/a.json: no such file")
    'cannot read a.json: no such file'
    """
    return _FOLDERS.sub("", sentence)
