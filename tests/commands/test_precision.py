"""`depthkit export --fp16|--bf16|--int8`: what the options mean, and what is said when they cannot be met."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.cli import run as depthkit
from depthkit.data.scenes.render import render_scenes, scene_seed
from depthkit.engines.build import backend
from depthkit.engines.manifest import read_manifest
from depthkit.engines.store import Store
from depthkit.onnx_graph import describe_onnx
from depthkit.train.shipped import shipped_run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten rooms."""
    folder = tmp_path_factory.mktemp("rooms")
    images, _ = render_scenes([scene_seed("train", index) for index in range(10)], (48, 64))
    for index, image in enumerate(images.numpy()):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run folder of the test's own with the weights that come with depthkit."""
    return Path(shutil.copytree(shipped_run("compact"), tmp_path / "compact"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fp16", "--int8"], "one precision: choose one of --fp16, --int8"),
        (["--calibrate", "scenes"], "--calibrate has no effect without --int8"),
        (["--bf16", "--keep", "auto"], "--keep is for --int8"),
        (["--fp16", "--keep", "3"], "--keep is for --int8"),
        (["--int8", "--keep", "few"], "neither a number of layers nor auto"),
        (["--explain"], "--explain is for --int8"),
        (["--int8", "--calibrate", "nowhere"], "--calibrate nowhere: there is no such data set"),
        (["--bf16", "--backend", "onnxruntime"], "no BF16 kernels"),
    ],
)
def test_options_that_cannot_be_met_are_refused(run: Path, arguments: list[str], words: str, capsys: Captured) -> None:
    assert depthkit(["export", str(run), *arguments]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert words in message
    assert "Traceback" not in message


def test_frames_to_calibrate_on_are_those_of_the_training(
    run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("depthkit.export.quantize.MOST_FRAMES", 8)
    assert depthkit(["export", str(run), "--int8", "--onnx-only", "--keep", "auto"]) == 0
    assert "frames of scenes" in capsys.readouterr().out


def test_a_run_whose_data_are_gone_asks_for_frames(run: Path, capsys: Captured) -> None:
    document = json.loads((run / "model.json").read_text())
    document["training"]["place"] = "/data/that/was/moved"
    (run / "model.json").write_text(json.dumps(document))
    assert depthkit(["export", str(run), "--int8"]) == 2
    message = capsys.readouterr().err
    assert "/data/that/was/moved" in message
    assert "--calibrate" in message


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
def test_too_few_frames_are_refused(run: Path, tmp_path: Path, capsys: Captured) -> None:
    Image.fromarray(np.eye(48, dtype=np.uint8) * 255).convert("RGB").save(tmp_path / "one.png")
    assert depthkit(["export", str(run), "--int8", "--calibrate", str(tmp_path)]) == 2
    assert "at least 8 frames, and there are 1" in capsys.readouterr().err


def test_a_folder_without_pictures_says_what_data_look_like(run: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    assert depthkit(["export", str(run), "--int8", "--calibrate", str(tmp_path / "empty")]) == 2
    assert "none of the known layouts" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
@pytest.mark.slow
def test_int8_of_a_folder_of_pictures_is_kept_while_nothing_changes(
    trained: Path, pictures: Path, store: Store, capsys: Captured
) -> None:
    export = ["export", str(trained), "--int8", "--size", "48x64", "--calibrate", str(pictures), "--onnx-only"]
    assert depthkit(export) == 0
    said = capsys.readouterr().out
    assert "changes depth least (minmax" in said
    assert "on 9 frames of" in said
    assert depthkit(export) == 0
    assert "kept" in capsys.readouterr().out
    file = trained / "compact-48x64.int8.onnx"
    before = file.stat().st_mtime_ns
    (pictures / "9.png").rename(pictures / "9.txt")
    try:
        assert depthkit(export) == 0
        assert f"skipped 1 of 10 in {pictures}: 9.txt" in capsys.readouterr().err
    finally:
        (pictures / "9.txt").rename(pictures / "9.png")
    assert file.stat().st_mtime_ns != before, "other frames, another file"


def test_explain_ranks_every_convolution(trained: Path, pictures: Path, capsys: Captured) -> None:
    explain = ["export", str(trained), "--int8", "--explain", "--size", "48x64", "--calibrate", str(pictures)]
    assert depthkit(explain) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if "node_conv2d" in line]
    assert len(rows) == 19
    assert {row[1].strip() for row in rows} >= {"stem.0", "decoder.3.2"}
    ssim = [float(row[3]) for row in rows]
    assert ssim == sorted(ssim)
    assert not list(trained.glob("*.int8.onnx"))


def test_bf16_is_exported_for_whom_it_serves(run: Path, store: Store, capsys: Captured) -> None:
    available = backend("openvino").availability()
    if not available.runnable:
        pytest.skip(available.reason)
    from depthkit.engines.ov import capabilities

    if "BF16" not in capabilities():
        pytest.skip("this CPU has no BF16")
    assert depthkit(["export", str(run), "--bf16", "--backend", "all"]) == 0
    said = capsys.readouterr().out
    assert "skipped onnxruntime: ONNX Runtime has no BF16 kernels" in said
    assert "torch BF16 vs FP32" in said
    assert describe_onnx(run / "compact-32x48.bf16.onnx").precision == "bf16"
    manifest = read_manifest(run / "compact-32x48.bf16.ov.blob")
    assert manifest.precision_found == "bf16"
    assert manifest.share is not None
    assert manifest.share > 0.95
