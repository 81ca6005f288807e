"""The manifest: read back exactly, and strictly."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthkit.documents import from_json, to_json
from depthkit.engines.build import rebuild_command
from depthkit.engines.manifest import Layer, Manifest, manifest_path, read_manifest, write_manifest
from depthkit.errors import EngineError, OutputError, SpecError
from depthkit.files import sha256_text

from ..support import Place, at, before_answers, before_camera, before_focal, places

KEEPS_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(max_size=12)


def _objects(document: Any) -> list[Place]:
    """Where the JSON objects are; `options` belong to the vendor and have keys of their own."""
    return [path for path, node in places(document) if isinstance(node, dict) and path != ("options",)]


CHANGES = st.fixed_dictionaries({
    "layers": st.lists(st.builds(Layer, TEXTS, TEXTS, TEXTS, TEXTS), max_size=4).map(tuple),
    "layers_from": st.sampled_from(["engine", "network"]),
    "options": st.dictionaries(TEXTS, TEXTS | st.integers(-(2**60), 2**60) | st.booleans(), max_size=4),
    "build_seconds": st.floats(0, 1e6),
    "engine_sha256": st.text("0123456789abcdef", min_size=64, max_size=64),
    "onnx": TEXTS,
})  # fmt: skip


@given(changes=CHANGES)
@KEEPS_FIXTURES
def test_manifest_round_trips(manifest: Manifest, changes: dict[str, Any]) -> None:
    changed = replace(manifest, **changes).sealed()
    found = from_json(Manifest, to_json(changed), source="it")
    assert found == changed == found.sealed()
    assert [type(value) for value in found.options.values()] == [type(value) for value in changes["options"].values()]


def test_manifest_stands_beside_its_engine(manifest: Manifest, tmp_path: Path) -> None:
    engine = tmp_path / "a.fp16.ort.onnx"
    engine.write_bytes(b"engine")
    write_manifest(engine, manifest)
    assert manifest_path(engine) == tmp_path / "a.fp16.ort.onnx.json"
    assert read_manifest(engine) == manifest
    assert engine.read_bytes() == b"engine", "nothing is prepended"


@given(data=st.data())
@KEEPS_FIXTURES
def test_dropped_key_is_named(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(to_json(manifest))
    path = data.draw(st.sampled_from(_objects(document)))
    key = data.draw(st.sampled_from(sorted(at(document, path))))
    del at(document, path)[key]
    with pytest.raises(SpecError) as caught:
        from_json(Manifest, json.dumps(document), source="it")
    assert key.replace("_", " ") in str(caught.value).replace("_", " ")


@given(data=st.data(), key=st.text(min_size=1, max_size=8))
@KEEPS_FIXTURES
def test_unknown_key_is_refused(manifest: Manifest, data: st.DataObject, key: str) -> None:
    document = json.loads(to_json(manifest))
    node = at(document, data.draw(st.sampled_from(_objects(document))))
    if key in node:
        return
    node[key] = data.draw(st.sampled_from([None, 1, "x", copy.deepcopy(node)]))
    with pytest.raises(SpecError, match="it does not fit its schema"):
        from_json(Manifest, json.dumps(document), source="it")


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_invalid_hash_is_refused(manifest: Manifest, digest: str) -> None:
    document = {**json.loads(to_json(manifest)), "engine_sha256": digest}
    with pytest.raises(SpecError, match="engine_sha256"):
        from_json(Manifest, json.dumps(document), source="it")


def test_missing_or_unreadable_manifest_is_named(manifest: Manifest, tmp_path: Path) -> None:
    engine = tmp_path / "a.ort.onnx"
    with pytest.raises(EngineError, match=r"no engine .*a\.ort\.onnx.*depthkit export"):
        read_manifest(engine)
    engine.touch()
    with pytest.raises(EngineError, match=r"no manifest a\.ort\.onnx\.json"):
        read_manifest(engine)
    manifest_path(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match=r"a\.ort\.onnx\.json cannot be read"):
        read_manifest(engine)
    manifest_path(engine).write_text("{")
    with pytest.raises(SpecError, match=r"a\.ort\.onnx\.json is not JSON"):
        read_manifest(engine)


def test_manifest_of_another_schema_version_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    engine = tmp_path / "a.ort.onnx"
    engine.touch()
    manifest_path(engine).write_text(json.dumps({**json.loads(to_json(manifest)), "schema_version": 1}))
    with pytest.raises(SpecError, match=r"version 1\b.*version 7\b"):
        read_manifest(engine)


def _of_version(version: int, manifest: Manifest) -> dict[str, Any]:
    """A manifest of version 4 to 6, with the seal of its time."""
    document = json.loads(to_json(manifest))
    older = {4: before_focal, 5: before_camera, 6: before_answers}[version]
    document.update(model=older(to_json(manifest.model)), schema_version=version, seal="")
    return {**document, "seal": sha256_text(to_json(document))}


@pytest.mark.parametrize("version", [4, 5, 6])
@given(changes=CHANGES)
@KEEPS_FIXTURES
def test_older_manifest_is_read_and_its_seal_still_holds(
    manifest: Manifest, version: int, changes: dict[str, Any]
) -> None:
    written = replace(manifest, **changes)
    old = _of_version(version, written)
    with TemporaryDirectory() as folder:
        engine = Path(folder) / "a.ort.onnx"
        engine.touch()
        manifest_path(engine).write_text(json.dumps(old))
        found = read_manifest(engine)
        focal = None if version == 4 else written.model.focal
        assert found == replace(written, model=replace(written.model, focal=focal)).sealed()
        manifest_path(engine).write_text(json.dumps({**old, "created": "yesterday"}))
        with pytest.raises(EngineError, match="edited"):
            read_manifest(engine)


def _leaves(document: Any) -> list[Place]:
    """Where the values are that are neither object nor list."""
    return [path for path, node in places(document) if not isinstance(node, dict | list)]


@given(data=st.data())
@KEEPS_FIXTURES
def test_edited_value_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    """By the seal where the value fits the schema, else by the schema."""
    document = json.loads(to_json(manifest))
    path = data.draw(st.sampled_from(_leaves(document)))
    node, key = at(document, path[:-1]), path[-1]
    kinds = {str: st.text(), int: st.integers(0, 2**40), float: st.floats(0, 1e6), type(None): st.text()}
    node[key] = data.draw(kinds[type(node[key])].filter(lambda value: value != node[key]))
    with TemporaryDirectory() as folder:
        engine = Path(folder) / "a.ort.onnx"
        engine.touch()
        manifest_path(engine).write_text(json.dumps(document))
        with pytest.raises((EngineError, SpecError), match=r"a\.ort\.onnx\.json"):
            read_manifest(engine)


def test_edited_manifest_is_refused_and_a_reformatted_one_accepted(manifest: Manifest, tmp_path: Path) -> None:
    engine = tmp_path / "a.ort.onnx"
    engine.touch()
    document = json.loads(to_json(manifest))
    manifest_path(engine).write_text(json.dumps(document, sort_keys=True))
    assert read_manifest(engine) == manifest
    manifest_path(engine).write_text(json.dumps({**document, "precision_found": "fp16"}))
    with pytest.raises(EngineError, match=r"a\.ort\.onnx\.json was edited; .*depthkit export"):
        read_manifest(engine)
    manifest_path(engine).write_text(json.dumps({**document, "seal": ""}))
    with pytest.raises(EngineError, match="edited"):
        read_manifest(engine)


def test_unwritable_manifest_is_an_output_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_manifest(tmp_path / "file" / "a.ort.onnx", manifest)


def test_rebuild_command_has_the_options_that_differ_from_the_defaults(manifest: Manifest) -> None:
    engine = Path("a.ort.onnx")
    words = rebuild_command(engine, manifest).split()
    assert words[:2] == ["depthkit", "export"]
    assert words[3:] == ["--backend", "onnxruntime", "-o", "threads=2"]
    assert " -o " not in rebuild_command(engine, replace(manifest, options={"threads": 0}))
