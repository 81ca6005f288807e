"""Data that cannot be used: each a DataError that names the file and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from depthkit.data.sources import open_dataset
from depthkit.errors import DataError

from ..support import save_array


def _pair(root: Path, name: str = "a.png", *, size: tuple[int, int] = (30, 40)) -> tuple[Path, Path]:
    """One more sample of the training split of a `pairs` folder: its picture and its depth map."""
    random = np.random.default_rng(0)
    picture = save_array(root / "images" / "train" / name, random.integers(0, 256, (*size, 3)).astype(np.uint8))
    depth = save_array(root / "depth" / "train" / f"{Path(name).stem}.png", np.full(size, 2000, np.uint16))
    return picture, depth


def _nyu(root: Path, train: str | bytes) -> Path:
    """A folder in DenseDepth's layout whose training csv reads like this."""
    (root / "data").mkdir()
    (root / "data" / "nyu2_test.csv").write_text("")
    csv = root / "data" / "nyu2_train.csv"
    csv.write_bytes(train) if isinstance(train, bytes) else csv.write_text(train)
    return root


def _refusal(source: Path, index: int | None = None) -> str:
    """What a DataError says when the training split is opened, or when its sample `index` is read."""
    with pytest.raises(DataError) as caught:
        data = open_dataset(source, "train")
        assert index is not None, "it was opened"
        data[index]
    return str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "holiday.jpg"])
def test_what_is_no_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    assert str(tmp_path / name) in _refusal(tmp_path / name)


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    message = _refusal(tmp_path)
    assert all(word in message for word in (str(tmp_path), "nyu2_train.csv", "images/", "depth/", ".mat"))


@pytest.mark.parametrize("split", ["", "train"], ids=["missing", "empty"])
def test_a_split_of_pairs_without_pictures(tmp_path: Path, split: str) -> None:
    for kind in ("images", "depth"):
        (tmp_path / kind / split).mkdir(parents=True)
    assert str(tmp_path / "images" / "train") in _refusal(tmp_path)


def test_missing_files_of_pairs_are_all_reported(tmp_path: Path) -> None:
    lost = [_pair(tmp_path, name)[1] for name in ("a.png", "b.jpg", "c.png")]
    _pair(tmp_path, "d.png")
    for path in lost:
        path.unlink()
    message = _refusal(tmp_path)
    assert all(str(path) in message for path in lost)
    assert "d.png" not in message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("data/a.jpg,data/a.png\ndata/b.jpg,data/b.png\n", ["data/a.jpg", "data/a.png", "data/b.jpg", "data/b.png"]),
        ("".join(f"data/{n}.jpg,data/{n}.png\n" for n in range(30)), ["60 files", "0.jpg"]),
        ("a.jpg,a.png\nb.jpg\n", ["nyu2_train.csv", "line 2", "b.jpg"]),
        ("a.jpg,a.png\nb.jpg,b.png,c.png\n", ["nyu2_train.csv", "line 2", "b.jpg"]),
        ("a.jpg,a.png\n\n\nb.jpg\n", ["line 4"]),
        ("", [""]),
        (b"\xff\xfe\x00\x01", ["nyu2_train.csv"]),
    ],
    ids=["missing files", "many missing files", "one column", "three columns", "line of the file", "empty", "no text"],
)
def test_a_csv_that_cannot_be_used_says_where_and_why(tmp_path: Path, rows: str | bytes, words: list[str]) -> None:
    message = _refusal(_nyu(tmp_path, rows))
    assert str(tmp_path) in message
    assert all(word in message for word in words), message


def test_a_missing_training_csv(tmp_path: Path) -> None:
    _nyu(tmp_path, "")
    (tmp_path / "data" / "nyu2_train.csv").unlink()
    assert "nyu2_train.csv" in _refusal(tmp_path)


def test_a_depth_map_of_another_size(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _pair(tmp_path, name)
    save_array(tmp_path / "depth" / "train" / "a.png", np.full((15, 20), 2000, np.uint16))
    message = _refusal(tmp_path, 0)
    assert all(word in message for word in ("a.png", "30x40", "15x20"))
    assert open_dataset(tmp_path, "train")[1].depth.shape == (30, 40)


def _mat(path: Path, frames: int, *names: str) -> Path:
    """A .mat file with those arrays of so many frames."""
    shapes = {"images": (frames, 3, 8, 6), "depths": (frames, 8, 6), "scenes": (1, frames)}
    with h5py.File(path, "w") as file:
        for name in names:
            file.create_dataset(name, shapes[name], dtype=h5py.ref_dtype if name == "scenes" else np.uint8)
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" * 100), ""),
        (lambda path: _mat(path, 3, "images"), ""),
        (lambda path: _mat(path, 3, "images", "depths", "scenes"), "1449"),
        (lambda path: path.write_bytes(_mat(path, 1449, "images").read_bytes()[:700]), ""),
    ],
    ids=["no HDF5", "arrays missing", "other frames", "truncated"],
)
def test_a_mat_file_that_cannot_be_used(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "nyu.mat"
    write(path)
    message = _refusal(path)
    assert str(path) in message
    assert words in message


def test_a_pairs_folder_refuses_8_bit_depth(tmp_path: Path) -> None:
    _, depth = _pair(tmp_path)
    save_array(depth, np.full((30, 40), 200, np.uint8))
    (tmp_path / "images" / "val").mkdir()
    message = _refusal(tmp_path, 0)
    assert "a.png" in message
    assert "8 bits" in message
