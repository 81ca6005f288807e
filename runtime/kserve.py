"""The Open Inference Protocol (KServe v2) over REST, for models of one input and one output: bytes in, arrays out.

A body is JSON. By Triton's binary tensor extension, tensors may follow it as little-endian bytes in row-major order;
the header `Inference-Header-Content-Length` then says where the JSON ends.

    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Final, NoReturn

import numpy as np

from ..errors import ProtocolError
from ..spec import Dim, TensorSpec

__all__ = [
    "EXTENSIONS",
    "HEADER_LENGTH",
    "InferRequest",
    "Part",
    "most_json",
    "most_response",
    "read_index_request",
    "read_request",
    "read_response",
    "tensor_metadata",
    "write_request",
    "write_response",
]

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository(index)")
"""Of the protocol, as a server names them in its metadata."""

Part = bytes | memoryview
"""Of a body; the parts are sent one after the other."""

_DATATYPES: Final = {"uint8": "UINT8", "float32": "FP32"}
_REFUSED: Final = ("shared_memory_region", "classification")  # extensions that would change what is answered
_BYTES_A_NUMBER: Final = 16  # of JSON: "255," has 4, and some people indent
_BYTES_A_DEPTH: Final = 24  # of JSON: "-1.2345678806304932e-05,"
_BYTES_BESIDE: Final = 1 << 16  # of JSON: names, parameters
_LONGEST_TIMEOUT_US: Final = (1 << 64) - 1  # Triton's


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a client asks for.

    Attributes:
        image: N x H x W x 3 uint8; read-only if it is a view of the body.
        id: of the request, which the answer repeats; empty: none.
        binary: whether depth is to be answered as bytes.
        timeout_us: microseconds that the request may take, by Triton's schedule policy extension; None: any time.
    """

    image: np.ndarray
    id: str = ""
    binary: bool = False
    timeout_us: int | None = None


def read_request(body: bytes, header_length: int | None, image: TensorSpec, depth: TensorSpec) -> InferRequest:
    """Parse the body of an inference request.

    Args:
        body: is kept by the result if it holds the image as bytes.
        header_length: the value of `HEADER_LENGTH`; None: the whole body is JSON.
        image: the model's input.
        depth: the model's output.

    Raises:
        ProtocolError: the body is malformed, or for another model; the sentence says which part and what is expected.

    >>> from depthkit.spec import camera_ready
    >>> tensors = camera_ready(1, 2)
    >>> length, parts = write_request(np.zeros((1, 1, 2, 3), np.uint8), *tensors)
    >>> read_request(b"".join(parts), length, *tensors).image.shape
    (1, 1, 2, 3)
    """
    document, tail = _split(body, header_length)
    asked = _parameters(document, "the request")
    given = _only(document, "inputs", image.name)
    pixels = _tensor(given, image, tail)
    binary = _flag(asked, "binary_data_output")
    if document.get("outputs"):
        output = _only(document, "outputs", depth.name)
        parameters = _parameters(output, f"output {depth.name!r}")
        _refuse_extensions(parameters)
        binary = _flag(parameters, "binary_data", default=binary)
    timeout = asked.get("timeout")
    if timeout is not None and not (_is_whole(timeout) and 0 <= timeout <= _LONGEST_TIMEOUT_US):
        raise ProtocolError(f"parameter timeout is {_shown(timeout)}; give whole microseconds from 0 to 2^64 - 1")
    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise ProtocolError(f"id is {_shown(identity)}; it must be a string")
    return InferRequest(pixels, identity, binary, timeout or None)


def write_response(
    model: str, version: str, request: InferRequest, spec: TensorSpec, depth: np.ndarray
) -> tuple[int | None, list[Part]]:
    """The answer to a request, as the value of `HEADER_LENGTH` (None: without that header) and the body's parts.

    Args:
        model, version: that computed.
        request: what was asked for.
        spec: the model's output.
        depth: of `spec`'s type, C-contiguous; its memory is in the parts if bytes are asked for. JSON has `null` for
            what is not finite.
    """
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        document["id"] = request.id
    document["outputs"], parts = _written(spec, depth, binary=request.binary)
    return _with_header(document, parts)


