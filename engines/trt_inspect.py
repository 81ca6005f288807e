"""The precision of TensorRT's layers, from a strongly typed network and from the engine built from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from .backend import Built
from .manifest import Layer

__all__ = ["inspect_engine", "network_layers", "read_layers"]

_TYPES: Final[Mapping[str, str]] = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
    "fp8": "fp8", "fp4": "fp4", "int8": "int8", "int4": "int4",
    "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_ARITHMETIC: Final = frozenset({"fp32", "fp16", "bf16", "fp8", "fp4", "int8", "int4"})
_UNKNOWN: Final = "unknown"
_ONNX_NODE: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_TYPE_KEYS: Final = ("Datatype", "DataType", "Format/Datatype")  # the last is TensorRT 10's, which TensorRT 11 split


def network_layers(trt: Any, network: Any) -> tuple[Layer, ...]:
    """Every layer of a strongly typed network with the types of its inputs; for a convolution, of input and kernel.

    In INT8 files convolutions and matrix products read dequantised tensors, perhaps reshaped. TensorRT fuses both, so
    the type before dequantising counts.

    Args:
        trt: the vendor's module.
        network: a parsed `INetworkDefinition`.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised: dict[str, str] = {}
    for layer in layers:
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantised[layer.get_output(0).name] = layer.get_input(0).dtype.name
        elif layer.type == trt.LayerType.SHUFFLE and layer.get_input(0).name in dequantised:
            dequantised[layer.get_output(0).name] = dequantised[layer.get_input(0).name]
    return tuple(_network_layer(trt, layer, dequantised) for layer in layers)


def _network_layer(trt: Any, layer: Any, dequantised: Mapping[str, str]) -> Layer:
    operator = layer.type.name
    products = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    multiplies = layer.type in products
    read = [layer.get_input(index) for index in range(layer.num_inputs)]
    types = [
        _type(dequantised.get(tensor.name, tensor.dtype.name) if multiplies else tensor.dtype.name)
        for tensor in read
        if tensor is not None
    ]
    made = [_type(layer.get_output(index).dtype.name) for index in range(layer.num_outputs)]
    if layer.type == trt.LayerType.CONVOLUTION and len(types) == 1:  # the kernel is not an input tensor
        layer.__class__ = trt.IConvolutionLayer  # the bindings return its base class, which has no kernel
        kernel = layer.kernel  # a NumPy array if NumPy has its type
        types.append(_type((kernel if isinstance(kernel, trt.Weights) else trt.Weights(kernel)).dtype.name))
    # A cast computes in its output's type.
    return Layer(layer.name, operator, _arithmetic([] if layer.type == trt.LayerType.CAST else types, made))


