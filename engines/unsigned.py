"""INT8 on a CPU: activations unsigned.

An INT8 file's activations are signed, since TensorRT takes nothing else. A CPU multiplies unsigned by signed numbers
(VNNI), and what follows a ReLU has no use for a sign: its range gets 255 steps instead of 127. Both make an engine
truer and faster (docs/results/quantise.md). ONNX Runtime makes signed ones unsigned by itself, without the finer steps;
OpenVINO (2026.4.1) goes wrong where signed ones follow a Concat (docs/log.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["read_unsigned", "unsigned"]

_ALWAYS: Final = frozenset({"Relu", "Sigmoid", "Abs", "Exp", "Softplus", "HardSigmoid"})
"""Operators whose answers are never negative."""

_IF_ALL: Final = frozenset({"Add", "Mul", "Div", "Max", "Concat"})
"""… if nothing that they read is."""

_IF_FIRST: Final = frozenset(
    {"Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "AveragePool", "Resize"}
    | {"GlobalAveragePool", "QuantizeLinear", "DequantizeLinear"}
)
"""… if the first thing that they read is not; but a cubic Resize overshoots."""


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an INT8 (QDQ) model whose activations are quantised to unsigned numbers of the same ranges."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]  # it names the types that are changed here
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    positive = _never_negative(graph)
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]:
        back = readers[node.output[0]]
        after = [reader.op_type for each in back for reader in readers.get(each.output[0], ())]
        cut = node.input[0] in positive or (bool(after) and set(after) == {"Relu"})  # which would cut it off anyway
        steps = numpy_helper.to_array(constants[node.input[1]])
        ends = (steps * np.float32(127 / 255) if cut else steps, np.full(steps.shape, 0 if cut else 128, np.uint8))
        names = [f"{node.input[0]}_unsigned_{what}" for what in ("scale", "zero_point")]
        graph.initializer.extend(numpy_helper.from_array(*each) for each in zip(ends, names, strict=True))
        for each in (node, *back):
            each.input[1:] = names
    used = {tensor for node in graph.node for tensor in node.input}
    for unused in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(unused)
    return copy


def read_unsigned(path: Path) -> bytes:
    """An INT8 file, made unsigned, as a vendor takes it from memory."""
    import onnx

    return bytes(unsigned(onnx.load(path)).SerializeToString())


def _never_negative(graph: onnx.GraphProto) -> set[str]:
    import onnx
    from onnx import numpy_helper

    found = {each.name for each in graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    found |= {tensor.name for tensor in graph.initializer if (numpy_helper.to_array(tensor) >= 0).all()}
    for node in graph.node:  # in topological order, as the standard wants them
        overshoots = any(each.name == "mode" and each.s == b"cubic" for each in node.attribute)
        if (
            node.op_type in _ALWAYS
            or (node.op_type in _IF_ALL and found.issuperset(node.input))
            or (node.op_type in _IF_FIRST and node.input[0] in found and not overshoots)
        ):
            found.update(node.output)
    return found
