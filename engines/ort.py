"""ONNX Runtime: the engine is the graph that it optimised for this machine and provider, saved as ONNX.

Three backends use it: `onnxruntime` on the CPU, `onnxruntime-cuda` with CUDA and cuDNN, and `onnxruntime-tensorrt` with
the TensorRT 10 that ONNX Runtime links. `onnxruntime.get_available_providers()` lists what was compiled in, even
without a GPU; only `get_providers()` of a session tells what really runs, so this module checks that.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..errors import BackendError, OutputError
from ..files import make_folder
from ..onnx_graph import type_name
from ..precisions import Precision
from ..vendors import import_onnxruntime
from .backend import Availability, Backend, Built, found_precision
from .cpu_int8 import read_for_cpu
from .fingerprint import Fingerprint, cpu_fingerprint, usable_cores
from .gpu import find_gpu, gpu_fingerprint
from .manifest import Layer
from .store import timing_cache_path

__all__ = [
    "CPU",
    "CUDA",
    "TENSORRT",
    "CpuOptions",
    "CudaOptions",
    "OnnxRuntime",
    "TensorRTOptions",
    "create",
    "read_layers",
    "translated",
]

_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")  # both write the module onnxruntime
_Provider = tuple[str, dict[str, str]]


@dataclass(frozen=True, config=STRICT)
class CpuOptions:
    """`threads`: threads of a run; 0: all cores that this process may use."""

    threads: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=STRICT)
class CudaOptions:
    """How CUDA computes.

    Attributes:
        tf32: let FP32 convolutions round their inputs to TF32's 11 significant bits.
        cudnn_search: how cuDNN chooses an algorithm for each convolution when a session starts.
    """

    tf32: bool = False
    cudnn_search: Literal["exhaustive", "heuristic", "default"] = "exhaustive"


@dataclass(frozen=True, config=STRICT)
class TensorRTOptions:
    """How ONNX Runtime's TensorRT builds; `workspace_mib` 0: TensorRT's default."""

    workspace_mib: Annotated[int, Field(ge=0)] = 0
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    timing_cache: bool = True


OptionsT = TypeVar("OptionsT")


class OnnxRuntime(Backend[OptionsT]):
    """Base of the three backends.

    Attributes:
        provider: ONNX Runtime's name of the provider that must compute.
        graph_option: the provider's option to record a CUDA graph; empty on the CPU.
    """

    provider: str
    graph_option: str = ""

    @abstractmethod
    def providers(self, options: OptionsT, asked: Precision) -> list[_Provider]:
        """ONNX Runtime's providers in order of preference, with their options."""

    def source(self, onnx: Path, asked: Precision) -> Path | bytes:
        """The input for ONNX Runtime: the ONNX file, or a copy adapted to the device."""
        return onnx

    def threads(self, options: OptionsT) -> int:
        """Number of threads for nodes that run on the CPU."""
        # ONNX Runtime's default is all cores of the machine, even if this process may use fewer (containers, taskset).
        return usable_cores()

    def build(self, onnx: Path, engine: Path, asked: Precision, options: OptionsT) -> Built:
        """See `Backend.build`."""
        settings = session_options(self.threads(options), asked)
        settings.optimized_model_filepath = str(engine)
        try:
            with translated(f"cannot build {onnx}"):
                create(self.source(onnx, asked), settings, self.providers(options, asked))
        except BackendError as error:
            if "serialization failed" in str(error):  # ONNX Runtime could not write the file
                raise OutputError(f"ONNX Runtime cannot write {engine}; the disk is probably full") from error
            raise
        return Built(read_layers(engine))


class _Cpu(OnnxRuntime[CpuOptions]):
    name = "onnxruntime"
    extension = "ort.onnx"
    options = CpuOptions
    provider = "CPUExecutionProvider"

    def availability(self) -> Availability:
        found = _installed()
        return found if isinstance(found, Availability) else Availability(found[1], f"provider {self.provider}")

    def here(self) -> Fingerprint:
        return cpu_fingerprint()

    def source(self, onnx: Path, asked: Precision) -> Path | bytes:
        return read_for_cpu(onnx, self.here().int8) if asked == "int8" else onnx

    def threads(self, options: CpuOptions) -> int:
        return options.threads or usable_cores()

    def asked(self, stored: Precision, options: CpuOptions) -> Precision:
        if stored == "bf16":
            raise BackendError(
                "ONNX Runtime has no BF16 kernels for a CPU; build this file with OpenVINO or TensorRT, or export FP32"
            )
        return stored

    def providers(self, options: CpuOptions, asked: Precision) -> list[_Provider]:
        return [(self.provider, {})]

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        # ONNX Runtime computes FP16 in FP32 where it has no FP16 kernel: on most CPUs, for every convolution.
        return found_precision(layers, asked, widens=True)


