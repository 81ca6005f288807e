"""INT8 of matrix products: a block of a transformer between two convolutions."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from depthkit.engines.backend import attribute, found_precision
from depthkit.engines.cpu_int8 import for_cpu
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.engines.manifest import computes
from depthkit.engines.ort import CPU, create, read_layers, session_options
from depthkit.engines.trt import TENSORRT_RTX
from depthkit.engines.trt_inspect import network_layers
from depthkit.export import ranges as ranges_module
from depthkit.export.quantize import last_layers, layers, place
from depthkit.export.ranges import METHODS, Method, calibrate
from depthkit.onnx_graph import products
from depthkit.tests.support import needs_rtx
from depthkit.vendors import import_onnxruntime

SIZE = (8, 12)
TOKENS, WIDTH = SIZE[0] * SIZE[1] // 4, 16
WEIGHTED = ("patches", "query", "value", "back", "gemm", "head")


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output; inputs are separated by spaces."""
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


@pytest.fixture(scope="module")
def block() -> onnx.ModelProto:
    """Patches by a convolution, attention with biases, a residual, a Gemm, and a convolution that answers depth."""
    rng = np.random.default_rng(19)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, (WIDTH / prod(shape)) ** 0.5, shape).astype(np.float32)

    constants = {
        "gain": np.full((1, 3, 1, 1), 1 / 255, np.float32), "kernel": weight(WIDTH, 3, 2, 2),
        **{f"{name}_weight": weight(WIDTH, WIDTH) for name in ("query", "value", "back", "gemm")},
        **{f"{name}_bias": weight(WIDTH) for name in ("query", "value", "back", "gemm")},
        "tokens": np.array([1, WIDTH, TOKENS]), "rows": np.array([TOKENS, WIDTH]),
        "picture": np.array([1, WIDTH, SIZE[0] // 2, SIZE[1] // 2]), "map": np.array([1, SIZE[0] // 2, SIZE[1] // 2]),
        "head_kernel": weight(1, WIDTH, 1, 1), "head_bias": np.array([3.0], np.float32),
    }  # fmt: skip
    nodes = [
        node("Cast", "image", "pixels", to=TensorProto.FLOAT),
        node("Transpose", "pixels", "planes", perm=(0, 3, 1, 2)),
        node("Mul", "planes gain", "x"),
        node("Conv", "x kernel", "patches", strides=[2, 2]),
        node("Reshape", "patches tokens", "flat"),
        node("Transpose", "flat", "sequence", perm=(0, 2, 1)),
        node("MatMul", "sequence query_weight", "query"),
        node("Add", "query query_bias", "queries"),
        node("MatMul", "sequence value_weight", "value"),
        node("Add", "value value_bias", "values"),
        node("Transpose", "queries", "turned", perm=(0, 2, 1)),
        node("MatMul", "queries turned", "scores"),
        node("Softmax", "scores", "shares"),
        node("MatMul", "shares values", "mixed"),
        node("MatMul", "mixed back_weight", "back"),
        node("Add", "back back_bias", "attended"),
        node("Add", "attended sequence", "sum"),
        node("Reshape", "sum rows", "matrix"),
        node("Gemm", "matrix gemm_weight gemm_bias", "gemm", transB=1),
        node("Relu", "gemm", "rectified"),
        node("Transpose", "rectified", "channels", perm=(1, 0)),
        node("Reshape", "channels picture", "features"),
        node("Conv", "features head_kernel head_bias", "head"),
        node("Reshape", "head map", "depth"),
    ]
    ends = (
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SIZE, 3])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, SIZE[0] // 2, SIZE[1] // 2])],
    )
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", *ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(7).integers(0, 256, (8, *SIZE, 3), np.uint8))


