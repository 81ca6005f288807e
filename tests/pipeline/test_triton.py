"""`depthkit export --triton`: the model repository, its versions, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from safetensors.numpy import load_file, save_file
from tritonclient.grpc.model_config_pb2 import ModelConfig

from depthkit.engines.build import BuildOptions, backend, build
from depthkit.engines.manifest import manifest_path, read_manifest, write_manifest
from depthkit.errors import EngineError, GateError, OutputError, UserError
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.files import sha256
from depthkit.onnx_graph import describe_onnx
from depthkit.parity import Parity
from depthkit.pipeline.export import EngineOptions
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.triton import add_engine, add_engines
from depthkit.pipeline.triton import require_repository as require
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.spec import Dim

from ..support import STEM, contents, edit_json, flip_bit

NAME = f"{STEM}.fp32.onnxruntime"


@pytest.fixture
def engine(exports: Path) -> Path:
    return exports / f"{STEM}.fp32.ort.onnx"


def add(engine: Path, folder: Path) -> list[str]:
    """Add an engine; what was told."""
    told: list[str] = []
    add_engine(engine, folder, lambda mark, text: told.append(f"{mark} {text}"))
    return told


def read_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def new_weights(exports: Path) -> Path:
    """The engine after its run got other weights and was exported anew."""
    weights = load_file(exports / "model.safetensors")
    weights["head.bias"] += 0.1
    save_file(weights, exports / "model.safetensors")
    edit_json(exports / "model.json", weights_sha256=sha256(exports / "model.safetensors"))
    return build(export_onnx(open_source(exports), ExportOptions()).path, BuildOptions("onnxruntime")).path


def test_a_model_holds_what_triton_needs(engine: Path, tmp_path: Path) -> None:
    (told,) = add(engine, tmp_path / "models")
    assert told == f"wrote {tmp_path}/models/{NAME}: version 1, for Triton's backend onnxruntime"
    model = tmp_path / "models" / NAME
    onnx, manifest = engine.with_name(f"{STEM}.fp32.onnx"), read_manifest(engine)
    assert sorted(contents(model)) == ["1/manifest.json", "1/model.onnx", "config.pbtxt", "warmup/reference_frame"]
    assert (model / "1" / "model.onnx").read_bytes() == onnx.read_bytes()
    assert (model / "1" / "manifest.json").read_bytes() == manifest_path(engine).read_bytes()
    reference = read_reference(engine.with_name(manifest.reference))
    assert (model / "warmup" / "reference_frame").read_bytes() == reference.images[0].tobytes()
    config = read_config(model)
    assert config.name == NAME
    facts = {key: value.string_value for key, value in config.parameters.items()}
    assert facts["depthkit.weights_sha256"] == describe_onnx(onnx).weights_sha256
    assert facts["depthkit.onnx_sha256"] == sha256(onnx)
    assert facts["depthkit.model_sha256"] == sha256(model / "1" / "model.onnx")
    assert facts["depthkit.engine_sha256"] == sha256(engine)
    assert facts["depthkit.precision_found"] == "fp32"
    assert facts["depthkit.gate"].startswith("PASS: max |Δ| ")
    assert float(facts["depthkit.gate.max_abs_mm"]) < 1
    assert json.loads(facts["depthkit.model_spec"])["focal"] == manifest.model.focal


def test_same_export_changes_nothing(engine: Path, tmp_path: Path) -> None:
    add(engine, tmp_path / "models")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")}
    (told,) = add(engine, tmp_path / "models")
    assert told.startswith("kept ")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")} == before


def test_other_weights_are_the_next_version(exports: Path, engine: Path, tmp_path: Path) -> None:
    add(engine, tmp_path / "models")
    model = tmp_path / "models" / NAME
    first = contents(model)
    (told,) = add(new_weights(exports), tmp_path / "models")
    assert "version 2" in told
    now = contents(model)
    assert {name for name in now if first.get(name) != now[name]} == {"2/manifest.json", "2/model.onnx", "config.pbtxt"}
    facts = read_config(model).parameters
    assert facts["depthkit.onnx_sha256"].string_value == sha256(model / "2" / "model.onnx")


def test_lost_configuration_is_written_again(engine: Path, tmp_path: Path) -> None:
    add(engine, tmp_path / "models")
    before = contents(tmp_path / "models")
    (tmp_path / "models" / NAME / "config.pbtxt").unlink()
    add(engine, tmp_path / "models")
    assert contents(tmp_path / "models") == before


def test_export_that_was_killed_before_the_configuration_is_finished(
    exports: Path, engine: Path, tmp_path: Path
) -> None:
    add(engine, tmp_path / "models")
    config = tmp_path / "models" / NAME / "config.pbtxt"
    first = config.read_text()
    later = new_weights(exports)
    add(later, tmp_path / "models")
    whole = contents(tmp_path / "models")
    config.write_text(first)
    assert "version 2" in add(later, tmp_path / "models")[0]
    assert contents(tmp_path / "models") == whole


def test_a_configuration_that_somebody_changed_is_left_alone(exports: Path, engine: Path, tmp_path: Path) -> None:
    add(engine, tmp_path / "models")
    config = tmp_path / "models" / NAME / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    before = contents(tmp_path / "models")
    assert add(engine, tmp_path / "models")[0].startswith("kept ")  # there is nothing to write
    with pytest.raises(OutputError, match="was changed since; move it away"):
        add(new_weights(exports), tmp_path / "models")
    assert contents(tmp_path / "models") == before
    config.unlink()
    assert "version 2" in add(exports / engine.name, tmp_path / "models")[0]


def test_versions_of_a_model_take_the_same_tensors(exports: Path, engine: Path, tmp_path: Path) -> None:
    add(engine, tmp_path / "models")
    made = export_onnx(open_source(exports), ExportOptions(batch=Dim("batch", 1, 2, 4)))
    made.path.replace(exports / f"{STEM}.fp32.onnx")
    before = contents(tmp_path / "models")
    with pytest.raises(OutputError, match=r"takes images of \(1, 32, 48, 3\), and this engine \(1\.\.4, 32, 48, 3\)"):
        add(build(exports / f"{STEM}.fp32.onnx", BuildOptions("onnxruntime")).path, tmp_path / "models")
    assert contents(tmp_path / "models") == before


def test_frames_of_a_static_batch_fill_it(exports: Path, tmp_path: Path) -> None:
    made = export_onnx(open_source(exports), ExportOptions(batch=12))
    add(build(made.path, BuildOptions("onnxruntime")).path, tmp_path / "models")
    (frame,) = (tmp_path / "models").rglob("reference_frame")
    images = read_reference(made.reference).images
    assert frame.read_bytes() == np.concatenate([images, images[:4]]).tobytes()


def test_a_plan_is_served_itself(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU: another engine of the same network stands in for the plan."""
    plan = engine.with_name(f"{STEM}.fp32.plan")
    shutil.copyfile(engine, plan)
    shutil.copyfile(manifest_path(engine), manifest_path(plan))
    maker = backend("tensorrt")
    write_manifest(plan, replace(read_manifest(engine), backend="tensorrt", options=maker.record(maker.options())))
    monkeypatch.setattr("depthkit.pipeline.triton.verified", read_manifest)
    monkeypatch.setattr("depthkit.pipeline.triton.load", lambda _: load(engine))
    add(plan, tmp_path / "models")
    model = tmp_path / "models" / f"{STEM}.fp32.tensorrt"
    assert (model / "1" / "model.plan").read_bytes() == plan.read_bytes()
    assert read_config(model).platform == "tensorrt_plan"