class _OnGpu(OnnxRuntime[OptionsT]):
    """Base of the two GPU backends."""

    def availability(self) -> Availability:
        return _on_gpu(self.provider)

    def here(self) -> Fingerprint:
        return gpu_fingerprint()


class _Cuda(_OnGpu[CudaOptions]):
    name = "onnxruntime-cuda"
    extension = "ort-cuda.onnx"
    options = CudaOptions
    provider = "CUDAExecutionProvider"
    graph_option = "enable_cuda_graph"

    def providers(self, options: CudaOptions, asked: Precision) -> list[_Provider]:
        settings = {
            "use_tf32": str(int(options.tf32)),
            "cudnn_conv_algo_search": options.cudnn_search.upper(),
            "cudnn_conv_use_max_workspace": "1",
        }
        return [(self.provider, settings), (CPU.provider, {})]


class _TensorRT(_OnGpu[TensorRTOptions]):
    name = "onnxruntime-tensorrt"
    extension = "ort-trt.onnx"
    options = TensorRTOptions
    provider = "TensorrtExecutionProvider"
    graph_option = "trt_cuda_graph_enable"

    def availability(self) -> Availability:
        found = super().availability()
        if not found.usable:
            return found
        installed = next(
            (version(name) for name in ("tensorrt", "tensorrt-cu12", "tensorrt-cu13") if _has(name)), "none"
        )
        if installed.partition(".")[0] != "10":
            reason = f"ONNX Runtime links TensorRT 10 (libnvinfer.so.10), but {installed} is installed"
            return Availability(None, reason, "pip install 'tensorrt<11'")
        return Availability(f"{found.version}+tensorrt{installed}", found.reason)

    def providers(self, options: TensorRTOptions, asked: Precision) -> list[_Provider]:
        settings = {"trt_builder_optimization_level": str(options.optimization_level)}
        if asked != "fp32":
            # Without it, TensorRT would compute in FP32. INT8 needs no calibration table, because the file has its own
            # scales (QDQ). A release without BF16 rejects the option by name.
            settings[f"trt_{asked}_enable"] = "1"
        if options.workspace_mib:
            settings["trt_max_workspace_size"] = str(options.workspace_mib << 20)
        if options.timing_cache:
            settings["trt_timing_cache_enable"] = "1"
            settings["trt_timing_cache_path"] = str(make_folder(timing_cache_path(self.name)))
        return [(self.provider, settings)]

    def build(self, onnx: Path, engine: Path, asked: Precision, options: TensorRTOptions) -> Built:
        """See `Backend.build`: an ONNX file whose only node contains TensorRT's plan."""
        import onnx as onnx_module

        ((name, settings),) = self.providers(options, asked)
        settings |= {
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(engine),
            "trt_ep_context_embed_mode": "1",
        }
        with translated(f"cannot build {onnx}"):
            create(onnx, session_options(usable_cores()), [(name, settings)])
        nodes = onnx_module.load(engine).graph.node
        if [node.op_type for node in nodes] != ["EPContext"]:
            raise BackendError(
                f"TensorRT cannot run all of {onnx}; remaining nodes: {[node.op_type for node in nodes]}"
            )
        return Built((Layer(nodes[0].name, "EPContext", "unknown"),))

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        """See `Backend.found_precision`: unknown, because plans built by ONNX Runtime do not report it."""
        return "unknown"


CPU: Final = _Cpu()
CUDA: Final = _Cuda()
TENSORRT: Final = _TensorRT()


def session_options(threads: int, built: Precision | None = None) -> Any:
    """ONNX Runtime's session options, to run an engine, or to optimise an ONNX file that is `built` in a precision."""
    settings = import_onnxruntime().SessionOptions()
    settings.intra_op_num_threads = threads
    if built == "int8":
        # It turns a product and its bias into a Gemm, which has no INT8 kernel for a bias in FP32.
        settings.add_session_config_entry("optimization.disable_specified_optimizers", "MatMulAddFusion")
    settings.log_severity_level = 3  # no warning that a saved graph is for this hardware only: the manifest records it
    return settings


