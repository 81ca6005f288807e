"""OpenVINO on the caller's memory; a stream of frames runs several requests at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..engines.backend import attribute, built_from
from ..engines.fingerprint import usable_cores
from ..engines.manifest import Manifest
from ..engines.ov import (
    DEVICE,
    OPENVINO,
    OpenVinoOptions,
    bf16_without_kernels,
    core,
    float_precision,
    read_layers,
    settings,
    translated,
)
from ..errors import BackendError, EngineError, FrameError
from ..onnx_graph import describe_onnx
from ..precisions import Precision
from ..session import Call, LayerTime, Peer, SessionBase
from ..spec import Dim, ModelSpec
from ..vendors import import_openvino
from .contract import Graph
from .profiled_runs import mean_times, profiled_runs
from .run_options import RunOptions

__all__ = ["OpenVinoSession", "open_engine", "open_graph", "open_peer", "profile_engine"]


class OpenVinoSession(SessionBase):
    """Runs a compiled model on shared tensors: it reads frames from and writes depth to the caller's arrays in place.

    A session is for one thread. Sessions in other threads are independent, even of the same engine.
    """

    def __init__(self, compiled: Any, spec: ModelSpec, precision: str) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._translated = translated(f"{OPENVINO.name} cannot run", EngineError)
        self.spec = spec
        self.precision = precision
        self.provider = _describe(compiled)

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`. OpenVINO keeps only the addresses; the session keeps the arrays alive."""
        super().bind(image=image, depth=depth)
        _share(self._compiled, self._request, image, depth)

    def run(self) -> None:
        """See `Session.run`."""
        self._buffers()
        with self._translated:
            # infer() runs in this thread; start_async() would wake another. The returned output views are not needed.
            self._request.infer(share_outputs=True)

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `Session.stream`. Bound arrays stay bound.

        OpenVINO decides how many requests run at a time: one for an engine that was built with `hint=latency`.
        """
        self._require_open()
        limit = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        running = deque[tuple[Any, np.ndarray, np.ndarray]]()
        idle = [self._compiled.create_infer_request() for _ in range(limit)]
        try:
            for image in frames:
                self._require_open()
                try:
                    self.spec.input.check_buffer(image, written=False)
                except FrameError:
                    while running:
                        yield self._oldest(running, idle)
                    raise
                depth = np.empty(image.shape[:3], np.float32)
                request = idle.pop()
                _share(self._compiled, request, image, depth)
                with self._translated:
                    request.start_async()
                running.append((request, image, depth))
                if not idle:
                    yield self._oldest(running, idle)
            while running:
                yield self._oldest(running, idle)
        finally:
            for request, _, _ in running:  # OpenVINO still writes to their arrays, which are freed when this ends
                with suppress(RuntimeError):
                    request.wait()

    def layer_times(self) -> list[LayerTime]:
        """Times of the layers that ran in the last run. The model must have been opened with PERF_COUNT."""
        with self._translated:
            executed = [each for each in self._request.profiling_info if each.status.name == "EXECUTED"]
        return [LayerTime(each.node_name, each.node_type, each.real_time.total_seconds() * 1000) for each in executed]

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._request = self._compiled = None

    def _oldest(self, running: deque[tuple[Any, np.ndarray, np.ndarray]], idle: list[Any]) -> np.ndarray:
        """Wait for the oldest request, make it idle, and return its depth."""
        request, _, depth = running[0]
        with self._translated:
            request.wait()
        running.popleft()
        idle.append(request)
        return depth


def _share(compiled: Any, request: Any, image: np.ndarray, depth: np.ndarray) -> None:
    """Make `request` use these arrays in place."""
    tensor = import_openvino().Tensor
    # With shape and type given, a tensor also shares arrays that are read-only in NumPy.
    request.set_input_tensor(tensor(image, image.shape, compiled.input(0).element_type))
    request.set_output_tensor(tensor(depth, depth.shape, compiled.output(0).element_type))


def open_engine(path: Path, manifest: Manifest, run: RunOptions) -> OpenVinoSession:
    """Open an engine whose manifest was verified, with its build options. Its precision is read back.

    Raises:
        EngineError: the blob is damaged, of another model, or computes in another precision than was asked for.
        UserError: a transfer mode was given.
    """
    run.require_cpu(OPENVINO.name)
    return _open(path, manifest, {})


def profile_engine(path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
    """See `Runner.profile_engine`."""
    with _open(path, manifest, {"PERF_COUNT": True}) as session:
        times = [layer for _ in profiled_runs(session, images, runs) for layer in session.layer_times()]
    return mean_times(times, runs)


def open_graph(graph: bytes, asked: Precision, options: OpenVinoOptions) -> Graph:
    """See `GraphRunner.open_graph`."""
    with translated("cannot compile a graph"):
        compiled = core().compile_model(core().read_model(graph), DEVICE, settings(asked, options))
        layers = read_layers(compiled)

    def run(values: np.ndarray) -> np.ndarray:
        with translated("cannot run a graph"):
            return cast("np.ndarray", compiled(values, share_inputs=True, share_outputs=True)[0])

    return Graph(layers, run)


def open_peer(onnx: Path, precision_hint: str | None = None) -> Peer:
    """See `GraphRunner.open_peer`: the CPU plugin, tuned for latency, on shared tensors.

    `precision_hint` None: OpenVINO's default. If ONEDNN_MAX_CPU_ISA is set, the default may be BF16 without kernels for
    it, which fails; then FP32 is used.
    """
    openvino = import_openvino()
    if precision_hint is None and bf16_without_kernels():
        precision_hint = "f32"
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": usable_cores()}
    hints |= {} if precision_hint is None else {"INFERENCE_PRECISION_HINT": precision_hint}
    compiled = core().compile_model(str(onnx), DEVICE, hints)
    computed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def prepare(image: np.ndarray, depth: np.ndarray) -> Call:
        request = compiled.create_infer_request()
        _share(compiled, request, image, depth)
        return lambda: request.infer(share_outputs=True)

    provider = f"openvino {openvino.__version__.partition('-')[0]}, CPU, {computed}, {usable_cores()} threads"
    return Peer(describe_onnx(onnx).model, provider, float_precision(computed), prepare)


def _open(path: Path, manifest: Manifest, extra: dict[str, Any]) -> OpenVinoSession:
    """See `open_engine`; `extra`: more OpenVINO properties."""
    config = settings(manifest.precision_asked, OPENVINO.parse_options(manifest.options)) | extra
    with translated(f"cannot open {path}, which `depthkit export` builds again", EngineError):
        compiled = core().import_model(path.read_bytes(), DEVICE, config)
        layers = read_layers(compiled)
    expected = [(end.name, end.dtype, _fixed(end.shape)) for end in (manifest.model.input, manifest.model.output)]
    ends = [_describe_port(port) for port in (*compiled.inputs, *compiled.outputs)]
    if ends != expected:
        raise EngineError(f"{path} has the inputs and outputs {ends}, its manifest has {expected}; build it again")
    try:
        found = OPENVINO.found_precision(attribute(layers, built_from(manifest)), manifest.precision_asked)
    except BackendError as error:
        raise EngineError(f"cannot open {path}: {error}; build it again") from error
    return OpenVinoSession(compiled, manifest.model, found)


def _fixed(shape: tuple[int | Dim, ...]) -> tuple[int | None, ...]:
    """The sizes of a shape; None where dynamic."""
    return tuple(None if isinstance(size, Dim) else size for size in shape)


def _describe_port(port: Any) -> tuple[str, str, tuple[int | None, ...]]:
    """Name, NumPy dtype name and shape of an input or output."""
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return port.get_any_name(), port.element_type.to_dtype().name, shape


def _describe(compiled: Any) -> str:
    """Describe what computes, e.g. "OpenVINO CPU, f32, 2 threads, latency"."""
    devices = "+".join(compiled.get_property("EXECUTION_DEVICES"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    hint = compiled.get_property("PERFORMANCE_HINT").lower()
    return f"OpenVINO {devices}, {precision}, {threads} thread{'s' * (threads > 1)}, {hint}"
