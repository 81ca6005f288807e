"""Data that cannot be used: each a DataError that names the file and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.sources import open_dataset
from depthkit.errors import DataError


def _write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def _pair(root: Path, name: str = "a.png", *, size: tuple[int, int] = (30, 40)) -> tuple[Path, Path]:
    """One more sample of the training split of a `pairs` folder: its picture and its depth map."""
    random = np.random.default_rng(0)
    picture = _write(root / "images" / "train" / name, random.integers(0, 256, (*size, 3)).astype(np.uint8))
    depth = _write(root / "depth" / "train" / f"{Path(name).stem}.png", np.full(size, 2000, np.uint16))
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
    if index is None:
        with pytest.raises(DataError) as caught:
            open_dataset(source, "train")
        return str(caught.value)
    data = open_dataset(source, "train")
    with pytest.raises(DataError) as caught:
        data[index]
    return str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in _refusal(tmp_path / "nowhere")


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    message = _refusal(tmp_path)
    assert all(word in message for word in (str(tmp_path), "nyu2_train.csv", "images/", "depth/", ".mat"))


def test_a_file_that_is_no_data_set(tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"x")
    assert str(path) in _refusal(path)


def test_a_missing_split_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "depth").mkdir()
    assert str(tmp_path / "images" / "train") in _refusal(tmp_path)


def test_an_empty_split(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "depth" / "train").mkdir(parents=True)
    assert str(tmp_path / "images" / "train") in _refusal(tmp_path)


def test_missing_files_of_pairs_are_all_reported(tmp_path: Path) -> None:
    lost = [_pair(tmp_path, name)[1] for name in ("a.png", "b.jpg", "c.png")]
    _pair(tmp_path, "d.png")
    for path in lost:
        path.unlink()
    message = _refusal(tmp_path)
    assert all(str(path) in message for path in lost)
    assert "d.png" not in message


def test_missing_files_of_a_csv_are_all_reported(tmp_path: Path) -> None:
    message = _refusal(_nyu(tmp_path, "data/a.jpg,data/a.png\ndata/b.jpg,data/b.png\n"))
    assert all(str(tmp_path / "data" / name) in message for name in ("a.jpg", "a.png", "b.jpg", "b.png"))


def test_many_missing_files_are_counted(tmp_path: Path) -> None:
    message = _refusal(_nyu(tmp_path, "".join(f"data/{n}.jpg,data/{n}.png\n" for n in range(30))))
    assert "60 files" in message
    assert "0.jpg" in message


@pytest.mark.parametrize("text", ["a.jpg,a.png\nb.jpg\n", "a.jpg,a.png\nb.jpg,b.png,c.png\n"])
def test_a_csv_row_without_two_columns(tmp_path: Path, text: str) -> None:
    message = _refusal(_nyu(tmp_path, text))
    assert "nyu2_train.csv" in message
    assert "line 2" in message
    assert "b.jpg" in message


def test_a_csv_row_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    assert "line 4" in _refusal(_nyu(tmp_path, "a.jpg,a.png\n\n\nb.jpg\n"))


def test_an_empty_csv(tmp_path: Path) -> None:
    assert str(tmp_path) in _refusal(_nyu(tmp_path, ""))


def test_a_csv_that_is_no_text(tmp_path: Path) -> None:
    assert "nyu2_train.csv" in _refusal(_nyu(tmp_path, b"\xff\xfe\x00\x01"))


def test_a_missing_training_csv(tmp_path: Path) -> None:
    _nyu(tmp_path, "")
    (tmp_path / "data" / "nyu2_train.csv").unlink()
    assert "nyu2_train.csv" in _refusal(tmp_path)


def test_a_depth_map_of_another_size(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _pair(tmp_path, name)
    _write(tmp_path / "depth" / "train" / "a.png", np.full((15, 20), 2000, np.uint16))
    message = _refusal(tmp_path, 0)
    assert all(word in message for word in ("a.png", "30x40", "15x20"))
    assert open_dataset(tmp_path, "train")[1].depth.shape == (30, 40)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("content", [b"", b"this is no picture"])
def test_a_file_that_is_empty_or_no_picture(tmp_path: Path, which: int, content: bytes) -> None:
    path = _pair(tmp_path)[which]
    path.write_bytes(content)
    assert str(path) in _refusal(tmp_path, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
def test_a_truncated_picture(tmp_path: Path, name: str) -> None:
    _pair(tmp_path, "b.png")
    path, _ = _pair(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-300])
    assert str(path) in _refusal(tmp_path, 0)
    assert open_dataset(tmp_path, "train")[1].image.shape == (30, 40, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about damaged EXIF
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["jpg", "png", "tif"]), start=st.integers(0, 200), junk=st.binary(min_size=1))
def test_a_damaged_picture_is_refused_or_read(tmp_path: Path, suffix: str, start: int, junk: bytes) -> None:
    """Whatever Pillow makes of damaged bytes, nothing but DataError comes out, and it names the file."""
    root = tmp_path / suffix
    path, _ = _pair(root, f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[:start] + junk + content[start + len(junk) :])
    try:
        image, depth, _ = open_dataset(root, "train")[0]
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert image.shape == (30, 40, 3)
        assert depth.shape == (30, 40)


def test_a_picture_beyond_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses what could be a decompression bomb; here its limit is set below an ordinary picture."""
    _pair(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30 * 40 // 2 - 1)
    message = _refusal(tmp_path, 0)
    assert "a.png" in message
    assert "limit of" in message


def test_a_colour_picture_in_place_of_depth(tmp_path: Path) -> None:
    _, depth = _pair(tmp_path)
    _write(depth, np.zeros((30, 40, 3), np.uint8))
    assert str(depth) in _refusal(tmp_path, 0)


def test_a_mat_file_that_is_no_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "nyu.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" * 100)
    assert str(path) in _refusal(path)


def test_a_mat_file_without_its_arrays(tmp_path: Path) -> None:
    path = tmp_path / "nyu.mat"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((3, 3, 8, 6), np.uint8)
    assert str(path) in _refusal(path)


def test_a_mat_file_with_another_number_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "nyu.mat"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((3, 3, 8, 6), np.uint8)
        file["depths"] = np.zeros((3, 8, 6), np.float32)
        file.create_dataset("scenes", (1, 3), dtype=h5py.ref_dtype)
    message = _refusal(path)
    assert str(path) in message
    assert "1449" in message


def test_a_truncated_mat_file(tmp_path: Path) -> None:
    path = tmp_path / "nyu.mat"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((1449, 3, 8, 6), np.uint8)
    path.write_bytes(path.read_bytes()[:4000])
    assert str(path) in _refusal(path)


def test_a_pairs_folder_refuses_8_bit_depth(tmp_path: Path) -> None:
    _, depth = _pair(tmp_path)
    _write(depth, np.full((30, 40), 200, np.uint8))
    (tmp_path / "images" / "val").mkdir()
    message = _refusal(tmp_path, 0)
    assert "a.png" in message
    assert "8 bits" in message


def test_a_portrait_picture_that_its_exif_turns_fits_its_depth(tmp_path: Path) -> None:
    picture, depth = _pair(tmp_path, "a.jpg", size=(40, 30))
    sideways = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to stand upright
    sideways.save(picture, exif=exif)
    sample = open_dataset(tmp_path, "train")[0]
    assert sample.image.shape == (40, 30, 3)
    assert sample.depth.shape == (40, 30)
    assert depth.is_file()
