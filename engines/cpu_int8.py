"""Adapt an INT8 model to CPUs: unsigned activations, and 7-bit weights on CPUs whose sums saturate.

All backends share one ONNX file; these functions change a copy in memory, from which the engine is built.

* **Unsigned activations.** The ONNX file's activations are signed, because TensorRT requires it. CPUs multiply
  unsigned by signed numbers, and values after a ReLU need no sign: their range gets 255 steps instead of 127.
  Both make an engine more accurate and faster (docs/results/quantise.md). ONNX Runtime converts signed to unsigned by
  itself, without the finer steps; OpenVINO (2026.4.1) is wrong for signed ones after a Concat (docs/log.md).
* **7-bit weights.** Without VNNI or AMX the kernels add two products in 16 bits and saturate. With weights of at most
  64 they cannot: 2 x 255 x 64 = 32,640 < 32,767. ONNX Runtime calls it `reduce_range`, NNCF `overflow_fix`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..onnx_graph import copied, readers
from .fingerprint import Arithmetic

if TYPE_CHECKING:
    import onnx

__all__ = ["for_cpu", "narrow_weights", "read_for_cpu", "unsigned"]

_EXACT: Final = frozenset({"amx", "vnni", "dot"})
"""Kinds of arithmetic that add products of 8-bit weights in 32 bits."""

_ALWAYS: Final = frozenset({"Relu", "Sigmoid", "Abs", "Exp", "Softplus", "HardSigmoid"})
"""Operators whose output is never negative."""

_IF_ALL: Final = frozenset({"Add", "Mul", "Div", "Max", "Concat"})
"""Operators whose output is not negative if no input is."""

_IF_FIRST: Final = frozenset(
    {"Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "AveragePool", "Resize"}
    | {"GlobalAveragePool", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators whose output is not negative if the first input is not, except a cubic Resize, which overshoots."""


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an INT8 (QDQ) model with activations quantised to unsigned integers over the same ranges."""
    from onnx import numpy_helper

    copy: onnx.ModelProto = copied(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read_by = readers(graph)
    positive = _never_negative(graph)
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]:
        back = read_by[node.output[0]]
        after = [reader.op_type for each in back for reader in read_by.get(each.output[0], ())]
        cut = node.input[0] in positive or (bool(after) and set(after) == {"Relu"})  # ReLU drops negatives anyway
        steps = numpy_helper.to_array(constants[node.input[1]])
        ends = (steps * np.float32(127 / 255) if cut else steps, np.full(steps.shape, 0 if cut else 128, np.uint8))
        names = [f"{node.input[0]}_unsigned_{what}" for what in ("scale", "zero_point")]
        graph.initializer.extend(numpy_helper.from_array(*each) for each in zip(ends, names, strict=True))
        for each in (node, *back):
            each.input[1:] = names
    _drop_unused(graph)
    return copy


def narrow_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an INT8 (QDQ) model with 7-bit weights: halved values and doubled scales."""
    from onnx import TensorProto, numpy_helper

    copy: onnx.ModelProto = copied(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    narrowed: set[str] = set()
    for node in copy.graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != TensorProto.INT8:
            continue
        steps, name = numpy_helper.to_array(constants[node.input[1]]), f"{node.input[0]}_7bit_scale"
        if weight.name not in narrowed:
            channel = next((each.i for each in node.attribute if each.name == "axis"), 0)
            halves = np.moveaxis(_halve(np.moveaxis(numpy_helper.to_array(weight), channel, 0)), 0, channel)
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(halves), weight.name))
            copy.graph.initializer.append(numpy_helper.from_array(steps * steps.dtype.type(2), name))
            narrowed.add(weight.name)
        node.input[1] = name
    _drop_unused(copy.graph)
    return copy


def for_cpu(model: onnx.ModelProto, arithmetic: Arithmetic | None) -> onnx.ModelProto:
    """A copy of an INT8 (QDQ) model that a CPU with this arithmetic computes without saturation."""
    return unsigned(model) if arithmetic in _EXACT else narrow_weights(unsigned(model))


def read_for_cpu(path: Path, arithmetic: Arithmetic | None) -> bytes:
    """An INT8 file adapted by `for_cpu`, serialised for the vendor."""
    import onnx

    return bytes(for_cpu(onnx.load(path), arithmetic).SerializeToString())


def _halve(weights: np.ndarray) -> np.ndarray:
    """INT8 weights, with output channels first, divided by two and rounded to at most 64 in magnitude.

    The rounding error of a weight is carried to the next odd weight of the same output channel (error diffusion). So
    the sum of a kernel changes by at most half a step and, as images are smooth, its output by little. With each
    weight rounded alone, compact's depth moved by 25 mm more (docs/results/int8.md).

    >>> _halve(np.array([[3, 1, 1, -127], [127, 127, -1, 0]], np.int8)).tolist()
    [[2, 0, 1, -64], [64, 63, 0, 0]]
    """
    sums = np.cumsum(weights.reshape(len(weights), -1).astype(np.int64), axis=1)
    halves = np.diff((sums + 1) // 2, axis=1, prepend=0)
    return halves.reshape(weights.shape).astype(np.int8)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {tensor for node in graph.node for tensor in node.input}
    for unused in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(unused)


def _never_negative(graph: onnx.GraphProto) -> set[str]:
    import onnx
    from onnx import numpy_helper

    found = {each.name for each in graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    found |= {tensor.name for tensor in graph.initializer if (numpy_helper.to_array(tensor) >= 0).all()}
    for node in graph.node:  # in topological order, as ONNX requires
        overshoots = any(each.name == "mode" and each.s == b"cubic" for each in node.attribute)
        if (
            node.op_type in _ALWAYS
            or (node.op_type in _IF_ALL and found.issuperset(node.input))
            or (node.op_type in _IF_FIRST and node.input[0] in found and not overshoots)
        ):
            found.update(node.output)
    return found
