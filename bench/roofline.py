"""Roofline of an engine: its multiply-accumulates and bytes against the machine's peaks.

S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from ..onnx_graph import tensor_types
from ..precisions import PRECISIONS, computed_in
from ..session import Session
from .peaks import measure_peaks
from .results import Roofline

__all__ = ["bytes_moved", "find_roofline"]

_FUSED: Final = frozenset({
    "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Exp", "Softplus",
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Sqrt", "Neg", "Abs", "Erf", "Gelu", "BatchNormalization", "Cast",
    "Identity", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Dropout", "Shape",
})  # fmt: skip
"""Elementwise and layout operators: engines fuse them into a neighbouring layer."""


def find_roofline(session: Session, onnx: Path) -> Roofline | None:
    """Compute the roofline of an open session.

    None: its precision is unknown, no installed library can measure its peak, or shapes cannot be inferred.

    Args:
        session: runs the model in `onnx`.
        onnx: an ONNX file that depthkit exported, of the session's size; the batch is the session's.
    """
    precision = computed_in(session.precision)
    if precision is None:
        return None
    import onnx as library

    moved = bytes_moved(library.load(onnx), session.spec.opt_batch, PRECISIONS[precision].value_bytes)
    peaks = measure_peaks(precision, on_gpu=session.device == "gpu") if moved else None
    if not moved or peaks is None:
        return None
    return Roofline(session.spec.macs * session.spec.opt_batch, moved, peaks)


def bytes_moved(model: Any, batch: int, item: int) -> int | None:
    """Bytes that a run of an `onnx.ModelProto` reads and writes; None: its shapes cannot be inferred.

    Every layer reads its inputs once and writes its output once, in the engine's precision; the image is read as uint8,
    the depth written as float32, and weights are read once. Elementwise and layout operators belong to the layer before
    them; only their second operand is read in addition.

    Convolution, pooling, resizing and concatenation count as separate layers. Engines that fuse more save the traffic
    between these: TensorRT lets layers write directly into the output of a concatenation. Data that stays in a cache
    does not reach memory, so a small network can be faster than this estimate. For INT8 all layers count as INT8,
    even those left in FP32.

    Args:
        model: a graph.
        batch: frames per run.
        item: bytes of an element in the engine's precision.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    types = tensor_types(model, batch)
    sizes = {name: math.prod(shape) for name, (_, shape) in types.items() if shape is not None and 0 not in shape}
    sizes |= {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    passed, roots = _passed(graph, weights)
    items = {roots.get(end.name, end.name): _item_bytes(end) for end in (*graph.input, *graph.output)}
    total = 0
    read: set[str] = set()
    for tensor in passed:
        root, size = roots.get(tensor, tensor), sizes.get(tensor)
        if size is None:
            return None
        total += 0 if root in read else size * items.get(root, item)
        read |= {root} & weights
    return total


def _passed(graph: Any, weights: set[str]) -> tuple[list[str], dict[str, str]]:
    """Tensors that layers read or write (once per access), and for each fused tensor the tensor it derives from."""
    passed: list[str] = []
    roots: dict[str, str] = {}
    for node in graph.node:
        inputs = [name for name in dict.fromkeys(node.input) if name]
        if node.op_type in _FUSED:
            varying = [name for name in inputs if roots.get(name, name) not in weights]
            first = (varying or inputs)[0]
            roots |= dict.fromkeys(node.output, roots.get(first, first))
            passed += varying[1:]
        elif node.op_type != "Constant":
            passed += [*inputs, *filter(None, node.output)]
    return passed, roots


def _item_bytes(value: Any) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize)
