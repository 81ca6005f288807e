"""Find where an engine goes wrong: the first layer whose output diverges from the FP32 graph's.

The engine's graph is cut after a layer, built by the same vendor with the same settings, and run. The FP32 graph is cut
likewise and run by ONNX Runtime on the CPU without optimisation. Cutting keeps the vendor's fusions before the cut;
adding outputs to the whole graph would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from ..engines.cpu_int8 import for_cpu
from ..engines.fingerprint import cpu_fingerprint
from ..errors import BackendError, EngineError
from ..onnx_graph import copied, module_of, read_onnx
from ..precisions import PRECISIONS, Precision
from ..runtime.contract import Graph
from ..runtime.runner import onnx_runner, open_graph, require_graph_runner

if TYPE_CHECKING:
    import onnx

__all__ = ["Divergence", "first_divergence"]

_PLUMBING: Final = frozenset({"Constant", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators that a precision adds or removes: never layers, even if both graphs have one of the same name."""

_PROBE: Final = "depthkit_probe"

Options: TypeAlias = Mapping[str, str | int | bool]
_Run: TypeAlias = Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]
"""Runs a serialised graph with one output on each of the inputs."""


@dataclass(frozen=True)
class Divergence:
    """A layer whose output diverges from the FP32 graph's, although its inputs do not.

    Attributes:
        layer: its node in the ONNX file.
        module: the network's module whose weights it uses; empty: it has no weights.
        kind: its ONNX operator.
        error: ||a - b|| / ||b|| of its output over all frames; infinite if the output is not finite.
        limit: the largest allowed error.
        checked: number of layers compared.
        culprit: "file": the engine's ONNX file, run by ONNX Runtime as written, diverges there too; "engine": it does
            not.
    """

    layer: str
    module: str
    kind: str
    error: float
    limit: float
    checked: int
    culprit: Literal["file", "engine"]

    def describe(self) -> str:
        """Describe it in a sentence.

        >>> Divergence("node_conv2d_3", "encoder.0.3", "Conv", 0.41, 0.01, 7, "file").describe()
        'node_conv2d_3 (Conv, encoder.0.3) is off by 0.41, limit 0.01: the ONNX file itself is wrong'
        """
        name = f"{self.layer} ({', '.join(filter(None, (self.kind, self.module)))})"
        off = f"is off by {self.error:.2g}, limit {self.limit:g}" if np.isfinite(self.error) else "has NaN or Inf"
        file = "the ONNX file itself is wrong"
        return f"{name} {off}: {file if self.culprit == 'file' else 'the ONNX file is right, its engine is not'}"


def first_divergence(
    engine_onnx: Path,
    reference_onnx: Path | None,
    backend: str,
    precision: Precision,
    images: np.ndarray,
    options: Options | None = None,
) -> Divergence | None:
    """Find the first layer of an engine that diverges; None: no layer does.

    Only layers that both graphs have are compared, matched by the name of their output or node. First a wrong layer is
    searched: the last one, then, since a later layer can hide an error, the middle, the quarters and so on. Bisection
    then finds the first wrong layer before it, assuming that errors persist; finally that layer's inputs are checked.

    Args:
        engine_onnx: the ONNX file that the engine was built from.
        reference_onnx: FP32 file of the same network, size and batch; None or missing: `engine_onnx` itself, which
            finds only the vendor's faults.
        backend: the engine's backend.
        precision: the precision that was asked of the engine.
        images: frames, N x H x W x 3 uint8; two are enough.
        options: the backend's options from the engine's manifest.

    Raises:
        BackendError: the backend cannot run parts of a graph, or refuses one; Polygraphy is not installed.
        EngineError: a file is not an ONNX file, takes other frames, or the files have no layer in common.
    """
    run = _runner(backend, precision, options or {})
    written = read_onnx(engine_onnx)
    built = _Cuttable(for_cpu(written, cpu_fingerprint().int8) if precision == "int8" else written, images)
    own = _Cuttable(_widened(built.model), images)
    reference = own
    if reference_onnx is not None and reference_onnx.is_file():
        reference = _Cuttable(read_onnx(reference_onnx), images)
    pairs = _shared(built, reference)
    if not pairs:
        raise EngineError(f"{engine_onnx} and {reference_onnx} have no layer in common; export both again from one run")

    def error(layer: _Layer, graph: _Cuttable, run: _Run) -> float:
        return _distance(graph.output(layer.tensor, run), reference.output(pairs[layer.tensor], _as_written))

    limit, errors = PRECISIONS[precision].layer_limit, dict[str, float]()

    def diverges(layer: _Layer) -> bool:
        if layer.tensor not in errors:
            errors[layer.tensor] = error(layer, built, run)
        return not errors[layer.tensor] <= limit

    found = _search(_layers(built.model, pairs), diverges)
    if found is None:
        return None
    culprit: Literal["file", "engine"] = "engine" if error(found, own, _as_written) <= limit else "file"
    return Divergence(
        found.name, found.module, found.kind, errors[found.tensor], limit, checked=len(errors), culprit=culprit
    )


