"""ONNX Runtime on the caller's memory: CPU, CUDA and TensorRT providers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from ..engines.backend import attribute
from ..engines.build import backend
from ..engines.fingerprint import usable_cores
from ..engines.gpu import Gpu, find_gpu
from ..engines.manifest import Layer, Manifest
from ..engines.ort import CPU, CpuOptions, OnnxRuntime, create, read_layers, session_options, translated
from ..errors import BackendError
from ..onnx_graph import describe_onnx
from ..precisions import Precision
from ..session import Call, Device, LayerTime, Peer, RunPhase, SessionBase
from ..spec import Dim, ModelSpec, TensorSpec
from ..vendors import import_onnxruntime
from .contract import Graph
from .cuda import CudaGraphWarning, DeviceView, check, cudart, device_view
from .profiled_runs import mean_times, profiled_runs
from .run_options import RunOptions
from .transfer import Mode, Transfer, choose_transfer

__all__ = [
    "OnnxRuntimeGpuSession",
    "OnnxRuntimeSession",
    "open_as_written",
    "open_engine",
    "open_graph",
    "open_onnx",
    "open_peer",
    "profile_engine",
    "profile_onnx",
]


class OnnxRuntimeSession(SessionBase):
    """Runs a graph through IOBinding: it reads frames from and writes depth to the caller's arrays in place."""

    def __init__(self, session: Any, spec: ModelSpec, precision: str) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._translated = translated("the engine cannot run")
        self.spec = spec
        self.precision = precision
        self.provider = session.get_providers()[0]

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`. ONNX Runtime keeps only the addresses; the session keeps the arrays alive."""
        super().bind(image=image, depth=depth)
        self._binding.bind_input(self.spec.input.name, "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        self._binding.bind_output(self.spec.output.name, "cpu", 0, depth.dtype, depth.shape, depth.ctypes.data)

    def run(self) -> None:
        """See `Session.run`."""
        self._buffers()
        with self._translated:
            self._session.run_with_iobinding(self._binding)

    def end_profiling(self) -> str:
        """Stop the vendor's profiler and return its file's name; the session must have been opened with profiling."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._binding = self._session = None


class OnnxRuntimeGpuSession(SessionBase):
    """Runs a graph by the CUDA or TensorRT provider on its own stream.

    Arrays on the GPU are not copied, unless a CUDA graph needs the same addresses for every run. Not thread-safe: open
    one session in each thread.

    Args:
        open_session: makes the `onnxruntime.InferenceSession` that works on the stream with this handle.
        spec: the model's.
        precision: what the engine computes in.
        mode: how arrays on the host are transferred.
        cuda_graph: whether the session records a CUDA graph.
    """

    device: Device = "gpu"

    def __init__(
        self, open_session: Callable[[int], Any], spec: ModelSpec, precision: str, mode: Mode, *, cuda_graph: bool
    ) -> None:
        self.spec = spec
        self.precision = precision
        self._translated = translated("the engine cannot run")
        self._device = check(cudart().cudaGetDevice)
        with ExitStack() as stack:
            self._transfer = stack.enter_context(Transfer(spec, mode, fixed=cuda_graph))
            self._session = open_session(self._transfer.stream.handle)
            self._binding = self._session.io_binding()
            self._resources = stack.pop_all()
        graph = "CUDA graph" if cuda_graph else "no CUDA graph"
        self.provider = f"{self._session.get_providers()[0]}, {graph}, {mode}"

    def bind(self, *, image: Any, depth: Any, stream: int | None = None) -> None:
        """See `Session.bind`. NumPy arrays, or arrays on the GPU, as `TensorRTSession.bind` takes them."""
        self._require_open()
        image, depth = self._view(image, self.spec.input), self._view(depth, self.spec.output)
        super().bind(image=image, depth=depth)
        bound, self._bound = self._bound, None  # so that nothing is bound if the next lines fail
        self._transfer.bind(image, depth, stream)
        read, written = self._transfer.routes
        self._binding.bind_input(self.spec.input.name, "cuda", self._device, image.dtype, image.shape, read.engine)
        self._binding.bind_output(self.spec.output.name, "cuda", self._device, depth.dtype, depth.shape, written.engine)
        self._bound = bound

    def run(self) -> None:
        """See `Session.run`. Also raises CudaError, BackendError."""
        self._buffers()
        self._transfer.prepare()
        self._transfer.upload()
        self._compute()
        self._transfer.download()
        self._transfer.finish()

    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`. Without `enqueue`: ONNX Runtime waits for the device itself."""
        self._buffers()
        phases = self._transfer.time_phases(self._compute)
        del phases["enqueue"]
        return phases

    def _compute(self) -> None:
        with self._translated:
            self._session.run_with_iobinding(self._binding)

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._binding = self._session = None
        self._resources.close()

    def _view(self, array: Any, tensor: TensorSpec) -> np.ndarray | DeviceView:
        if isinstance(array, np.ndarray):
            return array
        return device_view(array, self._transfer.stream, name=tensor.name)


def open_engine(path: Path, manifest: Manifest, run: RunOptions) -> OnnxRuntimeSession | OnnxRuntimeGpuSession:
    """Open an engine whose manifest was verified. Its graph is already optimised and is loaded as it is."""
    maker = backend(manifest.backend)
    assert isinstance(maker, OnnxRuntime)
    if manifest.device.kind == "gpu":
        return _open_on_gpu(maker, path, manifest, run)
    run.require_cpu(maker.name)
    return OnnxRuntimeSession(_open(maker, path, manifest, {}), manifest.model, manifest.precision_found)


def _open_on_gpu(maker: OnnxRuntime[Any], path: Path, manifest: Manifest, run: RunOptions) -> OnnxRuntimeGpuSession:
    gpu = find_gpu()
    assert isinstance(gpu, Gpu)  # otherwise `load` would have refused the engine
    mode = choose_transfer(run.transfer, integrated=gpu.integrated)

    def create_session(cuda_graph: bool) -> OnnxRuntimeGpuSession:
        extra = {maker.graph_option: str(int(cuda_graph)), "device_id": str(check(cudart().cudaGetDevice))}
        return OnnxRuntimeGpuSession(
            lambda stream: _open(maker, path, manifest, {**extra, "user_compute_stream": str(stream)}),
            manifest.model,
            manifest.precision_found,
            mode,
            cuda_graph=cuda_graph,
        )

    if run.cuda_graph and not isinstance(manifest.model.batch, Dim):
        try:
            return create_session(cuda_graph=True)
        except BackendError as error:
            if "graph capture" not in str(error):  # ONNX Runtime's message for a graph that cannot be recorded
                raise
            warnings.warn(f"running without a CUDA graph, which may be slower: {error}", CudaGraphWarning, stacklevel=5)
    return create_session(cuda_graph=False)


def profile_engine(path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """See `Runner.profile_engine`."""
    maker = backend(manifest.backend)
    assert isinstance(maker, OnnxRuntime)
    if manifest.device.kind == "gpu":
        raise BackendError(
            f"{maker.name} cannot profile {path}: on a GPU, ONNX Runtime reports the time to start a layer, not to "
            "compute it; use Nsight Systems, or build a TensorRT engine"
        )
    with TemporaryDirectory(prefix="depthkit-") as scratch:
        session = _open(maker, path, manifest, {}, Path(scratch))
        return _profile(OnnxRuntimeSession(session, manifest.model, manifest.precision_found), images, runs)


def _open(
    maker: OnnxRuntime[Any], path: Path, manifest: Manifest, extra: dict[str, str], profile: Path | None = None
) -> Any:
    """Make an `onnxruntime.InferenceSession` with the options that the engine was built with.

    Args:
        extra: more options for its first provider.
        profile: folder for the profiler's output; None: no profiling.
    """
    onnxruntime = import_onnxruntime()
    options = maker.parse_options(manifest.options)
    (first, built_with), *others = maker.providers(options, manifest.precision_asked)
    settings = session_options(maker.threads(options))
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _write_profile(settings, profile)
    if others and not isinstance(manifest.model.batch, Dim):  # with a dynamic batch the CPU computes shapes
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        others = []
    with translated(f"cannot open {path}"):
        return create(path, settings, [(first, built_with | extra), *others])


def open_onnx(path: Path, run: RunOptions) -> OnnxRuntimeSession:
    """Open an ONNX file that depthkit exported; it is optimised while loading, then its precision is read back."""
    run.require_cpu("an ONNX file")
    return _open_onnx(path)


def profile_onnx(path: Path, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """See `OnnxRunner.profile_onnx`."""
    with TemporaryDirectory(prefix="depthkit-") as scratch:
        return _profile(_open_onnx(path, Path(scratch)), images, runs)


def _open_onnx(path: Path, profile: Path | None = None) -> OnnxRuntimeSession:
    """`profile`: see `_open`."""
    description = describe_onnx(path)
    options = CPU.parse_options({})
    asked = CPU.asked(description.precision, options)
    settings = session_options(CPU.threads(options), asked)
    _write_profile(settings, profile)
    with TemporaryDirectory(prefix="depthkit-") as scratch, translated(f"cannot open {path}"):
        optimised = Path(scratch) / "optimised.onnx"
        settings.optimized_model_filepath = str(optimised)
        session = create(CPU.source(path, asked), settings, CPU.providers(options, asked))
        layers = attribute(read_layers(optimised), description.products)
        precision = CPU.found_precision(layers, asked)
    return OnnxRuntimeSession(session, description.model, precision)


def open_graph(graph: bytes, asked: Precision, options: CpuOptions) -> Graph:
    """See `GraphRunner.open_graph`."""
    settings = session_options(CPU.threads(options), asked)
    with TemporaryDirectory(prefix="depthkit-") as scratch, translated("cannot compile a graph"):
        settings.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
        session = create(graph, settings, CPU.providers(options, asked))
        return _graph(session, read_layers(Path(settings.optimized_model_filepath)))


def open_as_written(graph: bytes) -> Graph:
    """See `OnnxRunner.open_as_written`."""
    settings = session_options(usable_cores())
    settings.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    with translated("cannot run a graph"):
        return _graph(create(graph, settings, [(CPU.provider, {})]), ())


def _graph(session: Any, layers: tuple[Layer, ...]) -> Graph:
    name = session.get_inputs()[0].name

    def run(values: np.ndarray) -> np.ndarray:
        with translated("cannot run a graph"):
            return cast("np.ndarray", session.run(None, {name: values})[0])

    return Graph(layers, run)


def open_peer(onnx: Path) -> Peer:
    """See `GraphRunner.open_peer`: the CPU provider through IOBinding."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    def prepare(image: np.ndarray, depth: np.ndarray) -> Call:
        binding = session.io_binding()
        binding.bind_input("image", "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        binding.bind_output("depth", "cpu", 0, depth.dtype, depth.shape, depth.ctypes.data)
        return lambda: session.run_with_iobinding(binding)

    provider = f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}, {usable_cores()} threads"
    return Peer(describe_onnx(onnx).model, provider, "fp32", prepare)


def _write_profile(settings: Any, folder: Path | None) -> None:
    """Turn on the profiler in these `SessionOptions`, if there is a folder for its output."""
    settings.enable_profiling = folder is not None
    settings.profile_file_prefix = str((folder or Path()) / "profile")


def _profile(opened: OnnxRuntimeSession, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """Run a session that was opened with profiling, and read the profile."""
    with opened:
        for _ in profiled_runs(opened, images, runs):
            pass
        written = Path(opened.end_profiling())
    return mean_times(list(_layer_times(json.loads(written.read_text()))), runs)


def _layer_times(events: Any) -> Iterator[LayerTime]:
    """The layers' times in all runs, from the profiler's events."""
    ending = "_kernel_time"
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(ending):
            yield LayerTime(event["name"].removesuffix(ending), event["args"]["op_name"], event["dur"] / 1000)
