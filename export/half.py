"""FP16 and BF16 without torch: retype the nodes of an FP32 graph between its first layer with weights and its last.

ONNX's operator schemas say which inputs and outputs may be half precision, so no list of operators grows old here: a
node that may not compute in it stays in FP32, between Casts. docs/decisions/0015-half-precision-without-torch.md
compares this with the converters of ONNX Runtime, onnxconverter-common and ModelOpt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import BackendError
from ..onnx_graph import copied, opset_of, tensor_types
from ..precisions import PRECISIONS
from ..vendors import import_onnxruntime

__all__ = ["HalfPrecision", "find_large", "to_half"]

HalfPrecision = Literal["fp16", "bf16"]

_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_IN_FP32: Final = frozenset(
    {"CumSum", "Exp", "GlobalLpPool", "Log", "LpNormalization", "LpPool", "Pow", "Reciprocal", "Softplus", "Sqrt"}
    | {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"}
    | {"ReduceSumSquare"}
)
"""Powers and sums leave half precision's range or resolution first; PyTorch's autocast computes them in FP32 as well
(docs.pytorch.org/docs/stable/amp.html). Softmax and the normalisations are not here: vendors accumulate them in FP32
themselves, and fuse them with their neighbours only if no Cast stands between."""

_NOT_IN_BF16: Final = frozenset({"ConvTranspose"})
"""TensorRT-RTX 1.7.1 fails to build a transposed convolution in BF16 ("could not infer output types")."""

_MOST_ERROR: Final = 0.01
"""Largest relative error of a single number in half precision. The epsilon before a square root could become 0."""


def to_half(model: onnx.ModelProto, precision: HalfPrecision, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of an FP32 graph whose nodes from the first layer with weights to the last compute in half precision.

    Nodes before and after stay in FP32: normalisation of the picture, and the answer's range. In between, FP32 remains
    for nodes that ONNX does not allow in half precision, powers and sums, and nodes with a constant that half precision
    cannot represent.

    Args:
        model: with constants folded.
        precision: BF16 also raises the opset to 22, the first with BF16 convolutions.
        kept: names of nodes that stay in FP32.

    Raises:
        BackendError: ONNX cannot convert the graph to this opset.
    """
    least = PRECISIONS[precision].opset if precision == "bf16" else 0
    converted: onnx.ModelProto = copied(_raise_opset(model, least) if opset_of(model) < least else model)
    graph = converted.graph
    floats = {name for name, (kind, _) in tensor_types(converted).items() if kind == TensorProto.FLOAT}
    slots = _choose(converted, floats, precision, kept)
    outside = {
        name
        for index, node in enumerate(graph.node)
        for place, name in enumerate(node.input)
        if name in floats and place not in slots.get(index, ())
    }
    writer = _Writer(graph, floats, precision, outside)
    for index, node in enumerate(graph.node):
        writer.add(node, slots.get(index, frozenset()))
    writer.finish()
    return converted


def find_large(model: onnx.ModelProto, images: Sequence[np.ndarray] | np.ndarray, limit: float) -> list[str]:
    """The nodes, in order, that `to_half` must keep so that no half-precision tensor exceeds `limit` on these frames.

    These are the nodes that write such a tensor, and those that read it. The graph runs once for each frame, and only
    the extremes of each tensor are kept.

    Args:
        model: camera-ready FP32 graph for one frame per run.
        images: H x W x 3 uint8 of its size.
        limit: for instance `PRECISIONS["fp16"].largest`.
    """
    floats = {name for name, (kind, _) in tensor_types(model).items() if kind == TensorProto.FLOAT}
    chosen = [model.graph.node[index] for index in _choose(model, floats, "fp16", ())]
    constants = {tensor.name for tensor in model.graph.initializer}
    touched = {name for node in chosen for name in (*node.input, *node.output) if name in floats - constants}
    probed = copied(model)
    del probed.graph.output[:]
    for name in sorted(touched):
        for operator in ("ReduceMax", "ReduceMin"):
            extreme = f"{name}.{operator}"
            probed.graph.node.append(helper.make_node(operator, [name], [extreme], keepdims=0))
            probed.graph.output.append(helper.make_tensor_value_info(extreme, TensorProto.FLOAT, []))
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Each extreme is then computed as soon as its tensor is; in the other order at the end, with all tensors in memory.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (image_input,) = model.graph.input
    found = np.abs([session.run(None, {image_input.name: image[None]}) for image in images]).max(axis=0)
    largest = dict(zip(sorted(touched), found.reshape(-1, 2).max(axis=1), strict=True))
    large = {name for name, most in largest.items() if not most <= limit}
    return [node.name for node in chosen if large.intersection((*node.input, *node.output))]


