"""Read pictures that a user names: of a data set or a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.dataset import evenly_spaced
from ..data.images import find_images, read_image, read_resized, resize_depth, resize_image
from ..data.sources import open_dataset
from ..errors import DataError
from ..files import sha256_text
from ..metrics import EIGEN_SIZE, valid_pixels
from ..names import DEPTH_UNITS

if TYPE_CHECKING:
    import numpy as np

    from ..data.dataset import Split

__all__ = ["Pictures", "divide_pictures", "identify", "read_held_out", "read_pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, possibly with measured depth.

    Attributes:
        source: where they are from, as the user writes it.
        images: H x W x 3 uint8.
        depths: for each image H x W float32 metres, 0 where nothing was measured; empty: pictures without depth.
        crop: rows and columns that count against measured depth; None: all.
    """

    source: str
    images: tuple[np.ndarray, ...]
    depths: tuple[np.ndarray, ...] = ()
    crop: tuple[slice, slice] | None = None

    @property
    def measured(self) -> bool:
        """Whether there is measured depth that counts."""
        return any(valid_pixels(depth, self.crop).any() for depth in self.depths)


def read_pictures(
    source: str, split: Split, count: int, *, size: tuple[int, int] | None = None, depth_units: float = DEPTH_UNITS
) -> Pictures:
    """At most `count` evenly spaced frames of a data set's split, or of a folder of pictures.

    Args:
        source: as for `data.sources.open_dataset`, or a folder of pictures.
        split: of a data set.
        count: largest number of frames.
        size: height and width that frames are resized to; None: not resized.
        depth_units: see `open_dataset`.

    Raises:
        DataError: no such path, nothing in it, or a file that cannot be read.
    """
    try:
        data = open_dataset(source, split, size=size, depth_units=depth_units)
    except DataError as unknown:
        if not Path(source).is_dir():
            raise
        try:
            files = find_images(Path(source))
        except DataError:
            raise unknown from None  # this error says what a data set looks like
        chosen = [files[index] for index in evenly_spaced(files, count)]
        return Pictures(source, _read_all(chosen, size))
    samples = [data[index] for index in evenly_spaced(data, count)]
    whole = any(sample.depth.shape != EIGEN_SIZE for sample in samples)  # the crop is for that size only
    crop = None if whole else data.crop
    return Pictures(source, tuple(s.image for s in samples), tuple(s.depth for s in samples), crop)


def divide_pictures(
    source: str,
    choose: tuple[int, int],
    prove: int,
    *,
    size: tuple[int, int] | None = None,
    depth_units: float = DEPTH_UNITS,
) -> tuple[Pictures, Pictures]:
    """Frames for calibration, and others for verification.

    In a data set they are from its training and its validation split. A folder of pictures is divided: half of the
    pictures beyond the smallest number for calibration are for verification.

    Args:
        source, size, depth_units: see `read_pictures`.
        choose: smallest and largest number of frames for calibration.
        prove: largest number of frames for verification.

    Raises:
        DataError: see `read_pictures`.
    """
    chosen = read_pictures(source, "train", choose[1], size=size, depth_units=depth_units)
    if chosen.depths:
        return chosen, read_pictures(source, "val", prove, size=size, depth_units=depth_units)
    others, held = _divide(Path(source), choose[0], prove)
    rest = [others[index] for index in evenly_spaced(others, choose[1])]
    return Pictures(source, _read_all(rest, size)), Pictures(source, _read_all(held, size))


def read_held_out(source: str, count: int, least: int, prove: int, size: tuple[int, int]) -> Pictures:
    """At most `count` frames of those that `divide_pictures` verifies with, all of one size.

    Of a folder with no more than `least` + 1 pictures, which cannot be divided, they are any.

    Args:
        source: a data set, a folder of pictures, or one picture.
        count: largest number of frames.
        least, prove: see `divide_pictures`: smallest number for calibration, largest number for verification.
        size: height and width of a network. Pictures of different sizes are resized to the largest multiple of it that
            none of them is smaller than, because the network squeezes them to its shape anyway.

    Raises:
        DataError: see `read_pictures`.
    """
    path = Path(source)
    try:
        open_dataset(source, "val")
    except DataError:
        if not path.exists():
            raise
    else:
        return _one_size(read_pictures(source, "val", count), size)
    files = [path]
    if path.is_dir():
        others, held = _divide(path, least, prove)
        files = held or others
    chosen = [files[index] for index in evenly_spaced(files, count)]
    return _one_size(Pictures(source, _read_all(chosen, None)), size)


def _divide(folder: Path, least: int, prove: int) -> tuple[list[Path], list[Path]]:
    """A folder's pictures for calibration and for verification."""
    files = find_images(folder)
    held = {files[index] for index in evenly_spaced(files, min(prove, max(len(files) - least, 0) // 2))}
    return [path for path in files if path not in held], sorted(held)


def _one_size(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    if len({image.shape for image in pictures.images}) == 1:
        return pictures
    times = min(image.shape[axis] // size[axis] for image in pictures.images for axis in (0, 1))
    goal = size[0] * max(times, 1), size[1] * max(times, 1)
    depths = tuple(resize_depth(depth, goal, smooth=False) for depth in pictures.depths)
    return replace(pictures, images=tuple(resize_image(image, goal) for image in pictures.images), depths=depths)


def _read_all(paths: Iterable[Path], size: tuple[int, int] | None) -> tuple[np.ndarray, ...]:
    return tuple(read_resized(path, size)[0] if size else read_image(path) for path in paths)


def identify(source: str) -> str:
    """A hash of a data set or folder without reading it: of names, sizes and times of its files.

    Raises:
        DataError: there is nothing at `source`.
    """
    if source == "scenes":
        return source
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no data at {path}; give a folder, a .mat file, or the word `scenes`")
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    stats = [(str(each.relative_to(path)), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return sha256_text(repr(stats))
