"""`depthkit predict --ray` on a Ray of this machine: the same bytes, also where workers die."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from depthkit.engines.build import BuildOptions, build

from ..support import INTERRUPTIBLE, STEM, Cli, contents, run_cli_alone, save_noise


@pytest.fixture
def engine(exports: Path) -> Path:
    """An engine of one thread: a worker for each core."""
    return build(exports / f"{STEM}.fp32.onnx", BuildOptions("onnxruntime", {"threads": 1})).path


@pytest.fixture
def pictures(here: Path) -> Path:
    """A folder of 20 pictures."""
    for index in range(20):
        save_noise(here / "pictures" / f"{index:02d}.png", 60 + index, 80, seed=index)
    return here / "pictures"


def results(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith((".png", ".npy"))}


def environment() -> dict[str, str]:
    """One thread for each library, no cluster of the user's, and a home of the test's own."""
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", "HOME": str(Path("home").absolute())}


def predict(*arguments: object, code: int = 0) -> str:
    """Run the command in a process of its own, with a home of its own; what it printed."""
    command = [sys.executable, "-m", "depthkit", "predict", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_same_bytes_and_a_list_of_what_is_bad(engine: Path, pictures: Path, cli: Cli) -> None:
    cli("predict", engine, pictures, "--out", "plain")
    (pictures / "bad.png").write_bytes(b"no picture")
    said = predict(engine, f"file://{pictures}/*.png", "--out", "ray", "--ray", "local", code=2)
    assert f"workers on Ray: {os.cpu_count()}, each with 1 core" in said
    assert "20 of 21 pictures written" in said
    assert "1 picture was not computed; ray/failed.csv says why" in said
    assert "01_depth[.png|16.png|.npy]" in said
    assert results(Path("ray")) == results(Path("plain"))
    with Path("ray/failed.csv").open(newline="") as stream:
        head, row = csv.reader(stream)
    assert head == ["picture", "reason"]
    assert row[0] == f"file://{pictures}/bad.png"
    assert not list(Path("ray").glob(".tmp-*"))
    assert not list(Path("home").rglob("*auth*"))


class _Running:
    """The command in a process of its own."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*INTERRUPTIBLE, "predict", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment() | variables,
        )

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that compute."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "MapWorker" in " ".join(child.cmdline())]

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        said, _ = self.process.communicate(timeout=300)
        return self.process.returncode, said


@pytest.fixture
def many(here: Path) -> Path:
    """A folder of pictures that take a while."""
    for index in range(60):
        save_noise(here / "many" / f"{index:02d}.png", 700, 900, seed=index)
    return here / "many"


def wait_for_results(folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(folder.glob("*_depth.npy"))) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_worker_that_is_killed_changes_no_byte(engine: Path, many: Path, cli: Cli) -> None:
    cli("predict", engine, many, "--out", "plain")
    running = _Running(engine, many, "--out", "ray", "--ray=local")
    wait_for_results(Path("ray"), 10)
    running.workers()[0].send_signal(signal.SIGKILL)
    code, said = running.end()
    assert code == 0, said
    assert results(Path("ray")) == results(Path("plain"))
    assert not list(Path("ray").glob(".tmp-*"))
    assert "60 of 60 pictures written" in said or "were written before" in said


@pytest.mark.slow
def test_interrupted_command_goes_on_where_it_was(engine: Path, many: Path, cli: Cli) -> None:
    cli("predict", engine, many, "--out", "plain")
    running = _Running(engine, many, "--out", "ray", "--ray=local")
    wait_for_results(Path("ray"), 10)
    running.process.send_signal(signal.SIGINT)
    code, said = running.end()
    assert code == 130, said
    written = {path: path.stat().st_mtime_ns for path in Path("ray").glob("*_depth.npy")}
    assert 10 <= len(written) < 60
    said = predict(engine, many, "--out", "ray", "--ray=local")
    assert "were written before" in said
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in written.items()) >= len(written) - 2
    assert results(Path("ray")) == results(Path("plain"))


@pytest.mark.slow
def test_picture_that_kills_every_worker_is_a_row(engine: Path, pictures: Path, tmp_path: Path) -> None:
    """A plug-in of Pillow that crashes stands in for a decoder that does, or for too little memory."""
    plug_in = """
import os
from PIL import Image, ImageFile

class Crash(ImageFile.ImageFile):
    format = "HEIF"
    def _open(self):
        os.abort()

def register_heif_opener():
    Image.register_open("HEIF", Crash, lambda start: start == b"crash" + bytes(11))
    Image.register_extension("HEIF", ".heif")
"""
    (tmp_path / "plug-in").mkdir()
    (tmp_path / "plug-in" / "pillow_heif.py").write_text(plug_in)
    (pictures / "05.heif").write_bytes(b"crash" + bytes(100))
    path = os.pathsep.join([str(tmp_path / "plug-in"), os.environ.get("PYTHONPATH", "")])
    code, said = _Running(engine, pictures, "--out", "ray", "--ray=local", PYTHONPATH=path).end()
    assert code == 2, said
    assert len(list(Path("ray").glob("*_depth.npy"))) == 20
    with Path("ray/failed.csv").open(newline="") as stream:
        _, (picture, reason) = csv.reader(stream)
    assert picture == str(pictures / "05.heif")
    assert "every worker died of it" in reason


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster that was started before."""
    ray, port = Path(sys.executable).with_name("ray"), 6399
    start: list[str | Path] = [ray, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    options = ["--include-dashboard=false", "--disable-usage-stats"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    subprocess.run([*start, *options], check=True, capture_output=True, env=environment(), timeout=120)
    yield f"127.0.0.1:{port}"
    subprocess.run([ray, "stop", "--force"], check=False, capture_output=True, timeout=120)


@pytest.mark.slow
def test_cluster_that_runs_already_is_joined_and_left_running(
    engine: Path, pictures: Path, cluster: str, cli: Cli
) -> None:
    cli("predict", engine, pictures, "--out", "plain")
    for address in (cluster, "auto"):
        said = predict(engine, pictures, "--out", address.replace(":", "-"), "--ray", address)
        assert "20 of 20 pictures written" in said
        assert results(Path(address.replace(":", "-"))) == results(Path("plain"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "pictures"], "'pictures' is not the address of a Ray cluster"),
        (["--ray", "ray://127.0.0.1:10001"], "does not run through Ray Client"),
        (["--ray", "127.0.0.1:9"], "nothing answers at 127.0.0.1:9"),
        (["--smooth", "--ray"], "--smooth is for clips"),
        (["--fps", "nan", "--ray"], "nan"),
        (["--save", "color-video", "--ray"], "--ray is for pictures"),
        (["--colormap", "none", "--ray"], "none"),
        (["--out", "a.png", "--ray"], "is the name of a file"),
    ],
)
def test_refused_before_anything_is_written(
    engine: Path, pictures: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    before = sorted(Path().rglob("*"))
    assert words in cli("predict", engine, pictures, *arguments, code=2).message
    assert sorted(Path().rglob("*")) == before


def test_missing_ray_is_named(engine: Path, pictures: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = cli("predict", engine, pictures, "--ray", code=2).message
    assert "pip install 'depthkit[ray]'" in message


def test_predict_without_ray_does_not_import_it(engine: Path, pictures: Path) -> None:
    _, loaded = run_cli_alone("predict", engine, pictures / "00.png")
    assert not {"ray", "pyarrow", "pandas"} & loaded