def test_engines_that_triton_cannot_run_are_skipped(engine: Path, tmp_path: Path) -> None:
    told: list[str] = []
    null = engine.with_name(f"{STEM}.fp32.null")
    add_engines([null, engine], tmp_path / "models", lambda mark, text: told.append(f"{mark} {text}"))
    assert [line.split()[0] for line in told] == ["skipped", "wrote"]
    assert "cannot serve engines of null" in told[0]


def _other_onnx(engine: Path) -> None:
    flip_bit(engine.with_name(f"{STEM}.fp32.onnx"))


def _no_onnx(engine: Path) -> None:
    engine.with_name(f"{STEM}.fp32.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (_other_onnx, EngineError, "is not the ONNX file that"),
        (_no_onnx, EngineError, "is not the ONNX file that"),
        (flip_bit, EngineError, "SHA-256 differs"),
        (lambda engine: engine.with_name(f"{STEM}.reference.npz").unlink(), EngineError, "there is no reference"),
    ],
)
def test_what_is_not_whole_is_not_served(
    engine: Path, tmp_path: Path, spoil: Callable[[Path], object], kind: type[UserError], words: str
) -> None:
    spoil(engine)
    with pytest.raises(kind, match=words):
        add(engine, tmp_path / "models")
    assert not list(tmp_path.glob("models/*"))


def test_engine_that_fails_its_gate_is_not_served(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Parity(0.1, 0.5, 0.4, 700.0, 0, 0, True, 8)
    monkeypatch.setattr("depthkit.pipeline.triton.measure_parity", lambda *_: (far, None))
    with pytest.raises(GateError, match=r"max \|Δ\| 700 mm > 1 mm"):
        add(engine, tmp_path / "models")
    assert not list(tmp_path.glob("models/*"))


def test_limits_of_depth_without_metres_are_in_percent(
    inverse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(inverse, tmp_path / "models")
    (model,) = (tmp_path / "models").iterdir()
    assert read_config(model).parameters["depthkit.gate"].string_value.endswith("limits: max |Δ| ≤ 0.01 %")
    far = Parity(0.1, 0.5, 0.4, nan, 0, 0, finite=True, frames=8, is_metric=False, max_abs_percent=7.0)
    monkeypatch.setattr("depthkit.pipeline.triton.measure_parity", lambda *_: (far, None))
    with pytest.raises(GateError, match=r"max \|Δ\| 7 % > 0\.01 % \(max \|Δ\| ≤ 0\.01 % allowed\)"):
        add(inverse, tmp_path / "others")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    engines = EngineOptions(("onnxruntime",))
    (tmp_path / "runs").mkdir()
    require(tmp_path / "runs", [], engines, 1)
    require(tmp_path / "new" / "models", [], engines, 1)
    (tmp_path / "runs" / ".cache").touch()
    require(tmp_path / "runs", [], engines, 1)
    (tmp_path / "runs" / "compact").mkdir()
    with pytest.raises(OutputError, match=r"is no model repository: compact in it has no config\.pbtxt"):
        require(tmp_path / "runs", [], engines, 1)
    (tmp_path / "runs" / "compact" / "config.pbtxt").touch()
    require(tmp_path / "runs", [], engines, 1)
