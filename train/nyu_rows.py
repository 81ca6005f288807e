"""Which pictures and depth maps the csv files of NYU's layout name, and how they are split."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from ..images import looks_like_picture

if TYPE_CHECKING:
    from .datasets import Split

__all__ = ["hold_out", "nyu_rows"]

_Pair = tuple[Path, Path]
_DELIMITERS: Final = ",;\t"  # a spreadsheet writes the second where the comma is the decimal point


def nyu_rows(root: Path, split: Split) -> list[_Pair]:
    """Picture and depth map of each sample of a split.

    Raises:
        DataError: a csv that cannot be read, a row of it that is no pair, or nothing that can be held out.
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
            raise DataError(f"every row of {whole} is in {held_out} too, and none is left to train on; shorten it")
        return val if split == "val" else rest
    is_held = hold_out([str(image.parent) for image, _ in train])
    if train and not any(is_held) and split == "val":
        raise DataError(
            f"{whole} has pictures of one folder, which counts as one scene, so none can be held out for validation; "
            f"name validation rows in {held_out}"
        )
    return [row for row, held in zip(train, is_held, strict=True) if held == (split == "val")]


def hold_out(scenes: Iterable[str]) -> list[bool]:
    """True for the samples of every tenth scene: whole scenes, so that no room is on both sides.

    Of two to nine scenes it is the last one, of one scene none.
    """
    scenes = list(scenes)
    names = list(dict.fromkeys(scenes))
    held = set(names[9::10] or names[1:][-1:])
    return [scene in held for scene in scenes]


def _csv_rows(root: Path, path: Path) -> list[_Pair]:
    """The rows as paths below `root`, as spreadsheets write them too: byte-order mark, header, blanks, backslashes."""
    from .datasets import raise_all

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
        del rows[0]  # names of columns
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
