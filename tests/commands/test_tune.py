"""`depthkit tune`: the winner, impossible budgets, resuming."""

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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from depthkit.bench.timing import Steady
from depthkit.commands.tune import _require_alike
from depthkit.documents import from_json
from depthkit.engines.build import backend
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.store import Store
from depthkit.errors import UserError
from depthkit.metrics import EIGEN_CROP
from depthkit.pipeline import search as search_module
from depthkit.pipeline.budget import Candidate, Tuning
from depthkit.pipeline.candidates import Workshop, read_panel, read_runs
from depthkit.pipeline.pictures import read_pictures
from depthkit.pipeline.targets import locate
from depthkit.precisions import Precision
from depthkit.spec import Preprocessing
from depthkit.train.bundle import read_bundle, write_bundle
from depthkit.train.networks import build_network, describe_network

from ..support import STEM, Cli, save_noise

QUICK = ["--size", "32x48", "--backend", "onnxruntime", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "LONG", Steady(0.0, 0.05, 5))
    monkeypatch.setattr(search_module, "measure_memory", lambda _open: None)  # a process more; tests/bench sees to it


def _tuning(run: Path) -> Tuning:
    return from_json(Tuning, (run / "tune.json").read_text(), source="tune.json")


def test_winner_is_exported_and_passes_the_bench(run: Path, store: Store, cli: Cli) -> None:
    printed = cli("tune", run, *QUICK)
    assert "AbsRel may be 0.005 worse" in printed.out
    assert "chosen" in printed.out
    assert "onnxruntime fp32 32x48: p50" in printed.err
    tuning = _tuning(run)
    assert tuning.chosen.startswith("onnxruntime fp32 32x48")
    assert tuning.environment.command.startswith("depthkit tune")
    with Image.open(run / "tune.png") as picture:
        assert min(picture.size) > 400
    options = tuning.chosen.removeprefix("onnxruntime fp32 32x48").strip()
    engine = f"{STEM}.fp32.{options}.ort.onnx".replace("..", ".")
    names = {f"{STEM}.fp32.onnx", engine, f"{engine}.json", f"{STEM}.reference.npz"}
    assert {path.name for path in (run / "best").iterdir()} == names
    assert not (run / ".tune").exists()
    cli("bench", "--engine", run / "best" / engine, "--seconds", "0", "--no-memory")


