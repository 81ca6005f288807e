"""Building: the manifest describes the engine that was built; a failed build changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from depthkit.engines.build import BuildOptions, backend, build, engine_name
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.engines.manifest import manifest_path, read_manifest
from depthkit.engines.ov import OPENVINO
from depthkit.errors import BackendError, EngineError, SpecError
from depthkit.files import sha256
from depthkit.metrics import valid_pixels
from depthkit.onnx_graph import METADATA, describe_onnx
from depthkit.precisions import Precision
from depthkit.reference import read_reference, write_reference

from ..support import STEM, contents, invent_operator, run_code

EXPORTED = ("onnxruntime", "null")
"""Backends of the engines that the exported run has."""


def _foreign(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A valid ONNX file that depthkit did not make."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def test_unknown_backend_lists_the_known_ones(pristine_exports: Path) -> None:
    with pytest.raises(BackendError, match=r"abacus.*onnxruntime"):
        build(pristine_exports / f"{STEM}.fp32.onnx", BuildOptions("abacus"))


def test_backend_that_is_not_installed_says_what_to_install(pristine_exports: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from depthkit.engines.build import build\n"
        "from depthkit.errors import BackendError\n"
        "from depthkit.runtime.load import load\n"
        "for use in (build, load):\n"
        "    try: use(Path(sys.argv[1]))\n"
        "    except BackendError as error: print(error)\n"
    )
    printed = run_code(code, pristine_exports / f"{STEM}.fp32.onnx")
    assert printed.count("pip install 'depthkit[cpu]'") == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", EXPORTED)
def test_manifest_describes_the_engine(pristine_exports: Path, name: str, precision: str) -> None:
    engine = pristine_exports / f"{STEM}.{precision}.{backend(name).extension}"
    onnx_file = pristine_exports / f"{STEM}.{precision}.onnx"
    manifest = read_manifest(engine)
    assert manifest.engine_sha256 == sha256(engine)
    assert manifest.onnx_sha256 == sha256(onnx_file)
    assert manifest.weights_sha256 == sha256(pristine_exports / "model.safetensors")
    assert (pristine_exports / manifest.onnx, manifest.reference) == (onnx_file, f"{STEM}.reference.npz")
    assert (pristine_exports / manifest.reference).is_file()
    assert manifest.model == describe_onnx(onnx_file).model
    assert (manifest.backend, manifest.precision_asked) == (name, precision)
    assert manifest.backend_version == backend(name).availability().version
    assert manifest.device == cpu_fingerprint()
    assert manifest.layers
    assert manifest.layers_from == "engine"
    assert manifest.options == backend(name).record(backend(name).parse_options({}))
    assert manifest.build_seconds >= 0
    assert datetime.fromisoformat(manifest.created).utcoffset() is not None


def test_layers_are_read_back_from_the_engine(pristine_exports: Path) -> None:
    manifest = read_manifest(pristine_exports / f"{STEM}.fp32.ort.onnx")
    nodes = onnx.load(pristine_exports / f"{STEM}.fp32.ort.onnx").graph.node
    assert [layer.operator for layer in manifest.layers] == [node.op_type for node in nodes]
    convolutions = [layer for layer in manifest.layers if layer.operator.endswith("Conv")]
    assert len(convolutions) == 19
    assert {layer.precision for layer in convolutions} == {"fp32"}
    assert manifest.precision_found == "fp32"
    assert all(layer.name for layer in manifest.layers)


def test_fp16_engine_names_the_precision_it_computes_in(pristine_exports: Path) -> None:
    manifest = read_manifest(pristine_exports / f"{STEM}.fp16.ort.onnx")
    convolutions = {layer.precision for layer in manifest.layers if layer.operator.endswith("Conv")}
    if cpu_fingerprint().computes_half:
        assert manifest.precision_found in {"fp16", "fp16→fp32"}
    else:
        assert manifest.precision_found == "fp16→fp32"
        assert convolutions == {"fp32"}
    assert (manifest.precision_found == "fp16") == (convolutions == {"fp16"})


def test_options_are_part_of_the_file_name(exports: Path) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    made = [build(path, BuildOptions("onnxruntime", {"threads": count})) for count in (0, 1, 2)]
    assert [each.path.name for each in made] == [
        f"{STEM}.fp32.ort.onnx",
        f"{STEM}.fp32.threads=1.ort.onnx",
        f"{STEM}.fp32.threads=2.ort.onnx",
    ]
    assert [read_manifest(each.path).options["threads"] for each in made] == [0, 1, 2]
    assert [sha256(each.path) for each in made] == [each.manifest.engine_sha256 for each in made]


def _openvino(onnx_file: str, stored: Precision, given: dict[str, Any]) -> str:
    """The name of an OpenVINO engine."""
    settings = OPENVINO.parse_options(given)
    return engine_name(Path(onnx_file), stored, OPENVINO, settings)


def test_no_two_engines_of_a_folder_share_a_name() -> None:
    files: list[tuple[str, Precision]] = [("c.fp32.onnx", "fp32"), ("c.bf16.onnx", "bf16"), ("c.fp16.onnx", "fp16")]
    grid: list[dict[str, Any]] = [
        {"threads": threads, "hint": hint, "pinning": pinning, "inference_precision": precision}
        for threads in (0, 1, 12)
        for hint in ("latency", "throughput")
        for pinning in (False, True)
        for precision in ("", "bf16")
    ]
    names = [_openvino(name, stored, given) for name, stored in files for given in grid]
    assert len(set(names)) == len(names)
    assert all(name.endswith(".ov.blob") and len(name) < 100 for name in names)
    assert names[0] == "c.fp32.ov.blob"
    assert _openvino("c.fp32.onnx", "fp32", {"inference_precision": "bf16"}).startswith("c.fp32-bf16.")
    assert "threads=12" in _openvino("c.fp32.onnx", "fp32", {"threads": 12})


def test_renamed_onnx_file_finds_its_reference(exports: Path) -> None:
    """By weights and size, not by name."""
    (exports / f"{STEM}.fp32.onnx").rename(exports / "foo.onnx")
    others = exports / "a.reference.npz"
    answers = read_reference(exports / f"{STEM}.reference.npz")
    write_reference(others, replace(answers, weights_sha256="0" * 64))
    write_reference(exports / "foo.reference.npz", replace(answers, depths=answers.depths[:, :16]))
    for name in EXPORTED:
        made = build(exports / "foo.onnx", BuildOptions(name, rebuild=True))
        assert made.path.name == f"foo.fp32.{backend(name).extension}"
        assert (made.manifest.onnx, made.manifest.reference) == ("foo.onnx", f"{STEM}.reference.npz")


def test_null_engine_is_the_median_of_the_measured_depth(pristine_exports: Path) -> None:
    truths = read_reference(pristine_exports / f"{STEM}.reference.npz").truths
    content = json.loads((pristine_exports / f"{STEM}.fp32.null").read_text())
    assert content == {"depth_m": pytest.approx(float(np.median(truths[valid_pixels(truths)])))}


def test_null_engine_needs_the_reference(exports: Path) -> None:
    (exports / f"{STEM}.reference.npz").unlink()
    with pytest.raises(EngineError, match="reference"):
        build(exports / f"{STEM}.fp32.onnx", BuildOptions("null", rebuild=True))


def test_foreign_onnx_file_is_refused(tmp_path: Path) -> None:
    path = _foreign(tmp_path / "theirs.fp32.onnx")
    with pytest.raises(EngineError, match=r"theirs\.fp32\.onnx.*depthkit export"):
        build(path)
    assert list(tmp_path.iterdir()) == [path]


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.fp32.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"noise\.fp32\.onnx"):
        build(path)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_onnx_file_is_refused(share: float, pristine_exports: Path, tmp_path: Path) -> None:
    content = (pristine_exports / f"{STEM}.fp32.onnx").read_bytes()
    path = tmp_path / "cut.fp32.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((EngineError, BackendError), match=r"cut\.fp32\.onnx"):
        build(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({METADATA.precision: "fp4"}, EngineError, "fp4"),
        ({METADATA.spec: "{}"}, SpecError, "schema version"),
        ({METADATA.spec: "no json"}, SpecError, "JSON"),
    ],
)
def test_invalid_metadata_is_refused(
    pristine_exports: Path, tmp_path: Path, changed: dict[str, str], kind: type[Exception], words: str
) -> None:
    model = onnx.load(pristine_exports / f"{STEM}.fp32.onnx")
    path = _foreign(tmp_path / "a.fp32.onnx", {entry.key: entry.value for entry in model.metadata_props} | changed)
    with pytest.raises(kind, match=words) as caught:
        build(path)
    assert "a.fp32.onnx" in str(caught.value)


@pytest.mark.parametrize("first", [False, True], ids=["rebuild", "first build"])
def test_operator_that_onnx_runtime_lacks_is_named_and_nothing_is_changed(exports: Path, first: bool) -> None:
    path, engine = exports / f"{STEM}.fp32.onnx", exports / f"{STEM}.fp32.ort.onnx"
    invent_operator(path, seal=True)
    if first:
        engine.unlink()
        manifest_path(engine).unlink()
    before = contents(exports)
    with pytest.raises(BackendError, match=rf"{STEM}\.fp32\.onnx.*ONNX Runtime.*Teleport") as caught:
        build(path)
    assert caught.value.__cause__ is not None
    assert contents(exports) == before


@pytest.mark.parametrize(
    "vendor", [*({"threads": value} for value in ("many", -3, "-3", "2.5", "")), {"threds": 1}], ids=str
)
def test_invalid_option_is_refused(exports: Path, vendor: dict[str, str | int | bool]) -> None:
    before = contents(exports)
    with pytest.raises(BackendError, match=rf"onnxruntime .*{next(iter(vendor))}.*threads=0"):
        build(exports / f"{STEM}.fp32.onnx", BuildOptions("onnxruntime", vendor))
    assert contents(exports) == before
