"""The manifest: exact, strict, and the one who says whether an engine may be opened here."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthkit.documents import from_json, to_json
from depthkit.engines.backend import Availability
from depthkit.engines.build import rebuild_command, require_fit
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import Layer, Manifest, manifest_path, read_manifest, verify_file, write_manifest
from depthkit.engines.ort import CPU
from depthkit.errors import EngineError, OutputError, SpecError
from depthkit.files import sha256

KEEPS_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(max_size=12)


def _objects(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the JSON objects are; `options` belong to the vendor and have keys of their own."""
    if isinstance(node, dict) and path != ("options",):
        yield path
        for key, child in node.items():
            yield from _objects(child, (*path, key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _objects(child, (*path, index))


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@given(
    layers=st.lists(st.builds(Layer, TEXTS, TEXTS, TEXTS, TEXTS), max_size=4),
    layers_from=st.sampled_from(["engine", "network"]),
    options=st.dictionaries(TEXTS, TEXTS | st.integers(-(2**60), 2**60) | st.booleans(), max_size=4),
    seconds=st.floats(0, 1e6),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    name=TEXTS,
)
@KEEPS_FIXTURES
def test_manifest_comes_back_exactly(
    manifest: Manifest,
    layers: list[Layer],
    layers_from: Literal["engine", "network"],
    options: dict[str, str | int | bool],
    seconds: float,
    digest: str,
    name: str,
) -> None:
    changed = replace(
        manifest,
        layers=tuple(layers),
        layers_from=layers_from,
        options=options,
        build_seconds=seconds,
        engine_sha256=digest,
        onnx=name,
    ).sealed()
    found = from_json(Manifest, to_json(changed), source="it")
    assert found == changed == found.sealed()
    assert [type(value) for value in found.options.values()] == [type(value) for value in options.values()]


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
    path = data.draw(st.sampled_from(list(_objects(document))))
    key = data.draw(st.sampled_from(sorted(_at(document, path))))
    del _at(document, path)[key]
    with pytest.raises(SpecError) as caught:
        from_json(Manifest, json.dumps(document), source="it")
    assert key.replace("_", " ") in str(caught.value).replace("_", " ")


@given(data=st.data(), key=st.text(min_size=1, max_size=8))
@KEEPS_FIXTURES
def test_unknown_key_is_refused(manifest: Manifest, data: st.DataObject, key: str) -> None:
    document = json.loads(to_json(manifest))
    node = _at(document, data.draw(st.sampled_from(list(_objects(document)))))
    if key in node:
        return
    node[key] = data.draw(st.sampled_from([None, 1, "x", copy.deepcopy(node)]))
    with pytest.raises(SpecError, match="it does not fit its schema"):
        from_json(Manifest, json.dumps(document), source="it")


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_hash_that_is_none_is_refused(manifest: Manifest, digest: str) -> None:
    document = {**json.loads(to_json(manifest)), "engine_sha256": digest}
    with pytest.raises(SpecError, match="engine_sha256"):
        from_json(Manifest, json.dumps(document), source="it")


def test_missing_engine_and_missing_manifest_are_told_apart(manifest: Manifest, tmp_path: Path) -> None:
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
    with pytest.raises(SpecError, match=r"version 1\b.*version 4\b"):
        read_manifest(engine)


def _leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values are that are neither object nor list."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, (*path, key))
    else:
        yield path


@given(data=st.data())
@KEEPS_FIXTURES
def test_edited_value_is_refused_wherever_it_stands(manifest: Manifest, data: st.DataObject) -> None:
    """Where its new value fits the schema, the seal tells; else the schema does."""
    document = json.loads(to_json(manifest))
    path = data.draw(st.sampled_from(list(_leaves(document))))
    node, key = _at(document, path[:-1]), path[-1]
    kinds = {str: st.text(), int: st.integers(0, 2**40), float: st.floats(0, 1e6), type(None): st.text()}
    node[key] = data.draw(kinds[type(node[key])].filter(lambda value: value != node[key]))
    with TemporaryDirectory() as folder:
        engine = Path(folder) / "a.ort.onnx"
        engine.touch()
        manifest_path(engine).write_text(json.dumps(document))
        with pytest.raises((EngineError, SpecError), match=r"a\.ort\.onnx\.json"):
            read_manifest(engine)


def test_edited_manifest_says_how_to_mend_it_and_a_reformatted_one_is_not_edited(
    manifest: Manifest, tmp_path: Path
) -> None:
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


def test_manifest_that_cannot_be_written_is_an_output_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_manifest(tmp_path / "file" / "a.ort.onnx", manifest)


@pytest.fixture
def engine(manifest: Manifest, tmp_path: Path) -> tuple[Path, Manifest]:
    """An engine file that its manifest describes."""
    path = tmp_path / "a.ort.onnx"
    path.write_bytes(b"engine")
    return path, replace(manifest, engine_sha256=sha256(path))


Machine = Callable[[Fingerprint, str], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let ONNX Runtime believe that it is of this version and on this device."""

    def pretend(here: Fingerprint, version: str) -> None:
        monkeypatch.setattr(type(CPU), "here", lambda _: here)
        monkeypatch.setattr(type(CPU), "availability", lambda _: Availability(version, "pretended"))

    return pretend


def test_engine_is_accepted_where_it_was_built(engine: tuple[Path, Manifest], machine: Machine) -> None:
    path, manifest = engine
    verify_file(path, manifest, "")
    for name in ("Imaginary 9000", "Imaginary 9001"):
        machine(replace(manifest.device, name=name), "1.0.0")
        require_fit(path, manifest)


def test_edited_engine_is_one_sentence_with_the_way_out(engine: tuple[Path, Manifest]) -> None:
    path, manifest = engine
    path.write_bytes(b"enginf")
    with pytest.raises(EngineError, match=r"a\.ort\.onnx.*SHA-256.*depthkit export .*onnx --backend onnxruntime"):
        verify_file(path, manifest, rebuild_command(path, manifest))


def test_rebuilding_takes_the_options_that_are_not_the_defaults(engine: tuple[Path, Manifest]) -> None:
    path, manifest = engine
    words = rebuild_command(path, manifest).split()
    assert words[:2] == ["depthkit", "export"]
    assert words[3:] == ["--backend", "onnxruntime", "-o", "threads=2"]
    assert " -o " not in rebuild_command(path, replace(manifest, options={"threads": 0}))


@pytest.mark.parametrize(
    "here",
    [
        Fingerprint("cpu", "Imaginary 9000", "x86_64", ("avx", "avx2")),
        Fingerprint("cpu", "Imaginary 9000", "x86_64", ("avx", "avx2", "f16c", "avx512f")),
        Fingerprint("cpu", "Imaginary 9000", "aarch64", ("avx", "avx2", "f16c")),
        Fingerprint("gpu", "Imaginary 9000", "sm_89"),
    ],
    ids=["less", "more", "another architecture", "a GPU"],
)
def test_engine_of_another_machine_is_one_sentence_with_both(
    engine: tuple[Path, Manifest], machine: Machine, here: Fingerprint
) -> None:
    path, manifest = engine
    machine(here, "1.0.0")
    with pytest.raises(EngineError, match=r"a\.ort\.onnx.*depthkit export .*onnx --backend onnxruntime") as caught:
        require_fit(path, manifest)
    assert "\n" not in str(caught.value)
    assert "f16c" in str(caught.value)
    assert here.architecture in str(caught.value)


def test_engine_of_another_vendor_version_names_both(engine: tuple[Path, Manifest], machine: Machine) -> None:
    path, manifest = engine
    machine(manifest.device, "2.0.0")
    with pytest.raises(EngineError, match=r"1\.0\.0.*2\.0\.0.*depthkit export .*onnx --backend onnxruntime"):
        require_fit(path, manifest)


def test_engine_with_options_of_another_depthkit_is_told_so(engine: tuple[Path, Manifest], machine: Machine) -> None:
    path, manifest = engine
    machine(manifest.device, "1.0.0")
    with pytest.raises(EngineError, match=r"a\.ort\.onnx was built by another depthkit.*teleport.*depthkit export"):
        require_fit(path, replace(manifest, options={"teleport": True}))
