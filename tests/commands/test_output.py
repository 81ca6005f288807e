"""Standard output of any encoding, closed or on a full disk: the command does its work all the same."""

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

import pytest
from PIL import Image

from depthkit.commands.doctor import examine

LONG = "a-folder-with-a-long-name/and-another-one-below-it-that-is-longer-still"
DEPTHKIT = [sys.executable, "-m", "depthkit"]


def closed_pipe(arguments: list[str], folder: Path, *, errors_too: bool = False) -> subprocess.CompletedProcess[str]:
    """Run with a standard output that nobody reads, as in `| head`."""
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
def test_any_file_name_is_printed_in_any_encoding(encoding: str, exports: Path) -> None:
    """A file name with letters that the encoding lacks, and bytes that no encoding has."""
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
def test_closed_pipe_is_silent_and_everything_is_written(exports: Path, *, errors_too: bool) -> None:
    for engine in exports.glob("*.null*"):
        engine.unlink()
    onnx = str(exports / "compact-32x48.fp32.onnx")
    done = closed_pipe(["export", onnx, "--backend", "null"], exports.parent, errors_too=errors_too)
    assert done.returncode == 0
    assert not done.stderr
    assert (exports / "compact-32x48.fp32.null").is_file()


def test_closed_pipe_keeps_the_exit_code_and_the_files(exports: Path) -> None:
    engine = str(exports / "compact-32x48.fp32.null")
    common = ["--seconds", "0.01", "--no-torch", "--no-memory", "--no-roofline"]
    kinds = ("json", "html", "markdown", "csv")
    files = [word for kind in kinds for word in (f"--{kind}", f"bench.{kind}")]
    done = closed_pipe(["bench", "--engine", engine, *common, *files], exports.parent)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert all((exports.parent / f"bench.{kind}").is_file() for kind in kinds)


def test_full_disk_under_the_output_is_reported(exports: Path) -> None:
    """/dev/full is a disk with no space left."""
    onnx = str(exports / "compact-32x48.fp32.onnx")
    with Path("/dev/full").open("w") as full:
        command = [*DEPTHKIT, "export", onnx, "--backend", "null", "--rebuild"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=exports.parent, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "depthkit: the output is incomplete: No space left on device\n"
    assert (exports / "compact-32x48.fp32.null").is_file()


@pytest.mark.parametrize("arguments", [["doctor"], ["evaluate", f"{LONG}/e.null", "--data"]])
def test_nothing_is_cut_at_80_columns(arguments: list[str], exports: Path, pairs: Path) -> None:
    """On a terminal, with an engine whose path alone fills a line."""
    long = exports.parent / LONG
    long.mkdir(parents=True)
    for suffix in ("", ".json"):
        shutil.copy(exports / f"compact-32x48.fp32.null{suffix}", long / f"e.null{suffix}")
    shown = on_a_terminal([*arguments, str(pairs)] if "--data" in arguments else arguments, exports.parent)
    assert "…" not in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    if arguments[0] == "evaluate":
        assert re.search(r"0\.\d{5} +\d\.\d{4} +pooled( +\d+\.\d{3}){6} *$", shown, re.MULTILINE)
    else:
        remedies = [finding.remedy for finding in examine() if finding.remedy.startswith("pip install '")]
        for command in {" ".join(remedy.split()[:3]) for remedy in remedies}:
            assert command in shown


def test_progress_bar_leaves_no_trace(exports: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 48)).save(exports.parent / f"{name}.png")
    engine = "compact/compact-32x48.fp32.null"
    shown = on_a_terminal(["predict", engine, "a.png", "b.png", "c.png"], exports.parent)
    lines = [line for line in shown.splitlines() if line]
    assert [line.partition(":")[0] for line in lines] == ["a.png", "b.png", "c.png"]


def on_a_terminal(arguments: list[str], folder: Path, columns: int = 80) -> str:
    """The final content of a terminal of so many columns."""
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


def test_output_closed_from_the_beginning_is_no_error(exports: Path) -> None:
    line = f"exec {' '.join(DEPTHKIT)} engines list --json >&-"
    done = subprocess.run(["bash", "-c", line], cwd=exports.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
