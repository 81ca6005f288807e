"""Several processes and one store: an engine is built once, and the remains of a killed build are never used."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from depthkit.engines.manifest import manifest_path
from depthkit.engines.store import Store, locked
from depthkit.errors import UserError
from depthkit.files import sha256

from ..support import build_null, contents, only_entry

BUILDER = """
import sys
from pathlib import Path
from depthkit.engines.build import BuildOptions, build
from depthkit.engines.null import NULL

original = NULL.build

def paused(onnx, engine, *rest):
    engine.write_text('{"dep')
    print("building", flush=True)
    sys.stdin.readline()
    return original(onnx, engine, *rest)

NULL.build = paused
made = build(Path(sys.argv[1]), BuildOptions("null"), lambda: print("waiting", flush=True))
print("found" if made.reused else "built", flush=True)
"""
"""Builds a null engine: prints its progress, and waits for a line on standard input in the middle."""

Process = subprocess.Popen[str]
Begin = Callable[[Path], Process]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a process that runs BUILDER."""
    with ExitStack() as stack:

        def start(path: Path) -> Process:
            command = [sys.executable, "-c", BUILDER, str(path)]
            process = stack.enter_context(
                subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)
            watchdog = threading.Timer(60, process.kill)  # for a process that prints nothing
            watchdog.daemon = True
            watchdog.start()
            stack.callback(watchdog.cancel)
            return process

        yield start


def _says(process: Process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def _go_on(process: Process) -> None:
    assert process.stdin
    process.stdin.write("go on\n")
    process.stdin.flush()


def _half(path: Path) -> Path:
    """The FP16 file beside an FP32 one."""
    return path.with_name(path.name.replace("fp32", "fp16"))


def _folders(store: Store) -> set[str]:
    return {path.name for path in store.engines.iterdir()}


def test_second_process_waits_and_reuses_the_engine(store: Store, onnx_file: Path, begin: Begin) -> None:
    first = begin(onnx_file)
    assert _says(first) == "building"
    second = begin(onnx_file)
    assert _says(second) == "waiting"
    assert store.entries() == []
    _go_on(first)
    assert _says(first) == "built"
    assert _says(second) == "found", "it never said that it is building"
    assert (first.wait(), second.wait()) == (0, 0)
    assert sha256(onnx_file.with_suffix(".null")) == only_entry(store).manifest.engine_sha256


def test_builders_of_different_engines_do_not_wait(store: Store, onnx_file: Path, begin: Begin) -> None:
    first, second = begin(onnx_file), begin(_half(onnx_file))
    assert _says(first) == _says(second) == "building"
    _go_on(first)
    _go_on(second)
    assert _says(first) == _says(second) == "built"
    assert len(store.entries()) == 2


def test_remains_of_a_killed_build_are_not_used(store: Store, onnx_file: Path, begin: Begin) -> None:
    beside = contents(onnx_file.parent)
    process = begin(onnx_file)
    assert _says(process) == "building"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (left,) = _folders(store)
    assert contents(store.engines) == {f"{left}/engine.null": b'{"dep'}
    assert store.entries() == []
    with pytest.raises(UserError, match="no engines"):
        store.named("")
    assert contents(onnx_file.parent) == beside
    assert not build_null(onnx_file).reused
    assert _folders(store) == {only_entry(store).key}
    assert sha256(only_entry(store).engine) == only_entry(store).manifest.engine_sha256
    assert build_null(onnx_file).reused


def test_waiting_process_builds_when_the_other_is_killed(store: Store, onnx_file: Path, begin: Begin) -> None:
    first = begin(onnx_file)
    assert _says(first) == "building"
    second = begin(onnx_file)
    assert _says(second) == "waiting"
    first.kill()
    assert _says(second) == "building"
    _go_on(second)
    assert _says(second) == "built"
    assert _folders(store) == {only_entry(store).key}


def test_remove_broken_keeps_builds_in_progress(store: Store, onnx_file: Path, begin: Begin) -> None:
    assert store.remove_broken() == 0
    killed, alive = begin(onnx_file), begin(_half(onnx_file))
    assert _says(killed) == _says(alive) == "building"
    killed.kill()
    killed.wait()
    assert len(_folders(store)) == 2
    assert store.remove_broken() == 1
    assert len(_folders(store)) == 1
    assert store.remove_broken() == 0
    _go_on(alive)
    assert _says(alive) == "built"
    assert only_entry(store).manifest.precision_asked == "fp16"
    assert store.remove_broken() == 0


def test_repaired_entry_is_not_removed(store: Store, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process builds it again between the look at the store and the lock."""
    build_null(onnx_file)
    manifest_path(only_entry(store).engine).unlink()
    acquire = FileLock.acquire

    def late(lock: FileLock, *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(FileLock, "acquire", acquire)
            build_null(onnx_file)
        return acquire(lock, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", late)
        assert store.remove_broken() == 0
    assert build_null(onnx_file).reused


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    waits, entered = threading.Event(), threading.Event()

    def second() -> None:
        with locked(tmp_path / "a", waits.set):
            entered.set()

    thread = threading.Thread(target=second)
    with locked(tmp_path / "a", lambda: pytest.fail("the lock is free")):
        thread.start()
        assert waits.wait(30)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
