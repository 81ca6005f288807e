"""Bad input: one sentence, exit 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.cli import run as depthkit

Captured = pytest.CaptureFixture[str]


def refuse(arguments: list[str], capsys: Captured, *words: str) -> None:
    """Run, and require exit code 2 and a message on stderr with these words."""
    capsys.readouterr()
    assert depthkit(arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--size", "100x128"], ["100x128", "96x128", "112x128"]),
        (["train", "--size", "large"], ["240x320"]),
        (["train", "--data", "nowhere"], ["nowhere"]),
        (["train", "--network", "resnet"], ["compact", "unet"]),
        (["export", "nowhere"], ["nowhere", "depthkit train"]),
        (["export", "--runs", "nowhere"], ["nowhere", "depthkit train"]),
        (["export", "--batch", "4,2,1"], ["MIN,OPT,MAX"]),
        (["evaluate", "nowhere.onnx", "--frames", "1"], ["nowhere.onnx", "depthkit export"]),
        (["bench", "--runs", "nowhere"], ["nowhere", "depthkit export"]),
        (["bench", "--engine", "nowhere.ort.onnx"], ["nowhere.ort.onnx"]),
        (["predict", "nowhere.onnx", "photo.jpg"], ["photo.jpg"]),
        (["teleport"], ["teleport"]),
    ],
)
def test_what_is_not_there_or_makes_no_sense(
    arguments: list[str], words: list[str], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(arguments, capsys, *words)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_pictures_that_cannot_be_read_leave_no_results(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    engine, photos, out = str(exports / "compact-32x48.fp32.onnx"), tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(photos / "a.png")
    broken = photos / "b.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(broken)
    _truncate(broken)
    refuse(["predict", engine, str(photos), "--out", str(out)], capsys, "b.jpg", "cannot be decoded")
    broken.write_bytes(b"")
    refuse(["predict", engine, str(photos), "--out", str(out)], capsys, "b.jpg", "empty")
    broken.write_text("not a picture")
    refuse(["predict", engine, str(photos), "--out", str(out)], capsys, "b.jpg", "not an image")
    assert not out.exists()


def test_a_run_without_weights_or_of_another_schema(run: Path, capsys: Captured) -> None:
    document = run / "model.json"
    original = document.read_text()
    _edit(document, lambda d: d.update(schema_version=99))
    refuse(["export", str(run)], capsys, "model.json", "schema version 99")
    document.write_text(original)
    _edit(document, lambda d: d.update(colour="blue"))
    refuse(["export", str(run)], capsys, "model.json", "colour")
    document.write_text(original)
    (run / "model.safetensors").unlink()
    refuse(["export", str(run)], capsys, "model.safetensors", "--resume")
    assert not list(run.glob("*.onnx"))


def test_engines_that_were_altered(exports: Path, capsys: Captured) -> None:
    engine = exports / "compact-32x48.fp32.ort.onnx"
    manifest = exports / "compact-32x48.fp32.ort.onnx.json"
    bench = ["bench", "--engine", str(engine), "--seconds", "0", "--no-torch", "--no-memory"]
    original = manifest.read_text()
    _edit(manifest, lambda d: d.update(surprise=1))
    refuse(bench, capsys, manifest.name, "surprise")
    manifest.write_text(original)
    _edit(manifest, lambda d: d.update(schema_version=1))
    refuse(bench, capsys, manifest.name, "schema version 1")
    manifest.write_text(original)
    _edit(manifest, lambda d: d.update(precision_found="fp16"))
    refuse(bench, capsys, manifest.name, "was edited", "depthkit export")
    manifest.write_text(original)
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    refuse(bench, capsys, engine.name, "SHA-256", "depthkit export")
    manifest.unlink()
    refuse(bench, capsys, engine.name, "manifest")


def test_output_that_cannot_be_written(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    refuse(["train", "--steps", "1", "--out", str(in_the_way / "runs")], capsys, "cannot write")
    engine = str(exports / "compact-32x48.fp32.ort.onnx")
    bench = ["bench", "--engine", engine, "--seconds", "0", "--no-torch", "--no-memory"]
    refuse([*bench, "--json", str(in_the_way / "b.json")], capsys, "cannot write")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(photo)
    refuse(["predict", engine, str(photo), "--out", str(in_the_way / "out")], capsys, "cannot write")


def test_all_missing_files_of_a_csv_are_named_at_once(tmp_path: Path, capsys: Captured) -> None:
    data = tmp_path / "nyu" / "data"
    data.mkdir(parents=True)
    rows = [f"data/a/{i}.jpg,data/a/{i}.png" for i in range(4)]
    for name in ("nyu2_train.csv", "nyu2_test.csv"):
        (data / name).write_text("\n".join(rows))
    refuse(["train", "--data", str(tmp_path / "nyu"), "--out", str(tmp_path / "runs")], capsys, "a/0.jpg", "a/3.png")
    assert not (tmp_path / "runs").exists()


def test_nyu_frames_of_another_size_have_no_eigen_crop(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    data = tmp_path / "nyu" / "data"
    data.mkdir(parents=True)
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(data / "a.png")
    Image.fromarray(np.full((240, 320), 2000, np.uint16)).save(data / "a_depth.png")
    (data / "nyu2_test.csv").write_text("data/a.png,data/a_depth.png\n")
    engine = str(exports / "compact-32x48.fp32.onnx")
    refuse(["evaluate", engine, "--data", str(tmp_path / "nyu")], capsys, "a.png", "Eigen crop", "480, 640")