def test_full_disk_keeps_the_old_winner(run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    (run / "best").mkdir()
    (run / "best" / "engine").write_text("the previous winner")

    def full(source: Path, goal: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(goal))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert "No space left" in cli("tune", run, *QUICK, code=2).err
    assert [path.name for path in (run / "best").iterdir()] == ["engine"]


def test_smaller_size_is_judged_at_the_resolution_of_the_pictures(run: Path, store: Store, cli: Cli) -> None:
    cli("tune", run, *QUICK, "--size", "16x32", "--min-ssim", "0.5")
    trials = {trial.candidate.name: trial for trial in _tuning(run).trials}
    own, small = trials["onnxruntime fp32 32x48"].quality, trials["onnxruntime fp32 16x32"].quality
    assert own is not None
    assert small is not None
    assert own.ssim > 0.9999 > small.ssim


def test_impossible_budget_exits_with_3_and_names_the_nearest_candidate(run: Path, store: Store, cli: Cli) -> None:
    message = cli("tune", run, *QUICK, "--max-latency", "0.001ms", "--min-fps", "1e6", code=3).err
    assert "no candidate is within the budget; the nearest: onnxruntime fp32 32x48" in message
    assert "ms too slow" in message
    assert "too few" in message
    assert not (run / "best").exists()
    assert not _tuning(run).chosen


def test_fp16_computed_in_fp32_is_not_a_candidate(run: Path, store: Store, cli: Cli) -> None:
    if backend("onnxruntime").here().computes_half:
        pytest.skip("this CPU computes in FP16")
    printed = cli("tune", run, *QUICK[:-1], "fp16", code=3)
    assert {trial.state for trial in _tuning(run).trials} == {"skipped"}
    assert "cannot be built here: fp16 is computed as fp16→fp32" in printed.err
    assert f"{len(_tuning(run).trials)} cannot be built here, 0 failed" in printed.out
    assert "cannot be faster" in _tuning(run).trials[0].reason


def test_pictures_without_depth_are_judged_by_ssim(run: Path, store: Store, tmp_path: Path, cli: Cli) -> None:
    save_noise(tmp_path / "pictures" / "a.png", 48, 64)
    printed = cli("tune", run, *QUICK, "--data", tmp_path / "pictures")
    assert "SSIM must be at least 0.98" in printed.out
    assert all(trial.quality and trial.quality.abs_rel is None for trial in _tuning(run).trials)


@pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")
def test_pictures_of_different_sizes_are_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    for index in (1, 2):
        save_noise(tmp_path / "pictures" / f"{index}.png", 48 * index, 64)
    assert "differ in size" in cli("tune", run, *QUICK, "--data", tmp_path / "pictures", code=2).err


def _pictures(folder: Path, seed: int) -> str:
    for index in range(2):
        save_noise(folder / f"{index}.png", 48, 64, seed=2 * seed + index)
    return str(folder)


def test_key_depends_on_gpu_and_calibration(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = read_runs([run])
    panel = read_panel(bundles)
    one, same, other = (_pictures(tmp_path / str(index), seed) for index, seed in enumerate((1, 1, 2)))

    def key(calibrate: str, precision: Precision) -> str:
        return Workshop(bundles, calibrate).key(panel, [Candidate("onnxruntime", precision, (32, 48))])

    assert key(one, "int8") == key(same, "int8") != key(other, "int8")
    before = key(one, "fp32")
    assert before == key(other, "fp32")
    found = []
    for name in ("NVIDIA L4", "NVIDIA A10"):
        monkeypatch.setitem(vars(backend("onnxruntime")), "here", partial(Fingerprint, "gpu", name, "sm_89"))
        found.append(key(one, "fp32"))
    assert len({before, *found}) == 3


@pytest.mark.parametrize(("size", "crop"), [((480, 640), EIGEN_CROP), ((48, 64), None)])
def test_eigen_crop_needs_its_size(tmp_path: Path, size: tuple[int, int], crop: tuple[slice, slice] | None) -> None:
    rows = [f"data/{scene}/{scene}.png,data/{scene}/{scene}_d.png" for scene in range(10)]
    for row in rows:
        picture, depth = (tmp_path / each for each in row.split(","))
        picture.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(picture)
        Image.fromarray(np.full(size, 2000, np.uint16)).save(depth)
    for split in ("train", "test"):
        (tmp_path / "data" / f"nyu2_{split}.csv").write_text("\n".join(rows))
    assert read_pictures(str(tmp_path), "val", 4).crop == crop


def _p95(tuning: Tuning, run: str) -> list[float]:
    return [trial.p95_ms for trial in tuning.trials if trial.candidate.run == run]


def test_the_budget_decides_which_of_two_runs_wins(store: Store, here: Path, cli: Cli) -> None:
    """The built-in weights are accurate; nano is untrained, and much faster."""
    network = build_network("nano").eval()
    spec = describe_network("nano", network, (96, 128), preprocessing=Preprocessing(), depth_range=(0.1, 10.0))
    write_bundle(Path("runs/nano"), network, spec, None, read_bundle(locate(Path("compact"))).frames)
    line = ["tune", "compact", "runs/nano", *QUICK[2:], "--size", "96x128"]
    compact = Path("runs/compact-pretrained")

    printed = cli(*line, "--max-latency", "10s")
    assert "pictures: compact's own frames" in printed.out
    assert f"best  {compact / 'best'}" in printed.out
    tuning = _tuning(compact)
    assert tuning.chosen.startswith("compact onnxruntime fp32 96x128")
    tried = [line.split()[0] for line in printed.err.splitlines() if "ms" in line]
    assert tried[:2] == ["compact", "nano"], "in turns"
    for trial in tuning.trials:
        assert trial.quality is not None
        assert trial.quality.ssim > 0.999, "to torch of its own run"
        assert trial.quality.abs_rel_loss is not None
        assert (trial.quality.abs_rel_loss > 0.1) == (trial.candidate.run == "nano"), "to torch of the better run"
    assert not (compact / ".tune").exists()
    assert not Path("runs/nano/.tune").exists()

    count = len(tuning.trials)
    known = f"{count} candidates, {count} of them known"
    fast, slow = max(_p95(tuning, "nano")), min(_p95(tuning, "compact"))
    printed = cli(*line, "--max-latency", f"{(fast * slow) ** 0.5:.3f}ms")
    assert known in printed.out
    assert "best  runs/nano/best" in printed.out
    assert not Path("runs/nano/tune.json").exists()

    printed = cli(*line, "--min-ssim", "0.5")
    assert known in printed.out
    assert "AbsRel may be 0.005 worse than the most accurate run in FP32" in printed.out
    assert _tuning(compact).chosen.startswith("compact ")


def test_runs_without_measured_depth_or_named_twice_are_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    message = cli("tune", run, "compact", "--data", _pictures(tmp_path / "pictures", 0), code=2).message
    assert "only measured depth can compare several runs" in message
    assert "give a data set with --data, or name one run" in message
    shutil.copytree(run, tmp_path / "copy")
    assert "are the same run; name each run once" in cli("tune", run, tmp_path / "copy", code=2).message
    assert not (run / ".tune").exists()


@pytest.mark.slow
def test_killed_search_is_resumed(run: Path, store: Store, cli: Cli) -> None:
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
    assert f"candidates, {known} of them known" in cli(*command).out
    assert not (run / ".tune").exists()


def test_runs_that_are_aligned_differently_do_not_compete() -> None:
    def source(answers: str) -> Any:
        return SimpleNamespace(document=SimpleNamespace(model=SimpleNamespace(answers=answers)))

    _require_alike({"a": source("metres"), "b": source("share")})
    _require_alike({"a": source("inverse"), "b": source("inverse")})
    with pytest.raises(UserError, match=r"a answers share, b answers inverse\); tune each by itself"):
        _require_alike({"a": source("share"), "b": source("inverse")})