def inspect_engine(trt: Any, engine: Any) -> str:
    """The JSON of the vendor's inspector for a deserialised `ICudaEngine`. Raises the vendor's RuntimeError."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    inspector = engine.create_engine_inspector()
    if any(-1 in tuple(engine.get_tensor_shape(name)) for name in inputs):
        # With a dynamic batch, TensorRT 10 reports no types before sizes are set. Nothing runs, so no memory is needed.
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise RuntimeError("no execution context")
        for name in inputs:
            _, optimum, _ = engine.get_tensor_profile_shape(name, 0)
            context.set_input_shape(name, optimum)
        inspector.execution_context = context
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text


def read_layers(text: str, network: tuple[Layer, ...] = ()) -> Built:
    r"""Read the layers of an engine from the inspector's JSON.

    Layers that compute a convolution or matrix product of `network` are found by the ONNX nodes in their metadata,
    because TensorRT 11 may compute them in a layer of any kind; "conv" or "matmul" is then added to the operator. The
    JSON does not report the type of those that are fused with the layer that reads the frames' bytes, or with layers of
    another type (the whole network may be one such layer). The network's type is used for these, which strong typing
    guarantees, and `Built.layers_from` is "network".

    Args:
        text: from `inspect_engine`, of TensorRT 10 or 11.
        network: from `network_layers`, of the network that the engine was built from.

    >>> text = '''{"Layers": [{"Name": "node_conv2d_myl0_2", "LayerType": "correlation", "TacticName": "sm80_xmma",
    ...     "Inputs": [{"Name": "x", "Dimensions": [1, 24, 32, 48], "Datatype": "Half"}],
    ...     "Outputs": [{"Name": "y", "Dimensions": [1, 24, 32, 48], "Datatype": "Half"}],
    ...     "Metadata": "[ONNX Layer: node_conv2d]\\u001f[ONNX Layer: node_relu]"}]}'''
    >>> built = read_layers(text, (Layer("node_conv2d", "CONVOLUTION", "fp16"),))
    >>> built.layers_from, [(layer.name, layer.operator, layer.precision, layer.tactic) for layer in built.layers]
    ('engine', [('node_conv2d_myl0_2', 'correlation (conv)', 'fp16', 'sm80_xmma')])
    """
    rows = [{"Name": row} if isinstance(row, str) else row for row in json.loads(text).get("Layers", ())]
    types = {layer.name: layer.precision for layer in network}
    unreported = {layer.name: layer for layer in network if layer.multiplies}
    fused = [set(_ONNX_NODE.findall(row.get("Metadata", ""))) for row in rows]
    claims = [unreported.keys() & nodes for nodes in fused]
    # Layers that only move a product's tensors also name its node; they count only if no other layer multiplies.
    known = {node for nodes, row in zip(claims, rows, strict=True) if _multiplies(_operator(row)) for node in nodes}
    layers = []
    for row, nodes, parts in zip(rows, claims, fused, strict=True):
        operator, computes = _operator(row), _row_type(row)
        if _multiplies(operator) or nodes - known:
            if nodes and (computes == _UNKNOWN or _blends(row, (types.get(part, _UNKNOWN) for part in parts))):
                continue  # the network's layers are used instead
            operator += _suffix(operator, [unreported[node].operator for node in nodes if node in unreported])
            unreported = {name: layer for name, layer in unreported.items() if name not in nodes}
        tactic = row.get("TacticName") or row.get("TacticValue", "")
        layers.append(Layer(row.get("Name", _UNKNOWN), operator, computes, tactic))
    return Built((*layers, *unreported.values()), "network" if unreported else "engine")


def _row_type(row: Mapping[str, Any]) -> str:
    # Only the first array, because later ones may be a bias. Scalars are always Float, whatever they scale.
    read = sorted(_types(row.get("Inputs", ())), key=lambda each: each not in _ARITHMETIC)[:1]
    if "Weights" in row:  # a convolution in TensorRT 10
        read.append(_type(row["Weights"].get("Type", "")))
    return _arithmetic(read, _types(row.get("Outputs", ())))


def _blends(row: Mapping[str, Any], types: Iterable[str]) -> bool:
    """Whether a row computes in several types, given those of its parts, so that its inputs and outputs do not tell."""
    return "uint8" in _types(row.get("Inputs", ())) or len(_ARITHMETIC.intersection(types)) > 1


def _operator(row: Mapping[str, Any]) -> str:
    return str(row.get("LayerType", _UNKNOWN))


def _multiplies(operator: str) -> bool:
    return Layer("", operator, "").multiplies


def _suffix(operator: str, computed: Sequence[str]) -> str:
    """What an operator's name does not say about the layers of the network that it computes."""
    convolves = "conv" in operator.lower()
    if not convolves and (operator == "correlation" or any("CONV" in each for each in computed)):
        return " (conv)"
    return " (matmul)" if computed and not _multiplies(operator) else ""


def _types(tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Types of tensors in the inspector's JSON, without scalars."""
    for tensor in tensors:
        if tensor.get("Dimensions") not in ([], [1]):
            yield _type(next((tensor[key] for key in _TYPE_KEYS if key in tensor), ""))


def _type(words: str) -> str:
    """The type named in a text of the vendor.

    >>> _type("HALF"), _type("BFloat16"), _type("Channel major FP16 format where channel % 8 == 0")
    ('fp16', 'bf16', 'fp16')
    >>> _type("N/A due to dynamic shapes")
    'unknown'
    """
    return next((_TYPES[word] for word in re.findall(r"[a-z0-9]+", words.lower()) if word in _TYPES), _UNKNOWN)


def _arithmetic(read: Iterable[str], made: Iterable[str]) -> str:
    """The arithmetic types of a layer's inputs, or else of its outputs; several are joined by "+".

    >>> _arithmetic(["fp16", "fp32"], ["fp16"]), _arithmetic(["uint8"], ["fp16"]), _arithmetic([], ["int64"])
    ('fp16+fp32', 'fp16', 'int64')
    """
    read, made = list(read), list(made)
    for types in (read, made):
        if found := sorted(_ARITHMETIC.intersection(types)):
            return "+".join(found)
    return next((each for each in (*read, *made) if each != _UNKNOWN), _UNKNOWN)