@dataclass(frozen=True)
class _Layer:
    """A layer of the engine's graph.

    Attributes:
        name, kind: of its node.
        tensor: its output.
        module: the network's module; empty: it has no weights.
        reads: outputs of the layers it reads, looking through `_PLUMBING`.
    """

    name: str
    kind: str
    tensor: str
    module: str
    reads: frozenset[str]


class _Cuttable:
    """A graph that can be computed up to any tensor, for given frames."""

    def __init__(self, model: onnx.ModelProto, images: np.ndarray) -> None:
        import onnx

        self.model = onnx.shape_inference.infer_shapes(model)
        graph = self.model.graph
        (end,) = graph.input
        batch, *frame = [dim.dim_value for dim in end.type.tensor_type.shape.dim]
        if tuple(frame) != images.shape[1:]:
            raise EngineError(f"the frames are {images.shape[1:]} (H, W, 3), but the ONNX file takes {tuple(frame)}")
        count = batch or 1  # 0: the batch is dynamic
        starts = range(0, len(images), count)
        self._feeds = [images[np.arange(start, start + count) % len(images)] for start in starts]
        self.types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}

    def shape(self, tensor: str) -> list[int] | None:
        """The shape of a float tensor, with 0 for dynamic sizes; None: not a float tensor, or unknown."""
        import onnx

        kind = self.types.get(tensor)
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        return [dim.dim_value for dim in kind.shape.dim] if kind is not None and kind.elem_type in floats else None

    def output(self, tensor: str, run: _Run) -> np.ndarray:
        """All values of a tensor, in FP32."""
        return np.concatenate([values.ravel() for values in run(self._cut(tensor), self._feeds)])

    def _cut(self, tensor: str) -> bytes:
        import onnx
        from onnx_graphsurgeon.logger import G_LOGGER as SURGEON_LOGGER
        from polygraphy.backend.onnx import extract_subgraph
        from polygraphy.common import TensorMetadata
        from polygraphy.logger import G_LOGGER

        SURGEON_LOGGER.severity = SURGEON_LOGGER.CRITICAL  # hides a warning that NumPy has no BF16
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            end = TensorMetadata().add(tensor, dtype=None, shape=None)
            part: onnx.ModelProto = extract_subgraph(self.model, output_metadata=end, check_meta=False)
        # NumPy has no BF16, so every output is read as FP32.
        part.graph.node.append(onnx.helper.make_node("Cast", [tensor], [_PROBE], to=onnx.TensorProto.FLOAT))
        del part.graph.output[:]
        part.graph.output.append(onnx.helper.make_tensor_value_info(_PROBE, onnx.TensorProto.FLOAT, None))
        return bytes(part.SerializeToString())


