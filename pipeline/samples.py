"""Pictures with measured depth, on which engines are scored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..bench.contender import SampleSet
from ..data.dataset import evenly_spaced
from ..data.sources import open_dataset
from ..errors import DataError, DepthkitError
from ..metrics import EIGEN_SIZE, LEAST_SIDE, implausible_depth

if TYPE_CHECKING:
    import numpy as np

    from ..bench.contender import Samples
    from ..data.dataset import RGBDDataset

__all__ = ["doubt", "readable", "sample_set"]

KEPT_BYTES: Final = 256 * 2**20
"""Limit of the samples kept in memory; 100 frames of 480x640 take 215 MB."""

NAMED: Final = 10
"""Number of frames that a note names; the rest is only counted."""


def sample_set(data: str, frames: int | None, depth_units: float) -> SampleSet:
    """The test split of `data`, or `frames` evenly spaced frames of it. Raises DataError."""
    dataset = open_dataset(data, "test", depth_units=depth_units)
    chosen = evenly_spaced(dataset, frames or len(dataset))
    return SampleSet(data, len(chosen), len(dataset), dataset.crop, _Chosen(dataset, chosen))


def doubt(samples: SampleSet) -> str | None:
    """A warning if the measured depth of some samples is implausible, see `metrics.implausible_depth`; else None."""
    depths = []
    for index in evenly_spaced(samples.samples, 8):
        with suppress(DataError):  # unreadable samples are reported when they are scored
            depths.append(samples.samples[index][1])
    found = implausible_depth(depths)
    return found and f"{samples.data}: {found}"


def readable(samples: SampleSet) -> tuple[SampleSet, tuple[str, ...]]:
    """The samples that can be read, and a note about the others; reads each once.

    Raises:
        DataError: none can be read.
    """
    good, faults = [], []
    for index in range(len(samples.samples)):
        try:
            samples.samples[index]
        except (DepthkitError, OSError, ValueError) as error:
            faults.append(str(error))
        else:
            good.append(index)
    if not faults:
        return samples, ()
    named = "; ".join(faults[:NAMED]) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
    message = f"{len(faults)} of {len(samples.samples)} frames of {samples.data} cannot be scored: {named}"
    if not good:
        raise DataError(message)
    return replace(samples, frames=len(good), samples=_Some(samples.samples, good)), (f"accuracy: {message}",)


class _Some:
    """The samples at `indices`."""

    def __init__(self, samples: Samples, indices: list[int]) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._samples[self._indices[index]]


class _Chosen:
    """Samples of a data set as pairs of picture and depth, read on access; the first `KEPT_BYTES` are kept."""

    def __init__(self, dataset: RGBDDataset, indices: list[int]) -> None:
        self._dataset = dataset
        self._indices = indices
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self._kept:
            return self._kept[index]
        sample = self._dataset[self._indices[index]]

        if min(sample.depth.shape) < LEAST_SIDE:
            raise DataError(
                f"{self._dataset.source(self._indices[index])} is {sample.depth.shape} (H, W), but SSIM needs "
                f"{LEAST_SIDE} pixels each way; use larger pictures"
            )
        if self._dataset.crop is not None and sample.depth.shape != EIGEN_SIZE:
            raise DataError(
                f"{self._dataset.source(self._indices[index])} is {sample.depth.shape} (H, W), but the Eigen crop is "
                f"for {EIGEN_SIZE}; use NYU frames at their own size, or a `pairs` folder, which is not cropped"
            )
        pair = sample.image, sample.depth
        self._bytes += sum(array.nbytes for array in pair)
        if self._bytes <= KEPT_BYTES:  # every engine is scored on the same samples
            self._kept[index] = pair
        return pair
