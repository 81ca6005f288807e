"""Opening: an engine, an ONNX file, or one sentence that says why not; no vendor sees what no manifest vouches for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from depthkit.engines.backend import Availability
from depthkit.engines.build import backend
from depthkit.engines.fingerprint import Fingerprint, cpu_fingerprint
from depthkit.engines.manifest import manifest_path, read_manifest, write_manifest
from depthkit.errors import BackendError, EngineError, SpecError, UserError
from depthkit.files import sha256
from depthkit.reference import Reference
from depthkit.runtime.load import load
from depthkit.runtime.run_options import Transfer
from depthkit.session import Session

STEM = "compact-32x48"


def _edit(engine: Path, **changed: Any) -> None:
    write_manifest(engine, replace(read_manifest(engine), **changed))


def _overwrite(engine: Path, content: bytes) -> None:
    """Other content, and a manifest that vouches for it."""
    engine.write_bytes(content)
    _edit(engine, engine_sha256=sha256(engine))


@pytest.mark.parametrize(
    ("name", "provider", "asked"),
    [
        (f"{STEM}.fp32.ort.onnx", "CPUExecutionProvider", "fp32"),
        (f"{STEM}.fp16.ort.onnx", "CPUExecutionProvider", "fp16"),
        (f"{STEM}.fp32.onnx", "CPUExecutionProvider", "fp32"),
        (f"{STEM}.fp16.onnx", "CPUExecutionProvider", "fp16"),
        (f"{STEM}.fp32.null", "null", "fp32"),
    ],
)
def test_session_says_what_it_is(pristine_exports: Path, name: str, provider: str, asked: str) -> None:
    for path in (pristine_exports / name, str(pristine_exports / name)):
        with load(path) as session:
            assert isinstance(session, Session)
            assert session.provider == provider
            assert session.spec.network == "compact"
            assert session.spec.size == (32, 48)
            widened = {"fp16→fp32"} | ({"fp16"} if cpu_fingerprint().computes_half else set())
            assert session.precision in (widened if asked == "fp16" else {asked})


def test_engine_needs_nothing_but_its_manifest(copied: Path, reference: Reference) -> None:
    with load(copied) as session:
        assert np.abs(session(reference.images) - reference.depths).max() < 1e-3


@pytest.mark.parametrize("name", ["gone.ort.onnx", "gone.onnx", "gone.null", "gone", "no/folder/gone.onnx"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match=r"no .*gone.*depthkit export"):
        load(tmp_path / name)


def test_folder_is_told_from_an_engine(pristine_exports: Path) -> None:
    with pytest.raises(EngineError, match=r"folder.*depthkit export"):
        load(pristine_exports)


def test_engine_without_its_manifest_is_not_opened(copied: Path) -> None:
    manifest_path(copied).unlink()
    with pytest.raises(EngineError, match=r"no manifest.*depthkit export"):
        load(copied)


def test_other_file_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(EngineError, match=r"notes\.txt"):
        load(tmp_path / "notes.txt")


def test_edited_engine_never_reaches_the_vendor(copied: Path) -> None:
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    with pytest.raises(EngineError, match=r"SHA-256.*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


def test_engine_of_another_machine_is_refused(copied: Path) -> None:
    device = cpu_fingerprint()
    _edit(copied, device=replace(device, isa=(*device.isa, "teleport")))
    with pytest.raises(EngineError, match=r"teleport.*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


def test_engine_of_another_vendor_version_is_refused(copied: Path) -> None:
    _edit(copied, backend_version="0.0.1")
    with pytest.raises(EngineError, match=r"0\.0\.1.*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


def test_engine_of_a_gpu_is_refused_on_the_cpu(copied: Path) -> None:
    _edit(copied, device=Fingerprint("gpu", "NVIDIA L4", "sm_89"))
    with pytest.raises(EngineError, match=r"NVIDIA L4 \(sm_89\).*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


def test_engine_whose_backend_cannot_run_here_says_why_and_how_to_mend_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = Availability("1.32", "no GPU is here", "use a machine with one", runs=False)
    with monkeypatch.context() as patch:
        patch.setattr(backend("onnxruntime"), "availability", lambda: builds)
        with pytest.raises(BackendError, match="onnxruntime cannot run here: no GPU is here; use a machine with one"):
            load(copied)


def test_engine_of_a_backend_that_nobody_knows_is_refused(copied: Path) -> None:
    _edit(copied, backend="abacus")
    with pytest.raises(EngineError, match=r"abacus.*upgrade"):
        load(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.pop("device"), "device"),
        (lambda document: document.update(colour="blue"), "colour"),
        (lambda document: document.update(schema_version=9), "version 9"),
        (lambda document: document["model"].update(macs="many"), "macs"),
    ],
    ids=["missing key", "unknown key", "schema version", "type"],
)
def test_manifest_is_read_strictly(copied: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    document = json.loads(manifest_path(copied).read_text())
    change(document)
    manifest_path(copied).write_text(json.dumps(document))
    with pytest.raises(SpecError, match=words):
        load(copied)


def test_edited_manifest_is_refused_though_it_fits_the_schema(copied: Path) -> None:
    """Else a slow or foreign engine could be passed off as something else."""
    document = json.loads(manifest_path(copied).read_text())
    document["precision_found"] = "fp16"
    manifest_path(copied).write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"\.json was edited.*depthkit export"):
        load(copied)


@pytest.mark.parametrize("transfer", ["device", "pinned", "mapped"])
@pytest.mark.parametrize("name", [f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.onnx", f"{STEM}.fp32.null"])
def test_engine_on_the_cpu_refuses_a_transfer_mode(pristine_exports: Path, name: str, transfer: Transfer) -> None:
    with pytest.raises(UserError, match=rf"runs on the CPU.*transfer='{transfer}'"):
        load(pristine_exports / name, transfer=transfer)
    load(pristine_exports / name, transfer="auto", cuda_graph=False).close()


@pytest.mark.parametrize("content", [b"", b"no graph", bytes(1000)], ids=["empty", "text", "zeros"])
def test_vendor_that_refuses_an_engine_is_translated(copied: Path, content: bytes) -> None:
    _overwrite(copied, content)
    with pytest.raises(BackendError, match=r"cannot open .*\.ort\.onnx.*ONNX Runtime") as caught:
        load(copied)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"depth_m": "far"}', b'{"depth_m": null}', b"\xff"])
def test_damaged_null_engine_is_refused(exports: Path, content: bytes) -> None:
    engine = exports / f"{STEM}.fp32.null"
    _overwrite(engine, content)
    with pytest.raises(EngineError, match=r"\.null"):
        load(engine)


def test_onnx_file_of_others_is_refused(tmp_path: Path, pristine_exports: Path) -> None:
    model = onnx.load(pristine_exports / f"{STEM}.fp32.onnx")
    del model.metadata_props[:]
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"theirs\.onnx.*depthkit export"):
        load(tmp_path / "theirs.onnx")


@pytest.mark.parametrize("content", [b"", b"no graph", bytes(1000)], ids=["empty", "text", "zeros"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "noise.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"noise\.onnx"):
        load(tmp_path / "noise.onnx")


def test_onnx_file_that_the_vendor_refuses_is_translated(exports: Path) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    model = onnx.load(path)
    model.graph.node[5].op_type = "Teleport"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"fp32\.onnx.*Teleport"):
        load(path)
