"""`depthkit view` from the command line: a whole run, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from depthkit import packages

from ..support import INTERRUPTIBLE, STEM, Cli, save_noise

pytest.importorskip("starlette", reason="pip install 'depthkit[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'depthkit[serve]'")
clients = pytest.importorskip("websockets.sync.client", reason="pip install 'depthkit[serve]'")


@pytest.fixture
def photo(here: Path) -> Path:
    """A picture in the working directory."""
    save_noise(here / "photo.png", 48, 64)
    return here / "photo.png"


@contextmanager
def viewing(*arguments: object, stdin: bytes = b"") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `depthkit view` in a process of its own; the process, and the address that it prints."""
    command = [*INTERRUPTIBLE, "view", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=0) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            os.write(process.stdin.fileno(), stdin)  # and it stays open
            line = process.stdout.readline()
            assert line.startswith("http://"), process.communicate()[1]
            yield process, line.split()[0]
        finally:
            process.kill()


def first_frame(address: str) -> dict[str, Any]:
    """The header of the first frame that a page gets."""
    with clients.connect(f"{address.replace('http', 'ws', 1)}frames", max_size=None) as page:
        while not isinstance(message := page.recv(timeout=30), bytes):
            pass
    header: dict[str, Any] = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
    return header


def test_a_picture_is_shown_until_ctrl_c(exports: Path, photo: Path) -> None:
    with viewing(exports / f"{STEM}.fp32.null", photo, "--port", 0, "--range", "0.5,5") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert first_frame(address)["size"] == [48, 64]
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - begin < 5
        assert process.returncode == 0, err
        assert out == "1 frame shown, 0 dropped\n"
        assert "Traceback" not in err


def test_ctrl_c_ends_a_wait_for_standard_input(exports: Path, here: Path) -> None:
    raw = ("-", "--input-size", "48x64", "--port", "0")
    with viewing(exports / f"{STEM}.fp32.null", *raw, stdin=bytes(2 * 48 * 64 * 3)) as (process, address):
        assert first_frame(address)["size"] == [48, 64]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")


def test_a_source_that_fails_ends_it_with_its_sentence(exports: Path, here: Path) -> None:
    for number, height in enumerate((48, 48, 64)):
        save_noise(here / f"{number:02d}.png", height, 64)
    arguments = (exports / f"{STEM}.fp32.null", "%02d.png", "--fps", "5", "--port", "0")
    with viewing(*arguments) as (process, address):
        first_frame(address)
        with clients.connect(f"{address.replace('http', 'ws', 1)}frames", max_size=None) as page:
            assert page.recv(timeout=30)
            process.wait(timeout=30)
        _, err = process.communicate()
        assert process.returncode == 2
        assert "changes its size" in err
        assert "Traceback" not in err


def test_another_port_is_said_and_another_host_warns(exports: Path, photo: Path) -> None:
    from depthkit.commands.view import PORT
    from depthkit.serve.server import listen

    with (
        listen("0.0.0.0", None, PORT),
        viewing(exports / f"{STEM}.fp32.null", photo, "--host", "0.0.0.0") as (process, _),
    ):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert f"port {PORT} is taken" in err
    assert "without a password" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("view", "Missing argument"),
        ("view a b c", "name one source"),
        ("view compact", "compact is an engine; name a source after it"),
        ("view nowhere.mp4", "no such file or folder: nowhere.mp4"),
        ("view nowhere/engine.onnx photo.png", "no run, ONNX file or engine nowhere/engine.onnx"),
        ("view /dev/video99", "no such camera"),
        ("view photo.png --range 5,1", "write the smaller number first"),
        ("view photo.png --range near", "'near' is not a range"),
        ("view photo.png --colormap rainbows", "no colormap 'rainbows'"),
        ("view photo.png --port 99999", "99999"),
        ("view photo.png --host no.such.host.invalid", "there is no such address"),
        ("view photo.png --fps 0", "--fps"),
        ("view ftp://a.b/c", "ftp://"),
    ],
)
def test_what_is_refused(line: str, words: str, photo: Path, cli: Cli) -> None:
    assert words in cli(*line.split(), code=2).message


def test_a_taken_port_is_refused_with_the_next_step(photo: Path, cli: Cli) -> None:
    from depthkit.serve.server import listen

    with listen("127.0.0.1", 0, 0) as sock:
        port = sock.getsockname()[1]
        message = cli("view", photo, "--port", port, code=2).message
    assert f"port {port} of 127.0.0.1 is taken; choose another with --port, or any free one with --port 0" in message


def test_a_missing_package_is_named_with_its_extra(photo: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    assert "pip install 'depthkit[serve]'" in cli("view", photo, code=2).message


def test_a_run_alone_is_no_source(run: Path, cli: Cli) -> None:
    assert "is an engine; name a source after it" in cli("view", run, code=2).message
