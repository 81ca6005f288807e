"""`depthkit bench --source`: a clip from file to video, by stage, and as a camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.errors import UserError
from depthkit.pipeline import end_to_end
from depthkit.pipeline.end_to_end import STAGES, measure_source
from depthkit.runtime.source import Source

from ..runtime.clips import numbered, write_clip
from ..support import Cli


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", numbered(20))  # 2 seconds


def test_every_stage_and_the_whole_is_measured_and_written(tmp_path: Path, clip: Path, cli: Cli) -> None:
    found, table = tmp_path / "source.json", tmp_path / "source.md"
    shown = cli(
        "bench", "--source", clip, "--engine", "compact", "--duration", "1", "--json", found, "--markdown", table
    ).out
    (row,) = json.loads(found.read_text())["rows"]
    assert list(row["stages"]) == list(STAGES)
    assert all(0 < spent < 10_000 for spent in row["stages"].values())
    assert row["frames"] == 10
    assert row["size"] == [48, 64]
    assert row["answered"] + row["dropped"] >= 10
    assert 0 < row["age_p50"] <= row["age_p99"]
    assert 0 < row["cpu"] <= 1.1
    assert f"{row['rate']:.1f}" in shown
    assert table.read_text().splitlines()[0] == "| | compact |"
    assert f"| {row['rate']:.1f} |" in table.read_text()
    assert not list(tmp_path.glob("depth*"))


def test_the_engine_takes_the_longest_where_it_is_slow(clip: Path) -> None:
    row = measure_source(str(clip), Path("compact"), 1)
    assert max(row.stages, key=lambda stage: row.stages[stage]) == "engine"
    assert row.share == row.rate / row.alone


def test_a_camera_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def camera(*_: Any) -> Source:
        return Source("camera 0", iter(()), (48, 64), live=True)

    monkeypatch.setattr(end_to_end, "open_source", camera)
    with pytest.raises(UserError, match=r"camera 0 is live.*name a video file"):
        measure_source("0", Path("compact"), 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "nyu", "--until", "1%"], "--data, --until have no effect with --source"),
        (["--duration", "0"], "--duration 0 leaves no frame of"),
        (["--no-torch"], "--torch has no effect with --source"),
    ],
)
def test_options_of_other_benches_are_refused(clip: Path, options: list[str], says: str, cli: Cli) -> None:
    assert says in cli("bench", "--source", clip, "--engine", "compact", *options, code=2).err


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    from depthkit.data.images import write_image

    write_image(tmp_path / "a.png", np.zeros((48, 64, 3), np.uint8))
    assert measure_source(str(tmp_path / "a.png"), Path("compact"), 0.5).frames == 1