@pytest.fixture(scope="module")
def placed(block: onnx.ModelProto, images: list[np.ndarray]) -> onnx.ModelProto:
    """The block in INT8. Read only."""
    model = place(block, calibrate(block, images, "minmax"), ())
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: onnx.ModelProto, images: list[np.ndarray]) -> np.ndarray:
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def test_layers_with_weights_read_int8_and_products_write_floats(placed: onnx.ModelProto) -> None:
    makers = {node.output[0]: node for node in placed.graph.node}
    quantised = {node.input[0] for node in placed.graph.node if node.op_type == "QuantizeLinear"}
    assert quantised == {"x", "patches", "sequence", "mixed", "matrix", "features"}
    for found in placed.graph.node:
        reads = [makers[name].op_type for name in found.input[:2] if name in makers]
        if found.name in WEIGHTED:
            assert reads == ["DequantizeLinear"] * 2
        elif found.op_type == "MatMul":
            assert "DequantizeLinear" not in reads


def test_weights_have_a_scale_for_each_output(placed: onnx.ModelProto) -> None:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in placed.graph.initializer}
    for found in placed.graph.node:
        if found.op_type == "DequantizeLinear" and found.input[0] in values:
            axis = next(each.i for each in found.attribute if each.name == "axis")
            assert axis == {"kernel": 0, "head": 0, "gemm": 0}.get(found.input[0].partition("_")[0], 1)
            assert values[found.input[1]].shape == (values[found.input[0]].shape[axis],)


def test_it_stays_the_same_function(block: onnx.ModelProto, placed: onnx.ModelProto, images: list[np.ndarray]) -> None:
    exact = answers(block, images)
    assert np.abs(answers(placed, images) - exact).max() < 0.1 * np.ptp(exact)


def test_kept_layers_stay_in_fp32(block: onnx.ModelProto, images: list[np.ndarray]) -> None:
    found = calibrate(block, images, "minmax")
    kept = {each.name: each.precision for each in products(place(block, found, ("query", "gemm")))}
    alone = {each.name: each.precision for each in products(place(block, found, (), only="back"))}
    assert {name for name, precision in kept.items() if precision == "fp32"} == {"query", "gemm"}
    assert {name for name, precision in alone.items() if precision == "int8"} == {"back"}


def test_layers_are_those_with_weights(block: onnx.ModelProto) -> None:
    assert layers(block) == WEIGHTED
    assert last_layers(block.graph, WEIGHTED) == ("head",)


def test_a_product_with_a_stack_of_matrices_is_no_layer(block: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(block)
    stack = next(each for each in model.graph.initializer if each.name == "back_weight")
    stack.dims[:] = [1, *stack.dims]
    assert layers(model) == tuple(name for name in WEIGHTED if name != "back")


@pytest.mark.parametrize("method", METHODS)
def test_ranges_do_not_depend_on_how_many_tensors_are_held(
    block: onnx.ModelProto, images: list[np.ndarray], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(block, images, method)
    monkeypatch.setattr(ranges_module, "HELD", 1)
    assert calibrate(block, images, method) == whole


def test_onnx_runtime_computes_products_with_a_bias_in_int8(placed: onnx.ModelProto, tmp_path: Path) -> None:
    """It would fuse the bias in FP32 first, and had no INT8 kernel for that."""
    settings = session_options(1, "int8")
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    adapted = for_cpu(placed, cpu_fingerprint().int8).SerializeToString()
    create(adapted, settings, CPU.providers(CPU.parse_options({}), "int8"))
    built = attribute(read_layers(tmp_path / "optimised.onnx"), list(products(placed)))
    matrices = [layer for layer in built if "MatMul" in layer.operator and layer.stored]
    assert len(matrices) == 3
    assert all(computes(layer, "int8") for layer in matrices)
    assert sum(layer.macs > 0 and not layer.stored for layer in built) == 2, "both products of attention"


@needs_rtx
def test_tensorrt_reads_products_in_int8(placed: onnx.ModelProto) -> None:
    """Its parser reshapes weights between dequantisation and product."""
    vendor = TENSORRT_RTX.vendor()
    with TENSORRT_RTX.listening("cannot"):
        builder = vendor.Builder(TENSORRT_RTX.logger())
        network = builder.create_network(1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert vendor.OnnxParser(network, TENSORRT_RTX.logger()).parse(placed.SerializeToString())
        built = attribute(network_layers(vendor, network), list(products(placed)))
    stored = {layer.name: layer.precision for layer in built if layer.stored}
    assert stored == dict.fromkeys(WEIGHTED, "int8")
    assert found_precision(built, "int8") == "int8"
