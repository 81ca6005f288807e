"""The four sources of pictures with depth, each from real files."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.dataset import RGBDDataset, Split
from depthkit.data.images import DataWarning
from depthkit.data.nyu import official_test_frames
from depthkit.data.sources import open_dataset
from depthkit.errors import DataError
from depthkit.metrics import EIGEN_CROP

from ..support import save_array

SPLITS: tuple[Split, ...] = ("train", "val", "test")
FRAMES = 1449


def _picture(level: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def _sources(data: RGBDDataset) -> set[str]:
    return {data.source(index) for index in range(len(data))}


def _nyu_folder(root: Path, scenes: int = 12) -> Path:
    """Two frames a scene in DenseDepth's layout; the picture's level is the frame's number."""
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for frame in range(2 * scenes):
        stem = f"data/nyu2_train/scene{frame // 2:02d}_out/{frame}"
        rows["train"].append((f"{stem}.png", f"{stem}_depth.png"))
        save_array(root / rows["train"][-1][1], np.full((6, 8), frame * 6, np.uint8))
    for frame in range(3):
        stem = f"data/nyu2_test/{frame:05d}"
        rows["test"].append((f"{stem}_colors.png", f"{stem}_depth.png"))
        save_array(root / rows["test"][-1][1], np.full((6, 8), frame * 4000, np.uint16))
    for split, pairs in rows.items():
        for frame, (picture, _) in enumerate(pairs):
            save_array(root / picture, _picture(frame))
        _write_csv(root / "data" / f"nyu2_{split}.csv", pairs)
    return root


def _write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def test_nyu_reads_8_bit_depth_at_the_middle_of_its_bin(tmp_path: Path) -> None:
    train = open_dataset(_nyu_folder(tmp_path), "train")
    assert train.name == "nyu"
    assert train.crop == EIGEN_CROP
    assert train.focal == pytest.approx(518.86 / 640, rel=1e-4)
    for sample in (train[index] for index in range(len(train))):
        frame = int(sample.image[0, 0, 0])
        expected = (frame * 6 + 0.5) / 255 * 10 if frame else 0.0  # 0 is not measured
        assert sample.depth.dtype == np.float32
        np.testing.assert_allclose(sample.depth, np.full((6, 8), expected), rtol=1e-6)
        assert f"/{frame}.png" in train.source(sample.position)


def test_nyu_reads_16_bit_depth_as_millimetres(tmp_path: Path) -> None:
    test = open_dataset(_nyu_folder(tmp_path), "test")
    assert len(test) == 3
    for index, metres in enumerate((0.0, 4.0, 8.0)):
        assert test[index].image.tolist() == _picture(index).tolist()
        np.testing.assert_allclose(test[index].depth, np.full((6, 8), metres), rtol=1e-6)


def test_nyu_holds_out_the_rows_of_its_val_csv(tmp_path: Path) -> None:
    root = _nyu_folder(tmp_path)
    held = [(f"data/nyu2_train/scene03_out/{n}.png", f"data/nyu2_train/scene03_out/{n}_depth.png") for n in (6, 7)]
    _write_csv(root / "data" / "nyu2_val.csv", held)
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert _sources(val) == {str(root / picture) for picture, _ in held}
    assert len(train) == 22
    assert not _sources(train) & _sources(val)


@pytest.mark.parametrize(("scenes", "held"), [(2, {1}), (9, {8}), (10, {9}), (21, {9, 19})])
def test_nyu_without_a_val_csv_holds_out_every_tenth_scene_or_the_last(
    tmp_path: Path, scenes: int, held: set[int]
) -> None:
    root = _nyu_folder(tmp_path, scenes)
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert {Path(source).parent.name for source in _sources(val)} == {f"scene{scene:02d}_out" for scene in held}
    assert len(train) == 2 * (scenes - len(held))
    assert not _sources(train) & _sources(val)


def test_nyu_of_one_scene_says_why_nothing_can_be_held_out(tmp_path: Path) -> None:
    root = _nyu_folder(tmp_path, 1)
    with pytest.raises(DataError, match=r"one scene.*list validation rows in .*nyu2_val\.csv"):
        open_dataset(root, "val")
    assert len(open_dataset(root, "train")) == 2


