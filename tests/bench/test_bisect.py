"""Where an engine goes wrong: planted faults, a vendor's own, and what cannot be looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from depthkit.bench import bisect
from depthkit.bench.bisect import Divergence, first_divergence
from depthkit.engines.build import backend
from depthkit.engines.ov import capabilities
from depthkit.errors import BackendError, EngineError
from depthkit.export.quantize import place
from depthkit.export.ranges import calibrate
from depthkit.precisions import Precision
from depthkit.reference import read_reference
from depthkit.runtime.contract import Graph
from depthkit.runtime.runner import onnx_runner

STEM = "compact-32x48"
Change = Callable[[np.ndarray], np.ndarray]
Plant = Callable[[Precision, str, Change], Path]
Locate = Callable[[Path, str, Precision], Divergence]


@pytest.fixture(scope="module")
def images(pristine_exports: Path) -> np.ndarray:
    return read_reference(pristine_exports / f"{STEM}.reference.npz").images[:2]


@pytest.fixture(scope="module")
def files(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The same network in FP32, FP16 and INT8."""
    fp32 = pristine_exports / f"{STEM}.fp32.onnx"
    model = onnx.load(fp32)
    frames = read_reference(pristine_exports / f"{STEM}.reference.npz").images
    int8 = tmp_path_factory.mktemp("int8") / f"{STEM}.int8.onnx"
    onnx.save(place(model, calibrate(model, list(frames), "minmax"), ()), int8)
    return {"fp32": fp32, "fp16": pristine_exports / f"{STEM}.fp16.onnx", "int8": int8}


@pytest.fixture
def plant(files: dict[Precision, Path], tmp_path: Path) -> Plant:
    """Copies a file with one of its constants changed."""

    def change_constant(precision: Precision, constant: str, change: Change) -> Path:
        model = onnx.load(files[precision])
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == constant]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(values.copy()).astype(values.dtype), constant))
        onnx.save(model, tmp_path / f"{constant}.onnx")
        return tmp_path / f"{constant}.onnx"

    return change_constant


@pytest.fixture
def locate(files: dict[Precision, Path], images: np.ndarray) -> Locate:
    """Finds the first divergence of a file from the FP32 one; there must be one."""

    def look(path: Path, name: str, precision: Precision) -> Divergence:
        _require(name)
        return _found(first_divergence(path, files["fp32"], name, precision, images))

    return look


def _found(divergence: Divergence | None) -> Divergence:
    assert divergence is not None
    return divergence


def _half_as_much_again(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.5)


def _one_nan(values: np.ndarray) -> np.ndarray:
    values[0] = np.nan
    return values


def _require(name: str) -> None:
    if not backend(name).availability().runnable:
        pytest.skip(f"{name} is not installed")


CASES = list(product(("fp32", "fp16", "int8"), ("onnxruntime", "openvino")))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "name"), CASES)
def test_sound_engine_has_no_divergence(
    files: dict[Precision, Path], images: np.ndarray, precision: Precision, name: str
) -> None:
    _require(name)
    assert first_divergence(files[precision], files["fp32"], name, precision, images) is None


@pytest.mark.parametrize(("module", "node"), [("stem.0", "node_conv2d"), ("decoder.1.2", "node_conv2d_13")])
@pytest.mark.parametrize(("precision", "name"), CASES)
def test_convolution_of_other_weights_is_named(
    plant: Plant, locate: Locate, precision: Precision, name: str, module: str, node: str
) -> None:
    constant = f"network.{module}.weight" + ("_scale" if precision == "int8" else "")
    found = locate(plant(precision, constant, _half_as_much_again), name, precision)
    assert (found.layer, found.module, found.kind, found.culprit) == (node, module, "Conv", "file")
    assert found.limit < found.error < 1
    assert found.checked < (15 if precision == "fp32" else 30), "this is no bisection"  # of 55
    assert found.describe().startswith(f"{node} (Conv, {module}) is off by 0.")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "name"), CASES)
def test_nan_is_found_also_where_a_later_layer_hides_it(
    plant: Plant, locate: Locate, precision: Precision, name: str
) -> None:
    """OpenVINO's ReLU in FP16 and INT8 makes 0 of NaN."""
    found = locate(plant(precision, "network.encoder.1.3.bias", _one_nan), name, precision)
    assert (found.layer, found.module, found.error) == ("node_conv2d_5", "encoder.1.3", np.inf)
    assert "NaN or Inf" in found.describe()


@pytest.mark.parametrize("missing", [None, Path("nowhere.onnx")])
def test_without_a_reference_only_the_vendor_and_nan_are_found(
    plant: Plant, images: np.ndarray, missing: Path | None
) -> None:
    scaled = plant("fp16", "network.head.weight", _half_as_much_again)
    assert first_divergence(scaled, missing, "onnxruntime", "fp16", images) is None
    broken = plant("fp16", "network.head.bias", _one_nan)
    found = _found(first_divergence(broken, missing, "onnxruntime", "fp16", images))
    assert (found.module, found.culprit) == ("head", "file")


@pytest.mark.parametrize("renamed", ["tensors", "nodes"])
def test_layers_are_matched_by_the_name_that_is_left(plant: Plant, locate: Locate, renamed: str) -> None:
    faulty = plant("fp16", "network.encoder.1.3.weight", _half_as_much_again)
    model = onnx.load(faulty)
    del model.graph.value_info[:]
    computed = {tensor for node in model.graph.node for tensor in node.output} - {"depth"}
    for node in model.graph.node:
        if renamed == "nodes":
            node.name = f"other_{node.name}"
            continue
        for names in (node.input, node.output):
            names[:] = [f"other_{name}" if name in computed else name for name in names]
    onnx.save(model, faulty)
    found = locate(faulty, "onnxruntime", "fp16")
    assert found.module == "encoder.1.3"
    assert found.checked > 3, "hardly a layer was matched"


