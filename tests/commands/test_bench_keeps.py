"""`depthkit bench` keeps its other results when a picture, engine, pipe or bisection fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.bench.results import read_result

from ..support import STEM, Cli, RunBench, save_noise

ENGINE = f"{STEM}.fp32.ort.onnx"


def _pairs(root: Path, shapes: list[tuple[int, int]]) -> Path:
    """A `pairs` data set whose test pictures have these sizes."""
    (root / "depth" / "test").mkdir(parents=True)
    for index, (height, width) in enumerate(shapes):
        save_noise(root / "images" / "test" / f"{index}.png", height, width, seed=index)
        depth = np.tile(np.linspace(1000, 4000, width, dtype=np.uint16), (height, 1))
        Image.fromarray(depth).save(root / "depth" / "test" / f"{index}.png")
    return root


def test_unusable_pictures_are_skipped_and_named(exports: Path, tmp_path: Path, cli: Cli, bench: RunBench) -> None:
    data = _pairs(tmp_path / "rooms", [(48, 64), (48, 64), (8, 64), (60, 40), (48, 64), (48, 64)])
    pictures = data / "images" / "test"
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:300])
    Image.fromarray(np.zeros((24, 64, 3), np.uint8)).save(pictures / "4.png")
    (pictures / "5.png").write_text("no picture")
    arguments = ["--engine", exports / ENGINE, "--data", data]
    result, _, err = bench(*arguments)
    assert [row.accuracy and (row.accuracy.frames, row.accuracy.scores.frames) for row in result.rows] == [(2, 2)] * 2
    note = result.notes[0]
    assert "4 of 6 frames" in note
    assert all(f"{index}.png" in note for index in (1, 2, 4, 5))
    assert "4 of 6 frames" in err
    for path in pictures.iterdir():
        path.write_text("no picture")
    assert "6 of 6 frames" in cli("bench", *arguments, "--json", tmp_path / "none.json", code=2).err
    assert not (tmp_path / "none.json").exists()


def _plant(folder: Path, fault: str, good: Path) -> Path:
    """Put a broken engine of this kind into `folder`."""
    folder.mkdir(parents=True)
    engine, manifest = folder / f"x-{ENGINE}", folder / f"x-{ENGINE}.json"
    if fault != "no engine":
        shutil.copy(good / ENGINE, engine)
    if fault != "no manifest":
        shutil.copy(good / f"{ENGINE}.json", manifest)  # without the reference that it names
    contents = {
        "no JSON": b"{",
        "not UTF-8": b"\xff\xfe{",
        "a list": b"[]",
        "another version": b'{"schema_version": 99}',
    }
    if fault in contents:
        manifest.write_bytes(contents[fault])
    if fault == "a folder":
        manifest.unlink()
        manifest.mkdir()
    return engine


FAULTS = ("no JSON", "not UTF-8", "a list", "another version", "a folder", "no engine", "no manifest", "no reference")


def test_broken_engines_are_skipped_or_refused(exports: Path, tmp_path: Path, cli: Cli, bench: RunBench) -> None:
    engines = [_plant(tmp_path / "runs" / f"other{index}", fault, exports) for index, fault in enumerate(FAULTS)]
    result, _, err = bench("--no-torch", "--runs", tmp_path / "runs", code=3)
    for engine, fault in zip(engines, FAULTS, strict=True):
        assert f"skipped {engine}: " in err, fault
        cli("bench", "--no-torch", "--engine", engine, code=2)
    assert {Path(row.target).parent for row in result.rows} == {exports}


def test_runs_may_be_one_run(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: RunBench) -> None:
    (exports / f"{STEM}.fp32.null.json").unlink()
    (exports / f"{STEM}.fp16.null.json").unlink()
    for place, runs in ((tmp_path, exports), (exports, ".")):
        monkeypatch.chdir(place)
        result, *_ = bench("--runs", runs, "--no-torch")
        assert {Path(row.target).name for row in result.rows} >= {ENGINE, ENGINE.replace("fp32", "fp16")}
        assert {row.run for row in result.rows} == {"compact"}


def test_unprintable_output_loses_no_file(exports: Path, tmp_path: Path) -> None:
    """Tables have letters that Latin-1 lacks."""
    kinds = ("json", "html", "markdown", "csv")
    files = [word for kind in kinds for word in (f"--{kind}", str(tmp_path / f"bench.{kind}"))]
    quick = ["--no-torch", "--duration", "0.02", "--no-memory", "--no-roofline"]
    command = [sys.executable, "-m", "depthkit", "bench", "--engine", str(exports / ENGINE), *quick, *files]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=True)
    assert read_result(tmp_path / "bench.json").rows[0].passed
    assert all((tmp_path / f"bench.{kind}").is_file() for kind in kinds)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("vendor says no"), 3), (MemoryError(), 3)]
)
def test_failed_bisection_loses_nothing(
    exports: Path, tmp_path: Path, error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, bench: RunBench
) -> None:
    def fail(_: object) -> str:
        assert read_result(tmp_path / "bench.json").rows[0].faults, "the bench is written before the bisection"
        raise error

    monkeypatch.setattr("depthkit.pipeline.contenders.find_divergence", fail)
    (exports / "model.safetensors").write_bytes(b"others")
    result, out, _ = bench("--engine", exports / ENGINE, "--bisect", code=code)
    (row,) = result.rows
    assert row.wall_ms
    assert any("not bisected" in note for note in row.notes) == (code == 3)
    assert "Parity" in out