def create(model: Path | bytes, settings: Any, providers: list[_Provider]) -> Any:
    """An `onnxruntime.InferenceSession` that really uses the first of `providers`; otherwise raises BackendError."""
    onnxruntime = import_onnxruntime()
    wanted = providers[0][0]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendError(f"this build of ONNX Runtime has no {wanted}; pip install 'depthkit[gpu]' instead")
    if wanted != CPU.provider:
        onnxruntime.preload_dlls()  # loads CUDA and cuDNN from pip packages if the system has none
    if wanted == TENSORRT.provider:
        _load_tensorrt()
    content = model if isinstance(model, bytes) else str(model)
    # With fallback, ONNX Runtime would print a notice and continue with another provider, now or in a later run.
    session = onnxruntime.InferenceSession(content, settings, providers=providers, enable_fallback=False)
    found = session.get_providers()[0]
    if found != wanted:
        raise BackendError(
            f"{wanted} was requested, but ONNX Runtime would use {found}; "
            "its log above names the CUDA library that it could not load"
        )
    return session


def _load_tensorrt() -> None:
    """Load TensorRT's libraries as installed by pip; the Python module finds them, the dynamic linker does not."""
    try:
        import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"tensorrt cannot be imported ({error}); pip install 'tensorrt<11'") from error


def read_layers(path: Path) -> tuple[Layer, ...]:
    """Every node of a saved graph with its precision: the first known type of the tensors it reads, then writes.

    QLinear operators also read FP32 scales, which do not count.
    """
    import onnx

    graph = onnx.load(path).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}

    def precision(node: Any) -> str:
        # A Cast computes in its output's type, every other operator in its inputs' type.
        tensors = node.output if node.op_type == "Cast" else (*node.input, *node.output)
        found = [type_name(types[name]) for name in tensors if name in types]
        if node.op_type.startswith("QLinear"):
            found = [each for each in found if each != "fp32"]
        return found[0] if found else "unknown"

    return tuple(Layer(node.name or node.output[0], node.op_type, precision(node)) for node in graph.node)


class translated:  # noqa: N801
    """Reusable context manager that turns ONNX Runtime's errors into BackendError."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # ONNX Runtime's exceptions have no common base class, only a common module.
        if kind is not None and (
            kind.__module__.startswith("onnxruntime") or issubclass(kind, RuntimeError | ValueError)
        ):
            raise BackendError(f"{self._what}: ONNX Runtime says: {str(error).strip()}") from error


@cache
def _installed() -> tuple[str, str] | Availability:
    """The installed distribution and its version, or why none can be used."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return Availability(None, "onnxruntime or onnx is not installed", "pip install 'depthkit[cpu]'")
    installed = [name for name in _DISTRIBUTIONS if _has(name)]
    if len(installed) > 1:
        return Availability(
            None,
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'depthkit[cpu]' or 'depthkit[gpu]'",
        )
    return (installed[0], version(installed[0])) if installed else ("onnxruntime", "unknown")


def _on_gpu(provider: str) -> Availability:
    """Availability of a GPU provider: needs a GPU, ONNX Runtime's GPU build, and a session that really starts."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        return Availability(None, gpu, "use a machine with an NVIDIA GPU and its driver")
    found = _installed()
    if isinstance(found, Availability):
        return found
    name, number = found
    if name != "onnxruntime-gpu":
        return Availability(
            None, f"{name} has no {provider}", "pip uninstall onnxruntime, then pip install 'depthkit[gpu]'"
        )
    if trouble := _trouble(provider):
        return Availability(None, trouble, "see https://onnxruntime.ai/docs/install for the CUDA libraries it needs")
    return Availability(number, f"provider {provider} on {gpu.name}")


@cache
def _trouble(provider: str) -> str:
    """Why a provider does not start, found by opening a session; empty if it starts."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    try:
        with translated("it does not start"):
            create(model.SerializeToString(), session_options(1), [(provider, {})])
    except BackendError as error:
        return str(error)
    return ""


def _has(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
