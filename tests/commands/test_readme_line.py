"""The README's minute of use, typed as it stands, line by line, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.cli import run as depthkit

README = Path(__file__).parents[2] / "README.md"
SMALLER = {
    "96x128": "32x48",
    "--epochs 3": "--epochs 1 --steps 2 --batch 2",
    "depthkit bench --data": "depthkit bench --seconds 0.02 --no-memory --no-roofline --data",
    "depthkit bench --vs": "depthkit bench --seconds 0.02 --no-memory --no-roofline --vs",
    "--max-latency 33ms": "--max-latency 33s --backend onnxruntime --precision fp32 --size 32x48 --frames 2",
}
"""What is typed otherwise, to save time: sizes, and how long is trained, measured and searched."""


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
            folder.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
            metres = np.linspace(1, 4, height, dtype=np.float32)[:, None].repeat(width, 1)
            paths = folder / f"{index}.png", folder / f"{index}_depth.png"
            Image.fromarray(image).save(paths[0])
            Image.fromarray((metres * 1000).astype(np.uint16)).save(paths[1])
            rows.append(",".join(str(path.relative_to(root)) for path in paths))
        (root / "data" / f"nyu2_{split}.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_the_readmes_minute_of_use_works_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_nyu(tmp_path / "path" / "to" / "nyu")
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    lines = main_line()
    assert len(lines) >= 12
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for line in lines:
            typed = line
            for long, short in SMALLER.items():
                typed = typed.replace(long, short)
            code = depthkit(shlex.split(typed, comments=True)[1:])
            # What became slower between two benches of 20 ms is luck; that they are compared is not.
            assert code in ({0, 3} if "--compare" in line else {0}), f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "bench.html").is_file()
    assert (tmp_path / "runs" / "compact" / "best").is_dir()
