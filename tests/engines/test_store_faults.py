"""Damage, a full disk, a store that cannot be written: what is broken is built again, and what was whole stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthkit.engines.build import BuildOptions, BuiltEngine, build
from depthkit.engines.manifest import Manifest, manifest_path, read_manifest, write_manifest
from depthkit.engines.null import NULL
from depthkit.engines.store import Entry, Store
from depthkit.errors import BackendError, OutputError
from depthkit.files import sha256

FULL_DISK = """
import resource, sys
from pathlib import Path
from depthkit.engines.build import BuildOptions, build
from depthkit.errors import OutputError

path, backend, size, *rebuild = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
try:
    build(Path(path), BuildOptions(backend, rebuild=bool(rebuild)))
except OutputError as error:
    print(error)
"""
"""Builds where no file can be larger than so many bytes, and prints what is said then."""


def _build(path: Path, **options: Any) -> BuiltEngine:
    return build(path, BuildOptions("null", **options))


def _on_full_disk(path: Path, backend: str, *arguments: object) -> str:
    """What is said where files cannot be larger, see FULL_DISK."""
    command = [sys.executable, "-c", FULL_DISK, str(path), backend, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def _only(store: Store) -> Entry:
    (entry,) = store.entries()
    return entry


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _edit(engine: Path) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision_found": "fp16"}))


def _swap(engine: Path) -> None:
    write_manifest(engine, replace(read_manifest(engine), engine_sha256="0" * 64))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "one bit": _flip,
    "emptied": lambda engine: engine.write_bytes(b""),
    "gone": Path.unlink,
    "manifest gone": lambda engine: manifest_path(engine).unlink(),
    "manifest truncated": lambda engine: _truncate(manifest_path(engine)),
    "manifest edited": _edit,
    "manifest of another": _swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_engine_in_the_store_is_built_again(store: Store, onnx_file: Path, damage: str) -> None:
    whole = _build(onnx_file)
    DAMAGES[damage](_only(store).engine)
    again = _build(onnx_file)
    assert not again.reused
    assert [path.name for path in store.engines.iterdir()] == [_only(store).key]
    assert _only(store).engine.read_bytes() == again.path.read_bytes() == whole.path.read_bytes()
    assert _build(onnx_file).reused


def test_entry_of_two_engines_is_built_again(store: Store, onnx_file: Path) -> None:
    _build(onnx_file)
    shutil.copyfile(_only(store).engine, _only(store).engine.with_name("engine.other"))
    assert store.entries() == []
    assert not _build(onnx_file).reused
    assert _only(store).engine.name == "engine.null"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_engine_beside_the_onnx_file_is_put_right_from_the_store(
    store: Store, onnx_file: Path, damage: str
) -> None:
    whole = _build(onnx_file)
    before = _contents(onnx_file.parent)
    DAMAGES[damage](whole.path)
    assert _contents(onnx_file.parent) != before
    assert _build(onnx_file) == replace(whole, reused=True)
    assert _contents(onnx_file.parent) == before


def test_edit_of_an_engine_beside_the_onnx_file_does_not_reach_the_store(store: Store, onnx_file: Path) -> None:
    with _build(onnx_file).path.open("r+b") as stream:
        stream.write(b"edited")
    assert sha256(_only(store).engine) == _only(store).manifest.engine_sha256


def test_stray_file_in_the_store_is_no_engine(store: Store, onnx_file: Path) -> None:
    _build(onnx_file)
    (store.engines / "notes.txt").write_text("mine")
    assert len(store.entries()) == 1
    assert store.remove_broken() == 0
    assert (store.engines / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fault", [BackendError("refused"), KeyboardInterrupt(), ZeroDivisionError()])
def test_failed_build_keeps_the_engine_that_was_there(
    store: Store, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(_: Path, engine: Path, *__: object) -> None:
        engine.write_text("half")
        raise fault

    _build(onnx_file)
    before = _contents(onnx_file.parent), _contents(store.root)
    with monkeypatch.context() as patch:
        patch.setattr(NULL, "build", fail)
        with pytest.raises(type(fault)) as caught:
            _build(onnx_file, rebuild=True)
    assert caught.value is fault
    assert (_contents(onnx_file.parent), _contents(store.root)) == before


@pytest.mark.parametrize(
    ("backend", "limit"),
    [("null", 10), ("null", 1000), ("onnxruntime", 100_000), ("openvino", 100_000)],
    ids=["engine", "manifest", "engine of ONNX Runtime", "engine of OpenVINO"],
)
def test_full_disk_names_the_variable_and_loses_nothing(
    store: Store, onnx_file: Path, backend: str, limit: int
) -> None:
    """The kernel refuses to write on, as it does where no space is left."""
    build(onnx_file, BuildOptions(backend))
    before = _contents(onnx_file.parent), _contents(store.root)
    said = _on_full_disk(onnx_file, backend, limit, "rebuild")
    assert "DEPTHKIT_STORE" in said
    assert str(store.root) in said
    assert (_contents(onnx_file.parent), _contents(store.root)) == before


@pytest.mark.parametrize("place", ["", f"engines-{Manifest.schema_version}", "locks"])
def test_store_that_cannot_be_written_names_the_variable_and_loses_nothing(
    store: Store, onnx_file: Path, place: str
) -> None:
    """A file is in the folder's place: permissions hold nobody back who is root."""
    in_the_way = store.root / place
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    before = _contents(onnx_file.parent)
    with pytest.raises(OutputError, match=r"store.*DEPTHKIT_STORE"):
        _build(onnx_file)
    assert _contents(onnx_file.parent) == before
    assert store.entries() == []


@pytest.mark.parametrize("limit", [10, 1000], ids=["engine", "manifest"])
def test_full_disk_beside_the_onnx_file_keeps_the_pair_that_is_there(store: Store, onnx_file: Path, limit: int) -> None:
    """The store has the engine, so only the copy is written; another pair, which is whole, stands in its place."""
    engine = _build(onnx_file).path
    engine.write_text('{"depth_m": 1.0}')
    write_manifest(engine, replace(read_manifest(engine), engine_sha256=sha256(engine)))
    before = _contents(onnx_file.parent)
    assert str(onnx_file.parent) in _on_full_disk(onnx_file, "null", limit)
    assert _contents(onnx_file.parent) == before
    assert _build(onnx_file).reused
