"""The store: an engine is found by everything that it was built from."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic.dataclasses import dataclass

from depthkit.documents import STRICT
from depthkit.engines.backend import Availability
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import read_manifest
from depthkit.engines.null import NULL
from depthkit.engines.store import Store, store_root, timing_cache_path
from depthkit.errors import EngineError, UserError
from depthkit.files import sha256
from depthkit.onnx_graph import METADATA, graph_sha256

from ..support import STEM, build_null, contents, only_entry

DAY = 86_400


def test_store_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path / "s"))
    assert store_root() == Store().root == tmp_path / "s"
    assert tmp_path / "s" in timing_cache_path("a.cache").parents
    monkeypatch.delenv("DEPTHKIT_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_root() == tmp_path / "cache" / "depthkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_root() == tmp_path / ".cache" / "depthkit"


def test_unused_store_is_empty_and_not_created_by_reading(store: Store) -> None:
    assert store.entries() == []
    assert store.find("a" * 24) is None
    assert store.remove_broken() == 0
    assert not store.root.exists()


def test_renamed_onnx_file_reuses_the_engine(store: Store, onnx_file: Path, tmp_path: Path) -> None:
    first = build_null(onnx_file)
    elsewhere = tmp_path / "elsewhere" / "other.fp32.onnx"
    elsewhere.parent.mkdir()
    shutil.copyfile(onnx_file, elsewhere)
    second = build_null(elsewhere)
    assert (first.reused, second.reused) == (False, True)
    assert second.path == elsewhere.with_name("other.fp32.null")
    assert second.path.read_bytes() == first.path.read_bytes() == only_entry(store).engine.read_bytes()
    assert read_manifest(second.path) == second.manifest
    renamed = replace(first.manifest, onnx="other.fp32.onnx", reference="other.reference.npz")
    assert second.manifest == renamed.sealed()


def test_entry_is_the_engine_that_was_built(store: Store, onnx_file: Path) -> None:
    made = build_null(onnx_file)
    entry = only_entry(store)
    assert entry.manifest == made.manifest
    assert sha256(entry.engine) == sha256(made.path) == entry.manifest.engine_sha256
    assert entry.file_bytes == made.path.stat().st_size
    assert store.find(entry.key) == entry


def test_existing_copy_is_not_rewritten(store: Store, onnx_file: Path) -> None:
    engine = build_null(onnx_file).path
    before = engine.stat().st_ino, engine.stat().st_mtime_ns
    assert build_null(onnx_file).reused
    assert (engine.stat().st_ino, engine.stat().st_mtime_ns) == before


def test_rebuild_replaces_engine_and_manifest(store: Store, onnx_file: Path) -> None:
    build_null(onnx_file)
    key, names = only_entry(store).key, contents(onnx_file.parent).keys()
    made = build_null(onnx_file, rebuild=True)
    assert not made.reused
    assert only_entry(store).key == key
    assert contents(onnx_file.parent).keys() == names
    assert read_manifest(made.path) == made.manifest
    assert made.manifest.engine_sha256 == sha256(made.path)


@pytest.fixture(scope="module")
def tiny(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ONNX files of ours that differ in one attribute, each with the reference that a null engine is made of."""
    made = {}
    metadata = {entry.key: entry.value for entry in onnx.load(pristine_exports / f"{STEM}.fp32.onnx").metadata_props}
    for name, alpha in (("one", 0.25), ("other", 0.5)):
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 4]) for end in ("x", "y")]
        graph = helper.make_graph([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=alpha)], "g", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(model, metadata | {METADATA.graph_sha256: graph_sha256(model)})
        made[name] = tmp_path_factory.mktemp(name) / "a.fp32.onnx"
        onnx.save(model, made[name])
        shutil.copyfile(pristine_exports / f"{STEM}.reference.npz", made[name].with_name("a.reference.npz"))
    return made


@dataclass(frozen=True, config=STRICT)
class _Options:
    threads: int = 0
    hint: Literal["latency", "throughput"] = "latency"


