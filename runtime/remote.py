"""A model at a server of KServe's protocol v2, as a session: for measuring and checking it over the wire.

By the standard library's HTTP client on one kept connection: it adds no dependency, and on loopback a request with a
frame of 96x128 takes it 0.3 ms of CPU.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from time import perf_counter
from typing import Any, Final
from urllib.parse import quote, urlsplit

import numpy as np

from ..errors import BackendError, EngineError, ProtocolError, UserError
from ..session import SessionBase
from ..spec import ModelSpec
from . import kserve

__all__ = ["Remote", "RemoteModel", "RemoteSession", "Reply"]

_TIMEOUT_S: Final = 60.0
_FAILED: Final = 0
_INDEX: Final = "/v2/repository/index"
_NO_INDEX: Final = {400, 404, 405, 501}  # what servers without one answer
_LARGEST: Final = 1 << 24  # bytes of a document
_LONGEST: Final = 200  # letters of a server's text in a message


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer to a request.

    Attributes:
        status: HTTP's; 0 if the connection failed.
        seconds: from the first byte that was sent to the last that was received.
        body: of the answer.
        header_length: see `kserve.HEADER_LENGTH`.
        fault: why the connection failed.
    """

    status: int
    seconds: float
    body: bytes = b""
    header_length: int | None = None
    fault: str = ""

    @property
    def error(self) -> str:
        """What the server says about a refusal, in one line."""
        try:
            said = str(json.loads(self.body)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            said = self.fault
        return _line(said) or f"HTTP status {self.status}"

    def json(self, place: str) -> Any:
        """Its JSON; `place` is where it was asked for. Raises BackendError: there is none."""
        if self.status != 200:
            raise BackendError(f"{place}: {self.error}")
        try:
            found = json.loads(self.body)
            json.dumps(found, ensure_ascii=False).encode()  # JSON can escape half a character, which nothing can print
        except (ValueError, RecursionError) as error:
            raise BackendError(
                f"{place} is not JSON ({_line(str(error))}); is this a server of KServe's protocol?"
            ) from error
        return found


class Remote:
    """A connection to a server, which is opened when it is first needed and again after it was lost. For one thread.

    Args:
        url: of the server: `http://HOST:PORT`, or https.
        token: is sent as `Authorization: Bearer`; empty: none.
        timeout_s: seconds to wait for an answer.

    Raises:
        UserError: `url` is none of a server.
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = _TIMEOUT_S) -> None:
        kinds: dict[str, type[HTTPConnection]] = {"http": HTTPConnection, "https": HTTPSConnection}
        try:
            parts = urlsplit(url)
            kind = kinds[parts.scheme]
            port = kind.default_port if parts.port is None else parts.port
            self._connection = kind(parts.hostname or "", port, timeout=timeout_s)
        except (ValueError, KeyError, HTTPException):  # whose text may hold a password
            parts = urlsplit("")
        if not parts.hostname:
            raise UserError("the server's URL is not http://HOST:PORT or https://HOST:PORT; name one that is")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        header_length: int | None = None,
        *,
        most: int = _LARGEST,
    ) -> Reply:
        """Send a request and read the answer, of `most` bytes; a connection that fails is a `Reply` too."""
        headers = (
            self._headers if header_length is None else {**self._headers, kserve.HEADER_LENGTH: str(header_length)}
        )
        begin = perf_counter()
        try:
            self._connection.request(method, self._path + path, body, headers)
            answer = self._connection.getresponse()
            content = _body(answer, most)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
            self._connection.close()
            return Reply(_FAILED, perf_counter() - begin, fault=str(error) or type(error).__name__)
        length = answer.getheader(kserve.HEADER_LENGTH)
        whole = int(length) if length is not None and length.isdecimal() and len(length) < 20 else None
        return Reply(answer.status, perf_counter() - begin, content, whole)

    def read(self, method: str, path: str) -> Any:
        """The JSON of an answer. Raises BackendError: there is none."""
        return self.ask(method, path).json(self.url + path)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _body(answer: HTTPResponse, most: int) -> bytes:
    """The body. Raises HTTPException: it has more than `most` bytes, or fewer than were announced."""
    content = answer.read(most + 1)
    if len(content) > most:
        raise HTTPException(f"its answer has more than {most} bytes")
    if answer.length:  # which `read` does not mind when it has a limit
        raise IncompleteRead(content, answer.length)
    return content


@dataclass(frozen=True)
class RemoteModel:
    """A model that a server offers.

    Attributes:
        url, token: of the server.
        name, version: of the model.
        metadata: what `GET /v2/models/NAME` says about it.
    """

    url: str
    token: str
    name: str
    version: str
    metadata: dict[str, Any]

    @classmethod
    def find(cls, url: str, name: str | None, token: str = "") -> RemoteModel:
        """Ask a server for a model; without a name for its only one.

        Raises:
            BackendError: the server does not answer, does not have it, or answers nonsense.
            UserError: it has several or does not say which, or `url` is none.
        """
        with closing(Remote(url, token)) as remote:
            name = _only_model(remote) if name is None else name
            metadata = remote.read("GET", f"/v2/models/{quote(name, errors='replace')}")
            version = _version(metadata)
            if version is None:
                raise BackendError(f"{remote.url}: the metadata of model {name} is malformed")
            return cls(remote.url, token, name, version, metadata)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a server of depthkit says beside the protocol's own metadata."""
        return self.metadata.get("parameters") or {}

    @property
    def path(self) -> str:
        """Of its inference."""
        version = f"/versions/{quote(self.version)}" if self.version else ""
        return f"/v2/models/{quote(self.name, errors='replace')}{version}/infer"

    def require(self, spec: ModelSpec) -> None:
        """Raise EngineError unless its tensors are those of `spec`, and BackendError if it does not say."""
        tensors = spec.input, spec.output
        ours = [_essence([kserve.tensor_metadata(tensor)]) for tensor in tensors]
        try:
            theirs = [_essence(self.metadata[key]) for key in ("inputs", "outputs")]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BackendError(
                f"{self.url}: the metadata of model {self.name} does not list inputs and outputs with name, datatype "
                "and shape; is this a server of KServe's protocol?"
            ) from error
        if theirs != ours:
            raise EngineError(
                f"model {self.name} of {self.url} has other tensors than the engine: {_line(str(theirs))}, not {ours}"
            )


def _only_model(remote: Remote) -> str:
    """The name of the only model that a server has. Raises BackendError, UserError."""
    reply, place = remote.ask("POST", _INDEX), remote.url + _INDEX
    if reply.status in _NO_INDEX:
        raise UserError(f"{remote.url} does not list its models ({reply.error}); name the model with --model")
    names = _names(reply.json(place))
    if names is None:
        raise BackendError(f"{place} is not a list of models; name the model with --model")
    if len(names) != 1:
        raise UserError(f"{remote.url} serves {_line(', '.join(names)) or 'no model'}; choose one with --model")
    return names[0]


def _names(listed: Any) -> list[str] | None:
    """The names in an index of models; None: it is malformed."""
    if not (isinstance(listed, list) and all(isinstance(each, dict) for each in listed)):
        return None
    names = [each.get("name") for each in listed]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        return None
    return list(dict.fromkeys(names))


def _version(metadata: Any) -> str | None:
    """The version of a model that is asked for without one; empty: it has none. None: the metadata is malformed."""
    if not isinstance(metadata, dict):
        return None
    parameters, versions = metadata.get("parameters") or {}, metadata.get("versions") or [""]
    if not (isinstance(parameters, dict) and isinstance(versions, list)):
        return None
    version = parameters.get("version") or versions[-1]
    return str(version) if isinstance(version, str | int) and str(version).isprintable() else None


def _essence(tensors: Any) -> list[tuple[str, str, list[int]]]:
    """Names, types and shapes, whose numbers Triton gives as text."""
    return [(str(each["name"]), str(each["datatype"]), [int(n) for n in each["shape"]]) for each in tensors]


def _line(text: str) -> str:
    """A server's text for a message: short, in one line, and without what a terminal obeys."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


class RemoteSession(SessionBase):
    """A model at a server. Each run is one request in binary, over a connection of its own.

    Args:
        model: which.
        spec: of the engine that it serves; its tensors have to be the model's.
        precision: see `Session`.

    Raises:
        EngineError: the model has other tensors.
        BackendError: the server does not say which.
    """

    def __init__(self, model: RemoteModel, spec: ModelSpec, precision: str) -> None:
        model.require(spec)
        self.spec, self.precision = spec, precision
        provider = model.parameters.get("provider", model.metadata.get("platform", "unknown"))
        self.provider = f"{_line(str(provider))} at {model.url}"
        self._model = model
        self._remote = Remote(model.url, model.token)

    def ask(self, image: np.ndarray) -> Reply:
        """Send N x H x W x 3 uint8, C-contiguous, whatever is bound."""
        length, parts = kserve.write_request(image, self.spec.input, self.spec.output)
        most = 2 * kserve.most_json(self.spec.output)  # a depth in JSON has up to 25 letters
        return self._remote.ask("POST", self._model.path, b"".join(parts), length, most=most)

    def read(self, reply: Reply, frames: int) -> np.ndarray:
        """The depth in an answer, N x H x W float32. Raises ProtocolError: it is malformed, or N is not `frames`."""
        found = kserve.read_response(reply.body, reply.header_length, self.spec.output)
        if len(found) != frames:
            raise ProtocolError(f"the answer to {frames} frames has {len(found)}")
        return found

    def run(self) -> None:
        """See `Session.run`. Raises BackendError: the server refuses, or its answer is malformed."""
        image, depth = self._buffers()
        reply = self.ask(image)
        if reply.status != 200:
            raise BackendError(f"model {self._model.name} of {self._model.url}: {reply.error}")
        try:
            depth[...] = self.read(reply, len(depth))
        except ProtocolError as error:
            raise BackendError(f"model {self._model.name} of {self._model.url}: {error}") from error

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._remote.close()
