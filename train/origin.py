"""The data that a run was trained on, and their place on this machine. Only the built-in scenes need torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ..data.dataset import RGBDDataset, evenly_spaced
from ..data.nyu import NyuCsv
from ..data.pairs import Pairs
from ..data.prepared import Prepared
from ..data.sources import open_dataset
from ..errors import DataError
from .document import BundleDocument

__all__ = ["depth_units_of", "find_data", "fingerprint", "place_of"]

_SAMPLES: Final = 8


def fingerprint(data: RGBDDataset) -> str:
    """A hash that distinguishes data sets of the same name, as 64 hexadecimal digits.

    It is the SHA-256 of the number of samples and of the stored content of 8 evenly spaced ones, so it depends neither
    on the path nor on `depth_units`. It does not detect changes in other samples.
    """
    digest = hashlib.sha256(str(len(data)).encode())
    for index in evenly_spaced(data, _SAMPLES):
        try:
            parts = _stored(data, index)
        except (DataError, OSError):
            parts = ()  # with `--skip-bad` such a set can be trained on
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _stored(data: RGBDDataset, index: int) -> tuple[bytes, ...]:
    """The stored content of a sample. Raises DataError, OSError."""
    if isinstance(data, (NyuCsv, Pairs)):
        return tuple(path.read_bytes() for path in data.files(index))
    image, depth, _ = data[index]
    return image.tobytes(), depth.tobytes()


def depth_units_of(data: RGBDDataset) -> float | None:
    """Units per metre of a `pairs` folder, or of the prepared copy of one; None for data with a fixed unit."""
    return data.depth_units if isinstance(data, (Pairs, Prepared)) else None


def place_of(source: str) -> str:
    """The place of a data set, independent of the working folder: `scenes`, or an absolute path."""
    return source if source == "scenes" else str(Path(source).resolve())


def find_data(document: BundleDocument, remedy: str) -> str:
    """The data that a run was trained on, or adopted with: `scenes`, or an absolute path.

    Args:
        document: of the run.
        remedy: end of the error message, for instance "give --data".

    Raises:
        DataError: their place is unknown (imported or published weights), they are missing, or another data set is in
            their place.
    """
    training, adopted = document.training, document.adopted
    if adopted is not None:
        if not Path(adopted.place).exists():
            raise DataError(f"the frames that this run was adopted with ({adopted.place}) are missing; {remedy}")
        return adopted.place
    if training is None:
        raise DataError(f"the training data of this run are unknown; {remedy}")
    if training.place is None:
        raise DataError(f"this run does not record where its training data ({training.data}) are; {remedy}")
    if training.place == "scenes":
        return training.place
    if not Path(training.place).exists():
        raise DataError(f"the training data of this run ({training.place}) are missing; {remedy}")
    try:
        same = fingerprint(open_dataset(training.place, "train")) == training.fingerprint
    except DataError:
        same = False
    if not same:
        raise DataError(f"{training.place} no longer contains the training data of this run; {remedy}")
    return training.place
