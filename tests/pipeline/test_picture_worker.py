"""A worker of `depthkit predict --ray`, without Ray: what it writes, keeps, and reports."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from depthkit.cli import run as depthkit
from depthkit.pipeline.cluster import pack_engine, start_record
from depthkit.pipeline.outputs import FOR_PICTURES
from depthkit.pipeline.picture_worker import Picture, PictureWorker
from depthkit.pipeline.prediction import Options

from ..support import STEM, contents, files_at_most, save_noise


@pytest.fixture
def engine(exports: Path) -> Path:
    return exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """Five pictures of different sizes; the third is damaged."""
    found = []
    for index in range(5):
        path = tmp_path / "pictures" / f"{index}.png"
        save_noise(path, 40 + index, 60, seed=index)
        found.append(Picture(str(path), path.stem))
    Path(found[2].place).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return found


def worker(engine: Path, out: Path, **options: object) -> PictureWorker:
    packed = pack_engine(engine)
    wishes = Options(out, FOR_PICTURES, **options)  # type: ignore[arg-type]
    return PictureWorker(packed, wishes, start_record(packed, wishes))


def states(found: PictureWorker, pictures: list[Picture]) -> list[str]:
    answers = found.answer(pictures)
    return [answers[picture].state for picture in pictures]


def results(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith((".png", ".npy"))}


@pytest.mark.parametrize("options", [[], ["--intrinsics", "fov=60"], ["--range", "0.5,5"]], ids=str)
def test_bytes_are_those_of_predict(engine: Path, pictures: list[Picture], tmp_path: Path, options: list[str]) -> None:
    good = [picture for picture in pictures if picture.name != "2"]
    line = ["predict", *(picture.place for picture in good), "--engine", engine, "--out", tmp_path / "plain", *options]
    assert depthkit([str(word) for word in line]) == 0
    span = (0.5, 5.0) if "--range" in options else None
    intrinsics = "fov=60" if "--intrinsics" in options else None
    found = worker(engine, tmp_path / "ray", span=span, intrinsics=intrinsics)
    assert states(found, pictures) == ["written", "written", "failed", "written", "written"]
    assert len(results(tmp_path / "plain")) == 12
    assert results(tmp_path / "ray") == results(tmp_path / "plain")


def test_bad_picture_says_why(engine: Path, pictures: list[Picture], tmp_path: Path) -> None:
    answers = worker(engine, tmp_path / "ray").answer(pictures)
    assert answers[pictures[2]].text.startswith(pictures[2].place)
    assert answers[pictures[1]].text.endswith(" m")


def test_what_is_written_is_kept_by_another_worker(
    engine: Path, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(worker(engine, tmp_path / "ray"), pictures[:2]) == ["written", "written"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").iterdir()}
    (tmp_path / "ray" / "1_depth16.png").unlink()  # as a worker leaves it that was killed
    assert states(worker(engine, tmp_path / "ray"), pictures[:2]) == ["kept", "written"]
    same = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert {path.name for path in same} >= {"0_depth.png", "0_depth16.png", "0_depth.npy", ".depthkit-predict.json"}


def test_results_of_another_engine_or_of_older_pictures_are_not_kept(
    exports: Path, engine: Path, pictures: list[Picture], tmp_path: Path
) -> None:
    two = pictures[:2]
    assert states(worker(engine, tmp_path / "ray"), two) == ["written", "written"]
    assert states(worker(engine, tmp_path / "ray", colormap="gray"), two) == ["written", "written"]
    other = exports / f"{STEM}.fp16.ort.onnx"
    assert states(worker(other, tmp_path / "ray", colormap="gray"), two) == ["written", "written"]
    assert states(worker(other, tmp_path / "ray", colormap="gray"), two) == ["kept", "kept"]
    save_noise(Path(two[0].place), 44, 60, seed=9)
    later = Path(two[0].place).stat().st_mtime_ns + 1_000_000_000
    os.utime(two[0].place, ns=(later, later))
    assert states(worker(other, tmp_path / "ray", colormap="gray"), two) == ["written", "kept"]
    assert np.load(tmp_path / "ray" / "0_depth.npy").shape == (44, 60)


def test_pictures_of_a_store_are_those_of_the_disk(engine: Path, pictures: list[Picture], tmp_path: Path) -> None:
    remote = [Picture(f"file://{picture.place}", picture.name) for picture in pictures]
    missing = Picture(f"file://{tmp_path}/gone.png", "gone")
    worker(engine, tmp_path / "disk").answer(pictures)
    answers = worker(engine, tmp_path / "store").answer([*remote, missing])
    assert [answer.state for answer in answers.values()].count("failed") == 2
    assert "cannot be read" in answers[missing].text
    assert results(tmp_path / "store") == results(tmp_path / "disk")


def test_worker_that_cannot_go_on_says_so(engine: Path, pictures: list[Picture], tmp_path: Path) -> None:
    packed, wishes = pack_engine(engine), Options(tmp_path / "ray", FOR_PICTURES)
    record = start_record(packed, wishes)
    elsewhere = PictureWorker(packed, Options(tmp_path / "gone", FOR_PICTURES), tmp_path / "gone" / record.name)
    assert states(elsewhere, pictures) == ["refused"] * 5
    assert "name a folder with --out that all machines share" in elsewhere.answer(pictures)[pictures[0]].text
    found = PictureWorker(packed, wishes, record)
    with files_at_most(100):
        assert states(PictureWorker(packed, wishes, record), pictures) == ["refused"] * 5
        assert "cannot write" in found.answer(pictures)[pictures[0]].text
    flipped = dict(packed.files)
    flipped[engine.name] = flipped[engine.name][:-1] + b"?"
    broken = PictureWorker(type(packed)(packed.name, flipped, 0, False, ""), wishes, record)
    assert "SHA-256 differs" in broken.answer(pictures)[pictures[0]].text


def test_rows_of_ray_data(engine: Path, pictures: list[Picture], tmp_path: Path) -> None:
    columns = {
        "index": np.array([7, 8]),
        "place": np.array([picture.place for picture in pictures[1:3]], object),
        "name": np.array(["1", "2"], object),
    }
    rows = worker(engine, tmp_path / "ray")(columns)
    assert (rows["index"], rows["state"]) == ([7, 8], ["written", "failed"])
