"""Prepared data sets: what comes out is what went in, and nothing half-made or altered is ever opened."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from depthkit.cli import run as depthkit
from depthkit.data.pairs import Pairs
from depthkit.data.prepare import prepare
from depthkit.data.sources import open_dataset
from depthkit.errors import DataError, OutputError, SchemaVersionError, SpecError

from ..support import at, files_at_most, places, save_array
from .sets import ARRAYS, SIZE, SPLITS, TAUGHT, Red, break_files, write_pairs


@settings(max_examples=25, deadline=None)
@given(
    counts=st.tuples(st.integers(1, 6), st.integers(1, 3)),
    native=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    units=st.sampled_from([1000.0, 1234.5, 5000.0]),
    workers=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_what_comes_out_is_what_the_source_gives_at_that_size(
    counts: tuple[int, int], native: tuple[int, int], size: tuple[int, int], units: float, workers: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = write_pairs(Path(name), dict(zip(SPLITS, counts, strict=True)), native, seed)
        given = {split: open_dataset(root, split, size=size, depth_units=units) for split in SPLITS}
        measured = {
            split: [n for n in range(len(data)) if (data[n].depth * 1000).round().any()]
            for split, data in given.items()
        }
        if not all(measured.values()):  # where no pixel with depth is picked
            with pytest.raises(DataError, match="measured"):
                prepare(root, root / "out", size=size, depth_units=units, workers=workers)
            return
        prepare(root, root / "out", size=size, depth_units=units, workers=workers)
        for split in SPLITS:
            data = open_dataset(root / "out", split)
            assert len(data) == len(measured[split])
            for position, index in enumerate(measured[split]):
                expected, found = given[split][index], data[position]
                assert data.source(position) == given[split].source(index)
                assert found.position == position
                assert [found.image.dtype, found.depth.dtype] == ["uint8", "float32"]
                np.testing.assert_array_equal(found.image, expected.image)
                np.testing.assert_array_less(np.abs(found.depth - expected.depth), 0.0005 + 1e-5)
                assert not found.depth[expected.depth == 0].any()


def test_depth_beyond_what_16_bits_hold_ends_there(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "source", {"train": 1, "val": 1})
    save_array(root / "depth" / "train" / "0.png", np.full((24, 40), 60_000, np.uint16))
    prepare(root, tmp_path / "out", size=SIZE, depth_units=500.0)  # 120 m
    np.testing.assert_allclose(open_dataset(tmp_path / "out", "train")[0].depth, 65.535)


def test_reading_needs_the_source_no_more(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "out", size=SIZE)
    shutil.rmtree(source)
    data = open_dataset(tmp_path / "out", "train")
    assert (data.name, data.crop) == ("prepared", None)
    sample = data[4]
    assert sample.image.flags.writeable, "a copy, which torch takes without a warning"
    assert str(source) in data.source(4)


def test_samples_are_resized_to_what_is_asked(prepared: Path) -> None:
    size = (8, 16)
    image, depth, _ = open_dataset(prepared, "train", size=size)[0]
    stored = open_dataset(prepared, "train")[0]
    assert (image.shape, depth.shape) == ((*size, 3), size)
    assert set(np.unique(depth)) <= set(np.unique(stored.depth))


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
def test_a_size_that_would_enlarge_is_refused(prepared: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"prepared at 16x32, smaller than \d\dx\d\d; .*prepare the source"):
        open_dataset(prepared, "train", size=size)


def test_a_worker_gets_the_path_and_not_the_arrays(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "source", {"train": 3, "val": 1})
    prepare(root, tmp_path / "out", size=(160, 160))
    data = open_dataset(tmp_path / "out", "train")
    data[0]
    pickled = pickle.dumps(data)
    assert len(pickled) < 3000
    np.testing.assert_array_equal(pickle.loads(pickled)[2].image, data[2].image)


def test_there_is_no_test_split(prepared: Path) -> None:
    origin = json.loads((prepared / "prepared.json").read_text())["source"]
    with pytest.raises(DataError, match=f"no test split.*{origin}"):
        open_dataset(prepared, "test")


def test_all_bad_files_are_named_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    bad = break_files(source)
    with pytest.raises(DataError) as caught:
        prepare(source, tmp_path / "out", size=SIZE)
    assert all(str(path) in str(caught.value) for path in bad)
    assert "3 samples" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_left_out_where_that_is_asked(source: Path, tmp_path: Path) -> None:
    bad = break_files(source)
    document = prepare(source, tmp_path / "out", size=SIZE, skip_bad=True)
    assert [len(document.train.unreadable), len(document.val.unreadable)] == [2, 1]
    faults = document.train.unreadable + document.val.unreadable
    assert all(str(path) in fault for path, fault in zip(bad, faults, strict=True))
    given, data = open_dataset(source, "train", size=SIZE), open_dataset(tmp_path / "out", "train")
    assert [Path(data.source(n)).stem for n in range(len(data))] == ["0", "2", "4"]
    for position, index in enumerate((0, 2, 4)):
        np.testing.assert_array_equal(data[position].image, given[index].image)


def test_samples_without_measured_depth_are_left_out_and_named(source: Path, tmp_path: Path) -> None:
    save_array(source / "depth" / "train" / "2.png", np.zeros((24, 40), np.uint16))
    document = prepare(source, tmp_path / "out", size=SIZE)
    assert document.train.unmeasured == (str(source / "images" / "train" / "2.png"),)
    assert document.train.unreadable == document.val.unmeasured == ()
    assert len(open_dataset(tmp_path / "out", "train")) == 4


def test_a_split_without_any_measured_depth_is_an_error(source: Path, tmp_path: Path) -> None:
    for path in (source / "depth" / "val").iterdir():
        save_array(path, np.zeros((24, 40), np.uint16))
    with pytest.raises(DataError, match=r"val.*measured"):
        prepare(source, tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_touched(source: Path, tmp_path: Path) -> None:
    before = sorted(source.rglob("*"))
    with pytest.raises(OutputError, match="other files"):
        prepare(source, source, size=SIZE)
    assert sorted(source.rglob("*")) == before


def test_a_prepared_folder_is_not_overwritten(source: Path, prepared: Path) -> None:
    before = {path: path.read_bytes() for path in prepared.iterdir()}
    with pytest.raises(OutputError, match="already"):
        prepare(source, prepared, size=(32, 32))
    assert {path: path.read_bytes() for path in prepared.iterdir()} == before


def test_an_interrupted_run_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(share: float) -> None:
        if share > 0.9:  # train is written, val is being written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", size=SIZE, on_progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_a_killed_run_is_not_opened_and_can_be_repeated(source: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from depthkit.data.prepare import prepare;"
        "kill = lambda share: share > 0.9 and os.kill(os.getpid(), signal.SIGKILL);"
        f"prepare(sys.argv[1], Path(sys.argv[2]), size={SIZE}, on_progress=kill)"
    )
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", program, source, out], check=False).returncode == -9
    assert any(out.iterdir())
    with pytest.raises(DataError, match=r"prepared\.json"):
        open_dataset(out, "train")
    prepare(source, out, size=SIZE)
    assert sorted(path.name for path in out.iterdir()) == sorted([*ARRAYS, "prepared.json"])
    assert len(open_dataset(out, "train")) == 5


def test_a_full_disk(source: Path, tmp_path: Path) -> None:
    with files_at_most(3000), pytest.raises(OutputError, match="free space"):
        prepare(source, tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_threads_that_silence_pillows_warnings_do_not_undo_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "source", {"train": 60, "val": 1}, (48, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 - 1)  # Pillow warns of each
    before = list(warnings.filters)
    prepare(root, tmp_path / "out", size=SIZE, workers=8)
    assert list(warnings.filters) == before


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from([*ARRAYS, TAUGHT]), share=st.floats(0, 1, exclude_max=True))
def test_an_array_that_is_cut_short_is_refused_by_name(pristine: Path, name: str, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(shutil.copytree(pristine, Path(folder) / "out"))
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=name):
            open_dataset(out, name.split(".", maxsplit=1)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train.images.npy", lambda path, _: shutil.copy(path.with_name("val.images.npy"), path)),
        ("train.depths.npy", lambda path, other: shutil.copy(other / path.name, path)),
        ("train.images.npy", lambda path, _: path.unlink()),
        (TAUGHT, lambda path, other: shutil.copy(other / path.name, path)),
        (TAUGHT, lambda path, _: shutil.copy(path.with_name("train.depths.npy"), path)),
        (TAUGHT, lambda path, _: path.unlink()),
        ("train.images.npy", lambda path, _: np.save(path, np.array([{}]), allow_pickle=True)),
    ],
    ids=[
        "of another split",
        "of another set",
        "missing",
        "answers for other frames",
        "measured depth as answers",
        "missing answers",
        "of objects",
    ],
)
def test_an_array_of_something_else_is_refused_by_name(
    prepared: Path, tmp_path: Path, name: str, change: Callable[[Path, Path], object]
) -> None:
    other = tmp_path / "other"
    prepare(write_pairs(tmp_path / "another", {"train": 5, "val": 3}, seed=1), other, size=SIZE, teacher=Red())
    change(prepared / name, other)
    with pytest.raises(DataError, match=name):
        open_dataset(prepared, "train")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_document_with_unknown_missing_or_mistyped_keys_is_refused(pristine: Path, data: st.DataObject) -> None:
    document = json.loads((pristine / "prepared.json").read_text())
    keys = [path for path, _ in places(document) if path and isinstance(path[-1], str)]
    *parents, key = data.draw(st.sampled_from(keys))
    place = at(document, tuple(parents))
    match data.draw(st.sampled_from(["drop", "rename", "mistype"])):
        case "drop":
            del place[key]
        case "rename":
            place[f"{key}_"] = place.pop(key)
        case _:
            place[key] = {"a": [place[key]]}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "prepared.json").write_text(json.dumps(document))
        with pytest.raises(SpecError, match=str(key).replace("_", ".")):  # "schema version" in words
            open_dataset(name, "train")


def test_a_copy_has_the_camera_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for focal in (0.81, None):
        monkeypatch.setattr(Pairs, "focal", focal)
        source = write_pairs(tmp_path / f"source {focal}", {"train": 1, "val": 1})
        prepare(source, tmp_path / f"out {focal}", size=SIZE)
        assert open_dataset(tmp_path / f"out {focal}", "train").focal == focal


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"schema_version": 99}'])
def test_a_document_of_another_kind_or_version_is_refused(prepared: Path, content: bytes) -> None:
    (prepared / "prepared.json").write_bytes(content)
    with pytest.raises(SpecError, match=r"prepared\.json") as caught:
        open_dataset(prepared, "train")
    assert isinstance(caught.value, SchemaVersionError) == (content[:1] in b"[{" and content != b"")


def test_a_folder_of_before_is_read(prepared: Path) -> None:
    """Version 1 of the document had neither a teacher nor a focal length."""
    document = json.loads((prepared / "prepared.json").read_text())
    del document["teacher"], document["focal"]
    (prepared / "prepared.json").write_text(json.dumps({**document, "schema_version": 1}))
    (prepared / TAUGHT).unlink()
    data = open_dataset(prepared, "train")
    assert (len(data), data.taught_by, data.focal) == (5, None, None)


def test_the_command_prepares_what_training_takes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_array(source / "depth" / "train" / "2.png", np.zeros((24, 40), np.uint16))
    bad = break_files(source)
    out = tmp_path / "out"
    command = ["data", "prepare", str(source), "--size", "16x32", "--out", str(out)]
    assert depthkit(command) == 2
    refusal = capsys.readouterr().err
    assert all(str(path) in refusal for path in bad)
    assert "--skip-bad" in refusal
    assert depthkit([*command, "--skip-bad", "--workers", "2"]) == 0
    report = capsys.readouterr().out
    for word in ("train: 2 samples", "val: 2 samples", "skipped 2 cannot be read", *map(str, bad)):
        assert word in report
    assert str(source / "images" / "train" / "2.png") in report
    train = ["train", "--network", "compact", "--data", str(out), "--size", "16x32", "--batch", "2", "--steps", "1"]
    assert depthkit([*train, "--out", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "compact" / "model.json").is_file()
