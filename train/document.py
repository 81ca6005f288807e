"""A run bundle's document `model.json`, its frames, and the names of the other files. Needs no torch.

A run is a network that torch computes, with its weights in `model.safetensors`; or an ONNX file of another program that
`depthkit adopt` made a run, `model.onnx`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT, from_json, is_version
from ..errors import BundleError
from ..files import atomic_write, sha256
from ..spec import ModelSpec

__all__ = [
    "CHECKPOINT", "FRAMES", "MODEL", "ORIGINAL", "WEIGHTS", "Adoption", "BundleDocument", "Frames", "TrainingRecord",
    "read_document", "read_frames", "write_frames",
]  # fmt: skip

WEIGHTS: Final = "model.safetensors"
ORIGINAL: Final = "model.onnx"
MODEL: Final = "model.json"
FRAMES: Final = "frames.npz"
CHECKPOINT: Final = "last.ckpt"


@dataclass(frozen=True, config=STRICT)
class TrainingRecord:
    """How a bundle's weights were trained; the same training on the same machine and versions reproduces them.

    Attributes:
        data: name of the data set, without its folder: `scenes`, or the last part of its path.
        place: path of the data on the machine that trained, see `origin.place_of`; None: published without paths.
        fingerprint: identifies the data, see `origin.fingerprint`; None for the built-in scenes, or if unknown.
        depth_units: units per metre that a `pairs` folder was read with; None for data with a fixed unit.
        batch, accumulate, devices: pictures per pass, passes per step, processes.
        stages: data and size of each stage with its epochs: `("scenes 48x64", 20)`.
        init: hash of the initial weights; None: random.
        teacher: hash of the teacher's weights; None: there was none.
        stored_answers: the teacher's answers for the data were stored beside them, see `data.prepare`.
        skipped: files that could not be read and were skipped.
    """

    data: str
    place: str | None
    fingerprint: str | None
    depth_units: float | None
    split: str
    samples: int
    size: tuple[int, int]
    preset: str
    epochs: int
    steps: int
    batch: int
    learning_rate: float
    seed: int
    precision: str
    devices: int
    seconds: float
    versions: dict[str, str]
    finished: str
    accumulate: int = 1
    stages: tuple[tuple[str, int], ...] = ()
    init: str | None = None
    teacher: str | None = None
    stored_answers: bool = False
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Adoption:
    """How the ONNX file of an adopted run is used.

    Attributes:
        input, output: names of its tensors.
        layout: of the input.
        dynamic_batch: whether it takes any number of frames.
        dynamic_size: whether it takes other heights and widths.
        opset: of the file.
        frames: name of the source of its frames, without its folder.
        place: path of that source on the machine that adopted it.
    """

    input: str
    output: str
    layout: Literal["NCHW", "NHWC"]
    dynamic_batch: bool
    dynamic_size: bool
    opset: int
    frames: str
    place: str


@dataclass(frozen=True, config=STRICT)
class BundleDocument:
    """The document `model.json`.

    Attributes:
        training: None for imported weights and adopted files, whose training is unknown.
        adopted: None for a network that torch computes.
        weights_sha256: hash of the file `weights`.
    """

    model: ModelSpec
    training: TrainingRecord | None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    adopted: Adoption | None = None
    schema_version: Literal[4] = 4

    @property
    def weights(self) -> str:
        """Name of the file with the weights."""
        return WEIGHTS if self.adopted is None else ORIGINAL

    @staticmethod
    def upgrade(raw: dict[str, Any]) -> None:
        """Version 2 had no teacher, and version 3 no adopted files; see also `ModelSpec.upgrade`."""
        ModelSpec.upgrade(raw.get("model"))
        training = raw.get("training")
        if is_version(raw, 2) and (training is None or isinstance(training, dict)):
            raw["schema_version"] = 3
            if training is not None:
                training.update(teacher=None, stored_answers=False)
        if is_version(raw, 3) and "adopted" not in raw:
            raw.update(schema_version=4, adopted=None)


def read_document(folder: Path) -> BundleDocument:
    """Read `model.json` of a finished run.

    Raises:
        BundleError: no such folder, a run that is not finished, or weights that do not match `model.json`.
        SpecError: `model.json` has another schema version, or keys that are unknown or missing.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no run folder {folder}; make one with `depthkit train --out {folder.parent}`")
    document = None
    if (folder / MODEL).is_file():
        document = from_json(BundleDocument, (folder / MODEL).read_bytes(), source=str(folder / MODEL))
    weights = WEIGHTS if document is None else document.weights
    missing = [name for name in (MODEL, weights, FRAMES) if not (folder / name).is_file()]
    if document is None or missing:
        resumable = (folder / CHECKPOINT).is_file()
        remedy = "finish it with `depthkit train --resume`" if resumable else "train it with `depthkit train`"
        raise BundleError(f"{folder} is not a finished run: it lacks {', '.join(missing)}; {remedy}")
    if sha256(folder / weights) != document.weights_sha256:
        again = "train" if document.adopted is None else "adopt it"
        raise BundleError(f"{folder / weights} does not match {MODEL}; {again} again or restore both")
    return document


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames with their depth: `images` N x H x W x 3 uint8, `depths` N x H x W float32 metres (0: not measured)."""

    images: np.ndarray
    depths: np.ndarray


def write_frames(folder: Path, frames: Frames) -> None:
    """Write a run's frames. Raises OutputError."""
    with atomic_write(folder / FRAMES) as path:
        np.savez_compressed(path, images=frames.images, depths=frames.depths)


def read_frames(folder: Path) -> Frames:
    """Read a run's frames. Raises BundleError."""
    path = folder / FRAMES
    try:
        # Opened here, because NumPy does not close the file if the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return Frames(content["images"], content["depths"])
    except Exception as error:  # zipfile, zlib and NumPy raise many different errors for damaged bytes
        raise BundleError(f"{path} does not contain the run's frames ({error}); make the run again") from error
