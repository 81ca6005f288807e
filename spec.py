"""A model's specification: its tensors, preprocessing and depth range.

`ModelSpec` alone defines preprocessing. The run bundle, the ONNX file's `metadata_props` and every engine's manifest
contain it as the same JSON (see `documents`).
"""

from __future__ import annotations

from dataclasses import replace
from math import atan, degrees
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from .documents import STRICT, is_version
from .errors import FrameError, SpecError
from .sizes import check_camera, describe_sizes

__all__ = ["Answers", "Dim", "Focal", "ModelSpec", "Preprocessing", "TensorSpec", "camera_ready"]

_Positive = Annotated[int, Field(gt=0)]

Answers = Literal["metres", "share", "inverse", "relative"]
"""What a network answers: depth in metres; a share (0 to 1) of the depth range's upper end; inverse depth up to scale
and shift, larger when nearer (MiDaS, Depth Anything); or depth up to scale."""

Focal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A camera's focal length in pixels per pixel of picture width (fx / width), which resizing does not change."""


@dataclass(frozen=True, config=STRICT)
class Dim:
    """A dynamic dimension: its name and range; engines are tuned for `opt`."""

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
    """From uint8 pixels to the network's input: `(pixel / scale - mean) / std`, per channel in `color` order.

    `color` is the order that the network takes; `image` is RGB always.
    """

    color: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 255.0


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """The interface and properties of a model.

    Attributes:
        network: name of a built-in network, for instance "compact", or an import path "package.module:Network".
        widths: channels of a built-in network's blocks, outermost first; empty for other networks.
        input: `image`, uint8, N x H x W x 3, as cameras deliver it.
        output: `depth`, float32, N x H x W: metres if `is_metric`, else what the network answers.
        preprocessing: how the graph converts `image` to the network's input.
        depth_range: if `is_metric`, smallest and largest depth in metres, to which the graph clamps. Otherwise the 2nd
            and 98th percentile of the answers when the model was adopted: a scale for colours, to which nothing clamps.
        parameters: trainable parameters of the network, batch norm included.
        macs: multiply-accumulate operations of the network for one frame.
        focal: focal length of the training camera, fx / width (NYU Depth v2: 518.86 / 640 = 0.8107); None: unknown.
            A picture does not show its camera's focal length f: with the same picture, a camera of twice the focal
            length stands twice as far away. The network predicts true depth * focal / f, hence
            true depth = predicted depth * f / focal (Yin et al., "Metric3D", 2023). This holds for pictures of
            the training pictures' shape; others are squeezed into it.
        resized_to: the network's height and width, if the graph resizes frames to it and the depth back; None: frames
            have the network's size.
        answers: what the network answers. The graph turns a share into metres.
        network_output: name of depth among the tensors that a network in torch returns, see `train.answer.tensors_in`;
            None: it returns depth alone, or is an ONNX file.
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
    focal: Focal | None
    resized_to: tuple[_Positive, _Positive] | None = None
    answers: Answers = "share"
    network_output: str | None = None
    schema_version: Literal[4] = 4

    @staticmethod
    def upgrade(raw: Any) -> None:
        """Version 1 had no focal length, version 2 no resizing; in version 3 a network returned one tensor, a share."""
        if is_version(raw, 1) and "focal" not in raw:
            raw.update(schema_version=2, focal=None)
        if is_version(raw, 2) and "resized_to" not in raw:
            raw.update(schema_version=3, resized_to=None)
        before = raw.get("preprocessing") if is_version(raw, 3) else None
        if isinstance(before, dict) and "answers" not in raw and "scale" not in before:
            before["scale"] = 255.0
            raw.update(schema_version=4, answers="share", network_output=None)

    def __post_init__(self) -> None:
        if len(self.input.shape) != 4 or (self.input, self.output) != camera_ready(*self.size, self.batch):
            raise ValueError("input and output are not those of a camera-ready graph with one size and batch")
        check_camera(self.size, self.network_size)
        if self.resized_to == self.size:
            raise ValueError("resized_to is the frames' own size")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of frames and depth in pixels."""
        _, height, width, _ = self.input.shape
        if isinstance(height, Dim) or isinstance(width, Dim):
            raise SpecError("height and width are fixed; only the batch may be dynamic")
        return height, width

    @property
    def is_metric(self) -> bool:
        """Whether `depth` is in metres."""
        return self.answers in {"metres", "share"}

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width at which the network computes; see `resized_to`."""
        return self.resized_to or self.size

    @property
    def batch(self) -> int | Dim:
        """Frames per run: a number, or the range of a dynamic batch."""
        return self.input.shape[0]

    @property
    def opt_batch(self) -> int:
        """Frames per run; for a dynamic batch the `opt` that engines are tuned for."""
        return self.batch.opt if isinstance(self.batch, Dim) else self.batch

    def with_batch(self, batch: int | Dim) -> ModelSpec:
        """The same spec with another batch."""
        height, width = self.size
        image, depth = camera_ready(height, width, batch)
        return replace(self, input=image, output=depth)

    def with_camera(self, size: tuple[int, int] | None) -> ModelSpec:
        """The spec of a graph that resizes frames of this height and width to the network's; None: no resizing.

        Raises:
            SpecError: the frames are smaller than the network's input.
        """
        network = self.network_size
        check_camera(size or network, network)
        image, depth = camera_ready(*(size or network), self.batch)
        return replace(self, input=image, output=depth, resized_to=None if size in {None, network} else network)

    def describe_sizes(self) -> str:
        """See `sizes.describe_sizes`."""
        return describe_sizes(self.size, self.network_size)

    def describe_camera(self) -> str:
        """What the focal length means for pictures of another camera, in two sentences."""
        if self.focal is None:
            return (
                "The focal length of its training camera is unknown. "
                "Pictures of another camera may come out too near or too far, all by one factor."
            )
        focal, field = f"{self.focal:.3f}", degrees(2 * atan(0.5 / self.focal))
        return (
            f"Its training camera had a focal length of {focal} pixels per pixel of width ({field:.0f}° wide). "
            f"A picture of another camera: multiply depth by its focal length / {focal}."
        )


def camera_ready(height: int, width: int, batch: int | Dim = 1) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a camera-ready graph. Whether a network supports the size is not checked here."""
    return (
        TensorSpec("image", "uint8", (batch, height, width, 3), "NHWC"),
        TensorSpec("depth", "float32", (batch, height, width), "NHW"),
    )
