"""The README's main line, run line by line in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.cli import run as depthkit
from depthkit.train.document import read_frames
from depthkit.train.shipped import shipped_run

from ..foreign import depth_file, write_photos
from ..runtime.clips import numbered, write_clip
from ..support import save_noise

README = Path(__file__).parents[2] / "README.md"
SMALLER = {
    "96x128": "32x48",
    "--epochs 3": "--epochs 1 --steps 2 --batch 2",
    "depthkit bench --data": "depthkit bench --seconds 0.02 --no-memory --no-roofline --data",
    "depthkit bench --vs": "depthkit bench --seconds 0.02 --no-memory --no-roofline --vs",
    "--max-latency 33ms": "--max-latency 33s --backend onnxruntime --precision fp32 --size 32x48 --frames 2",
}
"""Replacements that save time: sizes and durations."""


def main_line() -> list[str]:
    """The commands of the console block under "A minute of use"."""
    section = README.read_text(encoding="utf-8").partition("## A minute of use")[2]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def make_nyu(root: Path) -> None:
    """Frames in DenseDepth's layout: 11 scenes of two for training; two for scores, at NYU's own size."""
    for split, count, (height, width) in (("train", 22, (48, 64)), ("test", 2, (480, 640))):
        rows = []
        for index in range(count):
            folder = root / "data" / f"nyu2_{split}" / f"scene_{index // 2:02d}"
            metres = np.linspace(1, 4, height, dtype=np.float32)[:, None].repeat(width, 1)
            paths = folder / f"{index}.png", folder / f"{index}_depth.png"
            save_noise(paths[0], height, width, seed=index)
            Image.fromarray((metres * 1000).astype(np.uint16)).save(paths[1])
            rows.append(",".join(str(path.relative_to(root)) for path in paths))
        (root / "data" / f"nyu2_{split}.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_main_line_of_the_readme_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_nyu(here / "path" / "to" / "nyu")
    depth_file(here / "midas.onnx")
    write_photos(here / "photos", read_frames(shipped_run("compact")).images)
    Image.new("RGB", (64, 48)).save(here / "photo.jpg")
    write_clip(here / "clip.mp4", numbered(5))
    # The first two serve until they are interrupted, and Ray starts processes: test_view.py, test_serve.py and
    # test_predict_ray.py run them.
    lines = [line for line in main_line() if not re.search(r"depthkit (view|serve)|--ray", line)]
    assert len(lines) >= 12
    for line in lines:
        typed = line
        for long, short in SMALLER.items():
            typed = typed.replace(long, short)
        code = depthkit(shlex.split(typed, comments=True)[1:])
        # What became slower between two benches of 20 ms is luck; that they are compared is not.
        assert code in ({0, 3} if "--compare" in line else {0}), f"{line}: {capsys.readouterr().err}"
    assert (here / "bench.html").is_file()
    assert list((here / "runs").glob("*-pretrained/best"))  # of the network that `tune` chose
