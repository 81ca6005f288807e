"""`depthkit engines`: list, inspect and prune."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthkit.documents import from_json
from depthkit.engines.build import BuildOptions, build
from depthkit.engines.manifest import Layer, Manifest, manifest_path, read_manifest, write_manifest
from depthkit.engines.store import Entry, Store

from ..support import STEM, Cli, Pretend, truncate


@pytest.fixture
def kept(store: Store, exports: Path) -> Store:
    """A store with three engines: null in FP32 and FP16, ONNX Runtime in FP32."""
    for precision, backend in (("fp32", "null"), ("fp16", "null"), ("fp32", "onnxruntime")):
        build(exports / f"{STEM}.{precision}.onnx", BuildOptions(backend))
    return store


def _entry(store: Store, backend: str, precision: str = "fp32") -> Entry:
    wanted = (backend, precision)
    (found,) = (each for each in store.entries() if (each.manifest.backend, each.manifest.precision_asked) == wanted)
    return found


def _age(entry: Entry, days: float) -> None:
    os.utime(entry.engine.parent, (time.time() - days * 86_400,) * 2)


def test_list_shows_one_engine_per_line(kept: Store, cli: Cli) -> None:
    lines = cli("engines", "list").out.splitlines()
    for entry in kept.entries():
        (line,) = [line for line in lines if entry.key[:8] in line]
        manifest = entry.manifest
        words = ("compact 32x48", manifest.backend, manifest.backend_version, manifest.precision_found)
        assert all(word in line for word in words)
    assert "3 engines" in lines[-1]
    assert str(kept.root) in lines[-1]


def test_list_in_json_is_last_used_first(kept: Store, cli: Cli) -> None:
    _age(_entry(kept, "onnxruntime"), 1)
    _age(_entry(kept, "null", "fp16"), 2)
    found = json.loads(cli("engines", "list", "--json").out)
    assert [one["backend"] for one in found] == ["null", "onnxruntime", "null"]
    for one, entry in zip(found, kept.entries(), strict=True):
        assert (one["key"], one["engine"], one["used"]) == (entry.key, str(entry.engine), entry.used)
        assert one["bytes"] == Path(one["engine"]).stat().st_size


def test_list_skips_broken_engines(kept: Store, cli: Cli) -> None:
    manifest_path(_entry(kept, "onnxruntime").engine).unlink()
    assert {one["backend"] for one in json.loads(cli("engines", "list", "--json").out)} == {"null"}


def test_empty_store_is_no_error(store: Store, cli: Cli) -> None:
    assert "0 engines" in cli("engines", "list").out
    assert json.loads(cli("engines", "list", "--json").out) == []
    assert "removed 0 engines" in cli("engines", "prune").out
    assert "removed 0 engines" in cli("engines", "prune", "--all").out
    assert "no engines" in cli("engines", "inspect", "a", code=2).err
    assert not store.root.exists()


def test_inspect_shows_manifest_and_layers_of_a_file(kept: Store, exports: Path, cli: Cli) -> None:
    engine = exports / f"{STEM}.fp32.ort.onnx"
    manifest = read_manifest(engine)
    text = cli("engines", "inspect", engine).out
    device = manifest.device
    for word in (
        *("compact 32x48", "1.22 M parameters", f"onnxruntime {manifest.backend_version}", device.architecture),
        *("fp32 (fp32 was asked for)", "threads=0", manifest.created, manifest.onnx),
        *(manifest.engine_sha256, manifest.onnx_sha256, manifest.weights_sha256),
    ):
        assert word in text, word
    assert manifest.model.describe_camera() in " ".join(text.split())
    assert f"{len(manifest.layers)} layers, read from the built engine" in text
    assert all(layer.operator in text for layer in manifest.layers)
    assert kept.entries()


def test_inspect_shows_tactics_and_escapes_names(kept: Store, exports: Path, cli: Cli) -> None:
    engine = exports / f"{STEM}.fp32.null"
    layers = (Layer("[red]one[/red]", "FusedConv", "int8", "winograd_9000"),)
    write_manifest(engine, replace(read_manifest(engine), layers=layers, layers_from="network"))
    text = cli("engines", "inspect", engine).out
    assert "1 layers, read from the strongly typed network" in text
    assert all(word in text for word in ("[red]one[/red]", "FusedConv", "int8", "winograd_9000"))
    assert kept.entries()


@pytest.mark.parametrize("digits", [8, 24])
def test_inspect_takes_the_first_digits_of_a_key(kept: Store, cli: Cli, digits: int) -> None:
    for entry in kept.entries():
        text = cli("engines", "inspect", entry.key[:digits]).out
        assert entry.manifest.engine_sha256 in text


def test_inspect_in_json_is_the_manifest(kept: Store, exports: Path, cli: Cli) -> None:
    engine, entry = exports / f"{STEM}.fp16.null", _entry(kept, "null", "fp16")
    for name, manifest in ((engine, read_manifest(engine)), (entry.key, entry.manifest)):
        text = cli("engines", "inspect", name, "--json").out
        assert from_json(Manifest, text, source="it") == manifest


def test_inspect_refuses_an_unknown_key(kept: Store, cli: Cli) -> None:
    for unknown in ("teleport", _entry(kept, "null").key + "0"):
        message = cli("engines", "inspect", unknown, code=2).err
        assert "no engines" in message
        assert unknown in message


def test_inspect_refuses_missing_and_damaged_files(exports: Path, cli: Cli) -> None:
    missing = "nowhere/compact.fp32.ort.onnx"
    assert f"there is no engine {missing}" in cli("engines", "inspect", missing, code=2).err
    engine = exports / f"{STEM}.fp32.ort.onnx"
    truncate(engine)
    message = cli("engines", "inspect", engine, code=2).err
    assert "SHA-256" in message
    assert "depthkit export" in message


def test_inspect_refuses_other_files_and_edited_manifests(kept: Store, exports: Path, cli: Cli) -> None:
    assert "manifest" in cli("engines", "inspect", exports / f"{STEM}.fp32.onnx", code=2).err
    manifest = manifest_path(exports / f"{STEM}.fp32.null")
    manifest.write_text(manifest.read_text().replace("fp32", "fp64"))
    assert manifest.name in cli("engines", "inspect", exports / f"{STEM}.fp32.null", code=2).err
    assert kept.entries()


def test_prune_keeps_engines_that_may_be_useful(kept: Store, cli: Cli, pretend: Pretend) -> None:
    assert "removed 0 engines (0.0 MiB) and 0 unfinished" in cli("engines", "prune").out
    old = _entry(kept, "onnxruntime")
    write_manifest(old.engine, replace(old.manifest, backend_version="0.0.1"))
    pretend({})
    assert "removed 0 engines" in cli("engines", "prune").out, "a backend may be installed again"
    assert len(kept.entries()) == 3


def test_prune_removes_unfinished_and_broken_engines(kept: Store, cli: Cli) -> None:
    manifest_path(_entry(kept, "null").engine).unlink()
    (kept.engines / (".unfinished-" + "0" * 24)).mkdir()
    assert "removed 0 engines (0.0 MiB) and 2 unfinished or broken ones" in cli("engines", "prune").out
    assert {path.name for path in kept.engines.iterdir()} == {entry.key for entry in kept.entries()}
    assert len(kept.entries()) == 2


@pytest.mark.parametrize(
    ("changed", "outdated"),
    [
        ({"backend_version": "0.0.1"}, True),
        ({"backend_version": "0.0.1", "options": {"threads": 1}}, True),
        ({"options": {"threads": 0, "teleport": True}}, True),
        ({"backend": "abacus"}, False),  # a newer depthkit may know it
    ],
    ids=["version", "version, options", "unknown option", "unknown backend"],
)
def test_prune_outdated_engines(kept: Store, exports: Path, cli: Cli, changed: dict[str, Any], outdated: bool) -> None:
    old = _entry(kept, "onnxruntime")
    write_manifest(old.engine, replace(old.manifest, **changed))
    megabytes = old.file_bytes / 2**20 if outdated else 0
    assert f"removed {int(outdated)} engines ({megabytes:.1f} MiB) and 0" in cli("engines", "prune").out
    assert len(kept.entries()) == 3 - outdated
    assert (exports / f"{STEM}.fp32.ort.onnx").is_file()


def test_prune_by_age(kept: Store, cli: Cli) -> None:
    _age(_entry(kept, "onnxruntime"), 31)
    _age(_entry(kept, "null"), 29)
    assert "removed 1 engines" in cli("engines", "prune", "--unused-for", "30").out
    assert {entry.manifest.backend for entry in kept.entries()} == {"null"}
    assert "removed 1 engines" in cli("engines", "prune", "--unused-for", "0.5").out
    assert len(kept.entries()) == 1
    assert "--unused-for" in cli("engines", "prune", "--unused-for", "-1", code=2).err


def test_prune_all_keeps_the_copies(kept: Store, exports: Path, cli: Cli) -> None:
    engine = exports / f"{STEM}.fp32.null"
    assert "removed 3 engines" in cli("engines", "prune", "--all").out
    assert kept.entries() == []
    assert engine.is_file()
    assert not build(exports / f"{STEM}.fp32.onnx", BuildOptions("null")).reused