def test_nyu_whose_val_csv_takes_every_row_is_refused(tmp_path: Path) -> None:
    root = _nyu_folder(tmp_path, 1)
    (root / "data" / "nyu2_val.csv").write_bytes((root / "data" / "nyu2_train.csv").read_bytes())
    with pytest.raises(DataError, match=r"every row of .*nyu2_train\.csv is also in .*nyu2_val\.csv"):
        open_dataset(root, "train")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mark=st.sampled_from(["", "\ufeff"]),
    header=st.sampled_from(["", "image,depth", "Picture;Depth map", "rgb\tdepth"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
    slash=st.sampled_from(["/", "\\"]),
    quote=st.sampled_from(["", '"']),
    blank=st.sampled_from(["", "  ", ",", ",,"]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    pad=st.sampled_from(["", " "]),
)
def test_nyu_csv_reads_the_same_from_any_spreadsheet(
    tmp_path: Path, mark: str, header: str, delimiter: str, slash: str, quote: str, blank: str, ending: str, pad: str
) -> None:
    names = [(f"data/a b/{n}.png", f"data/a b/{n}_depth.png") for n in range(3)]
    if not (tmp_path / names[0][0]).exists():
        for picture, depth in names:
            save_array(tmp_path / picture, _picture(1))
            save_array(tmp_path / depth, np.full((6, 8), 4000, np.uint16))
    pad = "" if quote else pad
    lines = [delimiter.join(f"{quote}{pad}{n.replace('/', slash)}{pad}{quote}" for n in row) for row in names]
    header = header.replace(",", delimiter).replace(";", delimiter).replace("\t", delimiter)
    lines = [*([header] if header else []), *lines[:1], blank.replace(",", delimiter), *lines[1:], "", ""]
    (tmp_path / "data" / "nyu2_test.csv").write_bytes((mark + ending.join(lines)).encode())
    data = open_dataset(tmp_path, "test")
    assert [data.source(index) for index in range(len(data))] == [str(tmp_path / picture) for picture, _ in names]


@pytest.mark.parametrize("units", [0, -5.0, float("nan"), float("inf")])
@pytest.mark.parametrize("source", ["scenes", "pairs"])
def test_units_that_are_no_number_above_0_are_refused(pairs: Path, source: str, units: float) -> None:
    with pytest.raises(DataError, match=r"depth_units is .*above 0"):
        open_dataset(pairs if source == "pairs" else source, "train", depth_units=units)


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out like nyu_depth_v2_labeled.mat: 1449 frames of 6 x 8, a new scene every seven frames.

    Red counts rows, green counts columns, blue is the frame modulo 251; depth is 1 + frame / 1000 + row + column / 10.
    """
    path = tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat"
    frame, y, x = np.meshgrid(np.arange(FRAMES), np.arange(6), np.arange(8), indexing="ij")
    images = np.stack((y, x, frame % 251), axis=1).astype(np.uint8)  # frame, colour, row, column
    depths = 1 + frame / 1000 + y + x / 10
    with h5py.File(path, "w") as file:
        file["images"] = images.transpose(0, 1, 3, 2)  # MATLAB stores columns first
        file["depths"] = depths.transpose(0, 2, 1).astype(np.float32)
        scenes = file.create_dataset("scenes", (1, FRAMES), dtype=h5py.ref_dtype)
        for index in range(FRAMES):
            if index % 7 == 0:
                letters = np.frombuffer(f"scene_{index // 7:04d}".encode(), np.uint8).astype(np.uint16)
                name = file.create_dataset(f"#refs#/{index}", data=letters[:, None])
            scenes[0, index] = name.ref
    return path


def _frames(data: RGBDDataset) -> list[int]:
    return [int(data.source(index).rsplit(" ", 1)[1]) for index in range(len(data))]


def test_nyu_mat_has_the_official_split(mat: Path) -> None:
    train, val, test = (_frames(open_dataset(mat, split)) for split in SPLITS)
    assert len(train) + len(val) == 795
    assert len(test) == 654
    assert sorted(train + val + test) == list(range(FRAMES))
    assert test == official_test_frames()


def test_nyu_mat_holds_out_every_tenth_training_scene_whole(mat: Path) -> None:
    train, val = (list(dict.fromkeys(n // 7 for n in _frames(open_dataset(mat, split)))) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert val == sorted([*train, *val])[9::10]


def test_nyu_mat_turns_pictures_and_depth_upright(mat: Path) -> None:
    test = open_dataset(mat, "test")
    assert test.name == "nyu-mat"
    assert test.crop == EIGEN_CROP
    for index in (0, 300, 653):
        frame = _frames(test)[index]
        image, depth, found = test[index]
        y, x = np.mgrid[:6, :8]
        assert found == index
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.stack((y, x, np.full_like(y, frame % 251)), -1))
        np.testing.assert_allclose(depth, 1 + frame / 1000 + y + x / 10, rtol=1e-6)


def test_nyu_mat_can_be_pickled(mat: Path) -> None:
    data = open_dataset(mat, "val")
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[3].depth, data[3].depth)


@pytest.mark.parametrize("units", [1000.0, 5000.0, 256.0])
def test_pairs_reads_depth_in_its_units(tmp_path: Path, units: float) -> None:
    stored = np.array([[0, 1, 1000], [2560, 65535, 0]], np.uint16)
    save_array(tmp_path / "depth" / "train" / "a.png", stored)
    save_array(tmp_path / "images" / "train" / "a.png", _picture(7, (2, 3)))
    data = open_dataset(tmp_path, "train", depth_units=units)
    assert data.name == "pairs"
    assert data.crop is None
    np.testing.assert_allclose(data[0].depth, stored / units, rtol=1e-6)
    assert (data[0].depth == 0).tolist() == (stored == 0).tolist()


def test_pairs_reads_every_kind_of_picture_as_rgb(tmp_path: Path) -> None:
    level = np.full((6, 8), 90, np.uint8)
    alpha = np.dstack((level, level, level, np.full_like(level, 128)))
    for name, array in {"a.png": level, "b.JPG": _picture(90), "c.png": alpha, "d.bmp": _picture(90)}.items():
        save_array(tmp_path / "images" / "val" / name, array)
        save_array(tmp_path / "depth" / "val" / f"{name[0]}.png", np.full((6, 8), 1500, np.uint16))
    (tmp_path / "images" / "val" / "notes.txt").write_text("no picture")
    save_array(tmp_path / "depth" / "val" / "z.png", np.full((6, 8), 1500, np.uint16))
    with pytest.warns(DataWarning) as skipped:
        data = open_dataset(tmp_path, "val")
    assert [str(warning.message).rsplit(": ")[1] for warning in skipped] == ["notes.txt", "z.png"]
    assert len(data) == 4
    for sample in (data[index] for index in range(4)):
        assert sample.image.shape == (6, 8, 3)
        assert np.abs(sample.image.astype(int) - 90).max() <= 1  # JPEG


def test_pairs_belong_together_and_are_split_by_folder(pairs: Path) -> None:
    sets = {split: open_dataset(pairs, split) for split in SPLITS}
    assert {split: len(data) for split, data in sets.items()} == {"train": 10, "val": 3, "test": 2}
    for split, data in sets.items():
        assert all(f"images/{split}/" in source for source in _sources(data))
        sample = data[1]
        stored = np.array(Image.open(pairs / "depth" / split / "1.png")) / 1000
        np.testing.assert_allclose(sample.depth, stored, rtol=1e-6)
        assert (sample.depth[10:20, 30:40] == 0).all()


def test_scenes_are_disjoint_and_repeatable() -> None:
    sets = [open_dataset("scenes", split, size=(16, 32)) for split in SPLITS]
    assert [len(data) for data in sets] == [1024, 64, 128]
    assert len(set.union(*map(_sources, sets))) == 1024 + 64 + 128
    pictures = {data[index].image.tobytes() for data in sets for index in range(10)}
    assert len(pictures) == 30
    for data in sets:
        np.testing.assert_array_equal(data[4].image, data[4].image)
        assert data[4].depth.min() >= 0.5
        assert data.crop is None


def test_scenes_come_in_batches_as_they_come_alone() -> None:
    from depthkit.data.scenes.scene_dataset import Scenes

    data = Scenes("val", size=(16, 32))
    for sample, index in zip(data.__getitems__([5, 0, 63]), (5, 0, 63), strict=True):
        assert sample.position == index
        np.testing.assert_array_equal(sample.image, data[index].image)
        np.testing.assert_array_equal(sample.depth, data[index].depth)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 2**31))
def test_resizing_picks_depths_and_invents_none(tmp_path: Path, size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    stored = random.integers(0, 10_000, (11, 17)).astype(np.uint16)
    save_array(tmp_path / "images" / "test" / "a.png", random.integers(0, 256, (11, 17, 3)).astype(np.uint8))
    save_array(tmp_path / "depth" / "test" / "a.png", stored)
    image, depth, _ = open_dataset(tmp_path, "test", size=size)[0]
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert depth.shape == size
    assert depth.dtype == np.float32
    assert set(np.rint(depth * 1000).astype(int).ravel().tolist()) <= set(stored.ravel().tolist())


def test_resizing_keeps_picture_and_depth_aligned(tmp_path: Path) -> None:
    left = np.broadcast_to(np.arange(64) < 24, (48, 64))
    save_array(tmp_path / "images" / "test" / "a.png", np.where(left, 200, 20).astype(np.uint8))
    save_array(tmp_path / "depth" / "test" / "a.png", np.where(left, 2000, 5000).astype(np.uint16))
    image, depth, _ = open_dataset(tmp_path, "test", size=(24, 32))[0]
    np.testing.assert_array_equal(image[..., 0] > 110, depth == 2)


@pytest.mark.parametrize(("split", "length"), [("train", 698), ("val", 97), ("test", 654)])
def test_real_nyu_frames(nyu: Path, split: Split, length: int) -> None:
    data = open_dataset(nyu, split)
    assert len(data) == length
    for index in (0, length // 2, length - 1):
        image, depth, _ = data[index]
        assert image.shape == (480, 640, 3)
        assert depth.shape == (480, 640)
        assert 0.5 < depth.min() < depth.max() <= 10
        assert image.std() > 10
    small = open_dataset(nyu, split, size=(96, 128))[0]
    assert small.image.shape == (96, 128, 3)
    assert set(np.unique(small.depth)) <= set(np.unique(data[0].depth))


def test_real_nyu_splits_share_no_frame(nyu: Path) -> None:
    train, val, test = (_sources(open_dataset(nyu, split)) for split in SPLITS)
    assert len(train | val | test) == 1449


def test_an_unknown_split_of_pairs_is_refused(pairs: Path) -> None:
    with pytest.raises(DataError, match="dev"):
        open_dataset(pairs, "dev")  # type: ignore[arg-type]
