"""Weights that come with depthkit, by the name that a user types: nothing is trained, nor the package written to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import depthkit
from depthkit.cli import run as run_depthkit
from depthkit.commands.console import tell
from depthkit.data.images import write_image
from depthkit.errors import UserError
from depthkit.files import sha256
from depthkit.pipeline.targets import open_target, resolve_run
from depthkit.train.document import read_document
from depthkit.train.shipped import SHIPPED, shipped_names, shipped_run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _package_stays_as_it_is() -> Iterator[None]:
    before = {path: path.stat().st_mtime_ns for path in SHIPPED.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in SHIPPED.rglob("*")} == before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory."""
    with monkeypatch.context() as change:
        change.chdir(tmp_path)
        yield tmp_path


def photo(path: Path) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    write_image(path, image)
    return image


def depth_of(name: str) -> np.ndarray:
    depth: np.ndarray = np.load(Path("depth") / f"{name}_depth.npy")
    return depth


def test_a_picture_needs_nothing_trained(here: Path, capsys: Captured) -> None:
    image = photo(here / "photo.png")
    assert run_depthkit(["predict", "photo.png"]) == 0
    assert "by compact" in capsys.readouterr().err
    np.testing.assert_array_equal(depth_of("photo"), depthkit.pretrained().predict(image))
    assert {path.name for path in (here / "depth").iterdir()} == {
        "photo_depth.png",
        "photo_depth16.png",
        "photo_depth.npy",
    }


def test_so_does_a_folder_of_pictures(here: Path) -> None:
    photo(here / "photos" / "a.png")
    photo(here / "photos" / "b.JPG")
    assert run_depthkit(["predict", "photos/"]) == 0
    assert len(list((here / "depth").iterdir())) == 6


@pytest.mark.parametrize(
    "arguments", [["compact", "photo.png"], ["photo.png", "--engine", "compact"], ["--engine", "compact", "photo.png"]]
)
def test_shipped_weights_by_name(here: Path, arguments: list[str]) -> None:
    image = photo(here / "photo.png")
    assert run_depthkit(["predict", *arguments]) == 0
    np.testing.assert_array_equal(depth_of("photo"), depthkit.pretrained().predict(image))


@pytest.mark.parametrize("engine_first", [True, False])
def test_another_engine_is_asked_where_it_is_named(here: Path, run: Path, engine_first: bool, capsys: Captured) -> None:
    image = photo(here / "photo.png")
    named = [str(run), "photo.png"] if engine_first else ["photo.png", "--engine", str(run)]
    assert run_depthkit(["predict", *named]) == 0
    assert "compact, weights" not in capsys.readouterr().err
    with open_target(run) as session:
        assert not np.array_equal(depth_of("photo"), depthkit.pretrained().predict(image))
        assert session.spec.size == (32, 48)


