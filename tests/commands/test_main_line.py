"""The main line on real engines, and on real frames where there are any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from depthkit.engines.build import fastest

from ..support import STEM, Cli, save_noise

ENGINE = f"{STEM}.fp32.ort.onnx"
QUICK = ["--seconds", "0.01", "--no-torch", "--no-memory"]


def change_one_weight(path: Path, by: float = 0.5) -> None:
    """Add to one weight of the last convolution."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[4] += by
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, path)


def test_bench_passes_every_engine_and_names_its_precision(exports: Path, tmp_path: Path, cli: Cli) -> None:
    for null in exports.glob("*.null*"):
        null.unlink()
    report, page = tmp_path / "bench.json", tmp_path / "bench.html"
    arguments = ["--runs", exports.parent, "--seconds", "0.05", "--json", report, "--html", page]
    printed = cli("bench", *arguments).out
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
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_bench_fails_when_one_weight_of_the_onnx_file_was_changed(exports: Path, cli: Cli) -> None:
    changed = exports / f"{STEM}.fp32.onnx"
    change_one_weight(changed)
    assert "max |Δ|" in cli("bench", "--engine", changed, *QUICK, code=3).err
    message = cli("bench", "--engine", exports / ENGINE, *QUICK, code=3).err
    assert "is not the file that this engine was built from" in message


def test_bench_fails_a_changed_fp16_file_that_passes_parity(exports: Path, cli: Cli) -> None:
    changed = exports / f"{STEM}.fp16.onnx"
    change_one_weight(changed, by=1e-3)
    message = cli("bench", "--engine", changed, *QUICK, code=3).err
    assert "was changed since its export" in message
    assert "SSIM" not in message


def test_predict_writes_colours_millimetres_and_metres(exports: Path, tmp_path: Path, cli: Cli) -> None:
    photos, out = tmp_path / "photos", tmp_path / "depth"
    save_noise(photos / "a.png", 50, 70)
    save_noise(photos / "b.jpg", 50, 70)
    cli("predict", exports / ENGINE, photos, "--out", out)
    assert len(list(out.iterdir())) == 6
    metres = np.load(out / "a_depth.npy")
    assert metres.shape == (50, 70)
    assert metres.dtype == np.float32
    millimetres = np.array(Image.open(out / "a_depth16.png"))
    np.testing.assert_allclose(millimetres, metres * 1000, atol=0.51)
    assert np.array(Image.open(out / "b_depth.png")).shape == (50, 70, 3)


def test_evaluate_scores_a_run_and_its_engine_alike(exports: Path, cli: Cli) -> None:
    engine = exports / ENGINE
    scores = json.loads(cli("evaluate", exports, engine, "--data", "scenes", "--frames", "3", "--json").out)
    torch, built = scores[str(exports)], scores[str(engine)]
    assert torch["frames"] == 3
    assert built["pooled"]["abs_rel"] == pytest.approx(torch["pooled"]["abs_rel"], abs=1e-5)
    assert built["ssim"] == pytest.approx(torch["ssim"], abs=1e-5)


def test_doctor_names_backends_and_versions(cli: Cli) -> None:
    findings = {finding["what"]: finding for finding in json.loads(cli("doctor", "--json").out)}
    assert findings["backend onnxruntime"]["here"]
    assert "torch" in findings["train and evaluate runs"]["seen"]
    cli("doctor")


def test_main_line_on_nyu_frames(nyu: Path, tmp_path: Path, cli: Cli) -> None:
    runs, report = tmp_path / "runs", tmp_path / "bench.json"
    cli("train", "--data", nyu, "--size", "32x48", "--steps", "1", "--batch", "4", "--epochs", "1", "--out", runs)
    cli("export", "--fp16", "--runs", runs)
    cli("evaluate", runs / "compact", "--data", nyu, "--frames", "4")
    frames = ["--data", nyu, "--frames", "4"]
    cli("bench", "--runs", runs, *frames, "--seconds", "0.05", "--no-memory", "--json", report)
    rows = json.loads(report.read_text())["rows"]
    assert [(row["network"], row["backend"]) for row in rows] == [
        (network, backend) for network in ("compact", "unet") for backend in ("torch", fastest())
    ]
    assert [row["parameters"] for row in rows[::2]] == [1_218_350, 17_262_977]
    assert all(row["accuracy"]["frames"] == 4 and row["accuracy"]["available"] == 654 for row in rows)


def test_engine_without_its_run_is_benched_without_torch(exports: Path, tmp_path: Path, cli: Cli) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in (ENGINE, f"{ENGINE}.json", f"{STEM}.reference.npz"):
        shutil.copy(exports / name, alone)
    cli("bench", "--engine", alone / ENGINE, "--seconds", "0.01", "--no-memory")