def _save_network(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *image: int | str, channels: int
) -> Path:
    """Write a network that takes a camera's image of that shape; its last node has `channels` float planes."""
    ends = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    (answer,) = nodes[-1].output
    batch, *size, _ = image
    source = helper.make_tensor_value_info("image", TensorProto.UINT8, image)
    depth = helper.make_tensor_value_info(answer, TensorProto.FLOAT, [batch, channels, *size])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([*ends, *nodes], "network", [source], [depth], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _branches(path: Path, batch: int | str, scale: float = 1.0, size: tuple[int, int] = (4, 6)) -> Path:
    """Two branches of 1x1 convolutions, in the order a0 (times `scale`), b0, b1, b2, a1, joined."""
    random, nodes, weights = np.random.default_rng(0), [], {}
    for name, source in (("a0", "planes"), ("b0", "planes"), ("b1", "b0"), ("b2", "b1"), ("a1", "a0")):
        kernel = random.normal(size=(3, 3, 1, 1)).astype(np.float32) * np.float32(scale if name == "a0" else 1)
        weights[f"network.{name}.weight"] = kernel
        nodes.append(helper.make_node("Conv", [source, f"network.{name}.weight"], [name], name=f"node_{name}"))
    nodes.append(helper.make_node("Concat", ["a1", "b2"], ["joined"], name="node_joined", axis=1))
    return _save_network(path, nodes, weights, batch, *size, 3, channels=6)


@pytest.mark.parametrize("batch", [1, 4, "frames"])
def test_fault_is_followed_into_its_branch(tmp_path: Path, batch: int | str) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    sound, faulty = _branches(tmp_path / "a.onnx", batch), _branches(tmp_path / "b.onnx", batch, scale=1.5)
    found = _found(first_divergence(faulty, sound, "onnxruntime", "fp32", frames))
    assert (found.layer, found.module) == ("node_a0", "a0")
    assert found.error == pytest.approx(0.5, rel=1e-3)


def test_fault_in_the_second_frame_only_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_faulty(_name: str, graph: bytes, *_how: object) -> Graph:
        sound = onnx_runner().open_as_written(graph)
        return Graph((), lambda frame: sound.run(frame) * (1.1 if frame.min() == 255 else 1))

    monkeypatch.setattr(bisect, "open_graph", open_faulty)
    file = _branches(tmp_path / "a.onnx", batch=1)
    frames = np.stack([np.full((4, 6, 3), shade, np.uint8) for shade in (100, 255)])
    assert first_divergence(file, file, "onnxruntime", "fp32", frames[:1]) is None
    found = _found(first_divergence(file, file, "onnxruntime", "fp32", frames))
    assert found.describe().endswith("the ONNX file is right, its engine is not")


def _cancelling(path: Path) -> Path:
    """Adds 1000 and takes it away again, which BF16's 8 significant bits do not survive."""
    nodes = [
        helper.make_node("Conv", ["planes", "network.far.weight", "network.far.bias"], ["far"], name="node_far"),
        helper.make_node("Conv", ["far", "network.near.weight", "network.near.bias"], ["near"], name="node_near"),
    ]
    one = np.eye(3, dtype=np.float32)[:, :, None, None]
    constants = {
        "network.far.weight": one / np.float32(255),
        "network.far.bias": np.full(3, 1000, np.float32),
        "network.near.weight": one,
        "network.near.bias": np.full(3, -1000, np.float32),
    }
    return _save_network(path, nodes, constants, 1, 16, 16, 3, channels=3)


@pytest.mark.parametrize("has_reference", [True, False])
def test_fault_of_the_engine_is_distinguished_from_a_faulty_file(tmp_path: Path, has_reference: bool) -> None:
    _require("openvino")
    if "BF16" not in capabilities():
        pytest.skip("OpenVINO does not compute in BF16 on this CPU")
    file = _cancelling(tmp_path / "cancelling.onnx")
    reference = file if has_reference else None
    frames = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert first_divergence(file, reference, "openvino", "fp32", frames, {"inference_precision": "f32"}) is None
    found = _found(first_divergence(file, reference, "openvino", "bf16", frames, {"inference_precision": "bf16"}))
    assert (found.layer, found.module, found.culprit) == ("node_near", "near", "engine")


def test_engines_files_and_frames_that_cannot_be_bisected_are_refused(
    files: dict[Precision, Path], images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files["fp32"]

    def look(path: Path = file, name: str = "onnxruntime", frames: np.ndarray = images) -> Divergence | None:
        return first_divergence(path, file, name, "fp32", frames)

    with pytest.raises(BackendError, match="there is no backend 'magic'"):
        look(name="magic")
    for name in ("tensorrt", "null", "onnxruntime-cuda"):
        with pytest.raises(
            BackendError, match=f"{name} cannot run parts of a graph; build .* for openvino or onnxruntime"
        ):
            look(name=name)
    with pytest.raises(EngineError, match=r"there is no ONNX file .*nowhere\.onnx; make one"):
        look(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_bytes(b"no ONNX file at all")
    with pytest.raises(EngineError, match=r"text\.onnx is not an ONNX file"):
        look(tmp_path / "text.onnx")
    with pytest.raises(EngineError, match=r"frames are \(16, 48, 3\).*takes \(32, 48, 3\)"):
        look(frames=images[:, :16])
    with pytest.raises(EngineError, match="no layer in common"):
        first_divergence(_branches(tmp_path / "a.onnx", 1, size=(32, 48)), file, "onnxruntime", "fp32", images)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.onnx", None)
    with pytest.raises(BackendError, match=r"Polygraphy, which is not installed; pip install 'depthkit\[train\]'"):
        look()