def write_request(
    image: np.ndarray, spec: TensorSpec, depth: TensorSpec, *, binary: bool = True, timeout_us: int | None = None
) -> tuple[int | None, list[Part]]:
    """An inference request, as the value of `HEADER_LENGTH` (None: without that header) and the body's parts.

    Args:
        image: N x H x W x 3 uint8, C-contiguous; its memory is in the parts if `binary`.
        spec: the model's input.
        depth: the model's output.
        binary: whether image and depth travel as bytes, and not as JSON.
        timeout_us: see `InferRequest`.
    """
    inputs, parts = _written(spec, image, binary=binary)
    document: dict[str, Any] = {"inputs": inputs, "outputs": [{"name": depth.name}]}
    document["parameters"] = {"binary_data_output": binary}
    if timeout_us is not None:
        document["parameters"]["timeout"] = timeout_us
    return _with_header(document, parts)


def read_response(body: bytes, header_length: int | None, depth: TensorSpec) -> np.ndarray:
    """The depth in the body of an inference response: N x H x W float32; read-only if it is a view of the body.

    Raises ProtocolError: the body is malformed, or has another tensor.
    """
    document, tail = _split(body, header_length)
    return _tensor(_only(document, "outputs", depth.name), depth, tail)


def tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """A tensor in a model's metadata; a dynamic dimension is -1.

    >>> tensor_metadata(TensorSpec("depth", "float32", (Dim("batch", 1, 4, 8), 96, 128), "NHW"))
    {'name': 'depth', 'datatype': 'FP32', 'shape': [-1, 96, 128]}
    """
    shape = [-1 if isinstance(size, Dim) else size for size in spec.shape]
    return {"name": spec.name, "datatype": _DATATYPES[spec.dtype], "shape": shape}


def most_json(spec: TensorSpec) -> int:
    """Bytes of JSON that a request for this input needs at most; parsing more would only waste time."""
    numbers = prod(size.max if isinstance(size, Dim) else size for size in spec.shape)
    return _BYTES_A_NUMBER * numbers + _BYTES_BESIDE


def most_response(request: InferRequest) -> int:
    """Bytes that the answer to a request has at most."""
    pixels = request.image.size // 3
    return pixels * (4 if request.binary else _BYTES_A_DEPTH) + _BYTES_BESIDE


def read_index_request(body: bytes) -> bool:
    """Whether a request for the repository's index is for models that are ready only. Raises ProtocolError."""
    return _flag(_split(body, None)[0], "ready") if body else False


