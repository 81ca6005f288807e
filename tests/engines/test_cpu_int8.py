"""INT8 on a CPU: activations and weights are adapted to its arithmetic."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from depthkit.engines.cpu_int8 import for_cpu, narrow_weights, unsigned
from depthkit.engines.fingerprint import Arithmetic


def _rounded(before: str | None, after: str | None = None) -> onnx.ModelProto:
    """x -> `before` -> quantise by steps of 1/127 -> `after`."""
    nodes = [helper.make_node(before, ["x"], ["a"])] if before else []
    nodes += [
        helper.make_node("QuantizeLinear", ["a" if before else "x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ]
    nodes += [helper.make_node(after, ["d"], ["y"])] if after else []
    constants = {"scale": np.float32(1 / 127), "zero": np.int8(0)}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 1, 512]) for n in ("x", "y" if after else "d"))
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _error(model: onnx.ModelProto, exact: np.ndarray, x: np.ndarray) -> float:
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    return float(np.abs(found - exact).max())


@pytest.mark.parametrize(("before", "after"), [("Relu", None), (None, "Relu"), ("Relu", "MaxPool")])
def test_non_negative_activations_get_finer_steps(before: str | None, after: str | None) -> None:
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(1, 1, 1, 512)
    model = _rounded(before, after)
    if after == "MaxPool":
        model.graph.node[-1].attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    fine = unsigned(model)
    assert _error(model, np.maximum(x, 0), x) == pytest.approx(0.5 / 127, rel=0.05)
    assert _error(fine, np.maximum(x, 0), x) == pytest.approx(0.5 / 255, rel=0.05)


@pytest.mark.parametrize("before", [None, "Tanh"])
def test_signed_activations_keep_their_steps(before: str | None) -> None:
    x = np.linspace(-0.9, 0.9, 512, dtype=np.float32).reshape(1, 1, 1, 512)
    model = _rounded(before)
    (signed,), (found,) = (ReferenceEvaluator(each).run(None, {"x": x}) for each in (model, unsigned(model)))
    np.testing.assert_array_equal(found, signed)


def test_input_model_is_not_changed() -> None:
    model = _rounded("Relu")
    before = model.SerializeToString()
    unsigned(model)
    assert model.SerializeToString() == before


def _weighted(weights: np.ndarray) -> onnx.ModelProto:
    """x and INT8 weights with a scale for each output channel: a convolution, or a matrix product if they are I x O."""
    axis = 1 if weights.ndim == 2 else 0
    channels = weights.shape[axis]
    scales = np.linspace(0.01, 0.02, channels, dtype=np.float32)
    constants = {"q": weights, "scales": scales, "zeros": np.zeros(channels, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scales", "zeros"], ["w"], axis=axis),
        helper.make_node("MatMul" if weights.ndim == 2 else "Conv", ["x", "w"], ["y"]),
    ]
    shape = [1, 8, weights.shape[0]] if weights.ndim == 2 else [1, weights.shape[1], 8, 8]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


KERNELS = hnp.arrays(np.int8, st.tuples(*[st.integers(1, 4)] * 4), elements=st.integers(-127, 127))


@given(weights=KERNELS)
def test_narrow_weights_cannot_saturate_and_keep_the_sums(weights: np.ndarray) -> None:
    """VPMADDUBSW adds two products of an unsigned byte in 16 bits."""
    model = narrow_weights(_weighted(weights))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    narrow = values["q"].astype(int)
    assert 2 * 255 * np.abs(narrow).max() <= np.iinfo(np.int16).max
    assert np.abs(2 * narrow - weights).max() <= 1
    sums = 2 * narrow.reshape(len(narrow), -1).sum(1) - weights.reshape(len(weights), -1).sum(1, dtype=int)
    assert np.abs(sums).max() <= 1


@given(weights=hnp.arrays(np.int8, st.tuples(*[st.integers(1, 6)] * 2), elements=st.integers(-127, 127)))
def test_narrow_weights_of_a_matrix_product_keep_the_sums_of_its_columns(weights: np.ndarray) -> None:
    model = narrow_weights(_weighted(weights))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    change = 2 * values["q"].astype(int) - weights
    assert np.abs(change).max() <= 1
    assert np.abs(change.sum(axis=0)).max() <= 1


def test_narrow_weights_give_almost_the_same_result() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (4, 16, 3, 3)).astype(np.int8)
    x = np.broadcast_to(rng.uniform(0, 1, (1, 16, 1, 1)).astype(np.float32), (1, 16, 8, 8))
    model = _weighted(weights)
    exact, found = (
        np.asarray(ReferenceEvaluator(each).run(None, {"x": x})[0])  # type: ignore[index]
        for each in (model, narrow_weights(model))
    )
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("arithmetic", "most"),
    [("amx", 127), ("vnni", 127), ("dot", 127), ("saturating", 64), ("none", 64)],
)
def test_weights_are_narrowed_only_where_sums_saturate(arithmetic: Arithmetic, most: int) -> None:
    model = for_cpu(_weighted(np.full((1, 1, 2, 2), 127, np.int8)), arithmetic)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values["q"].max() == most
