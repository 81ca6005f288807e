"""`load` opens engines and ONNX files, and refuses engines that their manifests do not describe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.engines.fingerprint import Fingerprint, cpu_fingerprint
from depthkit.engines.manifest import read_manifest, write_manifest
from depthkit.engines.ort import CPU
from depthkit.errors import BackendError, EngineError, UserError
from depthkit.files import sha256
from depthkit.precisions import Precision
from depthkit.reference import Reference
from depthkit.runtime.load import load
from depthkit.runtime.run_options import Transfer
from depthkit.session import Session
from depthkit.testing import assert_parity

from ..support import STEM, flip_bit, invent_operator

HERE = cpu_fingerprint()


def _edit(engine: Path, **changed: Any) -> None:
    write_manifest(engine, replace(read_manifest(engine), **changed))


def _overwrite(engine: Path, content: bytes) -> None:
    """Other content, with its hash in the manifest."""
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
def test_session_properties(pristine_exports: Path, name: str, provider: str, asked: str) -> None:
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_file_agrees_with_torch(pristine_exports: Path, reference: Reference, precision: Precision) -> None:
    with load(pristine_exports / f"{STEM}.{precision}.onnx") as session:
        assert_parity(session, reference, precision=precision)


@pytest.mark.parametrize("name", ["gone.ort.onnx", "gone.onnx", "gone.null", "gone", "no/folder/gone.onnx"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match=r"no .*gone.*depthkit export"):
        load(tmp_path / name)


def test_folder_is_refused(pristine_exports: Path) -> None:
    with pytest.raises(EngineError, match=r"folder.*depthkit export"):
        load(pristine_exports)


def test_unrelated_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(EngineError, match=r"notes\.txt"):
        load(tmp_path / "notes.txt")


def test_edited_engine_is_refused(copied: Path) -> None:
    flip_bit(copied)
    with pytest.raises(EngineError, match=r"\.ort\.onnx.*SHA-256.*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"device": replace(HERE, isa=HERE.isa[:-1])}, f"this is .*{HERE.architecture}.*{HERE.isa[-1]}"),
        ({"device": replace(HERE, isa=(*HERE.isa, "teleport"))}, f"teleport.*this is .*{HERE.architecture}"),
        ({"device": replace(HERE, architecture="z80")}, f"z80.*this is .*{HERE.architecture}"),
        ({"device": Fingerprint("gpu", "NVIDIA L4", "sm_89")}, rf"NVIDIA L4 \(sm_89\).*this is .*{HERE.architecture}"),
        ({"backend_version": "0.0.1"}, rf"0\.0\.1, but {re.escape(CPU.availability().version or '')} is installed"),
        ({"options": {"teleport": True}}, "was built by another version of depthkit.*teleport"),
    ],
    ids=["less", "more", "architecture", "GPU", "version", "options"],
)
def test_engine_of_another_machine_or_version_is_refused(copied: Path, changed: dict[str, Any], words: str) -> None:
    _edit(copied, **changed)
    with pytest.raises(EngineError, match=rf"\.ort\.onnx.*{words}.*depthkit export .*onnx --backend onnxruntime"):
        load(copied)


def test_name_of_the_cpu_does_not_matter(copied: Path) -> None:
    _edit(copied, device=replace(HERE, name="Imaginary 9001"))
    load(copied).close()


def test_engine_of_an_unknown_backend_is_refused(copied: Path) -> None:
    _edit(copied, backend="abacus")
    with pytest.raises(EngineError, match=r"abacus.*upgrade"):
        load(copied)


@pytest.mark.parametrize("transfer", ["device", "pinned", "mapped"])
@pytest.mark.parametrize("name", ["ort.onnx", "onnx", "ov.blob", "null"])
def test_transfer_mode_is_refused_on_the_cpu(engines: Path, name: str, transfer: Transfer) -> None:
    with pytest.raises(UserError, match=rf"runs on the CPU.*transfer='{transfer}'"):
        load(engines / f"{STEM}.fp32.{name}", transfer=transfer)
    load(engines / f"{STEM}.fp32.{name}", transfer="auto", cuda_graph=False).close()


@pytest.mark.parametrize("content", [b"", b"no graph", bytes(1000)], ids=["empty", "text", "zeros"])
def test_vendors_error_becomes_a_backend_error(copied: Path, content: bytes) -> None:
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


def test_unknown_operator_is_named(exports: Path) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    invent_operator(path)
    with pytest.raises(BackendError, match=r"fp32\.onnx.*Teleport"):
        load(path)
