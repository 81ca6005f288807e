"""The built-in rooms as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Final, get_args

import numpy as np

from ..dataset import RGBD, RGBDDataset, Split
from .render import render_scenes, scene_seed
from .rooms import HALF_FIELD

__all__ = ["Scenes"]


class Scenes(RGBDDataset):
    """The built-in procedural rooms, rendered on access; an index always gives the same picture.

    Each room has a camera of its own, so `focal` is that of the middle field of view. At 4:3 it is 0.833, and the
    cameras' are 0.781 to 0.893.
    """

    name = "scenes"
    LENGTHS: Final[dict[Split, int]] = {"train": 1024, "val": 64, "test": 128}

    def __init__(self, split: Split, *, size: tuple[int, int] | None = None, count: int | None = None) -> None:
        height, width = size or (240, 320)
        super().__init__((height, width))
        # The field of view is fixed along the diagonal, which is 5/3 of the height of a 4:3 picture.
        self.focal = hypot(height, width) / width / (5 / 3 * sum(HALF_FIELD))
        self._split: Split = split
        self._count = count or self.LENGTHS[split]

    def __len__(self) -> int:
        return self._count

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return f"scenes {self._split} {index}"

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.__getitems__([index])[0]
        return sample.image, sample.depth

    def __getitems__(self, indices: Sequence[int]) -> list[RGBD]:
        """Render a batch in one pass. torch's DataLoader calls this method if a data set has it."""
        assert self.size is not None
        images, depths = render_scenes([scene_seed(self._split, index) for index in indices], self.size)
        return [RGBD(*sample) for sample in zip(images.numpy(), depths.numpy(), indices, strict=True)]


assert get_args(Split) == tuple(Scenes.LENGTHS)
