"""Data sets with one file for each picture and one for its depth: the base class, and `images/` beside `depth/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..names import DEPTH_UNITS
from .dataset import RGBDDataset, Split, raise_all
from .images import find_images, read_pair, warn_skipped

__all__ = ["FilePairs", "Pairs"]


class FilePairs(RGBDDataset):
    """Pictures and depth maps in files. Opening the set checks that all of them exist."""

    _takes_8_bits = False

    def __init__(self, pairs: Sequence[tuple[Path, Path]], origin: str, size: tuple[int, int] | None) -> None:
        super().__init__(size)
        if not pairs:
            raise DataError(f"{origin} has no pairs of picture and depth map")
        self._pairs = list(pairs)
        missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
        raise_all(missing, f"{origin}: {len(missing)} files are missing")

    def __len__(self) -> int:
        return len(self._pairs)

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return str(self._pairs[index][0])

    def files(self, index: int) -> tuple[Path, Path]:
        """Picture and depth map of sample `index`."""
        return self._pairs[index]

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, depth_path = self._pairs[index]
        image, stored = read_pair(image_path, depth_path)
        if stored.dtype == np.uint8 and not self._takes_8_bits:
            raise DataError(f"{depth_path} has 8 bits per pixel; a `{self.name}` data set needs 16")
        return image, self._metres(stored)

    def _metres(self, stored: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Pairs(FilePairs):
    """`images/<split>/x.*` and `depth/<split>/x.png`: 16 bit, `depth_units` per metre, 0 where not measured."""

    name = "pairs"

    def __init__(
        self, root: Path, split: Split, *, size: tuple[int, int] | None = None, depth_units: float = DEPTH_UNITS
    ) -> None:
        images, depths = root / "images" / split, root / "depth" / split
        for folder in (images, depths):
            if not folder.is_dir():
                raise DataError(f"{folder} is missing; a `pairs` data set needs it for the {split} split")
        self.depth_units = depth_units
        pairs = [(path, depths / f"{path.stem}.png") for path in find_images(images)]
        super().__init__(pairs, str(images), size)
        stored = sorted(depths.iterdir())
        warn_skipped(depths, sorted(set(stored) - {depth for _, depth in pairs}), len(stored))

    def _metres(self, stored: np.ndarray) -> np.ndarray:
        return (stored / self.depth_units).astype(np.float32)
