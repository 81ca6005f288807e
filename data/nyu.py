"""NYU Depth v2 in two layouts: DenseDepth's csv rows of files, and the official labelled .mat file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import DataError
from ..metrics import DEPTH_SCALE, EIGEN_CROP
from .dataset import RGBDDataset, Split, raise_all
from .images import looks_like_picture
from .pairs import FilePairs

__all__ = ["NyuCsv", "NyuMat", "official_test_frames"]

_Pair = tuple[Path, Path]
_FOCAL: Final = 518.857901 / 640  # fx_rgb of camera_params.m in the authors' toolbox, for 640 pixels
_DELIMITERS: Final = ",;\t"  # spreadsheets write ";" in locales with a decimal comma


class NyuCsv(FilePairs):
    """NYU Depth v2 in DenseDepth's layout: csv rows of picture, depth.

    16-bit depth is millimetres. An 8-bit value v is the bin v .. v + 1 of 255 bins over 10 m, and is read as the bin's
    middle, (v + 0.5) / 255 * 10 m. (DenseDepth itself reads the bin's lower edge: 20 mm short on average.)
    """

    name = "nyu"
    crop = EIGEN_CROP
    focal = _FOCAL
    _takes_8_bits = True

    def __init__(self, root: Path, split: Split, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(_nyu_rows(root, split), f"{root} ({split})", size)

    def _metres(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.uint8:
            metres = (stored.astype(np.float32) + 0.5) * (DEPTH_SCALE / 255)
        else:
            metres = stored.astype(np.float32) / 1000
        return np.where(stored > 0, metres, 0).astype(np.float32)


class NyuMat(RGBDDataset):
    """The official `nyu_depth_v2_labeled.mat` (MATLAB 7.3, read with h5py), with the official split."""

    name = "nyu-mat"
    crop = EIGEN_CROP
    focal = _FOCAL
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
            held_out = _hold_out([self._scene(frame) for frame in train])
            self._frames = [frame for frame, held in zip(train, held_out, strict=True) if held == (split == "val")]

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # an open file cannot be pickled for a worker

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
                raise DataError(f"{self._path} has {frames} images, depths and scenes instead of {self._FRAMES} each")
        return self._file


def official_test_frames() -> list[int]:
    """The 654 test frames of NYU Depth v2's official split, counted from 0 in the order of the .mat file."""
    text = package_files(__package__).joinpath("nyu_test_frames.txt").read_text()
    return [int(word) for line in text.splitlines() if not line.startswith("#") for word in line.split()]


def _nyu_rows(root: Path, split: Split) -> list[_Pair]:
    """Picture and depth map of each sample of a split.

    Raises:
        DataError: a csv that cannot be read, a row that is not a pair, or a split that would be empty.
    """
    folder = root / "data"
    if split == "test":
        return _csv_rows(root, folder / "nyu2_test.csv")
    whole, held_out = folder / "nyu2_train.csv", folder / "nyu2_val.csv"
    train = _csv_rows(root, whole)
    if held_out.is_file():
        val = _csv_rows(root, held_out)
        held = set(val)
        rest = [row for row in train if row not in held]
        if train and not rest:
            raise DataError(f"every row of {whole} is also in {held_out}, so none is left to train on; shorten it")
        return val if split == "val" else rest
    is_held = _hold_out([str(image.parent) for image, _ in train])
    if train and not any(is_held) and split == "val":
        raise DataError(
            f"{whole}: all pictures are in one folder, which counts as one scene, so none can be held out for "
            f"validation; list validation rows in {held_out}"
        )
    return [row for row, held in zip(train, is_held, strict=True) if held == (split == "val")]


def _hold_out(scenes: Iterable[str]) -> list[bool]:
    """True for the samples of every tenth scene. Whole scenes are held out, so that no room is in both splits.

    Of two to nine scenes the last one is held out, of one scene none.
    """
    scenes = list(scenes)
    names = list(dict.fromkeys(scenes))
    held = set(names[9::10] or names[1:][-1:])
    return [scene in held for scene in scenes]


def _csv_rows(root: Path, path: Path) -> list[_Pair]:
    """The rows as paths below `root`. Tolerates byte-order marks, headers, blanks and backslashes of spreadsheets."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = next((sign for sign in _DELIMITERS if sign in first), ",")
            reader = csv.reader(stream, delimiter=delimiter)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as csv in UTF-8") from error
    rows = [(number, _without_blank_end(row)) for number, row in lines if any(row)]
    if rows and not any(looks_like_picture(Path(cell)) for cell in rows[0][1]):
        del rows[0]  # header
    faults = [f"line {number}: {','.join(row)}" for number, row in rows if len(row) != 2 or not all(row)]
    raise_all(faults, f"{path}: {len(faults)} rows are not `picture,depth`")
    return [(_below(root, image), _below(root, depth)) for _, (image, depth) in rows]


def _without_blank_end(row: list[str]) -> list[str]:
    while row and not row[-1]:
        row = row[:-1]
    return row


def _below(root: Path, name: str) -> Path:
    path = root / name
    return root / name.replace("\\", "/") if "\\" in name and not path.exists() else path
