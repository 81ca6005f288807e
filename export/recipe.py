"""Everything that an ONNX file is made from, and whether an existing file is up to date. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import numpy as np

from .. import __version__
from ..errors import UserError
from ..files import sha256, sha256_arrays
from ..names import file_name
from ..onnx_graph import describe_onnx
from ..precisions import Precision
from ..reference import read_reference, reference_path
from ..spec import Dim, ModelSpec, camera_ready
from ..train.document import FRAMES, BundleDocument

__all__ = ["Calibration", "ExportOptions", "Frames", "find_current", "onnx_path", "recipe"]

_MAKERS: Final = ("torch", "onnx", "onnxscript", "polygraphy", "onnxruntime", "onnxruntime-gpu")
_OF_TORCH: Final = frozenset({"torch", "onnxscript"})


@dataclass(frozen=True, eq=False)
class Frames:
    """Real frames.

    Attributes:
        images: H x W x 3 uint8, of any size.
        truths: measured depth of each, H x W float32 metres, 0 where not measured; empty if there is no measured depth.
    """

    images: tuple[np.ndarray, ...]
    truths: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Frames for INT8 calibration (ranges, method, bias, kept layers), and held-out frames that test the result.

    Frames are read lazily, because most exports find that nothing has changed.

    Attributes:
        source: where they are from, as a user writes it.
        identity: identifies the frames, without reading them.
        load: reads the calibration frames and the held-out frames.
    """

    source: str
    identity: str
    load: Callable[[], tuple[Frames, Frames]]

    @classmethod
    def of(cls, source: str, frames: Frames, held_out: Frames | None = None) -> Calibration:
        """A calibration on frames that are already in memory."""
        others = held_out or Frames(())
        return cls(source, sha256_arrays((*frames.images, *others.images)), lambda: (frames, others))

    @cached_property
    def frames(self) -> tuple[Frames, Frames]:
        """The calibration frames and the held-out frames. Raises DataError."""
        return self.load()


@dataclass(frozen=True)
class ExportOptions:
    """Options of `depthkit export`.

    Attributes:
        precision: of the network; input and output keep their types.
        size: height and width of the network's input; None: the size of training.
        batch: frames per run.
        calibration: needed for "int8", and for "fp16" if `keep` is "auto".
        keep: number of the most sensitive layers that stay in FP32; "auto": as many as necessary; None: none.
        out: folder of the file; None: the run's.
        camera: height and width of frames, which the graph resizes to `size`, and its depth back; None: `size`.
    """

    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    batch: int | Dim = 1
    calibration: Calibration | None = None
    keep: int | Literal["auto"] | None = None
    out: Path | None = None
    camera: tuple[int, int] | None = None

    def spec_of(self, model: ModelSpec) -> ModelSpec:
        """The exported ModelSpec of a run of `model`, but for `macs`, which only torch can count.

        Raises SpecError if the camera is smaller than the network's input.
        """
        image, depth = camera_ready(*(self.size or model.size), self.batch)
        return replace(model, input=image, output=depth).with_camera(self.camera)


def stem(spec: ModelSpec) -> str:
    """The common start of the names of a model's files: network, sizes and batch."""
    batch = spec.batch
    frames = f"{batch.min}to{batch.max}" if isinstance(batch, Dim) else str(batch)
    sizes = spec.describe_sizes().replace(" ", "-")
    return f"{file_name(spec.network)}-{sizes}" + ("" if batch == 1 else f"-b{frames}")


def onnx_path(folder: Path, document: BundleDocument, options: ExportOptions) -> Path:
    """Path of the ONNX file of a run with these options."""
    return (options.out or folder) / f"{stem(options.spec_of(document.model))}.{options.precision}.onnx"


def recipe(folder: Path, document: BundleDocument, options: ExportOptions) -> str:
    """All that an export depends on besides weights and ModelSpec, as JSON: frames, batch, calibration, versions."""
    adopted = document.adopted
    batch = options.batch
    range_ = [batch.min, batch.opt, batch.max] if isinstance(batch, Dim) else [batch]
    makers = [name for name in _MAKERS if adopted is None or name not in _OF_TORCH]
    versions = {"depthkit": __version__} | {name: _version(name) for name in makers}
    made: dict[str, object] = {"frames_sha256": sha256(folder / FRAMES), "batch": range_, "versions": versions}
    if adopted is not None:
        made["tensors"] = [adopted.input, adopted.output, adopted.layout]
    if options.calibration is not None:
        made["calibration"] = options.calibration.identity
    if options.keep is not None:
        made["keep"] = options.keep
    return json.dumps(made)


def find_current(folder: Path, document: BundleDocument, options: ExportOptions) -> Path | None:
    """The ONNX file of an earlier export, if it is intact and a new export would be the same.

    It passed its checks then. Without torch, files made by other versions of depthkit, torch and so on count too.
    """
    path, wanted = onnx_path(folder, document, options), options.spec_of(document.model)
    try:
        found = describe_onnx(path)
        reference = read_reference(reference_path(path))
    except UserError:
        return None
    same = (
        found.intact
        and (reference.size, reference.resized_to) == (wanted.size, wanted.resized_to)
        and reference.weights_sha256 == document.weights_sha256
        and found.weights_sha256 == document.weights_sha256
        and found.precision == options.precision
        and _same_recipe(found.recipe, recipe(folder, document, options), adopted=document.adopted is not None)
        and replace(found.model, macs=wanted.macs) == wanted
    )
    return path if same else None


def _same_recipe(found: str, now: str, *, adopted: bool) -> bool:
    """Whether both recipes are the same. A run that needs torch ignores versions without it: it cannot be exported."""
    if adopted or find_spec("torch") is not None:
        return found == now
    return all(json.loads(found).get(key) == value for key, value in json.loads(now).items() if key != "versions")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
