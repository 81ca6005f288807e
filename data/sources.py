"""Open a data set by the word `scenes` or by a path.

| source     | recognised by                  | splits                                                            |
|------------|--------------------------------|-------------------------------------------------------------------|
| `scenes`   | the word `scenes`              | disjoint seeds                                                    |
| `nyu`      | `data/nyu2_test.csv` in folder | test csv; `nyu2_val.csv`, or every tenth scene of the train csv   |
| `nyu-mat`  | a file `*.mat`                 | the official 795 / 654; every tenth training scene is validation  |
| `pairs`    | `images/` beside `depth/`      | their sub-folders `train`, `val`, `test`                          |
| `prepared` | `prepared.json` in folder      | train and val of another source, made by `depthkit data prepare`  |
"""

from __future__ import annotations

from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from ..errors import DataError
from ..names import DEPTH_UNITS
from .dataset import RGBDDataset, Split
from .nyu import NyuCsv, NyuMat
from .pairs import Pairs
from .prepared import PREPARED, Prepared

__all__ = ["open_dataset"]


def open_dataset(
    source: str | Path, split: Split, *, size: tuple[int, int] | None = None, depth_units: float = DEPTH_UNITS
) -> RGBDDataset:
    """Open `source` (see the table above).

    Args:
        source: the word `scenes`, or a path.
        split: train, val or test.
        size: height and width to resize to; None: not resized (scenes: 240x320).
        depth_units: units per metre in the 16-bit PNG of a `pairs` folder.

    Raises:
        DataError: no such path, no known layout, missing files (all counted, the first ones named), an empty split, or
            `depth_units` not above 0. Opening a large set is fast, because files are only opened and checked when
            they are read.
        SpecError: `prepared.json` does not fit its schema.
    """
    if not (isfinite(depth_units) and depth_units > 0):
        raise DataError(f"depth_units is {depth_units}; give the number of stored units per metre, above 0")
    if str(source) == "scenes":
        if find_spec("torch") is None:
            raise DataError("the built-in scenes are rendered by torch; pip install 'depthkit[train]'")
        from .scenes.scene_dataset import Scenes

        return Scenes(split, size=size)
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no data at {path}; give a folder, a .mat file, or the word `scenes`")
    if path.suffix == ".mat":
        return NyuMat(path, split, size=size)
    if (path / PREPARED).is_file():
        return Prepared(path, split, size=size)
    if (path / "data" / "nyu2_test.csv").is_file():
        return NyuCsv(path, split, size=size)
    if (path / "images").is_dir() and (path / "depth").is_dir():
        return Pairs(path, split, size=size, depth_units=depth_units)
    raise DataError(
        f"{path} has none of the known layouts: data/nyu2_train.csv and data/nyu2_test.csv (nyu), images/ beside "
        f"depth/ (pairs), {PREPARED} (made by `depthkit data prepare`), or a file nyu_depth_v2_labeled.mat"
    )
