"""ONNX Runtime on the CPU: the engine is the graph that it optimised for this machine, saved as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ..errors import BackendError
from .availability import Availability
from .fingerprint import Fingerprint, cpu_fingerprint, usable_cores
from .manifest import Layer

__all__ = [
    "EXTENSION",
    "availability",
    "build",
    "fingerprint",
    "found_precision",
    "read_layers",
    "session_options",
    "translated",
]

EXTENSION: Final = "ort.onnx"
PROVIDER: Final = "CPUExecutionProvider"
_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")  # both write the module onnxruntime

_TYPES: Final = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "UINT8": "uint8"}


@cache
def availability() -> Availability:
    """Whether ONNX Runtime is installed here."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return Availability(
            version=None, reason="onnxruntime or onnx is not installed", remedy="pip install 'depthkit[cpu]'"
        )
    installed = [name for name in _DISTRIBUTIONS if _installed(name)]
    if len(installed) > 1:
        return Availability(
            version=None,
            reason="onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            remedy="pip uninstall onnxruntime onnxruntime-gpu, then pip install 'depthkit[cpu]' or 'depthkit[gpu]'",
        )
    found = version(installed[0]) if installed else "unknown"
    return Availability(version=found, reason=f"provider {PROVIDER}", remedy="")


def fingerprint() -> Fingerprint:
    """The device that this backend builds for: the CPU."""
    return cpu_fingerprint()


def build(onnx: Path, engine: Path, options: dict[str, str | int | bool]) -> tuple[Layer, ...]:
    """Optimise `onnx` for this CPU, save the result as `engine` and read its layers back from there.

    Args:
        onnx: a camera-ready ONNX file.
        engine: where to write.
        options: `threads` (0: all cores).

    Raises:
        BackendError: ONNX Runtime refuses the file; its words name the node.
    """
    import onnxruntime

    settings = session_options(options)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.optimized_model_filepath = str(engine)
    with translated(f"cannot build {onnx}"):
        onnxruntime.InferenceSession(str(onnx), settings, providers=[PROVIDER])
    return read_layers(engine)


def session_options(options: dict[str, str | int | bool]) -> Any:
    """ONNX Runtime's settings, to build and to run. Raises BackendError for an option that it lacks."""
    import onnxruntime

    threads = options.get("threads", 0)
    if options.keys() - {"threads"} or type(threads) is not int or threads < 0:
        raise BackendError(f"ONNX Runtime takes the option threads (0: all cores, or a number), not {options}")
    settings = onnxruntime.SessionOptions()
    # ONNX Runtime's default counts the machine's cores, also where this process may use fewer (containers, taskset).
    settings.intra_op_num_threads = threads or usable_cores()
    settings.log_severity_level = 3  # its warning that a saved graph is for this hardware only is what a manifest says
    return settings


def read_layers(path: Path) -> tuple[Layer, ...]:
    """Every node of a saved graph with its type: that of the first tensor it reads whose type the file tells."""
    import onnx

    graph = onnx.load(path).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    name_of = onnx.TensorProto.DataType.Name

    def precision(node: Any) -> str:
        # A Cast computes in what it makes; every other operator in what it reads.
        tensors = node.output if node.op_type == "Cast" else (*node.input, *node.output)
        found = [_TYPES.get(name_of(types[name]), name_of(types[name]).lower()) for name in tensors if name in types]
        return found[0] if found else "unknown"

    return tuple(Layer(node.name or node.output[0], node.op_type, precision(node)) for node in graph.node)


def found_precision(layers: tuple[Layer, ...], asked: str) -> str:
    """What the convolutions of a built engine compute in.

    FP16 that was asked for and became FP32 is called "fp16→fp32", never FP16.

    Raises:
        BackendError: the convolutions are of several types, or of one that was not asked for.

    >>> found_precision((Layer("a", "FusedConv", "fp32"),), "fp16")
    'fp16→fp32'
    """
    found = {layer.precision for layer in layers if layer.operator.endswith("Conv")}
    if found == {asked}:
        return asked
    if asked == "fp16" and found == {"fp32"}:
        return "fp16→fp32"
    raise BackendError(f"{asked} was asked for, and the engine's convolutions compute in {sorted(found) or 'nothing'}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The one place where ONNX Runtime's errors become BackendError; its classes share no base, but a module."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError | ValueError):
            raise BackendError(f"{what}: ONNX Runtime says: {str(error).strip()}") from error
        raise


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
