"""The reference file of a model: frames, and the depth that the model itself computes for them in FP32.

The model is a network in PyTorch, or the original file of an adopted ONNX model. With `<stem>.reference.npz` any
machine can check an engine's parity, without that model and without the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .errors import EngineError
from .files import atomic_write
from .metrics import DEPTH_SCALE
from .precisions import PRECISIONS
from .spec import ModelSpec

__all__ = ["Reference", "find_reference", "onnx_stem", "read_reference", "reference_path", "write_reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Frames of the engine's size with the model's own depth.

    Attributes:
        images: N x H x W x 3, uint8.
        depths: N x H x W, float32: the model's output in FP32, in metres if `is_metric`.
        truths: N x H x W, float32 metres: measured depth; 0 where not measured.
        weights_sha256: of the weights that computed `depths`.
        resized_to: see `ModelSpec.resized_to`.
        is_metric: see `ModelSpec.is_metric`.
    """

    images: np.ndarray
    depths: np.ndarray
    truths: np.ndarray
    weights_sha256: str = ""
    resized_to: tuple[int, int] | None = None
    is_metric: bool = True

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The depths that parity scales to 0 and 1: 0 and 10 m; without metres, 2nd and 98th percentile of `depths`."""
        if self.is_metric:
            return 0.0, DEPTH_SCALE
        low, high = np.percentile(self.depths, (2, 98))
        return float(low), float(high)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.depths.shape[1:]
        return height, width

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width at which the network computed."""
        return self.resized_to or self.size


def onnx_stem(onnx: Path) -> str:
    """The `<stem>` of `<stem>.<precision>.onnx`; without a precision, everything before `.onnx`.

    >>> onnx_stem(Path("runs/compact-96x128.fp16.onnx")), onnx_stem(Path("v1.2.onnx")), onnx_stem(Path("a.onnx"))
    ('compact-96x128', 'v1.2', 'a')
    """
    name = onnx.name.removesuffix(".onnx")
    stem, _, precision = name.rpartition(".")
    return stem if stem and precision in PRECISIONS else name


def reference_path(onnx: Path) -> Path:
    """The path `<stem>.reference.npz`, which all precisions of `<stem>.<precision>.onnx` share.

    >>> reference_path(Path("runs/compact/compact-96x128.fp16.onnx")).name
    'compact-96x128.reference.npz'
    """
    return onnx.with_name(f"{onnx_stem(onnx)}.reference.npz")


def find_reference(onnx: Path, weights_sha256: str, model: ModelSpec) -> Path:
    """The reference beside an ONNX file that has its weights and sizes; the file may have been renamed.

    `reference_path` comes first, and is also the answer if none fits.
    """
    named = reference_path(onnx)
    beside = (named, *sorted(onnx.parent.glob("*.reference.npz")))
    return next((path for path in beside if _answers(path, weights_sha256, model)), named)


def _answers(path: Path, weights_sha256: str, model: ModelSpec) -> bool:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return (
                str(content["weights_sha256"]) == weights_sha256
                and content["depths"].shape[1:] == model.size
                and _resized_to(content) == model.resized_to
                and _is_metric(content) == model.is_metric
            )
    except Exception:  # noqa: BLE001 - `read_reference` reports what is wrong
        return False


def _resized_to(content: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Files of older versions lack it."""
    if "resized_to" not in content or not len(content["resized_to"]):
        return None
    height, width = content["resized_to"].tolist()
    return height, width


def _is_metric(content: Mapping[str, np.ndarray]) -> bool:
    """In files of older versions, all depth is in metres."""
    return "is_metric" not in content or bool(content["is_metric"])


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference atomically. Raises OutputError."""
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary,
            images=reference.images,
            depths=reference.depths,
            truths=reference.truths,
            weights_sha256=np.array(reference.weights_sha256),
            resized_to=np.array(reference.resized_to or (), np.int64),
            is_metric=np.array(reference.is_metric),
        )


def read_reference(path: Path) -> Reference:
    """Read a reference. Raises EngineError if it is missing, damaged or not a reference."""
    if not path.is_file():
        raise EngineError(
            f"there is no reference {path}; copy it beside the engine, or make both with `depthkit export`"
        )
    try:
        # Opened here, because NumPy does not close the file if the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            images, depths, truths = content["images"], content["depths"], content["truths"]
            weights, resized_to = str(content["weights_sha256"]), _resized_to(content)
            reference = Reference(images, depths, truths, weights, resized_to, _is_metric(content))
    except Exception as error:  # zipfile, zlib and NumPy raise many different errors for damaged bytes
        raise EngineError(f"{path} is not a reference file ({error}); make it again with `depthkit export`") from error
    fits = depths.ndim == 3 and len(depths) > 0 and images.shape == (*depths.shape, 3) and truths.shape == depths.shape
    if not fits or [a.dtype.name for a in (images, depths, truths)] != ["uint8", "float32", "float32"]:
        raise EngineError(f"{path} has arrays of mismatched shapes or types; make it again with `depthkit export`")
    return reference
