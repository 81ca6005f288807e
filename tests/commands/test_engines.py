"""`depthkit engines`: what is in the store, what an engine is, and what is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from depthkit.cli import run as depthkit
from depthkit.documents import from_json
from depthkit.engines.build import BuildOptions, build
from depthkit.engines.manifest import Layer, Manifest, manifest_path, read_manifest, write_manifest
from depthkit.engines.store import Entry, Store

Captured = pytest.CaptureFixture[str]
STEM = "compact-32x48"


@pytest.fixture
def kept(store: Store, exports: Path) -> Store:
    """A store with three engines: null in FP32 and FP16, ONNX Runtime in FP32."""
    for precision, backend in (("fp32", "null"), ("fp16", "null"), ("fp32", "onnxruntime")):
        build(exports / f"{STEM}.{precision}.onnx", BuildOptions(backend))
    return store


def _entry(store: Store, backend: str, precision: str = "fp32") -> Entry:
    (found,) = [
        entry
        for entry in store.entries()
        if (entry.manifest.backend, entry.manifest.precision_asked) == (backend, precision)
    ]
    return found


def _printed(arguments: list[str], capsys: Captured) -> str:
    """Run, require success, and return standard output."""
    capsys.readouterr()
    assert depthkit(["engines", *arguments]) == 0
    return capsys.readouterr().out


def _refused(arguments: list[str], capsys: Captured) -> str:
    """Run, require exit code 2, and return the message."""
    capsys.readouterr()
    assert depthkit(["engines", *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def _age(entry: Entry, days: float) -> None:
    os.utime(entry.engine.parent, (time.time() - days * 86_400,) * 2)


def test_list_shows_every_engine_on_a_line_of_its_own(kept: Store, capsys: Captured) -> None:
    lines = _printed(["list"], capsys).splitlines()
    for entry in kept.entries():
        (line,) = [line for line in lines if entry.key[:8] in line]
        manifest = entry.manifest
        words = ("compact 32x48", manifest.backend, manifest.backend_version, manifest.precision_found)
        assert all(word in line for word in words)
    assert "3 engines" in lines[-1]
    assert str(kept.root) in lines[-1]


def test_list_in_json_is_last_used_first(kept: Store, capsys: Captured) -> None:
    _age(_entry(kept, "onnxruntime"), 1)
    _age(_entry(kept, "null", "fp16"), 2)
    found = json.loads(_printed(["list", "--json"], capsys))
    assert [one["backend"] for one in found] == ["null", "onnxruntime", "null"]
    for one, entry in zip(found, kept.entries(), strict=True):
        assert (one["key"], one["engine"], one["used"]) == (entry.key, str(entry.engine), entry.used)
        assert one["bytes"] == Path(one["engine"]).stat().st_size


def test_list_leaves_out_what_is_broken(kept: Store, capsys: Captured) -> None:
    manifest_path(_entry(kept, "onnxruntime").engine).unlink()
    assert {one["backend"] for one in json.loads(_printed(["list", "--json"], capsys))} == {"null"}


def test_empty_store_is_no_error(store: Store, capsys: Captured) -> None:
    assert "0 engines" in _printed(["list"], capsys)
    assert json.loads(_printed(["list", "--json"], capsys)) == []
    assert "removed 0 engines" in _printed(["prune"], capsys)
    assert "removed 0 engines" in _printed(["prune", "--all"], capsys)
    assert "no engines" in _refused(["inspect", "a"], capsys)
    assert not store.root.exists(), "looking makes nothing"


def test_inspect_shows_manifest_and_layers_of_a_file(kept: Store, exports: Path, capsys: Captured) -> None:
    engine = exports / f"{STEM}.fp32.ort.onnx"
    manifest = read_manifest(engine)
    text = _printed(["inspect", str(engine)], capsys)
    device = manifest.device
    for word in (
        *("compact 32x48", "1.22 M parameters", f"onnxruntime {manifest.backend_version}", device.architecture),
        *("fp32 (fp32 was asked for)", "threads=0", manifest.created, manifest.onnx),
        *(manifest.engine_sha256, manifest.onnx_sha256, manifest.weights_sha256),
    ):
        assert word in text, word
    assert f"{len(manifest.layers)} layers, read from the built engine" in text
    assert all(layer.operator in text for layer in manifest.layers)
    assert kept.entries()


def test_inspect_shows_tactics_and_where_layers_were_read_and_takes_no_name_for_markup(
    kept: Store, exports: Path, capsys: Captured
) -> None:
    engine = exports / f"{STEM}.fp32.null"
    layers = (Layer("[red]one[/red]", "FusedConv", "int8", "winograd_9000"),)
    write_manifest(engine, replace(read_manifest(engine), layers=layers, layers_from="network"))
    text = _printed(["inspect", str(engine)], capsys)
    assert "1 layers, read from the strongly typed network" in text
    assert all(word in text for word in ("[red]one[/red]", "FusedConv", "int8", "winograd_9000"))
    assert kept.entries()


@pytest.mark.parametrize("digits", [8, 24])
def test_inspect_takes_a_key_or_how_it_begins(kept: Store, capsys: Captured, digits: int) -> None:
    for entry in kept.entries():
        text = _printed(["inspect", entry.key[:digits]], capsys)
        assert entry.manifest.engine_sha256 in text


def test_inspect_in_json_is_the_manifest(kept: Store, exports: Path, capsys: Captured) -> None:
    engine, entry = exports / f"{STEM}.fp16.null", _entry(kept, "null", "fp16")
    for name, manifest in ((str(engine), read_manifest(engine)), (entry.key, entry.manifest)):
        text = _printed(["inspect", name, "--json"], capsys)
        assert from_json(Manifest, text, source="it") == manifest


def test_inspect_refuses_a_key_that_is_unknown_or_of_several_engines(kept: Store, capsys: Captured) -> None:
    entry = _entry(kept, "null")
    twin = entry.key[:-1] + ("1" if entry.key.endswith("0") else "0")
    shutil.copytree(entry.engine.parent, entry.engine.parent.with_name(twin))
    message = _refused(["inspect", entry.key[:-1]], capsys)
    assert "2 engines" in message
    assert "engines list" in message
    assert twin in _printed(["list", "--json"], capsys)
    for unknown in ("teleport", entry.key + "0"):
        message = _refused(["inspect", unknown], capsys)
        assert "no engines" in message
        assert unknown in message


def test_inspect_of_a_file_that_is_not_there_or_was_cut_says_so(exports: Path, capsys: Captured) -> None:
    assert "there is no engine nowhere/compact.fp32.ort.onnx" in _refused(
        ["inspect", "nowhere/compact.fp32.ort.onnx"], capsys
    )
    engine = exports / f"{STEM}.fp32.ort.onnx"
    engine.write_bytes(engine.read_bytes()[:1000])
    message = _refused(["inspect", str(engine)], capsys)
    assert "SHA-256" in message
    assert "depthkit export" in message


def test_inspect_refuses_a_file_that_is_no_engine_or_was_edited(kept: Store, exports: Path, capsys: Captured) -> None:
    assert "manifest" in _refused(["inspect", str(exports / f"{STEM}.fp32.onnx")], capsys)
    manifest = manifest_path(exports / f"{STEM}.fp32.null")
    manifest.write_text(manifest.read_text().replace("fp32", "fp64"))
    assert manifest.name in _refused(["inspect", str(exports / f"{STEM}.fp32.null")], capsys)
    assert kept.entries()


def test_prune_keeps_what_can_be_of_use(kept: Store, capsys: Captured, pretend: Callable[..., None]) -> None:
    assert "removed 0 engines (0.0 MiB) and 0 unfinished" in _printed(["prune"], capsys)
    pretend({})
    assert "removed 0 engines" in _printed(["prune"], capsys), "a backend may be installed again"
    assert len(kept.entries()) == 3


def test_prune_removes_what_a_killed_build_left_and_what_is_broken(kept: Store, capsys: Captured) -> None:
    manifest_path(_entry(kept, "null").engine).unlink()
    (kept.engines / (".unfinished-" + "0" * 24)).mkdir()
    assert "removed 0 engines (0.0 MiB) and 2 unfinished or broken ones" in _printed(["prune"], capsys)
    assert {path.name for path in kept.engines.iterdir()} == {entry.key for entry in kept.entries()}
    assert len(kept.entries()) == 2


def test_prune_removes_engines_of_versions_that_are_gone(kept: Store, exports: Path, capsys: Captured) -> None:
    old = _entry(kept, "onnxruntime")
    write_manifest(old.engine, replace(old.manifest, backend_version="0.0.1"))
    megabytes = old.file_bytes / 2**20
    assert f"removed 1 engines ({megabytes:.1f} MiB) and 0" in _printed(["prune"], capsys)
    assert {entry.manifest.backend for entry in kept.entries()} == {"null"}
    assert (exports / f"{STEM}.fp32.ort.onnx").is_file()


def test_prune_removes_an_engine_whose_options_this_depthkit_does_not_know(kept: Store, capsys: Captured) -> None:
    old = _entry(kept, "onnxruntime")
    write_manifest(old.engine, replace(old.manifest, options={"threads": 0, "teleport": True}))
    assert "removed 1 engines" in _printed(["prune"], capsys)


def test_prune_by_age_removes_only_what_is_older(kept: Store, capsys: Captured) -> None:
    _age(_entry(kept, "onnxruntime"), 31)
    _age(_entry(kept, "null"), 29)
    assert "removed 1 engines" in _printed(["prune", "--unused-for", "30"], capsys)
    assert {entry.manifest.backend for entry in kept.entries()} == {"null"}
    assert "removed 1 engines" in _printed(["prune", "--unused-for", "0.5"], capsys)
    assert len(kept.entries()) == 1
    assert "--unused-for" in _refused(["prune", "--unused-for", "-1"], capsys)


def test_prune_all_empties_the_store_and_leaves_copies(kept: Store, exports: Path, capsys: Captured) -> None:
    engine = exports / f"{STEM}.fp32.null"
    assert "removed 3 engines" in _printed(["prune", "--all"], capsys)
    assert kept.entries() == []
    assert engine.is_file()
    assert not build(exports / f"{STEM}.fp32.onnx", BuildOptions("null")).reused


@pytest.mark.parametrize("part", ["list", "inspect", "prune"])
def test_every_part_has_help(part: str, capsys: Captured) -> None:
    assert "Usage: depthkit engines" in _printed([part, "--help"], capsys)
