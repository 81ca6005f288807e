"""Fitting as a process of its own: killed, interrupted, or two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from .runs import abs_rel_of, curve_of, fitted, record_of, train_options, weights_of

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


def test_a_killed_and_resumed_process_ends_with_the_same_run(pairs: Path, tmp_path: Path) -> None:
    options = train_options(pairs, tmp_path / "whole", epochs=3, preset="best")
    process = _start(pairs, tmp_path / "cut", "--epochs", "3", "--batch", "4", "--preset", "best")
    status, _ = _stop_after_the_first_epoch(process, signal.SIGKILL)
    assert status == -signal.SIGKILL
    cut = tmp_path / "cut" / "compact"
    assert 1 <= len(curve_of(cut)) < 3
    assert not (cut / "model.json").exists()
    whole = fitted(options)
    assert fitted(replace(options, out=tmp_path / "cut", resume=True)) == cut
    assert curve_of(cut) == curve_of(whole)
    assert weights_of(cut) == weights_of(whole)
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
    folder = tmp_path / "compact"
    record = record_of(folder)
    assert (record.devices, record.steps) == (2, 2), "ten samples, two processes, batches of two: five each"
    # Both processes' validation samples, each once, though three do not divide by two.
    assert float(curve_of(folder)[0]["val_abs_rel"]) == pytest.approx(abs_rel_of(folder, pairs), rel=1e-3)


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
    record = record_of(tmp_path / "compact")
    assert (record.devices, record.batch, record.steps) == (2, 2, 6)
    assert [int(line["step"]) for line in curve_of(tmp_path / "compact")] == [2, 4, 6]


def test_two_processes_need_a_whole_batch_each(pairs: Path, tmp_path: Path) -> None:
    process = _start(pairs, tmp_path, "--devices", "2", "--epochs", "1", "--batch", "6")
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "batch" in errors
    assert not (tmp_path / "compact" / "model.json").exists()
