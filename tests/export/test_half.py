"""FP16 and BF16 by retyping an ONNX graph: ranges, types that ONNX fixes, and the networks of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from polygraphy.backend.onnx import fold_constants
from polygraphy.logger import G_LOGGER

from depthkit.export.half import HalfPrecision, find_large, to_half
from depthkit.onnx_graph import tensor_types
from depthkit.precisions import PRECISIONS
from depthkit.tests.support import needs_rtx
from depthkit.tests.zoo import SMALL, ZOO
from depthkit.vendors import import_onnxruntime

SIZE = (12, 16)
HALVES: tuple[HalfPrecision, ...] = ("fp16", "bf16")
ONNX_TYPE = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def graph(*nodes: onnx.NodeProto, opset: int = 18, **constants: np.ndarray | float) -> onnx.ModelProto:
    """A graph from `image` (uint8 1 x 12 x 16 x 3) over `x` (normalised, 1 x 3 x 12 x 16) to `depth`."""
    before = [
        helper.make_node("Cast", ["image"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], name="planes", perm=(0, 3, 1, 2)),
        helper.make_node("Mul", ["planes", "gain"], ["x"], name="gain"),
    ]
    arrays = {name: np.asarray(value, np.float32) for name, value in {"gain": 1 / 255, **constants}.items()}
    ends = (
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SIZE, 3])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, None, None])],
    )
    made = helper.make_graph([*before, *nodes], "g", *ends, [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output; inputs are separated by spaces, and `-` is none."""
    names = [name.replace("-", "") for name in inputs.split()]
    return helper.make_node(operator, names, [output], name=output, **attributes)


def weight(*shape: int) -> np.ndarray:
    """A random kernel that keeps the variance."""
    return np.random.default_rng(19).normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)


def image(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)


def answer(model: onnx.ModelProto, given: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: given})
    return np.asarray(found)


def nodes_in_half(model: onnx.ModelProto, precision: HalfPrecision) -> set[str]:
    """Names of the nodes that read or write half precision, without Casts."""
    half = {name for name, (kind, _) in tensor_types(model).items() if kind == ONNX_TYPE[precision]}
    return {
        each.name
        for each in model.graph.node
        if each.op_type != "Cast" and half.intersection((*each.input, *each.output))
    }


def casts(model: onnx.ModelProto) -> int:
    return sum(each.op_type == "Cast" for each in model.graph.node)


def two_layers(
    *between: onnx.NodeProto, inner: str, opset: int = 18, **constants: np.ndarray | float
) -> onnx.ModelProto:
    """A convolution `first`, some nodes that end in `inner`, a convolution `second`, and `depth` in metres."""
    return graph(
        node("Conv", "x w1", "first", pads=[1, 1, 1, 1]),
        *between,
        node("Conv", f"{inner} w2", "second"),
        node("Mul", "second metres", "depth"),
        opset=opset,
        **{"w1": weight(4, 3, 3, 3), "w2": weight(1, 4, 1, 1), "metres": 10.0, **constants},
    )


@pytest.mark.parametrize("precision", HALVES)
def test_layers_compute_in_half_precision_and_the_ends_do_not(precision: HalfPrecision) -> None:
    model = two_layers(node("Relu", "first", "relu"), inner="relu")

    half = to_half(model, precision)

    assert nodes_in_half(half, precision) == {"first", "relu", "second"}
    assert casts(half) == casts(model) + 2
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert types == {"gain": 1, "metres": 1, "w1": ONNX_TYPE[precision], "w2": ONNX_TYPE[precision]}
    onnx.checker.check_model(half, full_check=True)
    if precision == "fp16":
        np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=0.02)


def test_a_graph_that_ends_with_a_layer_still_answers_fp32() -> None:
    model = graph(node("Conv", "x w", "depth"), w=weight(1, 3, 1, 1))

    half = to_half(model, "fp16")

    assert tensor_types(half)["depth"][0] == TensorProto.FLOAT
    np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=2e-3)


def test_inputs_whose_type_onnx_fixes_keep_it() -> None:
    resize = node("Resize", "first - scales", "large", mode="linear")
    model = two_layers(resize, inner="large", scales=np.array([1, 1, 2, 2]))

    half = to_half(model, "fp16")

    assert "large" in nodes_in_half(half, "fp16")
    assert next(each for each in half.graph.initializer if each.name == "scales").data_type == TensorProto.FLOAT
    np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=0.02)