def _search(layers: Sequence[_Layer], diverges: Callable[[_Layer], bool]) -> _Layer | None:
    """The first of `layers` (in topological order) that `diverges`, while no layer that it reads does."""
    by_tensor = {layer.tensor: layer for layer in layers}
    wrong = next(filter(diverges, _ever_finer(layers)), None)
    while wrong is not None:
        line = _line(wrong, layers)
        good, bad = -1, len(line) - 1  # line[bad] diverges; all up to line[good] are assumed not to
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if diverges(line[middle]) else (middle, bad)
        # In a graph with branches, the preceding layer in the order need not be one that this layer reads.
        earlier = [by_tensor[tensor] for tensor in sorted(line[bad].reads)]
        worse = next(filter(diverges, earlier), None)
        if worse is None:
            return line[bad]
        wrong = worse
    return None


def _ever_finer(layers: Sequence[_Layer]) -> Iterator[_Layer]:
    """The last layer, the middle one, those at quarters and so on, until each has come at least once."""
    step = len(layers)
    while step:
        yield from layers[::-1][::step]
        step //= 2


def _line(end: _Layer, layers: Sequence[_Layer]) -> list[_Layer]:
    """All layers that `end` depends on, and itself, in topological order."""
    wanted, line = {end.tensor}, []
    for layer in reversed(layers):
        if layer.tensor in wanted:
            line.append(layer)
            wanted |= layer.reads
    return line[::-1]


def _layers(model: onnx.ModelProto, tensors: Mapping[str, str]) -> list[_Layer]:
    """The layers whose outputs are among `tensors`, in topological order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    owners = {name: name for name in weights}
    sources: dict[str, frozenset[str]] = {}
    found = []
    for node in model.graph.node:  # in topological order, as ONNX requires
        if node.op_type in _PLUMBING and node.input and node.input[0] in owners:
            owners[node.output[0]] = owners[node.input[0]]  # a dequantised weight
        reads = frozenset[str]().union(*(sources.get(tensor, frozenset()) for tensor in node.input))
        tensor = node.output[0]
        if tensor in tensors:
            names = [owners[name] for name in node.input[1:] if name in owners]
            found.append(
                _Layer(_name(node), node.op_type, tensor, next(filter(None, map(module_of, names)), ""), reads)
            )
            reads = frozenset({tensor})
        sources.update(dict.fromkeys(node.output, reads))
    return found


def _shared(built: _Cuttable, reference: _Cuttable) -> dict[str, str]:
    """Outputs of layers that both graphs have with the same operator and size -> outputs in the reference."""
    others = list(_candidates(reference))
    by_tensor = {node.output[0]: node for node in others}
    by_name = {node.name: node for node in others if node.name}
    found = {}
    for node in _candidates(built):
        for other in (by_tensor.get(node.output[0]), by_name.get(node.name)):
            if other is not None and _kind(node, built) == _kind(other, reference):
                found[node.output[0]] = other.output[0]
                break
    return found


def _candidates(graph: _Cuttable) -> Iterator[onnx.NodeProto]:
    """Nodes that compute floats from the frames."""
    reached = {end.name for end in graph.model.graph.input}
    for node in graph.model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            if node.op_type not in _PLUMBING and graph.shape(node.output[0]) is not None:
                yield node


def _kind(node: onnx.NodeProto, graph: _Cuttable) -> tuple[str, list[int] | None]:
    return node.op_type, graph.shape(node.output[0])


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """||a - b|| / ||b||; infinite if a is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with BF16 weights as FP32 (a superset): ONNX Runtime has no BF16 kernels for the CPU."""
    import onnx
    from onnx import numpy_helper

    copy: onnx.ModelProto = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", onnx.TensorProto.BFLOAT16):
                attribute.i = onnx.TensorProto.FLOAT
    return copy


def _runner(backend: str, precision: Precision, options: Options) -> _Run:
    """Makes a function that computes graphs as that backend's engines do."""
    require_graph_runner(backend)
    onnx_runner()  # runs the reference
    try:
        import polygraphy.backend.onnx  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "--bisect needs Polygraphy, which is not installed; pip install 'depthkit[train]'"
        ) from error

    def run(graph: bytes, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
        return _outputs(open_graph(backend, graph, precision, options), feeds)

    return run


def _as_written(graph: bytes, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    return _outputs(onnx_runner().open_as_written(graph), feeds)


def _outputs(graph: Graph, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [graph.run(feed).copy() for feed in feeds]
