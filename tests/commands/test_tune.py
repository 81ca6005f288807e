"""`depthkit tune`: the winner can be used, a budget that nothing meets exits 3, a search that was killed goes on."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.bench.timing import Steady
from depthkit.cli import run as depthkit
from depthkit.documents import from_json
from depthkit.engines.build import backend
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.store import Store
from depthkit.metrics import EIGEN_CROP
from depthkit.pipeline import search as search_module
from depthkit.pipeline.budget import Candidate, Tuning
from depthkit.pipeline.candidates import Workshop, read_panel
from depthkit.pipeline.pictures import read_pictures
from depthkit.precisions import Precision
from depthkit.train.bundle import read_bundle

Captured = pytest.CaptureFixture[str]
QUICK = ["--size", "32x48", "--backend", "onnxruntime", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "LONG", Steady(0.0, 0.05, 5))
    monkeypatch.setattr(search_module, "measure_memory", lambda _open: None)  # a process more; tests/bench sees to it


def _tuning(run: Path) -> Tuning:
    return from_json(Tuning, (run / "tune.json").read_text(), source="tune.json")


def test_the_winner_is_delivered_whole_and_passes_the_bench(run: Path, store: Store, capsys: Captured) -> None:
    assert depthkit(["tune", str(run), *QUICK]) == 0
    said = capsys.readouterr()
    assert "AbsRel may be 0.005 worse" in said.out
    assert "chosen" in said.out
    assert "onnxruntime fp32 32x48: p50" in said.err
    tuning = _tuning(run)
    assert tuning.chosen.startswith("onnxruntime fp32 32x48")
    assert tuning.environment.command.startswith("depthkit tune")
    with Image.open(run / "tune.png") as picture:
        assert min(picture.size) > 400
    options = tuning.chosen.removeprefix("onnxruntime fp32 32x48").strip()
    engine = f"compact-32x48.fp32.{options}.ort.onnx".replace("..", ".")
    assert {path.name for path in (run / "best").iterdir()} == {
        "compact-32x48.fp32.onnx",
        engine,
        f"{engine}.json",
        "compact-32x48.reference.npz",
    }
    assert not (run / ".tune").exists()
    assert depthkit(["bench", "--engine", str(run / "best" / engine), "--seconds", "0", "--no-memory"]) == 0


def test_the_earlier_winner_stays_until_the_new_one_is_whole(
    run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (run / "best").mkdir()
    (run / "best" / "engine").write_text("the winner of yesterday")

    def full(source: Path, goal: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(goal))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert depthkit(["tune", str(run), *QUICK]) == 2
    assert [path.name for path in (run / "best").iterdir()] == ["engine"]
    assert "No space left" in capsys.readouterr().err


def test_a_smaller_size_is_judged_at_the_pictures_resolution(run: Path, store: Store, capsys: Captured) -> None:
    sizes = ["--size", "32x48", "--size", "16x32", "--min-ssim", "0.5"]
    assert depthkit(["tune", str(run), "--backend", "onnxruntime", "--precision", "fp32", *sizes]) == 0
    trials = {trial.candidate.name: trial for trial in _tuning(run).trials}
    own, small = trials["onnxruntime fp32 32x48"].quality, trials["onnxruntime fp32 16x32"].quality
    assert own is not None
    assert small is not None
    assert own.ssim > 0.9999 > small.ssim


def test_a_budget_that_nothing_meets_exits_3_and_names_the_nearest(run: Path, store: Store, capsys: Captured) -> None:
    assert depthkit(["tune", str(run), *QUICK, "--max-latency", "0.001ms", "--min-fps", "1e6"]) == 3
    message = capsys.readouterr().err
    assert "no candidate is within the budget; the nearest: onnxruntime fp32 32x48" in message
    assert "ms too slow" in message
    assert "too few" in message
    assert not (run / "best").exists()
    assert not _tuning(run).chosen


def test_fp16_that_this_cpu_computes_in_fp32_is_no_candidate(run: Path, store: Store, capsys: Captured) -> None:
    if backend("onnxruntime").here().computes_half:
        pytest.skip("this CPU computes in FP16")
    arguments = ["tune", str(run), "--size", "32x48", "--backend", "onnxruntime", "--precision", "fp16"]
    assert depthkit(arguments) == 3
    assert {trial.state for trial in _tuning(run).trials} == {"skipped"}
    said = capsys.readouterr()
    assert "cannot be built here: fp16 is computed as fp16→fp32" in said.err
    assert f"{len(_tuning(run).trials)} cannot be built here, 0 failed" in said.out
    assert "no candidate for speed" in _tuning(run).trials[0].reason


def test_truth_that_was_not_measured_cannot_be_limited(run: Path, tmp_path: Path, capsys: Captured) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        Image.fromarray(np.full((48, 64, 3), 60 * index, np.uint8)).save(pictures / f"{index}.png")
    arguments = ["tune", str(run), *QUICK, "--data", str(pictures)]
    assert depthkit([*arguments, "--max-absrel-loss", "0.01"]) == 2
    message = capsys.readouterr().err
    assert "needs measured depth" in message
    assert "--data" in message
    assert "--min-ssim" in message


def test_pictures_without_truth_are_judged_by_ssim(run: Path, store: Store, tmp_path: Path, capsys: Captured) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "a.png")
    assert depthkit(["tune", str(run), *QUICK, "--data", str(pictures)]) == 0
    assert "SSIM must be at least 0.98" in capsys.readouterr().out
    assert all(trial.quality and trial.quality.abs_rel is None for trial in _tuning(run).trials)


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
def test_pictures_of_several_sizes_are_no_camera(run: Path, tmp_path: Path, capsys: Captured) -> None:
    for index in (1, 2):
        Image.fromarray(np.zeros((48 * index, 64, 3), np.uint8)).save(tmp_path / f"{index}.png")
    assert depthkit(["tune", str(run), *QUICK, "--data", str(tmp_path)]) == 2
    assert "differ in size" in capsys.readouterr().err


def _pictures(folder: Path, seed: int) -> str:
    folder.mkdir()
    for index, image in enumerate(np.random.default_rng(seed).integers(0, 256, (2, 48, 64, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return str(folder)


def test_key_of_a_search_tells_the_gpu_and_what_is_in_the_calibration(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(run)
    panel = read_panel(bundle)
    one, same, other = (_pictures(tmp_path / str(index), seed) for index, seed in enumerate((1, 1, 2)))

    def key(calibrate: str, precision: Precision) -> str:
        return Workshop(bundle, tmp_path, calibrate).key(panel, [Candidate("onnxruntime", precision, (32, 48))])

    assert key(one, "int8") == key(same, "int8") != key(other, "int8")
    before = key(one, "fp32")
    assert before == key(other, "fp32")
    found = []
    for name in ("NVIDIA L4", "NVIDIA A10"):
        monkeypatch.setitem(vars(backend("onnxruntime")), "here", partial(Fingerprint, "gpu", name, "sm_89"))
        found.append(key(one, "fp32"))
    assert len({before, *found}) == 3


@pytest.mark.parametrize(("size", "crop"), [((480, 640), EIGEN_CROP), ((48, 64), None)])
def test_frames_are_cropped_only_at_the_size_that_the_crop_is_made_for(
    tmp_path: Path, size: tuple[int, int], crop: tuple[slice, slice] | None
) -> None:
    rows = [f"data/{scene}/{scene}.png,data/{scene}/{scene}_d.png" for scene in range(10)]
    for row in rows:
        picture, depth = (tmp_path / each for each in row.split(","))
        picture.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(picture)
        Image.fromarray(np.full(size, 2000, np.uint16)).save(depth)
    for split in ("train", "test"):
        (tmp_path / "data" / f"nyu2_{split}.csv").write_text("\n".join(rows))
    assert read_pictures(str(tmp_path), "val", 4).crop == crop


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-latency", "soon"], "'soon' is no quantity above 0"),
        (["--max-latency", "0ms"], "no quantity above 0"),
        (["--max-latency", "3 parsecs"], "ms, s"),
        (["--max-memory", "-5"], "no quantity above 0"),
        (["--min-ssim", "1"], "0<=x<1"),
        (["--min-fps", "0"], "0<x<="),
        (["--max-absrel-loss", "-0.1"], "0<=x<=100"),
        (["--size", "33x48"], "not divisible by 16"),
        (["--backend", "tensorrt"], "tensorrt cannot run here"),
        (["--data", "nowhere"], "there is no data at nowhere"),
        (["--calibrate", "nowhere"], "--calibrate nowhere: there is no such data set"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Path, arguments: list[str], words: str, capsys: Captured) -> None:
    if "tensorrt" in arguments and backend("tensorrt").availability().runnable:
        pytest.skip("tensorrt runs here")
    assert depthkit(["tune", str(run), *arguments]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert words in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(run: Path, store: Store, capsys: Captured) -> None:
    command = ["tune", str(run), *QUICK, "--batch", "1", "--batch", "2"]
    program = "import sys; from depthkit.cli import main; main(sys.argv[1:])"
    killed = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (run / "tune.json").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    known = len(json.loads((run / "tune.json").read_text())["trials"])
    assert known > 0
    assert (run / ".tune").is_dir()
    capsys.readouterr()
    assert depthkit(command) == 0
    assert f"candidates, {known} of them known" in capsys.readouterr().out
    assert not (run / ".tune").exists()
