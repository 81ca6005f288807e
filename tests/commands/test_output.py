"""Standard output of any encoding, and one whose reader has gone: what was asked for is done all the same."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.commands.doctor import examine

LONG = "a-folder-with-a-long-name/and-another-one-below-it-that-is-longer-still"
DEPTHKIT = [sys.executable, "-m", "depthkit"]


def closed_pipe(arguments: list[str], folder: Path, *, errors_too: bool = False) -> subprocess.CompletedProcess[str]:
    """Run with a standard output that nobody reads, as `| head` leaves it after its lines."""
    read, write = os.pipe()
    os.close(read)
    try:
        errors = write if errors_too else subprocess.PIPE
        return subprocess.run(
            [*DEPTHKIT, *arguments], stdout=write, stderr=errors, cwd=folder, text=True, check=False, timeout=120
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_name_is_too_much_for_the_encoding_of_the_output(encoding: str, exports: Path) -> None:
    """Letters that the encoding lacks, and bytes that are no text in any: a file's name may hold both."""
    picture = exports.parent / os.fsdecode(b"k\xfcche \xe2\x86\x92.png")
    Image.new("RGB", (64, 48)).save(picture)
    done = subprocess.run(
        [*DEPTHKIT, "predict", str(exports / "compact-32x48.fp32.null"), str(picture), "--out", "depth"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        cwd=exports.parent,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(list((exports.parent / "depth").iterdir())) == 3


@pytest.mark.parametrize("errors_too", [False, True])
def test_a_closed_pipe_ends_quietly_with_everything_written(exports: Path, *, errors_too: bool) -> None:
    """The first line that is printed finds nobody; the engine comes after it."""
    for engine in exports.glob("*.null*"):
        engine.unlink()
    onnx = str(exports / "compact-32x48.fp32.onnx")
    done = closed_pipe(["export", onnx, "--backend", "null"], exports.parent, errors_too=errors_too)
    assert done.returncode == 0
    assert not done.stderr
    assert (exports / "compact-32x48.fp32.null").is_file()


def test_a_closed_pipe_hides_no_failed_gate(exports: Path) -> None:
    engine = str(exports / "compact-32x48.fp32.null")
    common = ["--seconds", "0.01", "--no-torch", "--no-memory", "--no-roofline"]
    done = closed_pipe(["bench", "--engine", engine, *common, "--json", "b.json"], exports.parent)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert (exports.parent / "b.json").is_file()


def test_a_full_disk_under_the_output_is_told_and_stops_nothing_else(exports: Path) -> None:
    """/dev/full is a disk with no space left."""
    onnx = str(exports / "compact-32x48.fp32.onnx")
    with Path("/dev/full").open("w") as full:
        command = [*DEPTHKIT, "export", onnx, "--backend", "null", "--rebuild"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=exports.parent, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "depthkit: what was printed is not whole: No space left on device\n"
    assert (exports / "compact-32x48.fp32.null").is_file()


@pytest.mark.parametrize("arguments", [["doctor"], ["evaluate", f"{LONG}/e.null", "--data", "pairs"]])
def test_nothing_is_cut_in_80_columns(arguments: list[str], exports: Path) -> None:
    """On a terminal, with an engine whose path alone fills a line."""
    long = exports.parent / LONG
    long.mkdir(parents=True)
    for suffix in ("", ".json"):
        shutil.copy(exports / f"compact-32x48.fp32.null{suffix}", long / f"e.null{suffix}")
    make_pairs(exports.parent / "pairs")
    shown = on_a_terminal(arguments, exports.parent)
    assert "…" not in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    if arguments[0] == "evaluate":
        assert re.search(r"0\.\d{5} +\d\.\d{4} +pooled( +\d+\.\d{3}){6} *$", shown, re.MULTILINE)
    else:
        remedies = [finding.remedy for finding in examine() if finding.remedy.startswith("pip install '")]
        for command in {" ".join(remedy.split()[:3]) for remedy in remedies}:
            assert command in shown


def test_the_progress_bar_leaves_no_trace_in_front_of_lines(exports: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 48)).save(exports.parent / f"{name}.png")
    engine = "compact/compact-32x48.fp32.null"
    shown = on_a_terminal(["predict", engine, "a.png", "b.png", "c.png"], exports.parent)
    lines = [line for line in shown.splitlines() if line]
    assert [line.partition(":")[0] for line in lines] == ["a.png", "b.png", "c.png"]


def on_a_terminal(arguments: list[str], folder: Path, columns: int = 80) -> str:
    """What stands on a terminal of so many columns in the end: what was drawn over or erased is gone."""
    main, sub = pty.openpty()
    fcntl.ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [*DEPTHKIT, *arguments], stdin=sub, stdout=sub, stderr=sub, cwd=folder, env={**environment, "TERM": "xterm"}
    )
    os.close(sub)
    parts = []
    with suppress(OSError):  # the terminal's end
        while part := os.read(main, 65536):
            parts.append(part)
    os.close(main)
    assert process.wait() == 0, b"".join(parts)
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"(\r|\n|\x1b\[[0-9;?]*[a-zA-Z])|([^\r\n\x1b]+)", b"".join(parts).decode()):
        if text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif code == "\x1b[1A":
            row -= 1
        elif code == "\x1b[2K":
            lines[row] = ""
    return "\n".join(lines)


def make_pairs(root: Path) -> None:
    """A data set of one picture a split in images/ + depth/, 2 m everywhere."""
    for split in ("train", "val", "test"):
        for kind, picture in (
            ("images", Image.new("RGB", (64, 48))),
            ("depth", Image.fromarray(np.full((48, 64), 2000, np.uint16))),
        ):
            (root / kind / split).mkdir(parents=True)
            picture.save(root / kind / split / "a.png")


def test_output_that_was_closed_from_the_beginning_is_no_error(exports: Path) -> None:
    line = f"exec {' '.join(DEPTHKIT)} engines list --json >&-"
    done = subprocess.run(["bash", "-c", line], cwd=exports.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
