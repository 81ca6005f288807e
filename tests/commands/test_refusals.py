"""A command that is refused exits with 2 and one message, and changes no file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from depthkit.engines.build import backend

from ..support import Cli, contents


@pytest.fixture
def place(here: Path) -> Path:
    """A working directory with two pictures and a file of weights."""
    Image.new("RGB", (64, 48)).save(here / "photo.jpg")
    Image.new("RGB", (64, 48)).save(here / "other.png")
    (here / "weights.safetensors").write_bytes(b"none")
    return here


def refuse(line: str, place: Path, cli: Cli) -> str:
    """Run the line, and require exit code 2 and an unchanged folder; the message."""
    before, folders = contents(place), sorted(place.rglob("*"))
    message = cli(*line.split(), code=2).message
    assert (contents(place), sorted(place.rglob("*"))) == (before, folders)
    return message


OUT_OF_RANGE = [
    "bench --streams 99999",
    "bench --seconds 1e300",
    "bench --batch 999999999",
    "data prepare --size 999999999x999999999",
    "data prepare --size 8193x16",
    "train --batch 999999999",
    "train --devices 99999",
    "export --batch 1,2,999999999",
    "adopt compact --weights weights.safetensors --std 0,1,1",
    "tune --max-memory 9e99gb",
    "tune --minutes 1e300",
]


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("teleport", ["teleport"]),
        ("train --size 100x128", ["100x128", "96x128", "112x128"]),
        ("train --size large", ["240x320"]),
        ("train --data nowhere", ["nowhere"]),
        ("train --init nowhere", ["--init"]),
        ("train --quantize nowhere", ["nowhere"]),
        ("train --network resnet", ["compact", "unet"]),
        ("train --network collections:Nowhere", ["Nowhere"]),
        ("demo --size 100x128", ["100x128"]),
        ("data prepare nowhere --out prepared", ["nowhere"]),
        ("data prepare scenes --size 100x128x3 --out prepared", ["100x128x3"]),
        ("export", ["(compact, nano)"]),
        ("export nowhere", ["nowhere", "depthkit train"]),
        ("export compact nowhere", ["nowhere"]),
        ("export --runs nowhere", ["nowhere", "depthkit train"]),
        ("export --batch 4,2,1", ["MIN,OPT,MAX"]),
        ("export compact --size 100x128", ["100x128"]),
        ("export compact --camera 480", ["'480' is not a size"]),
        ("export compact --camera 90x640", ["camera 90x640", "smaller than the network's 96x128", "--size"]),
        ("export compact --size 240x320 --camera 480x300 --batch 1,2,4", ["480x300", "240x320"]),
        ("export compact --int8 --calibrate scenes --camera 95x640 --backend null", ["95x640"]),
        ("export compact --backend null -o threads=2", ["threads"]),
        ("export compact --backend onnxruntime -o threads", ["KEY=VALUE", "'threads'"]),
        ("export compact --backend onnxruntime -o =2", ["KEY=VALUE"]),
        ("export compact --backend onnxruntime -o threds=2", ["onnxruntime", "threds", "threads=0"]),
        ("export compact --bf16 --backend onnxruntime", ["no BF16 kernels"]),
        ("export compact --fp16 --int8", ["one precision: choose one of --fp16, --int8"]),
        ("export compact --explain", ["--explain is for --int8"]),
        ("export compact --bf16 --keep auto", ["--keep is for --int8"]),
        ("export compact --fp16 --keep 3", ["--keep is for --int8"]),
        ("export compact --int8 --keep few", ["neither a number of layers nor auto"]),
        ("export compact --calibrate scenes", ["--calibrate has no effect without --int8"]),
        ("export compact --int8", ["--calibrate"]),
        ("export compact --int8 --calibrate nowhere", ["--calibrate nowhere: no such data set"]),
        ("adopt collections:OrderedDict --weights weights.safetensors --data nowhere", ["nowhere"]),
        ("tune compact nowhere", ["nowhere", "depthkit train"]),
        ("tune compact compact", ["are the same run; name each run once"]),
        ("tune compact --size 100x128", ["100x128"]),
        ("tune compact --size 33x48", ["not divisible by 16"]),
        ("tune compact --backend tensorrt", ["tensorrt cannot run here"]),
        ("tune compact --data nowhere", ["there is no data at nowhere"]),
        ("tune compact --data . --max-absrel-loss 0.1", ["needs measured depth", "--data", "--min-ssim"]),
        ("tune compact --calibrate nowhere", ["--calibrate nowhere: no such data set"]),
        ("tune compact --max-latency soon", ["'soon' is not a valid quantity"]),
        ("tune compact --max-latency 0ms", ["not a valid quantity"]),
        ("tune compact --max-latency 3parsecs", ["ms, s"]),
        ("tune compact --max-memory -5", ["not a valid quantity"]),
        ("tune compact --min-ssim 1", ["0<=x<1"]),
        ("tune compact --min-fps 0", ["0<x<="]),
        ("tune compact --max-absrel-loss -0.1", ["0<=x<=100"]),
        ("evaluate compact --data nowhere", ["nowhere"]),
        ("evaluate nowhere.onnx --frames 1", ["nowhere.onnx", "depthkit export"]),
        ("bench --runs nowhere --json b.json", ["nowhere", "depthkit export"]),
        ("bench --engine nowhere.ort.onnx", ["nowhere.ort.onnx"]),
        ("bench --engine compact", ["depthkit export compact"]),
        ("bench --until 0", ["not between 0 and 100 %"]),
        ("bench --until x%", ["not between 0 and 100 %"]),
        ("bench --fail-above 150%", ["not between 0 and 100 %"]),
        ("bench --streams 0", ["1<=x<=256"]),
        ("bench --batch -1", ["1<=x<=4096"]),
        ("bench --compare one.json", ["requires 2 arguments"]),
        ("predict photo.jpg nowhere.jpg", ["nowhere.jpg"]),
        ("predict nowhere.ort.onnx photo.jpg", ["nowhere.ort.onnx", "depthkit export"]),
        ("engines inspect nowhere.onnx", ["nowhere.onnx"]),
        *((line, ["Invalid value for"]) for line in OUT_OF_RANGE),
    ],
)
def test_refused_command_changes_nothing(line: str, words: list[str], place: Path, cli: Cli) -> None:
    if line.endswith("tensorrt") and backend("tensorrt").availability().runnable:
        pytest.skip("tensorrt runs here")
    message = refuse(line, place, cli)
    assert [word for word in words if word not in message] == [], message


EXPORTED_BY = ("torch", "onnxscript", "polygraphy", "onnx_graphsurgeon")
NEEDED = {
    "export compact --fp16": EXPORTED_BY,  # its FP32 file comes with depthkit
    "adopt collections:OrderedDict --weights weights.safetensors": ("torch",),
    "tune compact": EXPORTED_BY,
    "train --steps 1": ("torch", "kornia"),
    "demo": (*EXPORTED_BY, "kornia"),
}


@pytest.mark.parametrize(("line", "package"), [(line, each) for line, needed in NEEDED.items() for each in needed])
def test_missing_package_is_named_before_anything_is_written(
    line: str, package: str, place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refuse(line, place, cli)
    assert package in message
    assert "pip install 'depthkit[train]'" in message
