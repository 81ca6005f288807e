"""The Open Inference Protocol (KServe v2) over REST: health, metadata and inference of all models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from math import inf, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .. import __version__
from ..runtime import kserve
from .bodies import Answer
from .model import unit_of
from .telemetry import Record, record_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from .bodies import Bodies, Memory
    from .model import Model
    from .repository import Repository

__all__ = ["V2", "describe"]

_Result = TypeVar("_Result")
_LARGE: Final = 1 << 16  # bytes of JSON from which on it is parsed and written in a thread


class V2:
    """Answers everything below `/v2`.

    Args:
        repository: the models.
        bodies: reads requests.
        memory: counts what is held.
    """

    def __init__(self, repository: Repository, bodies: Bodies, memory: Memory) -> None:
        self._repository, self._bodies, self._memory = repository, bodies, memory

    def routes(self) -> list[BaseRoute]:
        """What to serve; the route that is asked most comes first."""
        one, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        return [
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (one, version)),
            *(Route(f"{path}/ready", self._model_ready) for path in (one, version)),
            *(Route(path, self._model) for path in (one, version)),
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._index, methods=["POST"]),
        ]

    async def infer(self, request: Request) -> Response:
        """Compute depth. Raises HTTPException, ProtocolError: the request is refused."""
        begin = perf_counter()
        record = record_of(request.scope)
        record.api = "infer"
        self._find(request).require_place()  # before the body is read: in an overload, most of them are not
        async with self._bodies.read(request) as body:
            record.received = len(body)
            model = self._find(request)
            record.model, record.version = model.name, model.version
            with model.place():
                return await self._answer(model, body, _header_length(request), begin, record)

    async def _answer(
        self, model: Model, body: bytes, header_length: int | None, begin: float, record: Record
    ) -> Response:
        spec, spent = model.proven.sessions[0].spec, record.spent
        json_length = header_length or len(body)
        if json_length > kserve.most_json(spec.input):
            raise HTTPException(413, f"the JSON has more bytes than any request of {spec.input.describe()} needs")
        start = perf_counter()
        question = (body, header_length, spec.input, spec.output)
        asked = await _called(kserve.read_request, *question, in_thread=json_length > _LARGE)
        spent["decode"] = perf_counter() - start
        deadline = inf if asked.timeout_us is None else begin + asked.timeout_us / 1e6
        with self._memory.hold(kserve.most_response(asked)):
            depth = await model.run(asked.image, deadline, record)
            start = perf_counter()
            large = not asked.binary and depth.nbytes > _LARGE // 4
            answer = (model.name, model.version, asked, spec.output, depth)
            length, parts = await _called(kserve.write_response, *answer, in_thread=large)
            spent["encode"] = perf_counter() - start
        kind = "application/json" if length is None else "application/octet-stream"
        headers = {} if length is None else {kserve.HEADER_LENGTH: str(length)}
        return Answer(b"".join(parts), kind, headers, self._memory)

    async def _server(self, _: Request) -> Response:
        return JSONResponse({"name": "depthkit", "version": __version__, "extensions": kserve.EXTENSIONS})

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = not any(model.fault for model in self._repository.models())
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        model = self._find(request)
        answer = {"name": model.name, "ready": not model.fault}
        return JSONResponse(answer, 503 if model.fault else 200)

    async def _model(self, request: Request) -> Response:
        model = self._find(request)
        return JSONResponse(describe(model, self._repository.versions(model.name)))

    async def _index(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            only_ready = kserve.read_index_request(body)
        found = [
            {
                "name": model.name,
                "version": model.version,
                "state": "UNAVAILABLE" if model.fault else "READY",
                "reason": "the engine has failed" if model.fault else "",
            }
            for model in self._repository.models()
            if not (only_ready and model.fault)
        ]
        return JSONResponse(found)

    def _find(self, request: Request) -> Model:
        return self._repository.find(request.path_params["name"], request.path_params.get("version"))


def describe(model: Model, versions: list[str]) -> dict[str, Any]:
    """A model's metadata. `parameters` says what computes, and by how much it differs from PyTorch.

    Its `unit` and `answers` are the output tensor's; `v1_depth` has those of `/v1/depth`, which applies the scale.
    """
    proven = model.proven
    session = proven.sessions[0]
    spec = session.spec
    gate = {
        figure: value if not isinstance(value, float) or isfinite(value) else None
        for figure, value in asdict(proven.parity).items()
    }
    return {
        "name": model.name,
        "versions": versions,
        "platform": proven.backend,
        "inputs": [kserve.tensor_metadata(spec.input)],
        "outputs": [kserve.tensor_metadata(spec.output)],
        "parameters": {
            "version": model.version,
            "network": spec.network,
            "unit": unit_of(spec),
            "answers": spec.answers,
            "v1_depth": {"unit": unit_of(proven.spec), "answers": proven.spec.answers},
            "depth_range": spec.depth_range,
            "focal": spec.focal,
            "precision": session.precision,
            "precision_asked": proven.asked,
            "provider": session.provider,
            "sha256": proven.hashes,
            "gate": gate,
        },
    }


async def _called(call: Callable[..., _Result], *arguments: Any, in_thread: bool) -> _Result:
    """What a function returns; in a thread, if it would delay the answers of others."""
    return await asyncio.to_thread(call, *arguments) if in_thread else call(*arguments)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(kserve.HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise HTTPException(400, f"{kserve.HEADER_LENGTH} is {text[:40]!r}; it must be a number of bytes")
    return int(text)
