"""The products of an ONNX graph: which nodes they are, their weights, and their work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from depthkit.export.camera_ends import add_camera_ends
from depthkit.export.finish import fold
from depthkit.export.onnx_source import bare_graph
from depthkit.onnx_graph import Product, count_macs, products, tensor_types
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready
from depthkit.train.document import Adoption

from .zoo import ZOO, build


def graph(read: list[int | str], *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from the float tensor `x` to the output of the last node."""
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, read)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
    )
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", *ends, stored), opset_imports=[helper.make_opsetid("", 20)])


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@given(st.sampled_from([1, 3, "batch"]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_work_of_a_matrix_product_is_for_one_frame(frames: int | str, rows: int, inner: int, columns: int) -> None:
    model = graph([frames, rows, inner], node("MatMul", "x w", "y"), w=floats(inner, columns))
    (found,) = products(model)
    assert (found.macs, found.precision) == (rows * inner * columns, "fp32")


def test_frames_may_be_rows_of_one_matrix() -> None:
    """As where a window of tokens is a row of the batch."""
    flat = node("Reshape", "x shape", "rows")
    model = graph([2, 6, 8], flat, node("MatMul", "rows w", "y"), shape=np.array([12, 8]), w=floats(8, 5))
    assert count_macs(model) == 6 * 8 * 5


@pytest.mark.parametrize(("turned", "read", "weight"), [((0, 0), [4, 6], (6, 5)), ((1, 1), [6, 4], (5, 6))])
def test_work_of_a_gemm(turned: tuple[int, int], read: list[int | str], weight: tuple[int, int]) -> None:
    flat = node("Reshape", "x shape", "m")
    gemm = node("Gemm", "m w b", "y", transA=turned[0], transB=turned[1])
    model = graph([1, *read], flat, gemm, shape=np.array(read), w=floats(*weight), b=floats(5))
    assert count_macs(model) == 4 * 6 * 5


def test_a_product_of_activations_has_work_and_no_weights() -> None:
    turned = node("Transpose", "x", "t", perm=[0, 2, 1])
    model = graph([2, 7, 4], turned, node("MatMul", "x t", "scores"), node("MatMul", "scores x", "y"))
    assert [(each.precision, each.module, each.macs) for each in products(model)] == [("", "", 7 * 7 * 4)] * 2


def test_weights_behind_dequantisation_have_the_type_that_is_stored() -> None:
    stored: dict[str, np.ndarray] = {"network.fc.weight": np.zeros((4, 5), np.int8), "z": np.zeros(5, np.int8)}
    weight = node("DequantizeLinear", "network.fc.weight s z", "w", axis=1)
    model = graph([1, 7, 4], weight, node("MatMul", "x w", "y"), s=floats(5), **stored)
    assert list(products(model)) == [Product("y", ("y", "y"), "int8", 7 * 4 * 5, "fc")]


def test_types_need_no_weights_and_know_shapes_that_constants_hold() -> None:
    model = graph(["batch", 4096], node("Reshape", "x shape", "y"), shape=np.array([-1, 64, 64]), big=floats(100, 100))
    types = tensor_types(model)
    assert types["y"] == (TensorProto.FLOAT, (0, 64, 64))
    assert types["big"] == (TensorProto.FLOAT, (100, 100))
    assert tensor_types(model, batch=3)["y"][1] == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "batch"), [("dav2s-small", 1), ("dav2s-small", Dim("batch", 1, 2, 4)), ("fastdepth-small", 2)]
)
def test_work_is_what_torch_counts(foreign: Callable[[str], Path], name: str, batch: int | Dim) -> None:
    """With attention, in a file of the TorchScript exporter, at any batch, and with a camera's frames shrunk."""
    size = ZOO[name].size
    adopted = Adoption("pixel_values", "predicted_depth", "NCHW", True, True, 17, "photos", "photos")
    image, depth = camera_ready(*size, batch)
    spec = ModelSpec(name, (), image, depth, Preprocessing(), (0.0, 10.0), 1, 0, None).with_camera((75, 101))
    network = build(name)
    # torch does not count its fused attention on a CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, 3, *size))
    model = fold(add_camera_ends(bare_graph(foreign(name), adopted, size, batch), adopted, spec, size))
    assert count_macs(model) == counter.get_total_flops() // 2