class _Writer:
    """Writes the nodes of a graph anew, with Casts and constants of the types that they read.

    Args:
        graph: its nodes are replaced by `finish`.
        floats: its FP32 tensors.
        precision: of the nodes that are converted.
        outside: those that some node reads in FP32.
    """

    def __init__(self, graph: onnx.GraphProto, floats: set[str], precision: HalfPrecision, outside: set[str]) -> None:
        self._graph, self._floats, self._precision, self._outside = graph, floats, precision, outside
        self._type = int(getattr(TensorProto, PRECISIONS[precision].onnx_type))
        self._constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in floats}
        self._nodes: list[onnx.NodeProto] = []
        self._half: set[str] = set()
        """Activations in half precision."""
        self._copies: dict[str, str] = {}
        """For each tensor that was needed in another type, the name of its copy."""

    def add(self, node: onnx.NodeProto, slots: frozenset[int]) -> None:
        """Add a node that reads its inputs at `slots` in half precision; without any, it stays in FP32."""
        for index, name in enumerate(node.input):
            if name in self._floats and (index in slots) != (name in self._half):
                node.input[index] = self._copy(name)
        self._nodes.append(node)
        if slots:
            self._half.update(self._floats.intersection(node.output))

    def finish(self) -> None:
        """Replace the graph's nodes; its outputs are in FP32 again."""
        for output in [each.name for each in self._graph.output if each.name in self._half]:
            inner = f"{output}.{self._precision}"
            for node in self._nodes:
                for names in (node.input, node.output):
                    names[:] = [inner if name == output else name for name in names]
            self._cast(inner, output, TensorProto.FLOAT)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _copy(self, name: str) -> str:
        """The name of a tensor in the type that it does not have."""
        if name in self._copies:
            return self._copies[name]
        constant = self._constants.get(name)
        if constant is None:
            word, kind = ("fp32", TensorProto.FLOAT) if name in self._half else (self._precision, self._type)
            self._cast(name, f"{name}.{word}", kind)
            self._copies[name] = f"{name}.{word}"
            return self._copies[name]
        self._copies[name] = f"{name}.{self._precision}" if name in self._outside else name
        bits = _bits(numpy_helper.to_array(constant), self._precision).tobytes()
        half = helper.make_tensor(self._copies[name], self._type, constant.dims, bits, raw=True)
        if name in self._outside:
            self._graph.initializer.append(half)
        else:
            constant.CopyFrom(half)
        return self._copies[name]

    def _cast(self, name: str, copy: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [name], [copy], name=f"{copy}.Cast", to=kind))


def _raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise BackendError(
            f"BF16 needs opset {opset}, to which ONNX cannot convert this graph ({error}); export the model again with "
            "it, or choose --fp16"
        ) from error


