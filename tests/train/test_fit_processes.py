"""Fitting as a process of its own: killed, interrupted, or two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from depthkit.data.sources import open_dataset
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.torch_session import TorchSession

from .runs import curve_of

LIMIT = 240  # seconds after which a process is taken to hang


def _start(data: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`depthkit train` of `compact` on a small set."""
    command = [sys.executable, "-m", "depthkit", "train", "--network", "compact", "--data", str(data)]
    return subprocess.Popen(
        [*command, "--size", "32x48", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        # What a shell runs in the background ignores Ctrl-C, and so does what that starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def _stop_after_the_first_epoch(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal once the first epoch is reported; the exit status and what stood on stderr."""
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=LIMIT)
    return process.returncode, errors


def test_a_killed_process_is_resumed_as_if_nothing_had_happened(pairs: Path, tmp_path: Path) -> None:
    options = TrainOptions("compact", str(pairs), (32, 48), epochs=3, batch=4, preset="best", out=tmp_path / "whole")
    process = _start(pairs, tmp_path / "cut", "--epochs", "3", "--batch", "4", "--preset", "best")
    status, _ = _stop_after_the_first_epoch(process, signal.SIGKILL)
    assert status == -signal.SIGKILL
    cut = tmp_path / "cut" / "compact"
    assert 1 <= len(curve_of(cut)) < 3
    assert not (cut / "model.json").exists()
    whole = fit(options)
    again = fit(TrainOptions(**{**options.__dict__, "out": tmp_path / "cut", "resume": True}))
    assert whole is not None
    assert again == cut
    assert curve_of(cut) == curve_of(whole)
    expected, found = (read_bundle(folder).network.state_dict() for folder in (whole, cut))
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
    assert not list(cut.glob(".*"))


def test_ctrl_c_keeps_the_last_checkpoint(pairs: Path, tmp_path: Path) -> None:
    process = _start(pairs, tmp_path, "--epochs", "1000", "--batch", "4")
    status, errors = _stop_after_the_first_epoch(process, signal.SIGINT)
    assert status == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    folder = tmp_path / "compact"
    assert (folder / "last.ckpt").is_file()
    assert len(curve_of(folder)) >= 1
    assert not (folder / "model.json").exists()
    assert not list(folder.glob(".*"))


def test_two_processes_share_the_work_and_leave_one_bundle(pairs: Path, tmp_path: Path) -> None:
    process = _start(pairs, tmp_path, "--devices", "2", "--epochs", "1", "--batch", "2")
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert output.count("trained") == 1
    assert output.count("epoch") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["compact"]
    record = json.loads((tmp_path / "compact" / "model.json").read_text(encoding="utf-8"))["training"]
    assert record["devices"] == 2
    assert record["steps"] == 2  # ten samples, two processes, batches of two: five each
    measured, errors_of = [], []
    with TorchSession(tmp_path / "compact") as session:
        data = open_dataset(str(pairs), "val", size=(32, 48))
        for image, depth, _ in (data[index] for index in range(len(data))):
            valid = (depth > 1e-3) & (depth <= 10)
            measured.append(valid.sum())
            errors_of.append((np.abs(session(image) - depth) / np.where(valid, depth, 1))[valid].sum())
    line = curve_of(tmp_path / "compact")[0]
    # Both processes' validation samples, each once, though three do not divide by two.
    assert float(line["val_abs_rel"]) == pytest.approx(sum(errors_of) / sum(measured), rel=1e-3)


@pytest.mark.slow
def test_one_process_is_resumed_by_two(pairs: Path, tmp_path: Path) -> None:
    """Four pictures a step before and after: one pass of four, then two processes with two each."""
    process = _start(pairs, tmp_path, "--epochs", "3", "--batch", "4", "--preset", "best")
    _stop_after_the_first_epoch(process, signal.SIGKILL)
    done = len(curve_of(tmp_path / "compact"))
    process = _start(pairs, tmp_path, "--epochs", "3", "--batch", "2", "--preset", "best", "--devices", "2", "--resume")
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert output.count("epoch") == 3 - done
    record = json.loads((tmp_path / "compact" / "model.json").read_text(encoding="utf-8"))["training"]
    assert (record["devices"], record["batch"], record["steps"]) == (2, 2, 6)
    assert [int(line["step"]) for line in curve_of(tmp_path / "compact")] == [2, 4, 6]


def test_two_processes_need_a_whole_batch_each(pairs: Path, tmp_path: Path) -> None:
    process = _start(pairs, tmp_path, "--devices", "2", "--epochs", "1", "--batch", "6")
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "batch" in errors
    assert not (tmp_path / "compact" / "model.json").exists()
