"""What flows through the house: the specification of a model's tensors, preprocessing and depth range.

`ModelSpec` is the one owner of preprocessing. It is written into the run bundle, into the ONNX file's
`metadata_props` and into every engine's manifest, always as the same JSON, and read back strictly: an unknown or
missing key, a wrong type or another schema version is an error that names every fault.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import FrameError, SchemaVersionError, SpecError

__all__ = [
    "METADATA",
    "SIZE_MULTIPLE",
    "STRICT",
    "Dim",
    "ModelSpec",
    "Preprocessing",
    "TensorSpec",
    "camera_ready",
    "check_size",
    "file_name",
    "from_json",
    "graph_sha256",
    "is_import_path",
    "smaller_size",
    "to_json",
]

SIZE_MULTIPLE: Final = 16
"""Height and width must be divisible by this where a built-in network reads them: it halves them four times."""


class METADATA:
    """Keys under which an ONNX file's `metadata_props` carry what depthkit needs to know of it."""

    spec: Final = "depthkit.model_spec"
    precision: Final = "depthkit.precision"
    weights_sha256: Final = "depthkit.weights_sha256"
    recipe: Final = "depthkit.recipe"
    graph_sha256: Final = "depthkit.graph_sha256"


def graph_sha256(model: Any) -> str:
    """A digest of an `onnx.ModelProto`'s nodes and weights, which tells whether an exported file was changed."""
    digest = hashlib.sha256()
    for part in (*model.graph.node, *model.graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


STRICT: Final = ConfigDict(extra="forbid", strict=True)
_Positive = Annotated[int, Field(gt=0)]
_Document = TypeVar("_Document")


@dataclass(frozen=True, config=STRICT)
class Dim:
    """A dynamic dimension: its name and the range it may take; engines are tuned for `opt`."""

    name: str
    min: _Positive
    opt: _Positive
    max: _Positive

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self.name}: needs min <= opt <= max, not {self.min}, {self.opt}, {self.max}")


