"""Damage, a full disk, a read-only store: broken engines are built again, whole ones stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.engines.manifest import Manifest, manifest_path, read_manifest, write_manifest
from depthkit.engines.null import NULL
from depthkit.engines.store import Store
from depthkit.errors import BackendError, OutputError
from depthkit.files import sha256

from ..support import build_null, contents, edit_json, flip_bit, only_entry, run_code, truncate

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
"""Builds with a limit on the size of files, and prints the error."""


def _swap(engine: Path) -> None:
    write_manifest(engine, replace(read_manifest(engine), engine_sha256="0" * 64))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "one bit": flip_bit,
    "emptied": lambda engine: engine.write_bytes(b""),
    "gone": Path.unlink,
    "manifest gone": lambda engine: manifest_path(engine).unlink(),
    "manifest truncated": lambda engine: truncate(manifest_path(engine)),
    "manifest edited": lambda engine: edit_json(manifest_path(engine), precision_found="fp16"),
    "manifest of another": _swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_engine_in_the_store_is_rebuilt(store: Store, onnx_file: Path, damage: str) -> None:
    whole = build_null(onnx_file)
    DAMAGES[damage](only_entry(store).engine)
    again = build_null(onnx_file)
    assert not again.reused
    assert [path.name for path in store.engines.iterdir()] == [only_entry(store).key]
    assert only_entry(store).engine.read_bytes() == again.path.read_bytes() == whole.path.read_bytes()
    assert build_null(onnx_file).reused


def test_entry_with_two_engines_is_rebuilt(store: Store, onnx_file: Path) -> None:
    build_null(onnx_file)
    shutil.copyfile(only_entry(store).engine, only_entry(store).engine.with_name("engine.other"))
    assert store.entries() == []
    assert not build_null(onnx_file).reused
    assert only_entry(store).engine.name == "engine.null"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_copy_is_restored_from_the_store(store: Store, onnx_file: Path, damage: str) -> None:
    whole = build_null(onnx_file)
    before = contents(onnx_file.parent)
    DAMAGES[damage](whole.path)
    assert contents(onnx_file.parent) != before
    assert build_null(onnx_file) == replace(whole, reused=True)
    assert contents(onnx_file.parent) == before


def test_editing_the_copy_does_not_change_the_store(store: Store, onnx_file: Path) -> None:
    with build_null(onnx_file).path.open("r+b") as stream:
        stream.write(b"edited")
    assert sha256(only_entry(store).engine) == only_entry(store).manifest.engine_sha256


def test_unrelated_file_in_the_store_is_ignored(store: Store, onnx_file: Path) -> None:
    build_null(onnx_file)
    (store.engines / "notes.txt").write_text("mine")
    assert len(store.entries()) == 1
    assert store.remove_broken() == 0
    assert (store.engines / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fault", [BackendError("refused"), KeyboardInterrupt(), ZeroDivisionError()])
def test_failed_build_keeps_the_previous_engine(
    store: Store, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(_: Path, engine: Path, *__: object) -> None:
        engine.write_text("half")
        raise fault

    build_null(onnx_file)
    before = contents(onnx_file.parent), contents(store.root)
    with monkeypatch.context() as patch:
        patch.setattr(NULL, "build", fail)
        with pytest.raises(type(fault)) as caught:
            build_null(onnx_file, rebuild=True)
    assert caught.value is fault
    assert (contents(onnx_file.parent), contents(store.root)) == before


@pytest.mark.parametrize(
    ("backend", "limit"),
    [("null", 10), ("null", 1000), ("onnxruntime", 100_000), ("openvino", 100_000)],
    ids=["engine", "manifest", "engine of ONNX Runtime", "engine of OpenVINO"],
)
def test_full_disk_in_the_store_loses_nothing(store: Store, onnx_file: Path, backend: str, limit: int) -> None:
    build(onnx_file, BuildOptions(backend))
    before = contents(onnx_file.parent), contents(store.root)
    said = run_code(FULL_DISK, onnx_file, backend, limit, "rebuild")
    assert "DEPTHKIT_STORE" in said
    assert str(store.root) in said
    assert (contents(onnx_file.parent), contents(store.root)) == before


@pytest.mark.parametrize("place", ["", f"engines-{Manifest.schema_version}", "locks"])
def test_unwritable_store_names_the_variable_and_loses_nothing(store: Store, onnx_file: Path, place: str) -> None:
    """A file takes the folder's place: permissions do not stop root."""
    in_the_way = store.root / place
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    before = contents(onnx_file.parent)
    with pytest.raises(OutputError, match=r"store.*DEPTHKIT_STORE"):
        build_null(onnx_file)
    assert contents(onnx_file.parent) == before
    assert store.entries() == []


@pytest.mark.parametrize("limit", [10, 1000], ids=["engine", "manifest"])
def test_full_disk_keeps_the_previous_copy(store: Store, onnx_file: Path, limit: int) -> None:
    """The store has the engine, so only the copy is written, in the place of another engine."""
    engine = build_null(onnx_file).path
    engine.write_text('{"depth_m": 1.0}')
    write_manifest(engine, replace(read_manifest(engine), engine_sha256=sha256(engine)))
    before = contents(onnx_file.parent)
    assert str(onnx_file.parent) in run_code(FULL_DISK, onnx_file, "null", limit)
    assert contents(onnx_file.parent) == before
    assert build_null(onnx_file).reused
