"""A data set decoded and resized once, in memory-mapped arrays: reading a sample only copies its bytes.

<split>.images.npy   uint8, N x H x W x 3, RGB
<split>.depths.npy   uint16, N x H x W, millimetres, 0 where not measured
train.taught.npy     uint16, N x H x W, millimetres: a teacher's answers, if it was prepared with one
prepared.json        what they were made from; written last, so a folder without it is incomplete

The splits are train and val. There is no test split: scores are computed on the source, at its own size and crop.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT, from_json, is_version
from ..errors import DataError
from ..spec import Focal
from .dataset import RGBDDataset, Split, evenly_spaced

__all__ = [
    "KINDS",
    "MILLIMETRES",
    "PREPARED",
    "TAUGHT",
    "Prepared",
    "PreparedDocument",
    "PreparedSplit",
    "PreparedTeacher",
    "array_path",
    "rows_digest",
]

PREPARED: Final = "prepared.json"
"""The file that marks a folder made by `depthkit data prepare`."""

KINDS: Final = ("images", "depths")
TAUGHT: Final = "taught"
"""The kind of the array of a teacher's answers, which only the training split has."""

MILLIMETRES: Final = 1000
_DIGEST_ROWS: Final = 16
_REMEDY: Final = "delete the folder and run `depthkit data prepare` again"

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class PreparedSplit:
    """One split.

    Attributes:
        sources: where each row of the arrays comes from, see `RGBDDataset.source`.
        unreadable: error messages of the samples that `skip_bad` skipped.
        unmeasured: samples that were skipped because their depth has no measured pixel.
        images_digest, depths_digest: SHA-256 of 16 evenly spaced rows, or of all if there are fewer. It detects an
            array of another data set without reading the whole; it does not detect single flipped bits.
    """

    sources: tuple[str, ...]
    unreadable: tuple[str, ...]
    unmeasured: tuple[str, ...]
    images_digest: _Digest
    depths_digest: _Digest


@dataclass(frozen=True, config=STRICT)
class PreparedTeacher:
    """The teacher whose answers for the training split are stored.

    Attributes:
        weights_sha256: of its weights.
        digest: of the answers, see `PreparedSplit`.
    """

    weights_sha256: _Digest
    digest: _Digest


@dataclass(frozen=True, config=STRICT)
class PreparedDocument:
    """`prepared.json`.

    Attributes:
        source: the data set that was prepared: `scenes`, or an absolute path.
        depth_units: units per metre that a `pairs` folder was read with.
        size: height and width of every sample.
        focal: see `RGBDDataset.focal`.
        teacher: whose answers are stored; None: there are none.
    """

    source: str
    depth_units: float
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    train: PreparedSplit
    val: PreparedSplit
    focal: Focal | None = None
    teacher: PreparedTeacher | None = None
    schema_version: Literal[2] = 2

    @staticmethod
    def upgrade(raw: dict[str, Any]) -> None:
        """Version 1 had neither."""
        if is_version(raw, 1) and not {"focal", "teacher"} & raw.keys():
            raw.update(schema_version=2, focal=None, teacher=None)


class Prepared(RGBDDataset):
    """A split of a prepared folder. Depth is within 0.5 mm of the source's.

    Raises:
        DataError: the split is test; or an array is missing, truncated, or not the one of `prepared.json`.
        SpecError: `prepared.json` has another schema version, or keys that are unknown or missing.
    """

    name = "prepared"

    def __init__(self, folder: Path, split: Split, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(size)
        document = from_json(PreparedDocument, (folder / PREPARED).read_bytes(), source=str(folder / PREPARED))
        parts: dict[Split, PreparedSplit] = {"train": document.train, "val": document.val}
        if split not in parts:
            raise DataError(
                f"{folder} has no {split} split: scores are computed at the source's own size and crop; "
                f"use --data {document.source}"
            )
        if size is not None and (size[0] > document.size[0] or size[1] > document.size[1]):
            raise DataError(
                f"{folder} was prepared at {document.size[0]}x{document.size[1]}, smaller than {size[0]}x{size[1]}; "
                "use it at its size, or prepare the source at a larger one"
            )
        self._folder, self._split, self._part, self._stored = folder, split, parts[split], document.size
        self._teacher = document.teacher if split == "train" else None
        self.taught_by = None if self._teacher is None else self._teacher.weights_sha256
        self.depth_units, self.focal = document.depth_units, document.focal
        self._arrays: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None
        self._open()

    def __len__(self) -> int:
        return len(self._part.sources)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # pickling a memory map would copy the whole array

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return self._part.sources[index]

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        images, depths, _ = self._open()
        return np.array(images[index]), depths[index].astype(np.float32) / MILLIMETRES

    def _read_taught(self, index: int) -> np.ndarray:
        taught = self._open()[2]
        if taught is None:
            return super()._read_taught(index)
        metres: np.ndarray = taught[index].astype(np.float32) / MILLIMETRES
        return metres

    def _open(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if self._arrays is None:
            images, depths, taught = (array_path(self._folder, self._split, kind) for kind in (*KINDS, TAUGHT))
            shape, millimetres, teacher = (len(self), *self._stored), np.dtype(np.uint16), self._teacher
            self._arrays = (
                _map_array(images, np.dtype(np.uint8), (*shape, 3), self._part.images_digest),
                _map_array(depths, millimetres, shape, self._part.depths_digest),
                None if teacher is None else _map_array(taught, millimetres, shape, teacher.digest),
            )
        return self._arrays


def array_path(folder: Path, split: Split, kind: str) -> Path:
    """Path of the pictures ("images"), depth maps ("depths") or teacher's answers ("taught") of a split."""
    return folder / f"{split}.{kind}.npy"


def _map_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], digest: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if (array.dtype, array.shape) != (dtype, shape) or rows_digest(array) != digest:
        raise DataError(f"{path} does not match {PREPARED}; {_REMEDY}")
    return array


def rows_digest(array: np.ndarray) -> str:
    """See `PreparedSplit.images_digest`."""
    return hashlib.sha256(array[evenly_spaced(array, _DIGEST_ROWS)].tobytes()).hexdigest()
