"""Built-in weights by their name: no training, and no change of the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import depthkit
from depthkit.commands.console import tell
from depthkit.errors import UserError
from depthkit.files import sha256
from depthkit.pipeline.targets import open_target, resolve_run
from depthkit.train import shipped
from depthkit.train.document import read_document
from depthkit.train.shipped import SHIPPED, best_shipped, shipped_names, shipped_run

from ..support import Cli, save_noise


@pytest.fixture(autouse=True)
def _package_stays_as_it_is() -> Iterator[None]:
    before = {path: path.stat().st_mtime_ns for path in SHIPPED.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in SHIPPED.rglob("*")} == before


def was_computed(name: str, expected: np.ndarray) -> bool:
    """Whether the depth of a picture is what these weights answer; an engine adds up in another order than torch."""
    depth: np.ndarray = np.load(Path("depth") / f"{name}_depth.npy")
    return bool(np.abs(depth - expected).max() < 1e-4)


def test_predict_needs_no_run(here: Path, cli: Cli) -> None:
    image = save_noise(here / "photo.png", 50, 70)
    name, delta1 = best_shipped()
    assert f'built-in weights "{name}"' in (said := cli("predict", "photo.png").err)
    assert f"δ1 {delta1:.3f}" in " ".join(said.split())
    assert was_computed("photo", depthkit.pretrained(name).predict(image))
    names = {"photo_depth.png", "photo_depth16.png", "photo_depth.npy"}
    assert {path.name for path in (here / "depth").iterdir()} == names


def test_the_best_of_the_built_in_weights_has_the_highest_delta1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, delta1 in (("nano", 0.5), ("compact", 0.75), ("unet", 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").touch()
        (tmp_path / name / "evaluation.json").write_text(json.dumps({name: {"pooled": {"delta1": delta1}}}))
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    assert best_shipped() == ("compact", 0.75)


@pytest.mark.parametrize(
    "arguments", [["compact", "photo.png"], ["photo.png", "--engine", "compact"], ["--engine", "compact", "photo.png"]]
)
def test_built_in_weights_by_name(here: Path, arguments: list[str], cli: Cli) -> None:
    image = save_noise(here / "photo.png", 50, 70)
    cli("predict", *arguments)
    assert was_computed("photo", depthkit.pretrained().predict(image))


@pytest.mark.parametrize("engine_first", [True, False])
def test_named_engine_is_used(here: Path, run: Path, engine_first: bool, cli: Cli) -> None:
    image = save_noise(here / "photo.png", 50, 70)
    named = [run, "photo.png"] if engine_first else ["photo.png", "--engine", run]
    assert "built-in weights" not in cli("predict", *named).err
    with open_target(run) as session:
        assert not was_computed("photo", depthkit.pretrained().predict(image))
        assert session.spec.size == (32, 48)


def test_path_wins_over_the_name_of_built_in_weights(here: Path, run: Path, cli: Cli) -> None:
    image = save_noise(here / "photo.png", 50, 70)
    run.rename(here / "compact")
    assert resolve_run(Path("compact"), Path("runs"), tell) == Path("compact")
    cli("predict", "photo.png")
    assert was_computed("photo", depthkit.pretrained(best_shipped()[0]).predict(image))
    cli("predict", "compact", "photo.png")
    assert not was_computed("photo", depthkit.pretrained().predict(image))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compact"], ["compact", "INPUT"]),
        (["runs/compact"], ["runs/compact", "INPUT"]),
        (["engine.ort.onnx"], ["engine.ort.onnx", "INPUT"]),
        (["compcat", "photo.png"], ["compcat", "compact"]),
        (["photo.png", "compact"], ["no such file or folder: compact"]),
        (["photo.png", "runs/compact"], ["runs/compact is a run"]),
        (["runs/cut", "photo.png"], ["runs/cut", "--resume"]),
        (["nophoto.png"], ["no such file or folder: nophoto.png"]),
        (["photo.png", "--engine", "compcat"], ["compcat", "compact"]),
        (["empty"], ["empty has no pictures"]),
        ([], ["INPUT"]),
    ],
)
def test_wrong_arguments_are_refused(here: Path, run: Path, arguments: list[str], words: list[str], cli: Cli) -> None:
    save_noise(here / "photo.png", 50, 70)
    (here / "empty").mkdir()
    (here / "runs" / "cut").mkdir()
    for name in ("last.ckpt", "curve.png"):
        (run / name).rename(here / "runs" / "cut" / name)
    message = cli("predict", *arguments, code=2).err
    assert [word for word in words if word not in message] == [], message
    assert not (here / "depth").exists()


def test_evaluate_takes_the_name(here: Path, cli: Cli) -> None:
    printed = cli("evaluate", "compact", "--data", "scenes", "--frames", "2", "--json")
    assert json.loads(printed.out)["compact"]["frames"] == 2
    assert list(here.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_evaluate_gives_the_published_figures(name: str, nyu: Path, cli: Cli) -> None:
    found = json.loads(cli("evaluate", name, "--data", nyu, "--json").out)[name]
    published = json.loads((shipped_run(name) / "evaluation.json").read_text())[name]
    # Another processor adds up in another order.
    assert found.pop("pooled") == pytest.approx(published.pop("pooled"), abs=1e-4)
    assert found.pop("per_image") == pytest.approx(published.pop("per_image"), abs=1e-4)
    assert found == pytest.approx(published, abs=1e-5)


def test_name_is_copied_to_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_run_of_other_weights_is_replaced(here: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.rename(here / "runs" / "compact-pretrained")
    found = resolve_run(Path("compact"), Path("runs"), tell)
    assert read_document(found) == read_document(shipped_run("compact"))
    assert "copied" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["compcat", "runs/nowhere", "weights/compact"])
def test_unknown_name_lists_the_known_ones(here: Path, target: str) -> None:
    for call in (lambda: resolve_run(Path(target), Path("runs"), tell), lambda: open_target(Path(target))):
        with pytest.raises(UserError, match=rf"{target}.*depthkit train.*\(compact, nano\)"):
            call()


def test_export_takes_the_name(here: Path, cli: Cli) -> None:
    cli("export", "compact", "--onnx-only", "--size", "32x48")
    assert (here / "runs" / "compact-pretrained" / "compact-32x48.fp32.onnx").is_file()
