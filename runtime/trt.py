"""TensorRT and TensorRT-RTX: one session for both, on the caller's memory on host or GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
from typing_extensions import Self

from ..engines.build import backend
from ..engines.gpu import find_gpu
from ..engines.manifest import Manifest
from ..engines.trt import TensorRT
from ..engines.trt_vendor import words
from ..errors import BackendError, EngineError, FrameError
from ..session import Device, LayerTime, RunPhase, SessionBase
from ..spec import Dim, ModelSpec, TensorSpec
from .cuda import CudaGraphWarning, DeviceView, Graph, device_view
from .profiled_runs import mean_times, profiled_runs
from .run_options import RunOptions
from .transfer import Mode, Transfer, choose_transfer

__all__ = ["CudaGraphWarning", "TensorRTSession", "open_engine", "profile_engine"]

_ALIGNMENT: Final = 256
"""Bytes to which TensorRT requires tensor addresses to be aligned."""


class TensorRTSession(SessionBase):
    """Runs a TensorRT engine on its own stream. Arrays on the GPU are not copied.

    Not thread-safe: open one session in each thread. Each deserialises its own engine and has its own context, stream
    and buffers, so sessions share only the GPU and the vendor's logger, which TensorRT calls from several threads.

    Buffers are allocated once, for the largest batch. No output allocator is needed: it is for shapes that depend on
    the data, and the shape of `depth` follows from that of `image`.

    With a static batch, the second run of a binding is recorded as a CUDA graph (including the device's copies) and
    replayed from then on: TensorRT must have run once before, and a single run is not worth recording. Binding other
    NumPy arrays keeps the graph; binding other arrays on the GPU drops it.
    """

    device: Device = "gpu"

    def __init__(self, engine: _Engine, spec: ModelSpec, precision: str, mode: Mode, *, cuda_graph: bool) -> None:
        self.spec = spec
        self.precision = precision
        self._engine = engine
        self._mode = mode
        if isinstance(spec.batch, Dim):
            cuda_graph = False
            self._describe("no CUDA graph: dynamic batch")
        else:
            self._describe("CUDA graph" if cuda_graph else "no CUDA graph: switched off")
        self._cuda_graph = cuda_graph
        self._lane = self._open_lane()

    def bind(self, *, image: Any, depth: Any, stream: int | None = None) -> None:
        """See `Session.bind`; each of the two arrays may be on the host or on the GPU.

        Args:
            image: N x H x W x 3 uint8: a NumPy array, or a GPU array of torch, CuPy, Numba, PyCUDA or another library
                with the CUDA array interface or DLPack.
            depth: N x H x W float32, likewise. GPU arrays are used in place; host arrays are copied, unless they come
                from `allocate`.
            stream: handle of the CUDA stream on which the caller writes `image` and reads `depth` on the GPU, e.g.
                `torch.cuda.current_stream().cuda_stream`: every run waits for the work on it. None: the stream that the
                array's library names, as CuPy does, else the default stream.

        Raises:
            FrameError: shape or dtype is not the spec's, memory is not C-contiguous, not aligned or on another GPU, or
                `depth` is read-only.
            CudaError: there is no memory for the session's own buffers.
        """
        self._require_open()
        image, depth = self._view(image, self.spec.input), self._view(depth, self.spec.output)
        super().bind(image=image, depth=depth)
        bound, self._bound = self._bound, None  # so that nothing is bound if the next lines fail
        self._lane.bind(image, depth, stream)
        self._bound = bound

    def run(self) -> None:
        """See `Session.run`. Also raises CudaError, BackendError."""
        self._buffers()
        self._lane.start()
        self._lane.finish()

    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`; runs without a CUDA graph, in which phases cannot be separated."""
        self._buffers()
        return self._lane.time_phases()

    def enqueue(self) -> None:
        """`run` without waiting, for arrays on the GPU or from `allocate`; `synchronize` waits.

        Later work on the caller's stream (see `bind`) is ordered after the run, so the host need not wait.

        Raises:
            EngineError: nothing is bound, or the host would have to copy an array.
            CudaError, BackendError: the run could not be started.
        """
        self._buffers()
        if not self._lane.transfer.is_direct:
            raise EngineError("enqueue() needs arrays on the GPU or from allocate(); bind such arrays, or use run()")
        self._lane.start()
        self._lane.transfer.release()

    def synchronize(self) -> None:
        """Wait for enqueued runs. Raises CudaError if one failed."""
        self._require_open()
        self._lane.transfer.stream.synchronize()

    def allocate(self) -> tuple[np.ndarray, np.ndarray]:
        """NumPy arrays for image and depth of the largest batch, which need no copy on the host.

        Bind them or parts of them. They are the session's own page-locked memory, the same at every call. Other NumPy
        arrays are copied through it, so a run with those overwrites them. They stay valid as long as they are referred
        to, even after `close`. In transfer mode "device" they are ordinary arrays.
        """
        self._require_open()
        return self._lane.transfer.allocate()

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `Session.stream`. The next input is fetched and copied during the current run. Bound arrays stay bound.

        Holds the GPU memory of two more contexts until it ends. In transfer mode "device" little overlaps, because
        copies of pageable memory block the host.
        """
        self._require_open()
        with self._open_lane() as first, self._open_lane() as second:
            pending: tuple[_Lane, np.ndarray] | None = None
            for image, lane in zip(frames, cycle((first, second)), strict=False):
                self._require_open()
                try:
                    depth = self._begin(lane, image)
                except FrameError:
                    if pending is not None:
                        yield _finished(*pending)
                    raise
                if pending is not None:
                    yield _finished(*pending)
                pending = lane, depth
            if pending is not None:
                yield _finished(*pending)

    def watch_layers(self) -> list[tuple[str, float]]:
        """A list to which every later `run` adds each layer's name and milliseconds. Needs `cuda_graph` off."""
        self._require_open()
        return self._lane.watch_layers()

    def close(self) -> None:
        """See `Session.close`. Waits for enqueued runs."""
        if not self._closed:
            super().close()
            try:
                self._lane.close()
            finally:
                del self._engine  # must outlive the contexts that it made

    def _open_lane(self) -> _Lane:
        return _Lane(self._engine, self.spec, self._mode, self._give_up_graphs if self._cuda_graph else None)

    def _begin(self, lane: _Lane, image: np.ndarray) -> np.ndarray:
        self.spec.input.check_buffer(image, written=False)
        depth = np.empty(image.shape[:3], np.float32)
        lane.bind(image, depth)
        lane.start()
        return depth

    def _view(self, array: Any, tensor: TensorSpec) -> np.ndarray | DeviceView:
        if isinstance(array, np.ndarray):
            return array
        view = device_view(array, self._lane.transfer.stream, name=tensor.name)
        if view.pointer % _ALIGNMENT:
            raise FrameError(f"{tensor.name} is not aligned to {_ALIGNMENT} bytes; bind a copy of it")
        return view

    def _give_up_graphs(self, error: BackendError) -> None:
        self._cuda_graph = False
        self._describe(f"no CUDA graph: {error}")
        warnings.warn(f"running without a CUDA graph, which may be slower: {error}", CudaGraphWarning, stacklevel=6)

    def _describe(self, graph: str) -> None:
        self.provider = f"{self._engine.name}, {graph}, {self._mode}"


def open_engine(path: Path, manifest: Manifest, run: RunOptions) -> TensorRTSession:
    """Open an engine whose manifest was verified.

    Raises:
        EngineError: the engine's tensors differ from the manifest's.
        BackendError: there is no GPU, or TensorRT or CUDA refuses the engine.
    """
    maker, gpu = backend(manifest.backend), find_gpu()
    assert isinstance(maker, TensorRT)
    if isinstance(gpu, str):
        raise BackendError(f"{maker.name} runs on a GPU, and {gpu}; use a machine with an NVIDIA GPU and its driver")
    engine = _Engine(maker, path, manifest.backend_version, gpu.name)
    engine.check(manifest.model)
    mode = choose_transfer(run.transfer, integrated=gpu.integrated)
    return TensorRTSession(engine, manifest.model, manifest.precision_found, mode, cuda_graph=run.cuda_graph)


def profile_engine(path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """See `Runner.profile_engine`.

    Runs without a CUDA graph, which would hide the layers. With a profiler, TensorRT itself waits for each run.
    """
    operators = {layer.name: layer.operator for layer in manifest.layers}
    with open_engine(path, manifest, RunOptions(cuda_graph=False)) as session:
        times = session.watch_layers()
        for _ in profiled_runs(session, images, runs):
            pass
    return mean_times([LayerTime(name, operators.get(name, ""), ms) for name, ms in times], runs)


class _Engine:
    """A deserialised engine; `name`: the library with its version, and the GPU."""

    def __init__(self, maker: TensorRT[Any], path: Path, built: str, gpu: str) -> None:
        self.maker = maker
        self.name = f"{maker.name} {maker.vendor().__version__}, {gpu}"
        self._path = path
        self._engine = maker.deserialize(path.read_bytes(), built)

    def check(self, spec: ModelSpec) -> None:
        """Raise EngineError unless the engine's inputs and outputs are those of `spec`."""
        engine, trt = self._engine, self.maker.vendor()
        types = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
        wanted = [
            f"{mode.name} {tensor.name} {types[tensor.dtype].name} {_engine_shape(tensor)}"
            for tensor, mode in ((spec.input, trt.TensorIOMode.INPUT), (spec.output, trt.TensorIOMode.OUTPUT))
        ]
        found = []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            kind, shape = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
            found.append(f"{engine.get_tensor_mode(name).name} {name} {kind} {shape}")
        if sorted(found) != sorted(wanted):
            raise EngineError(
                f"{self._path} has the tensors {', '.join(found)}, its manifest has {', '.join(wanted)}; "
                "build it again with `depthkit export`"
            )

    def create_context(self) -> Any:
        """Create an execution context, which runs one inference at a time. Raises BackendError."""
        with self.maker.listening(f"cannot run {self._path}") as messages:
            context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"{self.maker.name} cannot run {self._path}: {words(messages)}")
        return context


class _Lane:
    """Runs one inference at a time: an execution context, its transfer, and the CUDA graph of both."""

    def __init__(
        self, engine: _Engine, spec: ModelSpec, mode: Mode, on_failed_graph: Callable[[BackendError], None] | None
    ) -> None:
        """`on_failed_graph`: called with the error if no CUDA graph can be recorded; None: do not record one."""
        self._spec = spec
        self._maker = engine.maker
        self._engine: _Engine | None = engine  # must outlive the context
        self._on_failed_graph = on_failed_graph
        self._layout: object = None
        self._graph: Graph | None = None
        self._profiler: Any = None
        self._has_run = False
        with ExitStack() as stack:
            self.transfer = stack.enter_context(Transfer(spec, mode))
            self._context = engine.create_context()
            stack.callback(self._forget)
            stack.callback(self._drop_graph)
            stack.callback(self.transfer.stream.synchronize)  # called first
            self._resources = stack.pop_all()

    def bind(self, image: np.ndarray | DeviceView, depth: np.ndarray | DeviceView, stream: int | None = None) -> None:
        """See `Transfer.bind`. The CUDA graph is kept if the device's work stays the same. Raises BackendError."""
        self.transfer.stream.synchronize()  # enqueued runs use the previous addresses
        self.transfer.bind(image, depth, stream)
        layout = [(route.engine, route.device, route.size) for route in self.transfer.routes]
        if layout != self._layout:
            self._layout = None
            self._drop_graph()
            self._set_tensors(image.shape, depth.shape)
            self._layout = layout

    def start(self) -> None:
        """Start a run. Raises BackendError."""
        self.transfer.prepare()
        if self._graph is None and self._on_failed_graph is not None and self._has_run:
            self._record(self._on_failed_graph)
        if self._graph is not None:
            self._graph.launch(self.transfer.stream)
        else:
            self._enqueue()
        self._has_run = True

    def watch_layers(self) -> list[tuple[str, float]]:
        """See `TensorRTSession.watch_layers`."""
        context, self._profiler = self._context, _make_profiler(self._maker.vendor())
        context.profiler = self._profiler  # the vendor keeps only a pointer to it
        return self._profiler.times  # type: ignore[no-any-return]

    def finish(self) -> None:
        """Wait until `depth` is written. Raises CudaError."""
        self.transfer.finish()

    def time_phases(self) -> dict[RunPhase, float]:
        """See `Transfer.time_phases`."""
        return self.transfer.time_phases(self._execute)

    def close(self) -> None:
        """Wait for enqueued runs, and free everything."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_tensors(self, image: tuple[int, ...], depth: tuple[int, ...]) -> None:
        context, names = self._context, (self._spec.input.name, self._spec.output.name)
        with self._maker.listening(f"cannot take {image}") as messages:
            accepted = context.set_input_shape(names[0], image)
            for name, route in zip(names, self.transfer.routes, strict=True):
                accepted = accepted and context.set_tensor_address(name, route.engine)
            # Not `all_binding_shapes_specified`: its documentation says that it ignores `set_input_shape`.
            accepted = accepted and tuple(context.get_tensor_shape(names[1])) == depth
        if not accepted:
            raise BackendError(f"{self._maker.name} cannot take {image}: {words(messages)}")

    def _enqueue(self) -> None:
        self.transfer.upload()
        self._execute()
        self.transfer.download()

    def _execute(self) -> None:
        with self._maker.listening("cannot run the engine") as messages:
            accepted = self._context.execute_async_v3(self.transfer.stream.handle)
        if not accepted:
            raise BackendError(f"{self._maker.name} cannot run the engine: {words(messages)}")

    def _record(self, on_failure: Callable[[BackendError], None]) -> None:
        self.transfer.stream.synchronize()
        try:
            self._graph = Graph(self.transfer.stream, self._enqueue)
        except BackendError as error:
            self._on_failed_graph = None
            on_failure(error)

    def _drop_graph(self) -> None:
        self._has_run = False
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _forget(self) -> None:
        self._context = self._engine = None


def _make_profiler(trt: Any) -> Any:
    """A profiler that collects layer times in `times`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 requires it by name
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()


def _finished(lane: _Lane, depth: np.ndarray) -> np.ndarray:
    lane.finish()
    return depth


def _engine_shape(tensor: TensorSpec) -> tuple[int, ...]:
    """The shape as TensorRT gives it: dynamic dimensions are -1."""
    return tuple(-1 if isinstance(size, Dim) else size for size in tensor.shape)
