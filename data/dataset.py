"""Samples of picture and depth, and the base of all data sets. Needs NumPy and Pillow only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from typing import Final, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from .images import resize_depth, resize_image

__all__ = ["RGBD", "RGBDDataset", "SkipBad", "Split", "evenly_spaced", "raise_all"]

Split = Literal["train", "val", "test"]
Crop = tuple[slice, slice]

_SHOWN: Final = 10  # faults that an error lists; it only counts the rest


class RGBD(NamedTuple):
    """A picture and its depth.

    Attributes:
        image: H x W x 3, uint8, RGB.
        depth: H x W, float32, metres along the optical axis; 0 where it was not measured.
        position: index in its data set, for `RGBDDataset.source`.
    """

    image: np.ndarray
    depth: np.ndarray
    position: int


class RGBDDataset(ABC):
    """A sequence of `RGBD`, indexable by 0 .. len - 1; works as a torch map-style data set.

    Attributes:
        name: the layout's name, see `sources`.
        crop: rows and columns of a native frame that are evaluated; None: all.
        focal: focal length of its camera in pixels per pixel of width, see `ModelSpec.focal`; None: unknown. It does
            not depend on `size`, because pictures are resized whole.
        size: height and width that samples are resized to; None: not resized.
        taught_by: hash of the weights of the teacher whose answers `taught` reads; None: it has none.
    """

    name: str
    crop: Crop | None = None
    focal: float | None = None
    taught_by: str | None = None

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source(self, index: int) -> str:
        """Where sample `index` comes from, for messages."""

    @abstractmethod
    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The stored picture and depth of one sample. Raises DataError."""

    def __getitem__(self, index: int) -> RGBD:
        """One sample, resized: the picture with antialiasing, the depth by nearest neighbour. Raises DataError."""
        image, depth = self._read(index)
        if image.shape[:2] != depth.shape:
            (a, b), (c, d) = image.shape[:2], depth.shape
            raise DataError(f"{self.source(index)} is {a}x{b} and its depth {c}x{d} (HxW); replace one of them")
        if self.size is not None:
            image, depth = resize_image(image, self.size), resize_depth(depth, self.size, smooth=False)
        return RGBD(image, depth, index)

    def taught(self, index: int) -> np.ndarray:
        """The stored answer of the teacher `taught_by` for one sample, resized bilinearly with antialiasing.

        It is H x W, float32, metres, 0 where the teacher has none. Raises DataError.
        """
        depth = self._read_taught(index)
        return depth if self.size is None else resize_depth(depth, self.size, smooth=True)

    def _read_taught(self, index: int) -> np.ndarray:
        """The stored answer as it is; a data set with `taught_by` has this method. Raises DataError."""
        raise NotImplementedError(f"{self.name} has no answers of a teacher; see taught_by")


def evenly_spaced(data: Sized, count: int) -> list[int]:
    """Positions of `count` evenly spaced samples, from the first to the last; of all if there are fewer."""
    chosen: list[int] = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist()
    return chosen


class SkipBad(RGBDDataset):
    """Wraps a data set so that samples that cannot be read come back empty instead of ending the epoch.

    An empty sample is a black picture of the set's `size` without measured pixels and without a teacher's answer, so
    losses and metrics ignore it.
    Its position is `~index`, which is negative and survives batching and worker processes. Count the negative
    positions, and name those samples by `source(~position)`.
    """

    def __init__(self, data: RGBDDataset) -> None:
        if data.size is None:
            raise ValueError("open the data set with a size: an unreadable sample has none of its own")
        super().__init__(data.size)
        self.name, self.crop, self.focal, self.taught_by = data.name, data.crop, data.focal, data.taught_by
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return self._data.source(index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._data._read(index)

    def _read_taught(self, index: int) -> np.ndarray:
        return self._data._read_taught(index)

    def __getitem__(self, index: int) -> RGBD:
        """See `RGBDDataset.__getitem__`; never raises DataError."""
        try:
            return super().__getitem__(index)
        except DataError:
            assert self.size is not None
            return RGBD(np.zeros((*self.size, 3), np.uint8), np.zeros(self.size, np.float32), ~index)

    def taught(self, index: int) -> np.ndarray:
        """See `RGBDDataset.taught`; never raises DataError."""
        try:
            return super().taught(index)
        except DataError:
            assert self.size is not None
            return np.zeros(self.size, np.float32)


def raise_all(faults: Sequence[str], headline: str) -> None:
    """Raise DataError if there are faults, with the headline, the first ten faults and the number of the others."""
    if not faults:
        return
    rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise DataError(f"{headline}: {'; '.join(faults[:_SHOWN])}{rest}")
