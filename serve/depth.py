"""`POST /v1/depth`: a picture in, its depth out, in the format that the client accepts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, isfinite, nan, prod
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np
from starlette.exceptions import HTTPException

from ..cores import usable_cores
from ..data.colours import Span, palette
from ..data.images import count_pixels, fill_image, read_image
from ..data.upload import Upload
from ..runtime.cameras import corrected, read_intrinsics
from ..spec import Dim
from .bodies import Answer
from .formats import Decoded, Format, Made, choose
from .model import unit_of
from .telemetry import Record, record_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..spec import ModelSpec
    from .bodies import Bodies, Memory
    from .model import Model
    from .repository import Repository

__all__ = ["DepthApi", "Wish"]

_SIZES: Final = ("picture", "engine")


@dataclass(frozen=True)
class Wish:
    """What a client asks for beside the picture.

    Attributes:
        format: of the answer.
        model, version: None: the server's first model; the model's last version.
        timeout_s: within which computing has to begin; `inf`: any time.
        at_engine: whether depth is wanted at the engine's size.
        intrinsics: see `read_intrinsics`; empty: unknown.
        colormap: one of matplotlib's; empty: no colours are wanted.
        span: see `Made`.
    """

    format: Format
    model: str | None = None
    version: str | None = None
    timeout_s: float = inf
    at_engine: bool = False
    intrinsics: str = ""
    colormap: str = ""
    span: Span | None = None

    @classmethod
    def of(cls, query: Mapping[str, str], accept: str) -> Wish:
        """Parse a query and a header `Accept`. Raises HTTPException: 400, 406."""
        known = {"model", "version", "timeout_ms", "size", "intrinsics", "range"}
        if unknown := sorted(query.keys() - known):
            raise HTTPException(400, f"no parameter {unknown[0][:80]!r}; choose from {', '.join(sorted(known))}")
        wanted, colormap = choose(accept)
        if wanted.needs_camera and not query.get("intrinsics"):
            raise HTTPException(400, f"{wanted.media_type} needs the camera: add intrinsics=fx,fy,cx,cy or fov=DEGREES")
        size = query.get("size", "picture")
        if size not in _SIZES:
            raise HTTPException(400, f"size is {size[:80]!r}; choose {' or '.join(_SIZES)}")
        return cls(
            wanted,
            query.get("model"),
            query.get("version"),
            _timeout(query.get("timeout_ms", "0")),
            size == "engine" and not wanted.needs_camera,
            query.get("intrinsics", ""),
            colormap,
            _span(query.get("range", "auto")),
        )


class DepthApi:
    """Answers `/v1/depth`. Pictures are decoded and encoded in threads of their own.

    So sessions only compute, and a large picture of one client delays no session of another.

    Args:
        repository: the models.
        bodies: reads the pictures.
        memory: counts what is held.
    """

    def __init__(self, repository: Repository, bodies: Bodies, memory: Memory) -> None:
        self._repository, self._bodies, self._memory = repository, bodies, memory
        self._threads = ThreadPoolExecutor(usable_cores(), "depthkit pictures")

    async def answer(self, request: Request) -> Response:
        """Answer a request. Raises HTTPException, UserError: it is refused."""
        begin = perf_counter()
        record = record_of(request.scope)
        record.api = "depth"
        wish = Wish.of(request.query_params, request.headers.get("accept", "*/*"))
        name = wish.model if wish.model is not None else next(iter(self._repository.models())).name
        model = self._repository.find(name, wish.version)
        _require_metres(model, wish)  # before the picture is read
        model.require_place()
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "the body is a form; send the picture itself (curl --data-binary @photo.jpg)")
        async with self._bodies.read(request) as body:
            record.received = len(body)
            model = self._repository.find(name, wish.version)
            record.model, record.version = model.name, model.version
            deadline = begin + wish.timeout_s
            _require_metres(model, wish)
            with model.place():
                return await self._answer(model, Upload(body), wish, deadline, record)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def _answer(self, model: Model, upload: Upload, wish: Wish, deadline: float, record: Record) -> Response:
        loop = asyncio.get_running_loop()
        spec, scale, spent = model.proven.spec, model.proven.scale, record.spent
        start = perf_counter()
        pixels = await loop.run_in_executor(self._threads, count_pixels, upload)
        with self._memory.hold(self._needed(pixels, prod(spec.size), wish.format)):
            picture = await loop.run_in_executor(self._threads, _decoded, upload, spec, wish)
            spent["decode"] = perf_counter() - start
            small = (await model.run(picture.frames, deadline, record))[0]
            start = perf_counter()
            if scale is not None:
                small = scale.apply(small)
            if picture.camera is not None:
                small = corrected(small, picture.camera, spec.focal)
            made = Made(small, picture, wish.at_engine, spec, model.name, model.version, wish.colormap, wish.span)
            content = await loop.run_in_executor(self._threads, wish.format.encode, made)
            spent["encode"] = perf_counter() - start
        headers = {
            "Depth-Model": f"{model.name}/{model.version}",
            "Depth-Unit": wish.format.unit or unit_of(spec),
            "Server-Timing": ", ".join(f"{phase};dur={seconds * 1000:.2f}" for phase, seconds in spent.items()),
            "Vary": "Accept",
        }
        return Answer(content, wish.format.media_type, headers, self._memory)

    def _needed(self, pixels: int, engine_pixels: int, wanted: Format) -> int:
        """Bytes that a picture takes until it is answered. Raises HTTPException: 413, the server never has them."""
        needed = wanted.memory(pixels, engine_pixels)
        if needed > self._memory.most:
            most = self._memory.most / wanted.bytes_a_pixel
            raise HTTPException(
                413,
                f"the picture has {pixels / 1e6:.1f} million pixels, and {wanted.media_type} of this server may have "
                f"{most / 1e6:.1f}; send a smaller one, or accept another format",
            )
        return needed


def _require_metres(model: Model, wish: Wish) -> None:
    """Raise HTTPException, 400, if a wish is for metres that the model does not answer."""
    spec = model.proven.spec
    if spec.is_metric or not (wish.format.needs_metres or wish.intrinsics):
        return
    raise HTTPException(
        400,
        f"{model.name} answers {unit_of(spec)}, so there are no millimetres, points or focal lengths; leave "
        "intrinsics out, and accept application/x-npy, application/json or image/png;colormap=turbo",
    )


def _decoded(upload: Upload, spec: ModelSpec, wish: Wish) -> Decoded:
    """In a thread. Raises DataError, UserError."""
    if wish.colormap:
        palette(wish.colormap)  # raises UserError for an unknown one, before anything is computed
    image = read_image(upload)
    height, width = image.shape[:2]
    camera = None
    if wish.intrinsics:
        camera = read_intrinsics(wish.intrinsics, (height, width), picture=upload, files=False)
    least = spec.batch.min if isinstance(spec.batch, Dim) else spec.batch
    frames = np.empty((least, *spec.size, 3), np.uint8)
    fill_image(frames[0], image)
    frames[1:] = frames[0]  # an engine of a fixed batch computes that many
    return Decoded((height, width), frames, camera, image if wish.format.needs_camera else None)


def _timeout(text: str) -> float:
    """Seconds of a parameter in milliseconds, of which 0 is any time."""
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = nan
    if not (isfinite(milliseconds) and milliseconds >= 0):
        raise HTTPException(400, f"timeout_ms is {text[:80]!r}; give milliseconds, or 0 for any time")
    return milliseconds / 1000 or inf


def _span(text: str) -> Span | None:
    if text == "auto":
        return None
    try:
        near, far = (float(word) for word in text.split(","))
    except ValueError:
        near, far = nan, nan
    if not (isfinite(near) and isfinite(far) and 0 <= near < far):
        raise HTTPException(400, f"range is {text[:80]!r}; give the nearest and the farthest depth, as 0.5,5, or auto")
    return near, far