def test_a_normalisation_written_out_keeps_its_squares_and_epsilon() -> None:
    """As in files of opset 16 or older, which has no LayerNormalization; the epsilon of DPT is 1e-12."""
    model = two_layers(
        node("ReduceMean", "first", "mean", axes=[1]),
        node("Sub", "first mean", "centred"),
        node("Pow", "centred two", "squares"),
        node("ReduceMean", "squares", "variance", axes=[1]),
        node("Add", "variance epsilon", "positive"),
        node("Sqrt", "positive", "deviation"),
        node("Div", "centred deviation", "normal"),
        inner="normal",
        opset=13,
        w1=np.zeros((4, 3, 3, 3)),
        two=2.0,
        epsilon=1e-12,
    )

    half = to_half(model, "fp16")

    assert nodes_in_half(half, "fp16") == {"first", "centred", "normal", "second"}
    assert np.isfinite(answer(half, image()[None])).all()  # the variance is 0, so 0 / sqrt(0) without the epsilon


def test_a_weight_that_nodes_of_both_types_read_is_stored_in_both() -> None:
    model = two_layers(
        node("Pow", "first power", "powers"), node("Mul", "powers power", "scaled"), inner="scaled", power=2.0
    )

    half = to_half(model, "fp16")

    stored = {each.name: each.data_type for each in half.graph.initializer if each.name.startswith("power")}
    assert stored == {"power": TensorProto.FLOAT, "power.fp16": TensorProto.FLOAT16}
    np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=0.02)


def test_a_constant_beyond_the_range_keeps_its_node_in_fp32() -> None:
    between = [node("Mul", "first million", "large"), node("Div", "large million", "small")]
    model = two_layers(*between, inner="small", million=1e6)

    half = to_half(model, "fp16")

    assert nodes_in_half(half, "fp16") == {"first", "second"}
    np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=0.02)
    assert nodes_in_half(to_half(model, "bf16"), "bf16") == {"first", "large", "small", "second"}


def overflowing() -> onnx.ModelProto:
    """`second` reads and writes up to 2e5, through a ReLU; `third` takes it back. Every weight fits FP16."""
    wide = weight(4, 3, 3, 3) * 500
    return graph(
        node("Conv", "x w1", "first", pads=[1, 1, 1, 1]),
        node("Conv", "first w2", "second"),
        node("Relu", "second", "relu"),
        node("Conv", "relu w3", "third"),
        node("Conv", "third w4", "depth"),
        w1=wide,
        w2=np.abs(weight(4, 4, 1, 1)) * 500,
        w3=weight(4, 4, 1, 1) / 250_000,
        w4=weight(1, 4, 1, 1),
    )


def test_what_overflows_is_found_and_kept() -> None:
    model = overflowing()
    expected = answer(model, image()[None])

    large = find_large(model, [image()], PRECISIONS["fp16"].largest)

    assert large == ["second", "relu", "third"]
    assert find_large(model, [image()], PRECISIONS["bf16"].largest) == []
    assert find_large(model, [np.zeros_like(image())], PRECISIONS["fp16"].largest) == []
    half = to_half(model, "fp16", large)
    assert nodes_in_half(half, "fp16") == {"first", "depth"}
    np.testing.assert_allclose(answer(half, image()[None]), expected, atol=0.02 * np.abs(expected).max())


def test_nodes_that_stay_in_fp32_may_be_large() -> None:
    model = two_layers(
        node("Mul", "first big", "large"),
        node("Pow", "large two", "squares"),
        node("Sqrt", "squares", "root"),
        inner="root",
        big=200.0,
        two=2.0,
    )

    squares = np.abs(answer(model, image()[None])).max()

    assert np.isfinite(squares)
    assert find_large(model, [image()], 1000.0) == []


