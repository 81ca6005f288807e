"""Pictures without measured depth, beside a data set that has it: they train a student that follows a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from .dataset import RGBDDataset
from .images import find_images, read_image

__all__ = ["Joined", "Unlabelled"]


class Unlabelled(RGBDDataset):
    """The pictures of a folder; no pixel has a measured depth.

    Raises DataError if the folder is missing or has no picture. A picture that cannot be read is an error when it is
    read, see `SkipBad`.
    """

    name = "unlabelled"

    def __init__(self, folder: Path, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(size)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; --unlabelled takes a folder of pictures")
        self._paths = find_images(folder)

    def __len__(self) -> int:
        return len(self._paths)

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return str(self._paths[index])

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(self._paths[index])
        return image, np.zeros(image.shape[:2], np.float32)


class Joined(RGBDDataset):
    """The samples of one data set, then those of another; both may have pictures of any size.

    Name, crop and focal length are the first one's.
    """

    def __init__(self, first: RGBDDataset, second: RGBDDataset) -> None:
        super().__init__(first.size)
        self.name, self.crop, self.focal = first.name, first.crop, first.focal
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        data, local = self._place(index)
        return data.source(local)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        data, local = self._place(index)
        return data._read(local)

    def _place(self, index: int) -> tuple[RGBDDataset, int]:
        length = len(self._first)
        return (self._first, index) if index < length else (self._second, index - length)
