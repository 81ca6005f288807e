"""`depthkit export --fp16|--bf16|--int8`: options, calibration data, what each backend supports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.data.scenes.render import render_scenes, scene_seed
from depthkit.engines.build import backend
from depthkit.engines.manifest import read_manifest
from depthkit.engines.store import Store
from depthkit.onnx_graph import describe_onnx
from depthkit.train.shipped import shipped_run

from ..support import Cli, edit_json


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


def test_bf16_is_refused_by_onnx_runtime(run: Path, cli: Cli) -> None:
    assert "no BF16 kernels" in cli("export", run, "--bf16", "--backend", "onnxruntime", code=2).message


def test_default_calibration_frames(run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr("depthkit.export.ranges.MOST_FRAMES", 8)
    assert "frames of scenes" in cli("export", run, "--int8", "--onnx-only", "--keep", "auto").out


def test_missing_training_data_are_named(run: Path, cli: Cli) -> None:
    training = json.loads((run / "model.json").read_text())["training"]
    edit_json(run / "model.json", training=training | {"place": "/data/that/was/moved"})
    message = cli("export", run, "--int8", code=2).err
    assert "/data/that/was/moved" in message
    assert "--calibrate" in message


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
def test_too_few_frames_are_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    Image.fromarray(np.eye(48, dtype=np.uint8) * 255).convert("RGB").save(tmp_path / "one.png")
    message = cli("export", run, "--int8", "--calibrate", tmp_path, code=2).err
    assert "at least 8 frames, but there are 1" in message


def test_folder_without_pictures_is_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty").mkdir()
    message = cli("export", run, "--int8", "--calibrate", tmp_path / "empty", code=2).err
    assert "none of the known layouts" in message


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
@pytest.mark.slow
def test_int8_file_is_kept_for_the_same_pictures(trained: Path, pictures: Path, store: Store, cli: Cli) -> None:
    export = ["export", trained, "--int8", "--size", "48x64", "--calibrate", pictures, "--onnx-only"]
    printed = cli(*export).out
    assert "changes depth least (minmax" in printed
    assert "on 9 frames of" in printed
    assert "kept" in cli(*export).out
    file = trained / "compact-48x64.int8.onnx"
    before = file.stat().st_mtime_ns
    (pictures / "9.png").rename(pictures / "9.txt")
    try:
        assert f"skipped 1 of 10 in {pictures}: 9.txt" in cli(*export).err
    finally:
        (pictures / "9.txt").rename(pictures / "9.png")
    assert file.stat().st_mtime_ns != before, "other frames, another file"


def test_explain_ranks_every_convolution(trained: Path, pictures: Path, cli: Cli) -> None:
    printed = cli("export", trained, "--int8", "--explain", "--size", "48x64", "--calibrate", pictures).out
    rows = [line.split() for line in printed.splitlines() if "node_conv2d" in line]
    assert len(rows) == 19
    assert {row[1].strip() for row in rows} >= {"stem.0", "decoder.3.2"}
    ssim = [float(row[3]) for row in rows]
    assert ssim == sorted(ssim)
    assert not list(trained.glob("*.int8.onnx"))


def test_bf16_is_built_by_the_backends_that_support_it(run: Path, store: Store, cli: Cli) -> None:
    available = backend("openvino").availability()
    if not available.runnable:
        pytest.skip(available.reason)
    from depthkit.engines.ov import capabilities

    if "BF16" not in capabilities():
        pytest.skip("this CPU has no BF16")
    printed = cli("export", run, "--bf16", "--backend", "all")
    assert "skipped onnxruntime: ONNX Runtime has no BF16 kernels" in printed.err
    assert "torch BF16 vs FP32" in printed.out
    assert describe_onnx(run / "compact-32x48.bf16.onnx").precision == "bf16"
    manifest = read_manifest(run / "compact-32x48.bf16.ov.blob")
    assert manifest.precision_found == "bf16"
    assert manifest.share is not None and manifest.share > 0.95