def _split(body: bytes, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object, and the bytes after it."""
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise ProtocolError(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    if not length:
        raise ProtocolError("the request has no JSON; a body of raw bytes alone is not supported")
    view = memoryview(body)
    try:
        document = json.loads(bytes(view[:length]), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the first {length} bytes of the body are not JSON ({_first_line(error)})") from error
    if not isinstance(document, dict):
        raise ProtocolError(f"the body must be a JSON object, not {_shown(document)}")
    return document, view[length:]


def _only(document: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """The one entry of a list of tensors, which must have this name."""
    found = document.get(key)
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        raise ProtocolError(f"{key} must be a list of one object, {name!r}")
    if found[0].get("name") != name:
        raise ProtocolError(f"{key} has {_shown(found[0].get('name'))}, but the model has {name!r}")
    return found[0]


def _tensor(given: Mapping[str, Any], spec: TensorSpec, tail: memoryview) -> np.ndarray:
    """The array of a tensor object of a request or response."""
    datatype = _DATATYPES[spec.dtype]
    if given.get("datatype") != datatype:
        raise ProtocolError(f"{spec.name} has datatype {_shown(given.get('datatype'))}, not {datatype}")
    shape = given.get("shape")
    if not isinstance(shape, list) or not all(map(_is_whole, shape)):
        raise ProtocolError(f"shape of {spec.name} is {_shown(shape)}; it must be a list of whole numbers")
    if len(shape) != len(spec.shape) or not all(map(_fits, shape, spec.shape)):
        raise ProtocolError(f"{spec.name} has shape {_shown_shape(shape)}, and the model takes {spec.describe()}")
    parameters = _parameters(given, f"tensor {spec.name!r}")
    _refuse_extensions(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if len(tail):
            raise ProtocolError(f"{len(tail)} bytes follow the JSON, but {spec.name} has no binary_data_size")
        return _from_json(given.get("data"), spec, shape)
    if "data" in given:
        raise ProtocolError(f"{spec.name} has both data and binary_data_size; send one")
    return _from_bytes(tail, size, spec, shape)


def _from_bytes(tail: memoryview, size: Any, spec: TensorSpec, shape: Sequence[int]) -> np.ndarray:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    needed = prod(shape) * dtype.itemsize
    if not _is_whole(size) or size != needed or size != len(tail):
        raise ProtocolError(
            f"{spec.name} of shape {list(shape)} has {needed} bytes, but binary_data_size is {_shown(size)}, and "
            f"{len(tail)} bytes follow the JSON"
        )
    return np.frombuffer(tail, dtype).reshape(shape).astype(spec.dtype, copy=False)


def _from_json(data: Any, spec: TensorSpec, shape: Sequence[int]) -> np.ndarray:
    """Numbers in one list, or in lists nested as the shape."""
    if not isinstance(data, list):
        raise ProtocolError(f"{spec.name} has neither data nor binary_data_size")
    is_nested = any(isinstance(each, list) for each in data[:1])
    numbers: list[Any] = [data]
    for length in shape if is_nested else (prod(shape),):
        if not all(isinstance(row, list) and len(row) == length for row in numbers):
            raise ProtocolError(
                f"data of {spec.name} does not fit its shape {list(shape)}; send {prod(shape)} numbers in one list"
            )
        numbers = list(chain.from_iterable(numbers))
    # Before there is an array: of a string and numbers, NumPy would make as many strings of its length.
    kinds, whole = set(map(type, numbers)), spec.dtype == "uint8"
    if not kinds <= ({int} if whole else {int, float}):
        raise ProtocolError(f"data of {spec.name} must be {'whole numbers' if whole else 'numbers'}")
    if whole and not (min(numbers, default=0) >= 0 and max(numbers, default=0) <= 255):
        raise ProtocolError(f"data of {spec.name} has numbers outside 0 to 255")
    try:
        with np.errstate(over="ignore"):  # a number that is too large for FP32 becomes infinite, which no gate passes
            return np.array(numbers, spec.dtype).reshape(shape)
    except OverflowError as error:
        raise ProtocolError(f"data of {spec.name} has numbers beyond the range of float64") from error


def _written(spec: TensorSpec, array: np.ndarray, *, binary: bool) -> tuple[list[dict[str, Any]], list[Part]]:
    """A list of one tensor object, and the bytes that follow the JSON."""
    tensor: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": _DATATYPES[spec.dtype]}
    if binary:
        little = array.astype(np.dtype(spec.dtype).newbyteorder("<"), copy=False)
        tensor["parameters"] = {"binary_data_size": little.nbytes}
        return [tensor], [little.reshape(-1).data.cast("B")]
    numbers = array.reshape(-1).tolist()
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    tensor["data"] = numbers if finite else [value if np.isfinite(value) else None for value in numbers]
    return [tensor], []


def _with_header(document: Mapping[str, Any], parts: list[Part]) -> tuple[int | None, list[Part]]:
    header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return (len(header) if parts else None), [header, *parts]


def _parameters(document: Mapping[str, Any], of: str) -> dict[str, Any]:
    found = document.get("parameters", {})
    if not isinstance(found, dict):
        raise ProtocolError(f"parameters of {of} are {_shown(found)}, not an object")
    return found


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise ProtocolError(f"parameter {name} is {_shown(found)}, not true or false")
    return found


def _refuse_extensions(parameters: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if name in parameters:
            raise ProtocolError(f"parameter {name} belongs to an extension that this server lacks; leave it out")


def _fits(size: int, allowed: int | Dim) -> bool:
    return allowed.min <= size <= allowed.max if isinstance(allowed, Dim) else size == allowed


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value from outside in a message: short, and without line breaks."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _shown_shape(shape: Sequence[int]) -> str:
    return str(list(shape[:8]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["too deep"])[0][:100]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