def _choose(
    model: onnx.ModelProto, floats: set[str], precision: HalfPrecision, kept: Collection[str]
) -> dict[int, frozenset[int]]:
    """Indices of the nodes that compute in half precision, each with those of its inputs that it reads in it."""
    graph, opset = model.graph, opset_of(model)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in floats}
    products = {index for index, node in enumerate(graph.node) if node.op_type in _PRODUCTS and node.name not in kept}
    after: set[int] = set()
    reached: set[str] = set()  # floating-point tensors that depend on a product
    for index, node in enumerate(graph.node):
        if index in products or reached.intersection(node.input):
            after.add(index)
            reached.update(floats.intersection(node.output))
    before: set[int] = set()
    needed: set[str] = set()  # floating-point tensors that a product depends on
    for index, node in reversed(list(enumerate(graph.node))):
        if index in products or needed.intersection(node.output):
            before.add(index)
            needed.update(floats.intersection(node.input))
    return {
        index: _half_slots(node, opset, precision)
        for index in sorted(after & before)
        if (node := graph.node[index]).name not in kept
        and node.op_type not in _IN_FP32
        and not (precision == "bf16" and node.op_type in _NOT_IN_BF16)
        and _permits(node, opset, precision, floats, constants)
        and all(_fits(constants[name], precision) for name in node.input if name in constants)
    }


def _permits(
    node: onnx.NodeProto, opset: int, precision: HalfPrecision, floats: set[str], constants: Collection[str]
) -> bool:
    """Whether ONNX allows a node in half precision: all that it computes from and writes, unless it is a constant."""
    schema = _schema(node, opset)
    slots = _half_slots(node, opset, precision)
    if schema is None or any(each.HasField("g") or each.graphs for each in node.attribute):
        return False
    read = {index for index, name in enumerate(node.input) if name in floats and name not in constants}
    bound = {_formal(schema.inputs, index).type_str for index in slots}
    written = {_formal(schema.outputs, index).type_str for index, name in enumerate(node.output) if name in floats}
    return bool(read) and read <= slots and written <= bound


def _half_slots(node: onnx.NodeProto, opset: int, precision: HalfPrecision) -> frozenset[int]:
    """Indices of a node's inputs that ONNX allows in half precision."""
    schema = _schema(node, opset)
    if schema is None:
        return frozenset()
    half = f"tensor({PRECISIONS[precision].float_type})"
    variables = {each.type_param_str for each in schema.type_constraints if half in each.allowed_type_strs}
    return frozenset(i for i, name in enumerate(node.input) if name and _formal(schema.inputs, i).type_str in variables)


def _formal(formals: Sequence[Any], index: int) -> Any:
    """The formal parameter of an input or output; the last one of a schema may stand for several."""
    return formals[min(index, len(formals) - 1)]


def _schema(node: onnx.NodeProto, opset: int) -> Any:
    """ONNX's description of a node's operator; None if it is not ONNX's own."""
    return onnx.defs.get_schema(node.op_type, opset) if node.domain in {"", "ai.onnx"} else None


def _fits(constant: onnx.TensorProto, precision: HalfPrecision) -> bool:
    """Whether a constant is in the precision's range and, if it is a single number, hardly changes."""
    values = numpy_helper.to_array(constant)
    finite = np.abs(values[np.isfinite(values)])
    if finite.size and finite.max() > PRECISIONS[precision].largest:
        return False
    if precision == "bf16" or values.size != 1 or not finite.size:
        return True
    return bool(np.abs(np.float32(finite.astype(np.float16)) - finite) <= _MOST_ERROR * finite)


def _bits(values: np.ndarray, precision: HalfPrecision) -> np.ndarray:
    """FP32 numbers rounded to the nearest in half precision (ties to even), as the uint16 that ONNX stores.

    >>> _bits(np.float32([1, -2, 65504]), "fp16").view(np.float16).tolist()
    [1.0, -2.0, 65504.0]
    >>> [hex(each) for each in _bits(np.float32([1, -2, 1 + 2**-8, 1 + 3 * 2**-8]), "bf16")]
    ['0x3f80', '0xc000', '0x3f80', '0x3f82']
    """
    if precision == "fp16":
        return np.ascontiguousarray(values, np.float16).view(np.uint16)
    whole = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: np.ndarray = ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