INGREDIENTS: dict[str, st.SearchStrategy[Any]] = {
    "onnx": st.sampled_from(["one", "other"]),
    "backend": st.sampled_from(["null", "other"]),
    "version": st.sampled_from(["1.0", "1.0.1", "10.1"]),
    "device": st.builds(
        Fingerprint,
        st.sampled_from(["cpu", "gpu"]),
        st.sampled_from(["", "a"]),
        st.sampled_from(["b", "b b"]),
        st.sampled_from([(), ("b",)]),
    ),
    "options": st.builds(_Options, st.integers(0, 2), st.sampled_from(["latency", "throughput"])),
}


def _is_found(tiny: dict[str, Path], made_of: dict[str, Any]) -> bool:
    """Build an engine of this; whether the store had it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NULL, "name", made_of["backend"], raising=False)
        patch.setattr(NULL, "availability", lambda: Availability(made_of["version"], "is here"))
        patch.setattr(NULL, "target", lambda _: made_of["device"])
        patch.setattr(NULL, "options", _Options, raising=False)
        return build_null(tiny[made_of["onnx"]], vendor=NULL.record(made_of["options"])).reused


@given(made_of=st.fixed_dictionaries(INGREDIENTS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_engine_is_found_only_with_every_ingredient(
    tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, made_of: dict[str, Any], data: st.DataObject
) -> None:
    ingredient = data.draw(st.sampled_from(sorted(INGREDIENTS)))
    other = data.draw(INGREDIENTS[ingredient].filter(lambda value: value != made_of[ingredient]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPTHKIT_STORE", str(tmp_path_factory.mktemp("store")))
        assert not _is_found(tiny, made_of)
        assert not _is_found(tiny, {**made_of, ingredient: other}), f"another {ingredient} is another engine"
        assert _is_found(tiny, made_of)
        assert len(Store().entries()) == 2


@pytest.mark.parametrize("change", ["name", "weight"])
def test_changed_onnx_file_is_refused(store: Store, onnx_file: Path, change: str) -> None:
    build_null(onnx_file)
    model = onnx.load(onnx_file)
    if change == "name":
        model.graph.node[0].name = "edited"
    else:
        tensor = model.graph.initializer[0]
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(model, onnx_file)
    with pytest.raises(EngineError, match="changed since its export"):
        build_null(onnx_file)
    assert len(store.entries()) == 1


def test_entries_are_sorted_by_last_use(store: Store, onnx_file: Path) -> None:
    half = onnx_file.with_name(f"{STEM}.fp16.onnx")
    for path in (onnx_file, half):
        build_null(path)
    for entry in store.entries():
        os.utime(entry.engine.parent, (time.time() - 10 * DAY,) * 2)
    assert all(entry.unused_for(9.9) and not entry.unused_for(10.1) for entry in store.entries())
    for path, asked in ((onnx_file, "fp32"), (half, "fp16")):
        assert build_null(path).reused
        latest, _ = store.entries()
        assert latest.manifest.precision_asked == asked
        assert not latest.unused_for(0.01)
        os.utime(latest.engine.parent, (time.time() - DAY,) * 2)


def test_engine_is_found_by_the_first_digits_of_its_key(store: Store, onnx_file: Path) -> None:
    with pytest.raises(UserError, match=r"no engines in .*store.*engines list"):
        store.named("a")
    build_null(onnx_file)
    key = only_entry(store).key
    assert all(store.named(key[:digits]) == only_entry(store) for digits in (1, 8, len(key)))
    with pytest.raises(UserError, match="no engines"):
        store.named(key + "0")
    build_null(onnx_file.with_name(f"{STEM}.fp16.onnx"))
    with pytest.raises(UserError, match=r"2 engines.*begins with ''.*engines list"):
        store.named("")


def test_removing_an_entry_keeps_the_copy(store: Store, onnx_file: Path) -> None:
    engine = build_null(onnx_file).path
    store.remove(only_entry(store))
    assert store.entries() == []
    assert read_manifest(engine).engine_sha256 == sha256(engine)
    assert not build_null(onnx_file).reused
