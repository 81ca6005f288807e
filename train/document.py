"""A run bundle's document `model.json`, and the names of the other files. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT, from_json, is_version
from ..errors import BundleError
from ..files import sha256
from ..spec import ModelSpec

__all__ = ["CHECKPOINT", "FRAMES", "MODEL", "WEIGHTS", "BundleDocument", "TrainingRecord", "read_document"]

WEIGHTS: Final = "model.safetensors"
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
class BundleDocument:
    """The document `model.json`; `training` is None for imported weights, whose training is unknown."""

    model: ModelSpec
    training: TrainingRecord | None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    schema_version: Literal[3] = 3

    @staticmethod
    def upgrade(raw: dict[str, Any]) -> None:
        """Version 2 had no teacher; see also `ModelSpec.upgrade`."""
        ModelSpec.upgrade(raw.get("model"))
        training = raw.get("training")
        if is_version(raw, 2) and (training is None or isinstance(training, dict)):
            raw["schema_version"] = 3
            if training is not None:
                training.update(teacher=None, stored_answers=False)


def read_document(folder: Path) -> BundleDocument:
    """Read `model.json` of a finished run.

    Raises:
        BundleError: no such folder, a run that is not finished, or weights that do not match `model.json`.
        SpecError: `model.json` has another schema version, or keys that are unknown or missing.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no run folder {folder}; make one with `depthkit train --out {folder.parent}`")
    missing = [name for name in (MODEL, WEIGHTS, FRAMES) if not (folder / name).is_file()]
    if missing:
        resumable = (folder / CHECKPOINT).is_file()
        remedy = "finish it with `depthkit train --resume`" if resumable else "train it with `depthkit train`"
        raise BundleError(f"{folder} is not a finished run: it lacks {', '.join(missing)}; {remedy}")
    document = from_json(BundleDocument, (folder / MODEL).read_bytes(), source=str(folder / MODEL))
    if sha256(folder / WEIGHTS) != document.weights_sha256:
        raise BundleError(f"{folder / WEIGHTS} does not match {MODEL}; train again or restore both")
    return document
