"""OpenVINO on the CPU: the engine is the model compiled for this machine, exported as a blob."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..errors import BackendError, UserError
from ..precisions import Precision
from ..vendors import import_openvino
from .backend import Availability, Backend, Built, found_precision
from .cpu_int8 import read_for_cpu
from .fingerprint import Fingerprint, cpu_fingerprint, usable_cores
from .manifest import Layer

__all__ = [
    "DEVICE",
    "OPENVINO",
    "OpenVino",
    "OpenVinoOptions",
    "bf16_without_kernels",
    "capabilities",
    "core",
    "float_precision",
    "read_layers",
    "settings",
    "translated",
]

DEVICE: Final = "CPU"
# Float type of the plugin; in INT8 files the quantised layers compute in INT8, and the others in FP32.
_HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_ASKED: Final[dict[str, Precision]] = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_TYPES: Final = {**_ASKED, "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64"}
_IDLE: Final = frozenset({"Input", "Const", "Output"})  # nodes of the executed graph that do not compute


@dataclass(frozen=True, config=STRICT)
class OpenVinoOptions:
    """How an engine computes; applied whenever it is opened.

    Attributes:
        threads: most threads; 0: all cores that the process may use.
        hint: "latency": all threads work on one frame; "throughput": on several frames, as many as OpenVINO chooses.
        pinning: pin each thread to a core. OpenVINO pins every engine to the first cores, so two engines with few
            threads share these cores while others are idle.
        inference_precision: precision to compute in; "": the ONNX file's, but FP32 for FP16 on a CPU without FP16
            arithmetic.
    """

    threads: Annotated[int, Field(ge=0)] = 0
    hint: Literal["latency", "throughput"] = "latency"
    pinning: bool = False
    inference_precision: Literal["", "f32", "bf16", "f16"] = ""


class OpenVino(Backend[OpenVinoOptions]):
    """OpenVINO's CPU plugin; see `Backend`."""

    name = "openvino"
    extension = "ov.blob"
    options = OpenVinoOptions

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        try:
            if find_spec("openvino") is not None:
                return Availability(version("openvino"), "on the CPU")
        except PackageNotFoundError:
            pass
        return Availability(None, "openvino is not installed", "pip install 'depthkit[openvino]'")

    def here(self) -> Fingerprint:
        """See `Backend.here`: the CPU."""
        return cpu_fingerprint()

    def asked(self, stored: Precision, options: OpenVinoOptions) -> Precision:
        """See `Backend.asked`. Raises BackendError for an INT8 file, and for FP32 from FP16 weights."""
        if stored == "int8" and options.inference_precision:
            raise BackendError(
                "inference_precision has no effect on an INT8 file, which sets the precision of each layer; omit it"
            )
        if (stored, options.inference_precision) == ("fp16", "f32"):
            raise BackendError(
                "inference_precision=f32 was requested for a file that stores FP16; build the FP32 file, or omit the "
                "option: on a CPU without FP16 arithmetic, FP16 is computed in FP32 anyway"
            )
        return _ASKED[options.inference_precision] if options.inference_precision else stored

    def build(self, onnx: Path, engine: Path, asked: Precision, options: OpenVinoOptions) -> Built:
        """See `Backend.build`."""
        with translated(f"cannot build {onnx}"):
            source: Path | bytes = read_for_cpu(onnx, self.here().int8) if asked == "int8" else onnx
            compiled = core().compile_model(core().read_model(source), DEVICE, settings(asked, options))
            engine.write_bytes(compiled.export_model().getbuffer())
            return Built(read_layers(compiled))

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        """See `Backend.found_precision`."""
        return found_precision(layers, asked, widens="FP16" not in capabilities())


OPENVINO: Final = OpenVino()


def settings(asked: Precision, options: OpenVinoOptions) -> dict[str, Any]:
    """OpenVINO's properties, to build an engine and to open it: a blob does not store them, and is compiled again.

    Raises:
        BackendError: this CPU cannot compute in `asked`; OpenVINO would silently use another precision.
    """
    here = capabilities()
    widened = asked == "fp16" and not options.inference_precision and "FP16" not in here
    computed: Precision = "fp32" if widened else asked
    if computed.upper() not in here:
        raise BackendError(
            f"{asked} was requested, but on {cpu_fingerprint().name} OpenVINO computes in {', '.join(sorted(here))}; "
            "omit inference_precision, or build on a CPU that supports it"
        )
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[computed],
        "PERFORMANCE_HINT": options.hint.upper(),
        # OpenVINO itself counts the usable cores only once, when it is loaded.
        "INFERENCE_NUM_THREADS": options.threads or usable_cores(),
        "ENABLE_CPU_PINNING": options.pinning,
    }


def read_layers(compiled: Any) -> tuple[Layer, ...]:
    """Every node of the graph that a compiled model executes; a fused node has the name of its main operator."""
    nodes = [(node.get_friendly_name(), node.get_rt_info()) for node in compiled.get_runtime_model().get_ordered_ops()]
    return tuple(
        Layer(
            name, info["layerType"].value, float_precision(info["runtimePrecision"].value), info["primitiveType"].value
        )
        for name, info in nodes
        if info["layerType"].value not in _IDLE
    )


def float_precision(word: str) -> str:
    """Name an OpenVINO type as depthkit does, such as "fp32" for "f32"; unknown types are returned unchanged."""
    return _TYPES.get(word, word)


@cache
def capabilities() -> frozenset[str]:
    """The types that OpenVINO computes in on this CPU: "FP32", "BF16" and so on."""
    return frozenset(_listed() - ({"BF16"} if bf16_without_kernels() else set()))


@cache
def bf16_without_kernels() -> bool:
    """Whether OpenVINO lists BF16, and would choose it by default, although its BF16 kernels may not run.

    For the list it checks the CPU alone; for the kernels it also respects ONEDNN_MAX_CPU_ISA.
    """
    return "BF16" in _listed() and not cpu_fingerprint().computes_bf16


def _listed() -> set[str]:
    return {"FP32", "FP16", "BF16", "INT8"} & set(core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


@cache
def core() -> Any:
    """One `openvino.Core` per process, as OpenVINO's documentation advises: each one loads the plugins again."""
    return import_openvino().Core()


class translated:  # noqa: N801
    """Reusable context manager that turns OpenVINO's errors into depthkit's."""

    def __init__(self, what: str, kind: type[UserError] = BackendError) -> None:
        self._what, self._kind = what, kind

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # OpenVINO raises RuntimeError, or UnicodeDecodeError if its message quotes a damaged file.
        if isinstance(error, RuntimeError | ValueError):
            lines = (line.strip() for line in str(error).splitlines())
            words = " ".join(line for line in lines if line and not line.startswith("Exception from "))
            raise self._kind(f"{self._what}: OpenVINO says: {words}") from error
