"""ONNX graphs: the metadata of files that depthkit exported, and helpers for changing graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Final, cast

from .documents import from_json
from .errors import EngineError
from .precisions import PRECISIONS, Precision
from .spec import ModelSpec

__all__ = [
    "CONVOLUTIONS", "METADATA", "PRODUCTS", "OnnxDescription", "Product", "TensorTypes", "copied", "count_macs",
    "describe_onnx", "graph_sha256", "module_of", "opset_of", "products", "read_onnx", "readers", "tensor_types",
    "type_name",
]  # fmt: skip

CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
PRODUCTS: Final = CONVOLUTIONS | {"Gemm", "MatMul"}
"""ONNX's operators that do a network's work: convolutions and matrix products. Their second input may be weights."""


class METADATA:
    """Keys of depthkit's entries in an ONNX file's `metadata_props`."""

    spec: Final = "depthkit.model_spec"
    precision: Final = "depthkit.precision"
    weights_sha256: Final = "depthkit.weights_sha256"
    recipe: Final = "depthkit.recipe"
    graph_sha256: Final = "depthkit.graph_sha256"


def graph_sha256(model: Any) -> str:
    """A digest of an `onnx.ModelProto`'s nodes and weights, to detect changes after export."""
    digest = hashlib.sha256()
    for part in (*model.graph.node, *model.graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


_MOST_OF_A_SHAPE: Final = 1024
"""Larger constants are no shapes, whose values shape inference would need."""

_CAMERA: Final = ("camera.", "shrink.", "enlarge.")
"""Begin the names of constants that resize frames and depth: of `export.camera_ends`, and of `train.camera_ready`."""

_FUSED: Final = frozenset(
    {"Cast", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators that a backend may fuse with the convolution before them; the fused layer may carry their name."""


def type_name(onnx_type: int) -> str:
    """Name a `TensorProto.DataType`: as a precision if it is one, else ONNX's name in lower case."""
    import onnx

    name = onnx.TensorProto.DataType.Name(onnx_type)
    return next((each for each, facts in PRECISIONS.items() if facts.onnx_type == name), name.lower())


def module_of(weight: str) -> str:
    """The network's module that owns an exported weight; empty if there is none.

    >>> module_of("network.encoder.0.3.weight")
    'encoder.0.3'
    """
    return weight.removeprefix("network.").rpartition(".")[0]


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of an ONNX graph.

    Attributes:
        name: name of the node.
        aliases: names that an engine may use for it: node, output, and those of activations that only it feeds.
        precision: of its weights as stored; empty: it has none, as in attention, which multiplies activations.
        macs: multiply-accumulates for one frame; 0: unknown.
        module: the network's module that owns its weights; empty if none or unknown.
    """

    name: str
    aliases: tuple[str, ...]
    precision: str
    macs: int
    module: str = ""


@dataclass(frozen=True)
class OnnxDescription:
    """The metadata, convolutions and matrix products of an ONNX file that depthkit exported.

    Attributes:
        model: tensors, preprocessing, depth range.
        precision: of the stored network.
        weights_sha256: of the run's weights.
        recipe: everything else that it was made from; see `export.recipe`.
        intact: nodes and weights have not changed since the export.
        products: in the order of the graph.
    """

    model: ModelSpec
    precision: Precision
    weights_sha256: str
    recipe: str
    intact: bool
    products: tuple[Product, ...] = ()


def describe_onnx(path: Path) -> OnnxDescription:
    """Read depthkit's metadata from an ONNX file. The result is cached until the file changes.

    Raises:
        EngineError: the file is missing, or depthkit did not export it.
        SpecError: its ModelSpec is invalid.
    """
    if not path.is_file():
        raise EngineError(f"there is no ONNX file {path}; make one with `depthkit export`")
    state = path.stat()
    return _read_description(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=16)
def _read_description(path: Path, _state: tuple[int, ...]) -> OnnxDescription:
    model = read_onnx(path, weights=False)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    keys = (METADATA.spec, METADATA.precision, METADATA.weights_sha256, METADATA.recipe, METADATA.graph_sha256)
    missing = [key for key in keys if key not in entries]
    if missing:
        raise EngineError(f"{path} was not made by `depthkit export`: its metadata lacks {', '.join(missing)}")
    if entries[METADATA.precision] not in PRECISIONS:
        raise EngineError(f"{path} has unknown precision {entries[METADATA.precision]!r}; upgrade depthkit")
    return OnnxDescription(
        from_json(ModelSpec, entries[METADATA.spec], source=f"{path}: {METADATA.spec}"),
        cast("Precision", entries[METADATA.precision]),
        entries[METADATA.weights_sha256],
        entries[METADATA.recipe],
        intact=entries[METADATA.graph_sha256] == graph_sha256(model),
        products=tuple(products(model)),
    )


def read_onnx(path: Path, *, weights: bool = True) -> Any:
    """Read an `onnx.ModelProto`, with `weights` also from external files. Raises EngineError if it is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise EngineError(f"there is no ONNX file {path}; make one with `depthkit export`")
    try:
        return onnx.load(path, load_external_data=weights)
    except (DecodeError, OSError) as error:
        raise EngineError(f"{path} is not an ONNX file ({error}); make it again with `depthkit export`") from error


def copied(model: Any) -> Any:
    """A copy of an `onnx.ModelProto` without the types of its inner tensors, which changes would make wrong."""
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def opset_of(model: Any) -> int:
    """The opset of ONNX's own operators that an `onnx.ModelProto` uses."""
    return next((int(each.version) for each in model.opset_import if each.domain in {"", "ai.onnx"}), 1)


def readers(graph: Any) -> dict[str, list[Any]]:
    """For each tensor of an `onnx.GraphProto`, the nodes that read it, in order."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for tensor in node.input:
            found.setdefault(tensor, []).append(node)
    return found


TensorTypes = dict[str, tuple[int, tuple[int, ...] | None]]
"""ONNX's element type and the shape of each tensor, with 0 for unknown dimensions; None: even their number is."""


def tensor_types(model: Any, batch: int = 0) -> TensorTypes:
    """The types of all tensors of an `onnx.ModelProto`, by ONNX's shape inference.

    Weights are not copied, so this is fast for large networks, and 2 GB are no limit.

    Args:
        model: not changed.
        batch: size of a dynamic batch; 0: its dimensions stay unknown.
    """
    import onnx

    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    small.graph.node.extend(model.graph.node)
    small.graph.input.extend(model.graph.input)
    small.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _MOST_OF_A_SHAPE:
            small.graph.initializer.append(tensor)
        else:
            small.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if batch:
        for value in small.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = dim.dim_value or batch
        for value in small.graph.output:
            value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(small, data_prop=True).graph
    found: TensorTypes = {tensor.name: (int(tensor.data_type), tuple(tensor.dims)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = tuple(int(dim.dim_value) for dim in kind.shape.dim) if kind.HasField("shape") else None
        found[value.name] = (int(kind.elem_type), shape)
    return found


def products(model: Any) -> Iterator[Product]:
    """The convolutions and matrix products of an `onnx.ModelProto`, in order.

    Resizing of frames and depth is left out, although a matrix product may do it: it is no layer of the network.
    """
    graph = model.graph
    types = tensor_types(model, batch=1)
    frames = types[graph.input[0].name][1] if graph.input else None
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    read_by = readers(graph)
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        owners = [dequantised.get(name, name) for name in node.input[:2]]
        if any(name in weights and name.startswith(_CAMERA) for name in owners):
            continue
        weight = weights.get(owners[1])
        aliases, after = [node.name, node.output[0]], read_by.get(node.output[0], [])
        while weight is not None and len(after) == 1 and after[0].op_type in _FUSED:
            aliases += [after[0].name, after[0].output[0]]
            after = read_by.get(after[0].output[0], [])
        macs = _count_macs(node, types) // (frames[0] if frames else 1)
        precision, module = ("", "") if weight is None else (type_name(weight.data_type), module_of(weight.name))
        yield Product(node.name, tuple(aliases), precision, macs, module)


def count_macs(model: Any) -> int:
    """Multiply-accumulates of an `onnx.ModelProto`'s network for one frame, as `train.networks.count_macs` counts."""
    return sum(each.macs for each in products(model))


def _count_macs(node: Any, types: TensorTypes) -> int:
    """Multiply-accumulates of a product for all frames; 0: shapes are unknown."""
    (read, weight, written) = (types.get(name, (0, None))[1] for name in (*node.input[:2], node.output[0]))
    if not (read and weight and written):
        return 0
    match node.op_type:
        case "Conv":
            return prod(written) * prod(weight[1:])
        case "ConvTranspose":
            return prod(read) * prod(weight[1:])
        case _:  # matrices; a Gemm may read its first one transposed
            turned = any(each.name == "transA" and each.i for each in node.attribute)
            return prod(written) * read[-2 if turned else -1]
