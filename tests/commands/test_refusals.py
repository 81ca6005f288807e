"""A command that refuses has changed nothing: the folder is the same before and after."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from depthkit.cli import run as depthkit
from depthkit.files import sha256

Captured = pytest.CaptureFixture[str]


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, by what it holds; and every folder."""
    return {str(path.relative_to(folder)): sha256(path) if path.is_file() else "folder" for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture in it."""
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    Image.new("RGB", (64, 48)).save(tmp_path / "other.png")
    (tmp_path / "weights.safetensors").write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(line: str, place: Path, capsys: Captured) -> str:
    """Type the line, and require exit 2, a sentence, and an unchanged folder."""
    before = snapshot(place)
    assert depthkit(line.split()) == 2
    printed = capsys.readouterr()
    assert snapshot(place) == before
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
@pytest.mark.parametrize(
    "line",
    [
        "export compact nowhere",
        "export compact --size 100x128",
        "export compact --int8",
        "export compact --int8 --calibrate nowhere",
        "export compact --fp16 --int8",
        "export compact --backend null -o threads=2",
        "adopt collections:OrderedDict --weights weights.safetensors --data nowhere",
        "tune compact --data nowhere",
        "tune compact --size 100x128",
        "tune compact --backend tensorrt",
        "tune compact --calibrate nowhere",
        "tune compact --data . --max-absrel-loss 0.1",
        "train --init nowhere",
        "train --data nowhere",
        "train --size 100x128",
        "train --network collections:Nowhere",
        "train --quantize nowhere",
        "evaluate compact --data nowhere",
        "bench --runs nowhere --json b.json",
        "predict photo.jpg nowhere.jpg",
        "predict nowhere.onnx photo.jpg",
        "data prepare nowhere --out prepared",
        "data prepare scenes --size 100x128x3 --out prepared",
        "engines inspect nowhere.onnx",
        "demo --size 100x128",
    ],
)
def test_a_line_that_is_refused_changes_nothing(line: str, place: Path, capsys: Captured) -> None:
    assert refuse(line, place, capsys)


EXPORTED_BY = ("torch", "onnxscript", "polygraphy", "onnx_graphsurgeon")
NEEDED = {
    "export compact --fp16": EXPORTED_BY,  # its FP32 file comes with depthkit
    "adopt collections:OrderedDict --weights weights.safetensors": ("torch",),
    "tune compact": EXPORTED_BY,
    "train --steps 1": ("torch", "kornia"),
    "demo": (*EXPORTED_BY, "kornia"),
}


@pytest.mark.parametrize(("line", "package"), [(line, each) for line, needed in NEEDED.items() for each in needed])
def test_a_missing_package_is_named_before_anything_is_written(
    line: str, package: str, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refuse(line, place, capsys)
    assert package in message
    assert "pip install 'depthkit[train]'" in message
