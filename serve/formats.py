"""What `/v1/depth` answers with: a format for each media type of the header `Accept`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import isfinite
from typing import Any, Final

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from ..data.colours import Span, colour, oriented
from ..data.grey16 import millimetres
from ..data.images import resize_depth
from ..pipeline.shot import percentiles
from ..runtime.cameras import Intrinsics
from ..runtime.clouds import cloud, write_ply
from ..spec import ModelSpec
from .model import unit_of

__all__ = ["FORMATS", "Decoded", "Format", "Made", "choose"]

_FAST: Final = 1  # zlib's level: a quarter of the time of the usual 6, for files a third larger
_BYTES_AN_ENGINE_PIXEL: Final = 64  # of depth, and of JSON's numbers as Python has them and as text
_DIGITS: Final = 4  # of JSON's numbers: a tenth of a millimetre


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture that was sent.

    Attributes:
        size: its height and width.
        frames: what the engine gets: N x h x w x 3 uint8.
        camera: its intrinsics; None: unknown.
        image: H x W x 3 uint8 RGB; None: the format does not show it.
    """

    size: tuple[int, int]
    frames: np.ndarray
    camera: Intrinsics | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Made:
    """A picture and its depth.

    Attributes:
        small: float32 at the engine's size, h x w.
        picture: of which it is.
        at_engine: whether depth is wanted at the engine's size, and not at the picture's.
        spec, name, version: of the model.
        colormap: one of matplotlib's.
        span: the depth from which to which colours reach; None: the 2nd and 98th percentile.
    """

    small: np.ndarray
    picture: Decoded
    at_engine: bool
    spec: ModelSpec
    name: str
    version: str
    colormap: str = ""
    span: Span | None = None

    @cached_property
    def depth(self) -> np.ndarray:
        """Float32 of the size that is wanted, as `Predictor` gives it."""
        return self.small if self.at_engine else resize_depth(self.small, self.picture.size, smooth=True)


@dataclass(frozen=True)
class Format:
    """A kind of answer.

    Attributes:
        media_type: of the answer.
        encode: makes its body.
        bytes_a_pixel: see `memory`.
        unit: of the numbers in it, if not the model's own.
        needs_camera: whether it needs intrinsics.
        needs_metres: whether it holds metres only.
    """

    media_type: str
    encode: Callable[[Made], bytes | memoryview]
    bytes_a_pixel: int
    unit: str = ""
    needs_camera: bool = False
    needs_metres: bool = False

    def memory(self, pixels: int, engine_pixels: int) -> int:
        """Bytes that a picture takes at most, from decoding it to its answer, by its pixels and the engine's."""
        return pixels * self.bytes_a_pixel + engine_pixels * _BYTES_AN_ENGINE_PIXEL


def _png16(made: Made) -> memoryview:
    return _png(millimetres(made.depth))


def _colours(made: Made) -> memoryview:
    span = oriented(made.span or percentiles([made.depth], made.small.shape), made.spec.answers)
    return _png(colour(made.depth, span, made.colormap))


def _png(array: np.ndarray) -> memoryview:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=_FAST)
    return stream.getbuffer()


def _npy(made: Made) -> memoryview:
    stream = io.BytesIO()
    np.save(stream, made.depth, allow_pickle=False)
    return stream.getbuffer()


def _json(made: Made) -> bytes:
    """At the engine's size: a large picture would become many megabytes of text."""
    small = np.round(made.small.astype(np.float64), _DIGITS)
    finite = small[np.isfinite(small)]
    low, middle, high = np.percentile(finite, (0, 50, 100)) if finite.size else (None,) * 3
    document: dict[str, Any] = {
        "model_name": made.name,
        "model_version": made.version,
        "unit": unit_of(made.spec),
        "picture": list(made.picture.size),
        "shape": list(small.shape),
        "min": low,
        "median": middle,
        "max": high,
        "depth": [[value if isfinite(value) else None for value in row] for row in small.tolist()],
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _ply(made: Made) -> memoryview:
    assert made.picture.camera is not None
    assert made.picture.image is not None
    stream = io.BytesIO()
    engine_size = made.spec.network_size
    write_ply(stream, cloud(made.depth, made.picture.image, made.picture.camera, engine_size=engine_size))
    return stream.getbuffer()


FORMATS: Final[dict[str, Format]] = {
    "image/png": Format("image/png", _png16, 12, "millimetres", needs_metres=True),
    "image/png;colormap": Format("image/png", _colours, 16, "colours"),
    "application/x-npy": Format("application/x-npy", _npy, 16),
    "application/json": Format("application/json", _json, 12),
    "application/x-ply": Format("application/x-ply", _ply, 48, needs_camera=True, needs_metres=True),
}
"""By media type; with the parameter `colormap`, a PNG has colours. tests/serve/test_memory.py measures the memory."""

_DEFAULT: Final = "image/png"


def choose(accept: str) -> tuple[Format, str]:
    """The format that a header `Accept` prefers, and the colormap that it names, if any.

    Raises HTTPException: 406, no format fits.

    >>> choose("*/*")[0].unit, choose("image/png;colormap=magma")[1]
    ('millimetres', 'magma')
    >>> choose("text/html, application/json;q=0.9")[0].media_type
    'application/json'
    """
    wishes = sorted((_parsed(wish) for wish in accept.split(",") if wish.strip()), key=lambda wish: -wish[2])
    refused = {kind for kind, _, quality in wishes if quality <= 0}
    for kind, colormap, quality in wishes or [("*/*", "", 1.0)]:
        if quality <= 0:
            break
        fitting = [known for known in FORMATS if fnmatchcase(known, kind) and known not in refused and ";" not in known]
        if colormap and _DEFAULT in fitting:
            return FORMATS[f"{_DEFAULT};colormap"], colormap
        if fitting and not colormap:
            return FORMATS[fitting[0]], ""
    names = ", ".join(FORMATS).replace("colormap", "colormap=NAME")
    raise HTTPException(406, f"there is no format for Accept: {accept[:80]}; choose {names} or */*")


def _parsed(wish: str) -> tuple[str, str, float]:
    """Media type, colormap and quality of one entry of `Accept`."""
    kind, *rest = (part.strip() for part in wish.split(";"))
    pairs = (part.partition("=") for part in rest)
    parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    try:
        quality = float(parameters.get("q", 1))
    except ValueError:
        quality = 0.0
    return kind.lower(), parameters.get("colormap", ""), quality