def test_control_flow_and_operators_of_others_stay_in_fp32() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["first"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    model = two_layers(
        node("Cast", "yes", "condition", to=TensorProto.BOOL),
        node("If", "condition", "chosen", then_branch=branch, else_branch=branch),
        node("Relu", "chosen", "relu"),
        inner="relu",
        yes=1.0,
    )

    half = to_half(model, "fp16", ["first"])

    assert "chosen" not in nodes_in_half(half, "fp16")
    np.testing.assert_allclose(answer(half, image()[None]), answer(model, image()[None]), atol=0.02)


_UNARY = ("Relu", "Sigmoid", "Erf", "Softmax", "Identity", "Abs", "Exp", "Sqrt", "ReduceMean", "Neg", "Tanh", "Cast")
_BINARY = ("Add", "Mul", "Max", "Concat", "Where")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Graphs of operators of every kind, after a convolution and before one."""
    nodes, tensors = [node("Sigmoid", "first", "t0")], ["t0"]
    constants: dict[str, np.ndarray | float] = {}
    for index in range(1, draw(st.integers(1, 8)) + 1):
        name, read = f"t{index}", st.sampled_from(tensors)
        operator = draw(st.sampled_from((*_UNARY, *_BINARY, "constant", "through an integer")))
        if operator == "constant":
            constants[f"c{index}"] = draw(st.sampled_from((0.5, 1e-9, 1e-3, 3.0)))
            nodes.append(node("Add", f"{draw(read)} c{index}", name))
        elif operator == "through an integer":
            nodes += [
                node("Cast", draw(read), f"{name}_whole", to=TensorProto.INT64),
                node("Cast", f"{name}_whole", name, to=TensorProto.FLOAT),
            ]
        elif operator == "Concat":
            nodes += [
                node("Concat", f"{draw(read)} {draw(read)}", f"{name}_both", axis=1),
                node("AveragePool", f"{name}_both", f"{name}_pooled", kernel_shape=[1, 1]),
                node("Conv", f"{name}_pooled mix", name),
            ]
            constants["mix"] = weight(4, 8, 1, 1)
        elif operator == "Where":
            nodes += [
                node("Greater", f"{draw(read)} {draw(read)}", f"{name}_greater"),
                node("Where", f"{name}_greater {draw(read)} {draw(read)}", name),
            ]
        elif operator in _BINARY:
            nodes.append(node(operator, f"{draw(read)} {draw(read)}", name))
        elif operator == "Sqrt":
            nodes += [node("Abs", draw(read), f"{name}_abs"), node("Sqrt", f"{name}_abs", name)]
        else:
            attributes = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
            nodes.append(node(operator, draw(read), f"{name}_small", **attributes))
            nodes.append(node("Add", f"{name}_small t0", name))  # ReduceMean answers one number
        tensors.append(name)
        nodes.append(node("Tanh", name, f"{name}_bounded"))
        tensors[-1] = f"{name}_bounded"
    return two_layers(*nodes, inner=tensors[-1], opset=18, **constants)


@settings(max_examples=40, deadline=None)
@given(graphs(), st.sampled_from(HALVES), st.data())
def test_any_graph_stays_valid_and_the_same_function(
    model: onnx.ModelProto, precision: HalfPrecision, data: st.DataObject
) -> None:
    names = [each.name for each in model.graph.node]
    kept = data.draw(st.lists(st.sampled_from(names), max_size=3))

    half = to_half(model, precision, kept)

    onnx.checker.check_model(half, full_check=True)
    assert not nodes_in_half(half, precision).intersection(kept)
    if precision == "fp16":
        assert np.isfinite(answer(half, image()[None])).all()


def folded(path: Path, size: tuple[int, int]) -> onnx.ModelProto:
    """A file's graph for one picture of a size."""
    model = onnx.load(path)
    for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, *size), strict=True):
        dim.dim_value = side
    del model.graph.value_info[:]
    import_onnxruntime().set_default_logger_severity(3)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        found: onnx.ModelProto = fold_constants(model, error_ok=False)
    return found


LONG = {"dpt-small", "glpn-small"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SMALL])
def test_networks_of_others(foreign: Callable[[str], Path], name: str) -> None:
    model = folded(foreign(name), ZOO[name].size)
    picture = np.random.default_rng(3).normal(size=(1, 3, *ZOO[name].size)).astype(np.float32)

    fp16, bf16 = to_half(model, "fp16"), to_half(model, "bf16")

    expected = answer(model, picture)
    assert error(answer(fp16, picture), expected) < 0.01
    assert casts(fp16) - casts(model) == 2
    onnx.checker.check_model(bf16, full_check=True)
    if find_spec("openvino") is not None:
        assert error(compute_by_openvino(bf16, picture), expected) < 0.1


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the expected answer's span."""
    low, high = np.percentile(expected, [2, 98])
    return float(np.abs(found - expected).max() / (high - low))


def compute_by_openvino(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    from depthkit.engines.ov import core

    compiled = core().compile_model(core().read_model(model.SerializeToString()), "CPU")
    return np.asarray(compiled(picture)[0])


@needs_rtx
@pytest.mark.parametrize("precision", HALVES)
def test_tensorrt_builds_a_transposed_convolution(precision: HalfPrecision, tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 cannot build one in BF16."""
    model = two_layers(node("ConvTranspose", "first w", "large", strides=[2, 2]), inner="large", w=weight(4, 4, 2, 2))

    half = to_half(model, precision)

    assert ("large" in nodes_in_half(half, precision)) == (precision == "fp16")
    assert build_by_tensorrt(half)


def build_by_tensorrt(model: onnx.ModelProto) -> bool:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(network, config) is not None


def test_it_needs_no_torch() -> None:
    code = "import sys; from depthkit.export import half; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