@dataclass(frozen=True, config=STRICT)
class TensorSpec:
    """One input or output: name, NumPy dtype name, shape (a dynamic dimension is a `Dim`) and layout letters."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[_Positive | Dim, ...]
    layout: Literal["NHWC", "NHW"]

    def check(self, array: np.ndarray) -> None:
        """Raise FrameError unless `array` has this dtype and a shape that this spec allows."""
        if not hasattr(array, "dtype"):
            raise FrameError(f"{self.name} must be an array, not {type(array).__name__}; see numpy.asarray")
        if array.dtype != np.dtype(self.dtype):
            remedy = "convert the frame first" if self.dtype == "uint8" else "allocate it with that dtype"
            raise FrameError(f"{self.name} must be {self.dtype}, not {array.dtype}; {remedy}")
        if len(array.shape) != len(self.shape) or not all(map(_fits, array.shape, self.shape)):
            raise FrameError(
                f"{self.name} must have shape {self.describe()} ({self.layout}), not {array.shape}; "
                "resize the frame, or export an engine of that size with `depthkit export --size HxW`"
            )

    def check_buffer(self, array: np.ndarray, *, written: bool) -> None:
        """Like `check`, for memory that an engine uses in place: C-contiguous, and writeable if `written`."""
        self.check(array)
        if not array.flags.c_contiguous:
            raise FrameError(f"{self.name} is not C-contiguous; bind a contiguous copy instead (np.ascontiguousarray)")
        if written and not array.flags.writeable:
            raise FrameError(f"{self.name} is read-only; bind a writeable array")

    def describe(self) -> str:
        """The shape as a person writes it.

        >>> TensorSpec("depth", "float32", (Dim("batch", 1, 4, 8), 96, 128), "NHW").describe()
        '(1..8, 96, 128)'
        """
        sizes = (f"{d.min}..{d.max}" if isinstance(d, Dim) else str(d) for d in self.shape)
        return f"({', '.join(sizes)})"


def _fits(size: int, allowed: int | Dim) -> bool:
    return allowed.min <= size <= allowed.max if isinstance(allowed, Dim) else size == allowed


@dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """From uint8 pixels to what the network reads: `(pixel / 255 - mean) / std`, per channel in `color` order."""

    color: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """A model as its users see it.

    Attributes:
        network: name of a built-in network, for instance "compact", or what to import: "package.module:Network".
        widths: channels of a built-in network's blocks, outermost first; none are known of others.
        input: what a camera gives: `image`, uint8, N x H x W x 3.
        output: what the model answers: `depth`, float32, N x H x W, metres.
        preprocessing: what stands between the two ends of the graph's first edge.
        depth_range: smallest and largest depth in metres that the model can answer.
        parameters: trainable parameters of the network, batch norm included.
        macs: multiply-accumulate operations for one frame of this input's height and width.
        schema_version: version of this document's layout.
    """

    network: str
    widths: tuple[_Positive, ...]
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    depth_range: tuple[float, float]
    parameters: int
    macs: int
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if len(self.input.shape) != 4 or (self.input, self.output) != camera_ready(*self.size, self.batch):
            raise ValueError("input and output are not the two ends of a camera-ready graph of one size and batch")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        _, height, width, _ = self.input.shape
        if isinstance(height, Dim) or isinstance(width, Dim):
            raise SpecError("height and width are fixed; only the batch may be dynamic")
        return height, width

    @property
    def batch(self) -> int | Dim:
        """Frames a run: a number, or the range of a dynamic batch."""
        return self.input.shape[0]

    @property
    def opt_batch(self) -> int:
        """Frames a run; of a dynamic batch the optimum, for which engines are tuned."""
        return self.batch.opt if isinstance(self.batch, Dim) else self.batch

    def with_batch(self, batch: int | Dim) -> ModelSpec:
        """The same model for another batch."""
        height, width = self.size
        image, depth = camera_ready(height, width, batch)
        return replace(self, input=image, output=depth)


def camera_ready(height: int, width: int, batch: int | Dim = 1) -> tuple[TensorSpec, TensorSpec]:
    """The two ends of a camera-ready graph. Which sizes suit a network, the network itself knows."""
    return (
        TensorSpec("image", "uint8", (batch, height, width, 3), "NHWC"),
        TensorSpec("depth", "float32", (batch, height, width), "NHW"),
    )


def is_import_path(network: str) -> bool:
    """Whether `network` is to be imported, as `package.module:Network`, and no built-in name.

    >>> is_import_path("mypackage.module:MyNet"), is_import_path("compact"), is_import_path("runs/a:b")
    (True, False, False)
    """
    module, _, attribute = network.partition(":")
    return attribute.isidentifier() and all(word.isidentifier() for word in module.split("."))


def file_name(network: str) -> str:
    """What the run folder and the files of a network are called.

    >>> file_name("compact"), file_name("mypackage.module:MyNet")
    ('compact', 'MyNet')
    """
    return network.rpartition(":")[2]


def check_size(height: int, width: int) -> None:
    """Raise SpecError, naming the nearest sizes, unless both are positive multiples of 16.

    >>> check_size(240, 320)
    >>> check_size(250, 320)
    Traceback (most recent call last):
    depthkit.errors.SpecError: size 250x320 (HxW) is not divisible by 16; the nearest are 240x320 and 256x320
    """
    if height > 0 and width > 0 and height % SIZE_MULTIPLE == 0 and width % SIZE_MULTIPLE == 0:
        return
    heights, widths = _neighbours(height), _neighbours(width)
    nearest = dict.fromkeys((f"{heights[0]}x{widths[0]}", f"{heights[1]}x{widths[1]}"))
    raise SpecError(
        f"size {height}x{width} (HxW) is not divisible by {SIZE_MULTIPLE}; "
        f"the nearest {'are' if len(nearest) > 1 else 'is'} {' and '.join(nearest)}"
    )


def _neighbours(length: int) -> tuple[int, int]:
    below = max(length // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
    return below, max(-(-length // SIZE_MULTIPLE), 1) * SIZE_MULTIPLE


def to_json(document: object) -> str:
    """A dataclass of this kind as indented JSON with a final newline."""
    return TypeAdapter(type(document)).dump_json(document, indent=2).decode() + "\n"


def from_json(kind: type[_Document], text: str | bytes, *, source: str) -> _Document:
    """Read a document of `kind` strictly; `source` names it in errors. Keys with a default must be there too.

    Raises:
        SpecError: not JSON, another schema version, or keys and values that do not fit, all of them named.
    """
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{source} is not JSON ({error}); make it again") from error
    known: int = kind.schema_version  # type: ignore[attr-defined]
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(found) is not int or found != known:
        raise SchemaVersionError(
            f"{source} has schema version {found}, and this depthkit reads version {known}; "
            "make it again with this depthkit, or install the one that wrote it"
        )
    try:
        document = TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{source} does not fit its schema: {faults}") from error
    except SpecError as error:  # of a size, which has a sentence of its own
        raise SpecError(f"{source} does not fit its schema: {error}") from error
    whole = TypeAdapter(kind).dump_json(document, exclude_computed_fields=True)
    missing = ", ".join(_missing(json.loads(whole), raw))
    if missing:
        raise SpecError(f"{source} does not fit its schema: it lacks {missing}")
    return document


def _missing(whole: Any, found: Any, path: str = "") -> Iterator[str]:
    """Keys of `whole` that `found` lacks: those that a default stood in for."""
    if isinstance(whole, dict):
        for key, value in whole.items():
            if key in found:
                yield from _missing(value, found[key], f"{path}{key}.")
            else:
                yield path + key
    elif isinstance(whole, list):
        for index, (value, other) in enumerate(zip(whole, found, strict=True)):
            yield from _missing(value, other, f"{path}{index}.")


def smaller_size(full: tuple[int, int], scale: float, least_rows: int = SIZE_MULTIPLE) -> tuple[int, int]:
    """`full` (height, width) times `scale`, in multiples of 16, with the aspect kept as well as they allow.

    What has no more than `least_rows` is not made smaller, and nothing is made smaller than that.

    >>> smaller_size((96, 128), 0.5), smaller_size((240, 320), 0.5), smaller_size((48, 64), 1)
    ((48, 64), (144, 192), (48, 64))
    >>> smaller_size((64, 96), 0.5, least_rows=48), smaller_size((48, 64), 0.5, least_rows=48)
    ((48, 64), (48, 64))
    """
    if scale == 1 or full[0] <= least_rows:
        return full

    def fit(length: float) -> int:
        return max(round(length / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE

    goal, aspect = full[0] * scale, full[1] / full[0]
    middle = fit(goal)
    heights = (middle - SIZE_MULTIPLE, middle, middle + SIZE_MULTIPLE)
    sizes = [(height, fit(height * aspect)) for height in heights if least_rows <= height < full[0]]
    return min(sizes or [full], key=lambda size: (round(abs(size[1] / size[0] - aspect), 2), abs(size[0] - goal)))
