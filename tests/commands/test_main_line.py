"""The main line as a user types it, on real engines; on real frames where there are any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from depthkit.cli import run as depthkit
from depthkit.engines.build import fastest


def change_one_weight(path: Path, by: float = 0.5) -> None:
    """Add to one weight of the last convolution."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[4] += by
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, path)


def test_bench_passes_every_engine_and_says_what_really_computes(
    exports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for null in exports.glob("*.null*"):
        null.unlink()
    report = exports.parent / "bench.json"
    arguments = ["bench", "--runs", str(exports.parent), "--seconds", "0.05", "--json", str(report)]
    assert depthkit([*arguments, "--html", str(exports.parent / "bench.html")]) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed
    assert "FAIL" not in printed
    rows = json.loads(report.read_text())["rows"]
    assert [row["backend"] for row in rows] == ["torch", "onnxruntime", "onnxruntime"]
    fp16, fp32 = rows[1], rows[2]
    assert fp32["precision"] == "fp32"
    assert fp32["parity"]["max_abs_mm"] < 1
    assert fp16["precision_asked"] == "fp16"
    assert fp16["precision"] in {"fp16", "fp16→fp32"}
    assert all(row["memory"]["load_bytes"] > 0 and len(row["wall_ms"]) >= 10 for row in rows)
    assert (exports.parent / "bench.html").read_text().startswith("<!DOCTYPE html>")


def test_bench_fails_an_engine_that_is_another_network(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = exports / "compact-32x48.fp32.null"
    arguments = ["bench", "--engine", str(engine), "--seconds", "0.01", "--no-torch", "--no-memory"]
    assert depthkit(arguments) == 3
    assert "FAIL" in capsys.readouterr().out
    assert depthkit([*arguments, "--no-gate"]) == 0


def test_bench_fails_when_one_weight_of_the_onnx_file_was_changed(
    exports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = exports / "compact-32x48.fp32.onnx"
    change_one_weight(changed)
    common = ["--seconds", "0.01", "--no-torch", "--no-memory"]
    assert depthkit(["bench", "--engine", str(changed), *common]) == 3
    assert "max |Δ|" in capsys.readouterr().err
    assert depthkit(["bench", "--engine", str(exports / "compact-32x48.fp32.ort.onnx"), *common]) == 3
    assert "is not the file that this engine was built from" in capsys.readouterr().err


def test_bench_fails_an_fp16_file_for_one_changed_weight_that_parity_would_forgive(
    exports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = exports / "compact-32x48.fp16.onnx"
    change_one_weight(changed, by=1e-3)
    assert depthkit(["bench", "--engine", str(changed), "--seconds", "0.01", "--no-torch", "--no-memory"]) == 3
    message = capsys.readouterr().err
    assert "was changed since its export" in message
    assert "SSIM" not in message


def test_bench_fails_engines_of_a_run_that_was_trained_again(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (exports / "model.safetensors").write_bytes(b"other weights")
    engine = exports / "compact-32x48.fp32.ort.onnx"
    assert depthkit(["bench", "--engine", str(engine), "--seconds", "0.01", "--no-torch", "--no-memory"]) == 3
    assert "other weights than model.safetensors" in capsys.readouterr().err


def test_export_of_an_onnx_file_builds_only_the_engine(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = exports / "compact-32x48.fp32.ort.onnx"
    engine.unlink()
    onnx_file = str(exports / "compact-32x48.fp32.onnx")
    assert depthkit(["export", onnx_file, "--backend", "onnxruntime", "--rebuild"]) == 0
    assert engine.is_file()
    printed = capsys.readouterr().out
    assert "built" in printed
    assert "wrote" not in printed


def test_the_papers_protocol_counts_ten_runs(exports: Path) -> None:
    report = exports.parent / "paper.json"
    engine = exports / "compact-32x48.fp32.ort.onnx"
    arguments = ["bench", "--engine", str(engine), "--protocol", "paper", "--no-torch", "--no-memory"]
    assert depthkit([*arguments, "--json", str(report)]) == 0
    assert len(json.loads(report.read_text())["rows"][0]["wall_ms"]) == 10


def test_predict_writes_colours_millimetres_and_metres_at_the_pictures_size(exports: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a.png")
    Image.fromarray(noise[:, ::-1]).save(photos / "b.jpg")
    out = tmp_path / "depth"
    assert depthkit(["predict", str(exports / "compact-32x48.fp32.ort.onnx"), str(photos), "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == 6
    metres = np.load(out / "a_depth.npy")
    assert metres.shape == (50, 70)
    assert metres.dtype == np.float32
    millimetres = np.array(Image.open(out / "a_depth16.png"))
    np.testing.assert_allclose(millimetres, metres * 1000, atol=0.51)
    assert np.array(Image.open(out / "b_depth.png")).shape == (50, 70, 3)


def test_predict_by_torch_and_by_the_engine_agree(exports: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)).save(photo)
    for target, out in ((exports, "torch"), (exports / "compact-32x48.fp32.onnx", "onnx")):
        assert depthkit(["predict", str(target), str(photo), "--out", str(tmp_path / out)]) == 0
    torch, engine = (np.load(tmp_path / out / "photo_depth.npy") for out in ("torch", "onnx"))
    np.testing.assert_allclose(engine, torch, atol=1e-3)


def test_evaluate_gives_a_run_and_its_engine_the_same_scores(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = exports / "compact-32x48.fp32.ort.onnx"
    assert depthkit(["evaluate", str(exports), str(engine), "--data", "scenes", "--frames", "3", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    torch, built = scores[str(exports)], scores[str(engine)]
    assert torch["frames"] == 3
    assert built["pooled"]["abs_rel"] == pytest.approx(torch["pooled"]["abs_rel"], abs=1e-5)
    assert built["ssim"] == pytest.approx(torch["ssim"], abs=1e-5)


def test_doctor_names_backends_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert depthkit(["doctor", "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["backend onnxruntime"]["here"]
    assert "torch" in findings["train and evaluate runs"]["seen"]
    assert depthkit(["doctor"]) == 0


def test_the_whole_line_on_real_frames(nyu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, data = str(tmp_path / "runs"), ["--data", str(nyu)]
    size = ["--size", "32x48", "--steps", "1", "--batch", "4"]
    assert depthkit(["train", *data, *size, "--epochs", "1", "--out", runs]) == 0
    assert depthkit(["export", "--fp16", "--runs", runs]) == 0
    assert depthkit(["evaluate", f"{runs}/compact", *data, "--frames", "4"]) == 0
    arguments = ["bench", "--runs", runs, *data, "--frames", "4", "--seconds", "0.05", "--no-memory"]
    assert depthkit([*arguments, "--json", f"{runs}/b.json"]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "runs" / "b.json").read_text())["rows"]
    assert [(row["network"], row["backend"]) for row in rows] == [
        (network, backend) for network in ("compact", "unet") for backend in ("torch", fastest())
    ]
    assert [row["parameters"] for row in rows[::2]] == [1_218_350, 17_262_977]
    assert all(row["accuracy"]["frames"] == 4 and row["accuracy"]["available"] == 654 for row in rows)


def test_an_engine_that_lost_its_run_needs_no_torch(exports: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("compact-32x48.fp32.ort.onnx", "compact-32x48.fp32.ort.onnx.json", "compact-32x48.reference.npz"):
        shutil.copy(exports / name, alone)
    engine = alone / "compact-32x48.fp32.ort.onnx"
    assert depthkit(["bench", "--engine", str(engine), "--seconds", "0.01", "--no-memory"]) == 0
