"""Data sets of pictures with depth: one interface, four sources, and a cache of any of them.

This module needs NumPy and Pillow only, so that an engine can be judged on real frames where torch is not installed;
the built-in scenes, which are rendered by torch, import it when they are opened.

| source     | recognised by                  | splits                                                            |
|------------|--------------------------------|-------------------------------------------------------------------|
| `scenes`   | the word `scenes`              | disjoint seeds                                                    |
| `nyu`      | `data/nyu2_test.csv` in folder | test csv; `nyu2_val.csv`, or every tenth scene of the train csv   |
| `nyu-mat`  | a file `*.mat`                 | the official 795 / 654; every tenth training scene is validation  |
| `pairs`    | `images/` beside `depth/`      | their sub-folders `train`, `val`, `test`                          |
| `prepared` | `prepared.json` in folder      | train and val of another source, made by `depthkit data prepare`  |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from importlib.resources import files as package_files
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from ..errors import DataError
from ..images import find_images, read_pair, resize_depth, resize_image, warn_skipped
from ..metrics import DEPTH_SCALE, EIGEN_CROP
from .nyu_rows import hold_out, nyu_rows

__all__ = [
    "PREPARED",
    "RGBD",
    "NyuCsv",
    "NyuMat",
    "Pairs",
    "RGBDDataset",
    "Scenes",
    "SkipBad",
    "Split",
    "evenly_spaced",
    "open_dataset",
    "raise_all",
]

Split = Literal["train", "val", "test"]
Crop = tuple[slice, slice]

PREPARED: Final = "prepared.json"
"""The file by which a folder that `depthkit data prepare` made is known."""

_SHOWN = 10  # faults that an error lists before it only counts the rest


class RGBD(NamedTuple):
    """A picture and its depth.

    Attributes:
        image: H x W x 3, uint8, RGB.
        depth: H x W, float32, metres along the optical axis; 0 where it was not measured.
        position: where it stands in its data set, for `RGBDDataset.source`.
    """

    image: np.ndarray
    depth: np.ndarray
    position: int


class RGBDDataset(ABC):
    """A sequence of `RGBD`, indexable by 0 .. len - 1; works as a torch map-style data set.

    Attributes:
        name: which source this is.
        crop: rows and columns of a native frame that are evaluated; None: all.
        size: height and width that samples are resized to; None: as they are stored.
    """

    name: str
    crop: Crop | None = None

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source(self, index: int) -> str:
        """Where sample `index` comes from, in words that lead a person to it."""

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


def open_dataset(
    source: str | Path, split: Split, *, size: tuple[int, int] | None = None, depth_units: float = 1000.0
) -> RGBDDataset:
    """Open `source` (see the table above).

    Args:
        source: the word `scenes`, or a path.
        split: train, val or test.
        size: height and width to resize to; None leaves pictures as they are (scenes: 240x320).
        depth_units: units per metre in the 16-bit PNG of a `pairs` folder.

    Raises:
        DataError: no such path, no known layout, missing files (all named), empty split, units that are no number
            above 0. Files are not opened here, so
            that large sets open at once: what is wrong inside them is raised when they are read.
        SpecError: a `prepared.json` that does not fit its schema.
    """
    if not (isfinite(depth_units) and depth_units > 0):
        raise DataError(f"depth_units is {depth_units}; give how many units of the stored depth make a metre, above 0")
    if str(source) == "scenes":
        return Scenes(split, size=size)
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no data at {path}; give a folder, a .mat file, or the word `scenes`")
    if path.suffix == ".mat":
        return NyuMat(path, split, size=size)
    if (path / PREPARED).is_file():
        from .prepared import Prepared

        return Prepared(path, split, size=size)
    if (path / "data" / "nyu2_test.csv").is_file():
        return NyuCsv(path, split, size=size)
    if (path / "images").is_dir() and (path / "depth").is_dir():
        return Pairs(path, split, size=size, depth_units=depth_units)
    raise DataError(
        f"{path} has none of the known layouts: data/nyu2_train.csv and data/nyu2_test.csv (nyu), images/ beside "
        f"depth/ (pairs), {PREPARED} (made by `depthkit data prepare`), or a file nyu_depth_v2_labeled.mat"
    )


def evenly_spaced(data: Sized, count: int) -> list[int]:
    """Positions of `count` samples from the first to the last, or of all where there are fewer."""
    chosen: list[int] = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist()
    return chosen


class SkipBad(RGBDDataset):
    """Another data set, of which samples that cannot be read come back empty instead of ending the epoch.

    Such a sample is a black picture with nothing measured, of the set's `size`, so that every loss term and metric that
    counts measured pixels ignores it. Its position is `~index`, which is negative and survives batching and worker
    processes: count those, and name them by `source(~position)`.
    """

    def __init__(self, data: RGBDDataset) -> None:
        if data.size is None:
            raise ValueError("open the data set with a size: an unreadable sample has none of its own")
        super().__init__(data.size)
        self.name, self.crop, self._data = data.name, data.crop, data

    def __len__(self) -> int:
        return len(self._data)

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return self._data.source(index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._data._read(index)

    def __getitem__(self, index: int) -> RGBD:
        """See `RGBDDataset.__getitem__`; raises no DataError."""
        try:
            return super().__getitem__(index)
        except DataError:
            assert self.size is not None
            return RGBD(np.zeros((*self.size, 3), np.uint8), np.zeros(self.size, np.float32), ~index)


class _FilePairs(RGBDDataset):
    """Pictures and depth maps in files, which all exist when the set is opened."""

    _takes_8_bits = False

    def __init__(self, pairs: Sequence[tuple[Path, Path]], origin: str, size: tuple[int, int] | None) -> None:
        super().__init__(size)
        if not pairs:
            raise DataError(f"{origin} holds no pair of picture and depth map")
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
            raise DataError(f"{depth_path} has 8 bits a pixel; this kind of data set needs 16")
        return image, self._metres(stored)

    def _metres(self, stored: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class NyuCsv(_FilePairs):
    """NYU Depth v2 in DenseDepth's layout: csv rows of picture, depth.

    16-bit depth is millimetres. 8-bit depth v stands for the bin from v to v + 1 of 255 that span 10 m, and is read at
    the bin's middle, (v + 0.5) / 255 * 10 m. (DenseDepth itself reads the bin's edge: 20 mm short on average.)
    """

    name = "nyu"
    crop = EIGEN_CROP
    _takes_8_bits = True

    def __init__(self, root: Path, split: Split, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(nyu_rows(root, split), f"{root} ({split})", size)

    def _metres(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.uint8:
            metres = (stored.astype(np.float32) + 0.5) * (DEPTH_SCALE / 255)
        else:
            metres = stored.astype(np.float32) / 1000
        return np.where(stored > 0, metres, 0).astype(np.float32)


class Pairs(_FilePairs):
    """`images/<split>/x.*` beside `depth/<split>/x.png`, 16 bit, `depth_units` per metre, 0 where not measured."""

    name = "pairs"

    def __init__(
        self, root: Path, split: Split, *, size: tuple[int, int] | None = None, depth_units: float = 1000.0
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


class NyuMat(RGBDDataset):
    """The official `nyu_depth_v2_labeled.mat` (MATLAB 7.3, read with h5py), with the official split."""

    name = "nyu-mat"
    crop = EIGEN_CROP
    _FRAMES = 1449

    def __init__(self, path: Path, split: Split, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(size)
        self._path = path
        self._file: Any = None
        test = set(official_test_frames())
        if split == "test":
            self._frames = sorted(test)
            self._open()
        else:
            train = [frame for frame in range(self._FRAMES) if frame not in test]
            held_out = hold_out([self._scene(frame) for frame in train])
            self._frames = [frame for frame, held in zip(train, held_out, strict=True) if held == (split == "val")]

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # an open file does not travel to a worker

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return f"{self._path} frame {self._frames[index]}"

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        frame = self._frames[index]
        content = self._open()
        try:
            # MATLAB stores columns first: frame x colour x width x height.
            image = np.ascontiguousarray(content["images"][frame].transpose(2, 1, 0))
            depth = np.ascontiguousarray(content["depths"][frame].T).astype(np.float32)
        except OSError as error:
            raise DataError(f"{self.source(index)} cannot be read ({error}); download the file again") from error
        return image, depth

    def _scene(self, frame: int) -> str:
        content = self._open()
        letters = content[content["scenes"][0, frame]]
        return "".join(map(chr, np.asarray(letters).ravel()))

    def _open(self) -> Any:
        if self._file is None:
            import h5py

            try:
                self._file = h5py.File(self._path)
                frames = self._file["images"].shape[0], self._file["depths"].shape[0], self._file["scenes"].shape[1]
            except (OSError, KeyError) as error:
                raise DataError(f"{self._path} is not nyu_depth_v2_labeled.mat ({error}); download it again") from error
            if frames != (self._FRAMES,) * 3:
                raise DataError(f"{self._path} holds {frames} images, depths and scenes instead of {self._FRAMES} each")
        return self._file


class Scenes(RGBDDataset):
    """The built-in procedural rooms: rendered when they are asked for, the same picture for the same index."""

    name = "scenes"
    LENGTHS: Final[dict[Split, int]] = {"train": 1024, "val": 64, "test": 128}

    def __init__(self, split: Split, *, size: tuple[int, int] | None = None, count: int | None = None) -> None:
        super().__init__(size or (240, 320))
        self._split: Split = split
        self._count = count or self.LENGTHS[split]
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError as error:
            raise DataError("the built-in scenes are rendered by torch; pip install 'depthkit[train]'") from error

    def __len__(self) -> int:
        return self._count

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return f"scenes {self._split} {index}"

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.__getitems__([index])[0]
        return sample.image, sample.depth

    def __getitems__(self, indices: Sequence[int]) -> list[RGBD]:
        """A batch in one pass: torch's DataLoader calls this where a data set has it."""
        from .scenes import render_scenes, scene_seed

        assert self.size is not None
        images, depths = render_scenes([scene_seed(self._split, index) for index in indices], self.size)
        return [RGBD(*sample) for sample in zip(images.numpy(), depths.numpy(), indices, strict=True)]


def raise_all(faults: Sequence[str], headline: str) -> None:
    """Raise DataError where there are faults: the headline, the first ten, and how many more."""
    if not faults:
        return
    rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise DataError(f"{headline}: {'; '.join(faults[:_SHOWN])}{rest}")


def official_test_frames() -> list[int]:
    """The 654 test frames of NYU Depth v2's official split, counted from 0 in the order of the .mat file."""
    text = package_files(__package__).joinpath("nyu_test_frames.txt").read_text()
    return [int(word) for line in text.splitlines() if not line.startswith("#") for word in line.split()]


assert get_args(Split) == tuple(Scenes.LENGTHS)
