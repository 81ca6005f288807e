"""`depthkit bench` loses nothing: one bad picture, engine, pipe, file or bisection leaves all the rest."""

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
from depthkit.cli import run as depthkit

Captured = pytest.CaptureFixture[str]
QUICK = ["--duration", "0.02", "--no-memory", "--no-roofline"]
ENGINE = "compact-32x48.fp32.ort.onnx"


def _pairs(root: Path, shapes: list[tuple[int, int]]) -> Path:
    """A `pairs` data set whose test pictures have these sizes."""
    for folder in ("images", "depth"):
        (root / folder / "test").mkdir(parents=True)
    for index, shape in enumerate(shapes):
        depth = np.tile(np.linspace(1000, 4000, shape[1], dtype=np.uint16), (shape[0], 1))
        picture = np.random.default_rng(index).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(picture).save(root / "images" / "test" / f"{index}.png")
        Image.fromarray(depth).save(root / "depth" / "test" / f"{index}.png")
    return root


def test_pictures_that_cannot_be_scored_are_left_out_and_named(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    data = _pairs(tmp_path / "rooms", [(48, 64), (48, 64), (8, 64), (60, 40), (48, 64), (48, 64)])
    pictures = data / "images" / "test"
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:300])
    Image.fromarray(np.zeros((24, 64, 3), np.uint8)).save(pictures / "4.png")
    (pictures / "5.png").write_text("no picture")
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), *QUICK, "--data", str(data), "--json", str(report)]
    assert depthkit(arguments) == 0
    result = read_result(report)
    assert [row.accuracy and (row.accuracy.frames, row.accuracy.scores.frames) for row in result.rows] == [(2, 2)] * 2
    note = result.notes[0]
    assert "4 of 6 frames" in note
    assert all(f"{index}.png" in note for index in (1, 2, 4, 5))
    assert "4 of 6 frames" in capsys.readouterr().err
    for path in pictures.iterdir():
        path.write_text("no picture")
    report.unlink()
    assert depthkit(arguments) == 2
    assert "6 of 6 frames" in capsys.readouterr().err
    assert not report.exists()


def _plant(folder: Path, fault: str, good: Path) -> str:
    """Put a broken engine of this kind below `folder`; its name."""
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
    return engine.name


FAULTS = ("no JSON", "not UTF-8", "a list", "another version", "a folder", "no engine", "no manifest", "no reference")


def test_broken_engines_among_those_that_were_found_are_named_and_left_out(
    exports: Path, tmp_path: Path, capsys: Captured
) -> None:
    names = [_plant(tmp_path / "runs" / f"other{index}", fault, exports) for index, fault in enumerate(FAULTS)]
    report = tmp_path / "bench.json"
    arguments = ["bench", *QUICK, "--no-torch"]
    depthkit([*arguments, "--runs", str(tmp_path / "runs"), "--json", str(report)])
    said = capsys.readouterr().err
    for index, name in enumerate(names):
        assert f"skipped {tmp_path / 'runs' / f'other{index}' / name}: " in said, FAULTS[index]
    assert {Path(row.target).parent for row in read_result(report).rows} == {exports}
    for index, name in enumerate(names):
        assert depthkit([*arguments, "--engine", str(tmp_path / "runs" / f"other{index}" / name)]) == 2, FAULTS[index]


def test_runs_may_be_a_run_itself(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "bench.json"
    (exports / "compact-32x48.fp32.null.json").unlink()
    (exports / "compact-32x48.fp16.null.json").unlink()
    for place, runs in ((tmp_path, str(exports)), (exports, ".")):
        monkeypatch.chdir(place)
        depthkit(["bench", "--runs", runs, *QUICK, "--no-torch", "--json", str(report)])
        assert {Path(row.target).name for row in read_result(report).rows} >= {ENGINE, ENGINE.replace("fp32", "fp16")}
        assert {row.run for row in read_result(report).rows} == {"compact"}
    monkeypatch.undo()


@pytest.mark.parametrize("how", ["closed pipe", "latin-1"])
def test_what_cannot_be_printed_loses_no_file(exports: Path, tmp_path: Path, how: str) -> None:
    files = [str(tmp_path / f"bench.{kind}") for kind in ("json", "html", "markdown", "csv")]
    written = [word for path in files for word in (f"--{path.rpartition('.')[2]}", path)]
    done = subprocess.Popen(
        [sys.executable, "-m", "depthkit", "bench", "--engine", str(exports / ENGINE), "--no-torch", *QUICK, *written],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "latin-1" if how == "latin-1" else "utf-8"},
    )  # fmt: skip
    assert done.stdout is not None
    if how == "latin-1":
        done.stdout.read()
    done.stdout.close()
    done.wait()
    assert read_result(Path(files[0])).rows[0].passed
    assert all(Path(path).is_file() for path in files)


def test_a_file_that_cannot_be_written_is_told_before_the_bench(
    exports: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["bench", "--engine", str(exports / ENGINE), "--duration", "80000", "--no-memory"]
    assert depthkit([*arguments, "--json", str(tmp_path / "b.json"), "--csv", str(tmp_path / "file" / "b.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("vendor says no"), 3), (MemoryError(), 3)]
)
def test_a_bisection_that_ends_early_loses_nothing(
    exports: Path, tmp_path: Path, error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fail(_: object) -> str:
        assert read_result(report).rows[0].faults, "the bench is written before the bisection"
        raise error

    monkeypatch.setattr("depthkit.pipeline.contenders.find_divergence", fail)
    (exports / "model.safetensors").write_bytes(b"others")
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), *QUICK, "--bisect", "--json", str(report)]
    assert depthkit(arguments) == code
    (row,) = read_result(report).rows
    assert row.wall_ms
    assert any("not bisected" in note for note in row.notes) == (code == 3)
    said = capsys.readouterr()
    assert "Parity" in said.out
    assert "Traceback" not in said.err
    monkeypatch.undo()
