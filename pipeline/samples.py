"""Pictures with measured depth, by which engines are scored."""

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
"""Of samples that stay in memory: 100 frames of 480x640 take 215 MB."""

NAMED: Final = 10
"""Frames that a note names before it only counts the rest."""


def sample_set(data: str, frames: int | None, depth_units: float) -> SampleSet:
    """The test split of `data`, or evenly spaced `frames` of it. Raises DataError."""
    dataset = open_dataset(data, "test", depth_units=depth_units)
    chosen = evenly_spaced(dataset, frames or len(dataset))
    return SampleSet(data, len(chosen), len(dataset), dataset.crop, _Chosen(dataset, chosen))


def doubt(samples: SampleSet) -> str | None:
    """A warning where the measured depth of some of the samples is none of a room or street."""
    depths = []
    for index in evenly_spaced(samples.samples, 8):
        with suppress(DataError):  # what cannot be read is named where it is scored
            depths.append(samples.samples[index][1])
    found = implausible_depth(depths)
    return found and f"{samples.data}: {found}"


def readable(samples: SampleSet) -> tuple[SampleSet, tuple[str, ...]]:
    """The samples by which engines can be scored, and a note of the others; each is read once here.

    Raises:
        DataError: none is left.
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
    said = f"{len(faults)} of {len(samples.samples)} frames of {samples.data} cannot be scored: {named}"
    if not good:
        raise DataError(said)
    return replace(samples, frames=len(good), samples=_Some(samples.samples, good)), (f"accuracy: {said}",)


class _Some:
    """Those of some samples that stand at `indices`."""

    def __init__(self, samples: Samples, indices: list[int]) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._samples[self._indices[index]]


class _Chosen:
    """Some samples of a data set as pairs of picture and depth: read when asked for, and kept while they are few."""

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
                f"{self._dataset.source(self._indices[index])} is {sample.depth.shape} (H, W), and SSIM needs "
                f"{LEAST_SIDE} pixels each way; use larger pictures"
            )
        if self._dataset.crop is not None and sample.depth.shape != EIGEN_SIZE:
            raise DataError(
                f"{self._dataset.source(self._indices[index])} is {sample.depth.shape} (H, W), and the Eigen crop is "
                f"made for {EIGEN_SIZE}; use NYU frames at their own size, or a `pairs` folder, which is not cropped"
            )
        pair = sample.image, sample.depth
        self._bytes += sum(array.nbytes for array in pair)
        if self._bytes <= KEPT_BYTES:  # every engine is scored on the same samples
            self._kept[index] = pair
        return pair
