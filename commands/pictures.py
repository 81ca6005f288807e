"""Pictures that a user names: of a data set, or of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from ..train.datasets import Split

__all__ = ["Pictures", "read_pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures, and what was measured there.

    Attributes:
        source: where they are from, as a user writes it.
        images: H x W x 3 uint8.
        depths: for each image H x W float32 metres, 0 where nothing was measured; empty: these are pictures only.
        crop: rows and columns that count against measured depth; None: all.
    """

    source: str
    images: tuple[np.ndarray, ...]
    depths: tuple[np.ndarray, ...] = ()
    crop: tuple[slice, slice] | None = None


def read_pictures(
    source: str, split: Split, count: int, *, size: tuple[int, int] | None = None, depth_units: float = 1000.0
) -> Pictures:
    """At most `count` evenly spaced frames of a data set's split, or of a folder of pictures.

    Args:
        source: what `train.datasets.open_dataset` takes, or a folder with pictures in it.
        split: of a data set.
        count: how many.
        size: height and width that frames are resized to; None: as they are.
        depth_units: see `open_dataset`.

    Raises:
        DataError: no such path, nothing in it, or a file that cannot be read.
    """
    from ..errors import DataError
    from ..images import find_images, read_image, read_resized
    from ..train.datasets import evenly_spaced, open_dataset

    try:
        data = open_dataset(source, split, size=size, depth_units=depth_units)
    except DataError as unknown:
        if not Path(source).is_dir():
            raise
        try:
            files = find_images(Path(source))
        except DataError:
            raise unknown from None  # it tells what a data set looks like
        chosen = [files[index] for index in evenly_spaced(files, count)]
        return Pictures(source, tuple(read_resized(path, size)[0] if size else read_image(path) for path in chosen))
    samples = [data[index] for index in evenly_spaced(data, count)]
    return Pictures(source, tuple(s.image for s in samples), tuple(s.depth for s in samples), data.crop)
