"""Which data a run was trained on: found from any folder, distinguished by content, requested where missing."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from depthkit.cli import run as depthkit
from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.data.sources import open_dataset
from depthkit.errors import DataError
from depthkit.train.bundle import read_bundle
from depthkit.train.document import read_document
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.origin import find_data, fingerprint
from depthkit.train.shipped import shipped_run

from .runs import record_of

Captured = pytest.CaptureFixture[str]
REMEDY = "give --data"


def _rooms(root: Path, metres: float = 2.0) -> Path:
    """A `pairs` set of eight pictures, of which only the depth depends on `metres`."""
    random = np.random.default_rng(0)
    for split, index in product(("train", "val", "test"), range(8)):
        write_image(root / "images" / split / f"{index}.png", random.integers(0, 256, (32, 48, 3), np.uint8))
        write_depth_png(root / "depth" / split / f"{index}.png", np.full((32, 48), metres + index / 10))
    return root


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders, each with other data by the name `rooms`."""
    for name, metres in (("a", 2.0), ("b", 8.0)):
        _rooms(tmp_path / name / "rooms", metres)
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def rooms(places: tuple[Path, Path]) -> str:
    """The data that `trained` was trained on."""
    return str(places[0] / "rooms")


@pytest.fixture
def trained(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on `rooms` of the first folder, given as a relative path."""
    with monkeypatch.context() as patch:
        patch.chdir(places[0])
        assert fit(TrainOptions("compact", "rooms", (32, 48), epochs=1, steps=1, batch=4, depth_units=500)) is not None
    return places[0] / "runs" / "compact"


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
def test_a_fingerprint_is_of_what_is_stored(places: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (fingerprint(open_dataset(place / "rooms", "train")) for place in places)
    assert first != second, "pictures alone do not tell them apart"
    copy = shutil.copytree(places[0] / "rooms", tmp_path / "elsewhere")
    assert fingerprint(open_dataset(copy, "train")) == first
    assert fingerprint(open_dataset(copy, "train", depth_units=5000)) == first
    (copy / "images" / "train" / "7.png").unlink()
    assert fingerprint(open_dataset(copy, "train")) != first


def test_a_fingerprint_tolerates_unreadable_files(tmp_path: Path) -> None:
    root = _rooms(tmp_path)
    (root / "images" / "train" / "0.png").write_bytes(b"")
    assert len(fingerprint(open_dataset(root, "train"))) == 64


def test_going_on_with_a_run_from_another_folder_takes_its_own_data(
    trained: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(places[1])
    assert depthkit(["train", "--quantize", str(trained), "--steps", "1", "--batch", "4", "--out", "q"]) == 0
    assert "500 depth units per metre" in capsys.readouterr().out
    before, after = (read_bundle(folder) for folder in (trained, Path("q/compact")))
    np.testing.assert_array_equal(after.frames.depths, before.frames.depths)
    record = record_of(after.folder)
    assert (record.place, record.depth_units) == (str(places[0] / "rooms"), 500)


def test_depth_units_that_are_typed_count(trained: Path, tmp_path: Path) -> None:
    arguments = ["--steps", "1", "--batch", "4", "--depth-units", "1000", "--out", str(tmp_path / "q")]
    assert depthkit(["train", "--quantize", str(trained), *arguments]) == 0
    before, after = (read_bundle(folder) for folder in (trained, tmp_path / "q" / "compact"))
    np.testing.assert_allclose(after.frames.depths * 2, before.frames.depths, rtol=1e-6)


def test_other_data_in_their_place_are_refused(trained: Path, places: tuple[Path, Path]) -> None:
    assert find_data(read_document(trained), REMEDY) == str(places[0] / "rooms")
    shutil.rmtree(places[0] / "rooms")
    with pytest.raises(DataError, match=r"rooms\) are missing; give --data"):
        find_data(read_document(trained), REMEDY)
    shutil.copytree(places[1] / "rooms", places[0] / "rooms")
    with pytest.raises(DataError, match="no longer contains the training data of this run; give --data"):
        find_data(read_document(trained), REMEDY)
    shutil.rmtree(places[0] / "rooms" / "depth")
    with pytest.raises(DataError, match="no longer contains the training data"):
        find_data(read_document(trained), REMEDY)


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["export", "--int8", "--onnx-only", "RUN"], "--calibrate"),
        (["train", "--quantize", "RUN", "--out", "q"], "--data"),
    ],
    ids=["export", "train"],
)
def test_shipped_weights_take_no_folder_that_has_their_datas_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, command: list[str], remedy: str
) -> None:
    run = shutil.copytree(shipped_run("compact"), tmp_path / "runs" / "compact")
    data = record_of(run).data
    _rooms(tmp_path / data)
    monkeypatch.chdir(tmp_path)
    assert depthkit([str(run) if word == "RUN" else word for word in command]) == 2
    said = capsys.readouterr().err
    assert f"does not record where its training data ({data}) are" in said
    assert remedy in said
    assert not (tmp_path / "q").exists()


def test_shipped_weights_name_no_path() -> None:
    record = record_of(shipped_run("compact"))
    assert record.place is None
    assert "/" not in record.data


def test_evaluate_reads_depth_as_the_run_did(trained: Path, rooms: str, capsys: Captured) -> None:
    printed = []
    for more in ([], ["--depth-units", "500"], ["--depth-units", "1000"]):
        assert depthkit(["evaluate", str(trained), "--data", rooms, "--json", *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_runs_of_different_units_ask_for_one(trained: Path, rooms: str, capsys: Captured) -> None:
    assert depthkit(["evaluate", str(trained), "compact", "--data", rooms]) == 0, "compact's data knew their unit"
    other = Path(shutil.copytree(trained, trained.with_name("other")))
    document = json.loads((other / "model.json").read_text())
    document["training"]["depth_units"] = 1000.0
    (other / "model.json").write_text(json.dumps(document))
    assert depthkit(["evaluate", str(trained), str(other), "--data", rooms]) == 2
    assert "choose one with --depth-units" in capsys.readouterr().err
    assert depthkit(["evaluate", str(trained), str(other), "--data", rooms, "--depth-units", "500"]) == 0


def test_a_prepared_set_hands_its_units_on(rooms: str, tmp_path: Path, capsys: Captured) -> None:
    prepared = tmp_path / "prepared data"
    arguments = ["data", "prepare", rooms, "--size", "40x50", "--depth-units", "500", "--out", str(prepared)]
    assert depthkit(arguments) == 0
    hint = capsys.readouterr().out.rpartition("(")[2].strip().removesuffix(")")
    words = shlex.split(hint)
    assert words[:4] == ["depthkit", "train", "--data", str(prepared)]
    out = tmp_path / "runs"
    assert depthkit([*words[1:], "--network", "compact", "--steps", "1", "--out", str(out)]) == 0, "the hint works"
    assert record_of(out / "compact").depth_units == 500


@pytest.mark.parametrize(("units", "why"), [("20000", "nearer than"), ("100", "beyond 10 m")])
def test_implausible_depth_is_a_warning(
    trained: Path, rooms: str, tmp_path: Path, capsys: Captured, units: str, why: str
) -> None:
    depthkit(["evaluate", str(trained), "--data", rooms, "--depth-units", units])
    assert why in capsys.readouterr().err
    prepare = ["data", "prepare", rooms, "--size", "32x48", "--out", str(tmp_path / "prepared"), "--depth-units", units]
    assert depthkit(prepare) == 0
    assert why in capsys.readouterr().out
