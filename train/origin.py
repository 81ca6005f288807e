"""Which data a run was trained on, and where they are on this machine; needs no torch but for the built-in scenes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ..data.dataset import RGBDDataset, evenly_spaced
from ..data.nyu import NyuCsv
from ..data.pairs import Pairs
from ..data.sources import open_dataset
from ..errors import DataError
from .document import BundleDocument

__all__ = ["depth_units_of", "find_data", "fingerprint", "place_of"]

_SAMPLES: Final = 8


def fingerprint(data: RGBDDataset) -> str:
    """What tells this data set from another of the same name, as 64 hexadecimal digits.

    It is the SHA-256 of the number of samples and of what 8 evenly spaced ones hold as it is stored, so that it depends
    neither on where the data lie nor on `depth_units`. It does not find a change in a single sample.
    """
    digest = hashlib.sha256(str(len(data)).encode())
    for index in evenly_spaced(data, _SAMPLES):
        try:
            parts = _stored(data, index)
        except (DataError, OSError):
            parts = ()  # `--skip-bad` trains on such a set, too
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _stored(data: RGBDDataset, index: int) -> tuple[bytes, ...]:
    """A sample as it is stored. Raises DataError, OSError."""
    if isinstance(data, (NyuCsv, Pairs)):
        return tuple(path.read_bytes() for path in data.files(index))
    image, depth, _ = data[index]
    return image.tobytes(), depth.tobytes()


def depth_units_of(data: RGBDDataset) -> float | None:
    """Units per metre that a `pairs` folder is or was read with; None for data that know their unit."""
    from ..data.prepared import Prepared

    return data.depth_units if isinstance(data, (Pairs, Prepared)) else None


def place_of(source: str) -> str:
    """A data set's place on this machine, from any working folder: `scenes`, or an absolute path."""
    return source if source == "scenes" else str(Path(source).resolve())


def find_data(document: BundleDocument, remedy: str) -> str:
    """The data that a run was trained on: `scenes`, or an absolute path.

    Args:
        document: of the run.
        remedy: ends the error's sentence, for instance "give --data".

    Raises:
        DataError: it is not known where they are (imported or published weights), they are not there, or another data
            set is in their place.
    """
    training = document.training
    if training is None:
        raise DataError(f"what this run was trained on is not known; {remedy}")
    if training.place is None:
        raise DataError(f"this run does not say where its training data ({training.data}) are; {remedy}")
    if training.place == "scenes":
        return training.place
    if not Path(training.place).exists():
        raise DataError(f"what this run was trained on ({training.place}) is not here; {remedy}")
    try:
        same = fingerprint(open_dataset(training.place, "train")) == training.fingerprint
    except DataError:
        same = False
    if not same:
        raise DataError(f"{training.place} no longer holds the data that this run was trained on; {remedy}")
    return training.place
