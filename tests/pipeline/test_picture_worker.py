"""A worker of `depthkit predict --ray`, without Ray: what it writes, keeps, and reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.cli import run as depthkit
from depthkit.pipeline import picture_worker
from depthkit.pipeline.clip import write_source
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


def test_picture_that_a_store_changed_is_computed_again(
    engine: Path, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = [Picture(f"file://{picture.place}", picture.name) for picture in pictures[:2]]
    assert states(worker(engine, tmp_path / "ray"), remote) == ["written", "written"]
    save_noise(Path(pictures[0].place), 44, 60, seed=9)
    later = Path(pictures[0].place).stat().st_mtime_ns + 1_000_000_000
    os.utime(pictures[0].place, ns=(later, later))
    assert states(worker(engine, tmp_path / "ray"), remote) == ["written", "kept"]
    monkeypatch.setattr(picture_worker, "changed", lambda _: None)  # a store that does not say when
    assert states(worker(engine, tmp_path / "ray"), remote) == ["kept", "kept"]
    monkeypatch.undo()
    Path(pictures[1].place).unlink()
    assert states(worker(engine, tmp_path / "ray"), remote)[1] == "failed"  # as of the disk


def test_a_store_is_not_asked_about_pictures_without_results(
    engine: Path, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_worker, "changed", lambda place: pytest.fail(f"{place} was asked for"))
    assert states(worker(engine, tmp_path / "ray"), [Picture(f"file://{pictures[0].place}", "0")]) == ["written"]


def failing(name: str, error: Exception) -> Callable[..., Any]:
    """`write_source`, but the picture of this name fails as nobody foresaw."""

    def write(source: Any, predictor: Any, plan: Any, watch: Any) -> Any:
        def watched(shot: Any) -> None:
            if plan.name(shot.result.frame) == name:
                raise error
            watch(shot)

        return write_source(source, predictor, plan, watched)

    return write


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such mode\nat line 3"), "ValueError: no such mode"),
        (MemoryError(), "MemoryError: MemoryError"),
    ],
)
def test_error_that_nobody_foresaw_is_the_pictures(
    engine: Path, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setattr(picture_worker, "write_source", failing("1", error))
    three = [pictures[index] for index in (0, 1, 3)]
    found = worker(engine, tmp_path / "ray").answer(three)
    assert [found[picture].state for picture in three] == ["written", "failed", "written"]
    assert found[pictures[1]].text == f"{pictures[1].place}: {words}"


def test_error_that_nobody_foresaw_beside_pictures_is_a_refusal(
    engine: Path, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("out of handles")

    found = worker(engine, tmp_path / "ray")
    monkeypatch.setattr(picture_worker, "fetch", fail)
    remote = [Picture(f"file://{picture.place}", picture.name) for picture in pictures]
    assert states(found, remote) == ["refused"] * 5
    assert found.answer(remote)[remote[0]].text == "a worker cannot go on: RuntimeError: out of handles"
    monkeypatch.setattr(picture_worker.Engine, "open", fail)
    answer = worker(engine, tmp_path / "ray").answer(remote)[remote[0]]
    assert answer.text == f"a worker cannot open {engine.name}: RuntimeError: out of handles"


def test_rows_of_ray_data(engine: Path, pictures: list[Picture], tmp_path: Path) -> None:
    columns = {
        "index": np.array([7, 8, 9]),
        "place": np.array([picture.place for picture in pictures[:3]], object),
        "name": np.array(["0", "1", "2"], object),
    }
    rows = worker(engine, tmp_path / "ray")(columns)
    assert (rows["index"], rows["state"]) == ([7, 8, 9], ["written", "written", "failed"])
