"""INT8 on a CPU: what becomes of signed activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from depthkit.engines.cpu_int8 import unsigned


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
def test_what_is_never_negative_gets_finer_steps_of_the_same_range(before: str | None, after: str | None) -> None:
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(1, 1, 1, 512)
    model = _rounded(before, after)
    if after == "MaxPool":
        model.graph.node[-1].attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    fine = unsigned(model)
    assert _error(model, np.maximum(x, 0), x) == pytest.approx(0.5 / 127, rel=0.05)
    assert _error(fine, np.maximum(x, 0), x) == pytest.approx(0.5 / 255, rel=0.05)


@pytest.mark.parametrize("before", [None, "Tanh"])
def test_what_may_be_negative_keeps_its_steps(before: str | None) -> None:
    x = np.linspace(-0.9, 0.9, 512, dtype=np.float32).reshape(1, 1, 1, 512)
    model = _rounded(before)
    (signed,), (found,) = (ReferenceEvaluator(each).run(None, {"x": x}) for each in (model, unsigned(model)))
    np.testing.assert_array_equal(found, signed)


def test_the_model_itself_is_not_changed() -> None:
    model = _rounded("Relu")
    before = model.SerializeToString()
    unsigned(model)
    assert model.SerializeToString() == before
