"""The original file of an adopted model, run by ONNX Runtime in FP32: what its references are made of. Needs no torch.

Frames are prepared, and answers resized, in NumPy and not by the nodes of `camera_ends`, so that a fault of these nodes
shows in the export's parity check.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..data.resample import neighbours, weights
from ..errors import EngineError, SpecError, first_line
from ..sizes import by
from ..spec import ModelSpec, Preprocessing
from ..train.document import Adoption
from ..vendors import import_onnxruntime

__all__ = ["Original", "as_depth", "open_session", "prepare"]

_MULTIPLES: Final = (2, 4, 7, 8, 14, 16, 28, 32, 64)
"""Sizes are tried in these steps when a network refuses one."""


def open_session(path: Path) -> Any:
    """An `InferenceSession` on the CPU. Raises EngineError if ONNX Runtime does not load the file."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # a file is run a few times only; the arena keeps what the largest run took
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime does not load {path.name}: {first_line(error)}") from error


def prepare(images: np.ndarray, preprocessing: Preprocessing, layout: str) -> np.ndarray:
    """The network's input of pixels (N x H x W x 3 RGB, uint8 or float32): float32 of the layout."""
    pixels = images.astype(np.float32) if preprocessing.color == "RGB" else images[..., ::-1].astype(np.float32)
    mean, std = (np.array(each, np.float32) for each in (preprocessing.mean, preprocessing.std))
    normal = (pixels / np.float32(preprocessing.scale) - mean) / std
    return np.ascontiguousarray(normal if layout == "NHWC" else normal.transpose(0, 3, 1, 2))


def as_depth(answer: np.ndarray, frames: int) -> np.ndarray | None:
    """An answer as N x h x w float32, without a copy; None: it is no map of one channel for each frame.

    >>> as_depth(np.zeros((2, 1, 30, 40), np.float32), 2).shape, as_depth(np.zeros((2, 3, 30, 40), np.float32), 2)
    ((2, 30, 40), None)
    """
    shape = answer.shape
    if answer.dtype != np.float32 or answer.ndim not in {2, 3, 4}:
        return None
    if answer.ndim == 4:
        shape = (shape[0], *shape[2:]) if shape[1] == 1 else shape[:3] if shape[3] == 1 else ()
    elif answer.ndim == 2:
        shape = (1, *shape)
    return answer.reshape(shape) if len(shape) == 3 and shape[0] == frames and min(shape[1:]) > 1 else None


class Original:
    """The file of an adopted run.

    Args:
        path: of the file.
        adopted: names of its tensors, layout, and what of its input is dynamic.
        own_size: height and width of the run.
    """

    def __init__(self, path: Path, adopted: Adoption, own_size: tuple[int, int]) -> None:
        self._session = open_session(path)
        self._adopted, self._own_size = adopted, own_size

    def answer(self, images: np.ndarray, spec: ModelSpec) -> np.ndarray:
        """What the graph of `spec` must answer: N x H x W float32 of frames (N x H x W x 3 uint8) of its size."""
        return np.stack([self._answer(image, spec) for image in images])

    def run(self, image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """The network's own answer (h x w float32) for a picture (H x W x 3 RGB) of a size that it takes.

        Raises:
            SpecError: it does not compute this size, or its answer is no depth map.
        """
        adopted = self._adopted
        pixels = prepare(image[None], preprocessing, adopted.layout)
        try:
            (answer,) = self._session.run([adopted.output], {adopted.input: pixels})
        except Exception as error:
            raise SpecError(f"the network does not compute {by(image.shape[:2])} (HxW): {first_line(error)}") from error
        depth = as_depth(answer, 1)
        if depth is None:
            raise SpecError(f"output {adopted.output} is {answer.dtype} {answer.shape}, which is no depth map")
        found: np.ndarray = depth[0]
        return found

    def answered(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the network's answer for a picture of `size` (height, width).

        Raises:
            SpecError: the network does not take this size; the nearest that it takes is named.
        """
        if not self._adopted.dynamic_size and size != self._own_size:
            raise SpecError(
                f"the ONNX file has a fixed size of {by(self._own_size)} (HxW), not {by(size)}; for larger frames "
                "use --camera, or export the file with a dynamic height and width"
            )
        found, reason = self._try(size)
        if found is not None:
            return found
        for step, near in _nearest(size):
            if self._try(near)[0] is not None:
                raise SpecError(f"{reason}; the nearest size that it takes is {by(near)} (multiples of {step})")
        raise SpecError(f"{reason}; choose another --size")

    def _try(self, size: tuple[int, int]) -> tuple[tuple[int, int] | None, str]:
        """Height and width of the answer for a size; or None, and why the size does not fit."""
        try:
            height, width = self.run(np.zeros((*size, 3), np.uint8), Preprocessing()).shape
        except SpecError as error:
            return None, str(error)
        if self._adopted.dynamic_size and not _keeps_shape(size, (height, width)):
            return None, f"the network answers {by(size)} (HxW) with {by((height, width))}, so it drops pixels"
        return (height, width), ""

    def _answer(self, image: np.ndarray, spec: ModelSpec) -> np.ndarray:
        pixels: np.ndarray = image
        if spec.resized_to is not None:
            down, across = (weights(n, to) for n, to in zip(spec.size, spec.resized_to, strict=True))
            if all(n % to == 0 for n, to in zip(spec.size, spec.resized_to, strict=True)):
                rows, columns = spec.resized_to
                blocks = image.reshape(rows, spec.size[0] // rows, columns, spec.size[1] // columns, 3)
                pixels = blocks.mean((1, 3), dtype=np.float32)
            else:
                pixels = np.einsum("hH,HWc,wW->hwc", down, image.astype(np.float32), across, optimize=True)
        depth = _resized(self.run(pixels, spec.preprocessing), spec.size)
        if spec.answers == "share":
            depth = depth * np.float32(spec.depth_range[1])
        return np.clip(depth, *np.array(spec.depth_range, np.float32)) if spec.is_metric else depth


def _resized(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H x w float32 at another height and width: interpolated, or filtered if it shrinks, one axis after the other."""
    for axis in (1, 0):
        length, goal = depth.shape[axis], size[axis]
        rows = np.moveaxis(depth, axis, 0)
        if goal < length:
            rows = weights(length, goal) @ rows
        elif goal > length:
            before, after, share = neighbours(length, goal)
            rows = rows[before] + (rows[after] - rows[before]) * share
        depth = np.moveaxis(rows, 0, axis)
    return np.ascontiguousarray(depth)


def _keeps_shape(size: tuple[int, int], answered: tuple[int, int]) -> bool:
    """Whether an answer covers the whole picture: both sides are divided, or multiplied, by the same whole number.

    >>> _keeps_shape((96, 128), (48, 64)), _keeps_shape((100, 130), (98, 126))
    (True, False)
    """
    (height, width), (rows, columns) = size, answered
    smaller = height % rows == 0 and (height // rows) * columns == width
    return smaller or (rows % height == 0 and (rows // height) * width == columns)


def _nearest(size: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Multiples of some steps that are near a size."""
    tried = {size}
    for step in _MULTIPLES:
        height, width = (max(step, step * round(side / step)) for side in size)
        if (height, width) not in tried:
            tried.add((height, width))
            yield step, (height, width)