def test_a_run_in_this_folder_is_not_taken_for_the_shipped_weights(here: Path, run: Path) -> None:
    image = photo(here / "photo.png")
    run.rename(here / "compact")
    assert run_depthkit(["predict", "photo.png"]) == 0
    np.testing.assert_array_equal(depth_of("photo"), depthkit.pretrained().predict(image))
    assert run_depthkit(["predict", "compact", "photo.png"]) == 0  # a path that exists wins
    assert not np.array_equal(depth_of("photo"), depthkit.pretrained().predict(image))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compact"], ["compact", "INPUT"]),
        (["runs/compact"], ["runs/compact", "INPUT"]),
        (["engine.ort.onnx"], ["engine.ort.onnx", "INPUT"]),
        (["compcat", "photo.png"], ["compcat", "compact"]),
        (["nowhere.ort.onnx", "photo.png"], ["nowhere.ort.onnx", "depthkit export"]),
        (["photo.png", "compact"], ["no file or folder compact"]),
        (["photo.png", "runs/compact"], ["runs/compact is a run"]),
        (["runs/cut", "photo.png"], ["runs/cut", "--resume"]),
        (["nophoto.png"], ["no file or folder nophoto.png"]),
        (["photo.png", "--engine", "compcat"], ["compcat", "compact"]),
        (["empty"], ["empty holds no picture"]),
        ([], ["INPUT"]),
    ],
)
def test_mistakes_are_not_taken_for_something_else(
    here: Path, run: Path, arguments: list[str], words: list[str], capsys: Captured
) -> None:
    photo(here / "photo.png")
    (here / "empty").mkdir()
    (here / "runs" / "cut").mkdir()
    for name in ("last.ckpt", "curve.png"):
        (run / name).rename(here / "runs" / "cut" / name)
    assert run_depthkit(["predict", *arguments]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert not (here / "depth").exists()


def test_evaluate_takes_the_name(here: Path, capsys: Captured) -> None:
    assert run_depthkit(["evaluate", "compact", "--data", "scenes", "--frames", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compact"]["frames"] == 2
    assert list(here.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_evaluate_gives_the_published_figures(name: str, nyu: Path, capsys: Captured) -> None:
    assert run_depthkit(["evaluate", name, "--data", str(nyu), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[name]
    published = json.loads((shipped_run(name) / "evaluation.json").read_text())[name]
    # Another processor adds up in another order.
    assert found.pop("pooled") == pytest.approx(published.pop("pooled"), abs=1e-4)
    assert found.pop("per_image") == pytest.approx(published.pop("per_image"), abs=1e-4)
    assert found == pytest.approx(published, abs=1e-5)


def test_a_name_becomes_a_run_that_may_be_written_to(here: Path, capsys: Captured) -> None:
    found = resolve_run(Path("compact"), Path("runs"), tell)
    assert found == Path("runs/compact-pretrained")
    assert "copied to runs/compact-pretrained" in capsys.readouterr().out
    assert {path.name: sha256(path) for path in found.iterdir()} == {
        path.name: sha256(path) for path in shipped_run("compact").iterdir()
    }
    written = {path: path.stat().st_mtime_ns for path in found.iterdir()}
    assert resolve_run(Path("compact"), Path("runs"), tell) == found
    assert {path: path.stat().st_mtime_ns for path in found.iterdir()} == written
    assert "are in runs/compact-pretrained" in capsys.readouterr().out


def test_weights_of_another_depthkit_are_replaced(here: Path, run: Path, capsys: Captured) -> None:
    run.rename(here / "runs" / "compact-pretrained")
    found = resolve_run(Path("compact"), Path("runs"), tell)
    assert read_document(found) == read_document(shipped_run("compact"))
    assert "copied" in capsys.readouterr().out


def test_a_path_wins_over_a_name(here: Path, run: Path) -> None:
    run.rename(here / "compact")
    assert resolve_run(Path("compact"), Path("runs"), tell) == Path("compact")


@pytest.mark.parametrize("target", ["compcat", "runs/nowhere", "weights/compact"])
def test_what_is_nowhere_is_refused_with_the_names_there_are(here: Path, target: str) -> None:
    for call in (lambda: resolve_run(Path(target), Path("runs"), tell), lambda: open_target(Path(target))):
        with pytest.raises(UserError, match=rf"{target}.*depthkit train.*\(compact\)"):
            call()


def test_export_builds_from_the_name(here: Path) -> None:
    assert run_depthkit(["export", "compact", "--onnx-only", "--size", "32x48"]) == 0
    assert (here / "runs" / "compact-pretrained" / "compact-32x48.fp32.onnx").is_file()


def test_bench_wants_engines_of_them(here: Path, capsys: Captured) -> None:
    assert run_depthkit(["bench", "--engine", "compact"]) == 2
    assert "depthkit export compact" in capsys.readouterr().err


def test_where_no_run_is_the_shipped_weights_are_offered(here: Path, capsys: Captured) -> None:
    assert run_depthkit(["export"]) == 2
    assert "(compact)" in capsys.readouterr().err
