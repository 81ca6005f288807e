"""The CUDA objects, other libraries' arrays and TensorRT on a real GPU; skipped, with the reason, where none is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.engines.build import BuildOptions, backend, build
from depthkit.engines.gpu import find_gpu
from depthkit.precisions import Precision
from depthkit.runtime.cuda import (
    CudaError,
    DeviceBuffer,
    Event,
    Graph,
    MappedBuffer,
    PinnedBuffer,
    Stream,
    check,
    cudart,
    device_view,
)
from depthkit.runtime.load import load
from depthkit.runtime.transfer import Mode, Transfer
from depthkit.runtime.trt import TensorRTSession
from depthkit.testing import assert_parity

from ..support import STEM, model_spec

GPU = find_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(isinstance(GPU, str), reason=str(GPU))]

MODES: tuple[Mode, ...] = ("pinned", "mapped", "device")
SPEC = model_spec(240, 320)


def frame(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), dtype=np.uint8)


# CUDA's own objects.


@pytest.fixture
def stream() -> Iterator[Stream]:
    with Stream() as stream:
        yield stream


def test_bytes_come_back_from_the_device(stream: Stream) -> None:
    with DeviceBuffer(1 << 20) as device, PinnedBuffer((1 << 20,), "uint8") as host:
        sent = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
        host.array[:] = sent
        stream.copy(device.device_pointer, host.handle, sent.nbytes)
        pageable = np.zeros_like(sent)
        stream.copy(pageable.ctypes.data, device.device_pointer, sent.nbytes)
        stream.synchronize()
    np.testing.assert_array_equal(pageable, sent)


def test_the_device_reads_and_writes_mapped_memory(stream: Stream) -> None:
    with MappedBuffer((4096,), "uint8") as source, MappedBuffer((4096,), "uint8") as target:
        source.array[:], target.array[:] = 7, 0
        stream.copy(target.device_pointer, source.device_pointer, 4096)
        stream.synchronize()
        assert (target.array == 7).all()


def test_events_measure_and_order(stream: Stream) -> None:
    size = 64 << 20
    with (
        DeviceBuffer(size) as device,
        PinnedBuffer((size,), "uint8") as source,
        PinnedBuffer((size,), "uint8") as target,
        Stream() as other,
        Event(timing=True) as start,
        Event(timing=True) as end,
        Event() as ready,
    ):
        source.array[:], target.array[:] = 1, 0
        start.record(stream.handle)
        for _ in range(8):
            stream.copy(device.device_pointer, source.handle, size)
        end.record(stream.handle)
        ready.record(stream.handle)
        ready.wait(other.handle)
        other.copy(target.handle, device.device_pointer, size)
        other.synchronize()
        assert (target.array == 1).all()
        assert start.elapsed_ms(end) > 0


def test_graph_replays_copies(stream: Stream) -> None:
    with DeviceBuffer(64) as device, PinnedBuffer((64,), "uint8") as source, PinnedBuffer((64,), "uint8") as target:

        def there_and_back() -> None:
            stream.copy(device.device_pointer, source.handle, 64)
            stream.copy(target.handle, device.device_pointer, 64)

        with Graph(stream, there_and_back) as graph:
            for value in range(1, 4):
                source.array[:] = value
                graph.launch(stream)
                stream.synchronize()
                assert (target.array == value).all()


def test_unrecordable_call_ends_the_recording(stream: Stream) -> None:
    with pytest.raises(CudaError, match="cudaErrorStreamCapture"):
        Graph(stream, stream.synchronize)
    with DeviceBuffer(64) as device, PinnedBuffer((64,), "uint8") as host:
        stream.copy(device.device_pointer, host.handle, 64)
        stream.synchronize()


def test_out_of_memory_names_the_free_memory() -> None:
    with pytest.raises(CudaError, match=r"cudaErrorMemoryAllocation: .* requested, .* free") as caught:
        DeviceBuffer(1 << 45)
    assert caught.value.call == "cudaMalloc"
    assert cudart().cudaGetLastError() == (cudart().cudaError_t.cudaSuccess,)


# Other libraries' arrays. What stands for an engine copies the image's bytes to the depth, which is larger.


@pytest.mark.parametrize("mode", MODES)
def test_numpy_arrays_travel_in_every_mode(mode: Mode) -> None:
    with Transfer(SPEC, mode) as transfer:
        for seed in range(3):
            image, depth = frame(seed), np.zeros((1, 240, 320), np.float32)
            transfer.bind(image, depth)  # which keeps addresses only: that arrays live is the session's business
            run(transfer)
            assert depth.tobytes()[: image.nbytes] == image.tobytes()


def run(transfer: Transfer) -> None:
    transfer.prepare()
    transfer.upload()
    image, depth = transfer.routes
    transfer.stream.copy(depth.engine, image.engine, image.size)
    transfer.download()
    transfer.finish()


class DlpackOnly:
    """An array without the CUDA array interface."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


Library = tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]
LIBRARIES: dict[str, tuple[str, Callable[[Any, np.ndarray], Any], Callable[[Any], np.ndarray]]] = {
    "torch": ("torch", lambda torch, values: torch.from_numpy(values).cuda(), lambda array: array.cpu().numpy()),
    "cupy": ("cupy", lambda cupy, values: cupy.asarray(values), lambda array: array.get()),
    "numba": ("numba.cuda", lambda cuda, values: cuda.to_device(values), lambda array: array.copy_to_host()),
    "pycuda": ("pycuda.gpuarray", lambda gpuarray, values: gpuarray.to_gpu(values), lambda array: array.get()),
}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    """How a library brings an array to the GPU and back."""
    name, there, back = LIBRARIES[request.param]
    pytest.importorskip(name.partition(".")[0], reason=f"{request.param} is not installed")
    if request.param == "pycuda":
        import_module("pycuda.autoprimaryctx")
    module = import_module(name)
    return lambda values: there(module, values), back


def test_arrays_of_a_library_are_used_in_place(library: Library) -> None:
    there, back = library
    image, depth = there(frame(0)), there(np.zeros((1, 240, 320), np.float32))
    with Transfer(SPEC, "pinned") as transfer:
        views = [device_view(array, transfer.stream) for array in (image, depth)]
        assert [view.shape for view in views] == [(1, 240, 320, 3), (1, 240, 320)]
        assert [view.dtype for view in views] == [np.uint8, np.float32]
        assert all(view.c_contiguous and view.writeable for view in views)
        transfer.bind(views[0], views[1])
        run(transfer)
    assert back(depth).tobytes()[: frame(0).nbytes] == frame(0).tobytes()


def test_dlpack_array_is_used_in_place() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("cuda.core")
    image = torch.from_numpy(frame(0)).cuda()
    with Stream() as stream:
        view = device_view(DlpackOnly(image), stream)
    assert (view.pointer, view.shape, view.dtype) == (image.data_ptr(), (1, 240, 320, 3), np.dtype(np.uint8))


@pytest.mark.parametrize("named", [True, False], ids=["stream", "default stream"])
def test_run_waits_for_torch(named: bool) -> None:
    torch = pytest.importorskip("torch")
    image = torch.zeros((1, 240, 320, 3), dtype=torch.uint8, device="cuda")
    depth = torch.zeros((1, 240, 320), dtype=torch.float32, device="cuda")
    theirs = torch.cuda.Stream() if named else torch.cuda.default_stream()
    with Transfer(SPEC, "pinned") as transfer, torch.cuda.stream(theirs):
        views = [device_view(array, transfer.stream) for array in (image, depth)]
        transfer.bind(views[0], views[1], theirs.cuda_stream if named else None)
        for seed in range(1, 4):
            torch.cuda._sleep(50_000_000)
            image.copy_(torch.from_numpy(frame(seed)), non_blocking=True)
            run(transfer)
            assert depth.cpu().numpy().tobytes()[: frame(seed).nbytes] == frame(seed).tobytes()


def test_torchs_stream_waits_for_released_work() -> None:
    torch = pytest.importorskip("torch")
    source = torch.from_numpy(frame(5)).cuda()
    image, depth = torch.zeros_like(source), torch.zeros((1, 240, 320), device="cuda")
    theirs = torch.cuda.Stream()
    with Transfer(SPEC, "pinned") as transfer, torch.cuda.stream(theirs):
        views = [device_view(array, transfer.stream) for array in (image, depth)]
        transfer.bind(views[0], views[1], theirs.cuda_stream)
        torch.cuda._sleep(50_000_000)
        image.copy_(source)
        transfer.prepare()
        transfer.stream.copy(views[1].pointer, views[0].pointer, image.nbytes)
        transfer.release()
        copy = depth.clone()
        theirs.synchronize()
    assert copy.cpu().numpy().tobytes()[: source.nbytes] == frame(5).tobytes()


# TensorRT.

Engines = Callable[[Precision], Path]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"], scope="module")
def engines(request: pytest.FixtureRequest, pristine_exports: Path) -> Engines:
    """The compact network's engine in a precision."""
    found = backend(request.param).availability()
    if not found.runnable:
        pytest.skip(f"{request.param}: {found.reason}")
    return lambda precision: build(pristine_exports / f"{STEM}.{precision}.onnx", BuildOptions(request.param)).path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_engine_agrees_with_torch(
    engines: Engines, reference: Any, mode: Mode, cuda_graph: bool, precision: Precision
) -> None:
    with load(engines(precision), transfer=mode, cuda_graph=cuda_graph) as session:
        assert_parity(session, reference, precision=precision)
        assert session.provider.endswith(f"{'CUDA graph' if cuda_graph else 'switched off'}, {mode}")
        streamed = np.concatenate(list(session.stream(image[None] for image in reference.images)))
        np.testing.assert_array_equal(streamed, session(reference.images))


def test_engine_takes_arrays_of_a_library(engines: Engines, reference: Any, library: Library) -> None:
    there, back = library
    with load(engines("fp32")) as session:
        depth = there(np.zeros((1, 32, 48), np.float32))
        for image in reference.images:
            session.bind(image=there(image[None]), depth=depth)
            for _ in range(3):
                session.run()
            np.testing.assert_array_equal(back(depth)[0], session(image))


def test_allocated_arrays_need_no_copy_by_the_host(engines: Engines, reference: Any) -> None:
    for mode in MODES:
        with load(engines("fp32"), transfer=mode) as session:
            assert isinstance(session, TensorRTSession)
            image, depth = session.allocate()
            session.bind(image=image, depth=depth)
            answers = []
            for each in reference.images:
                image[0] = each
                session.run()
                answers.append(depth[0].copy())
            np.testing.assert_array_equal(answers, session(reference.images))


def test_ten_thousand_runs_take_no_more_memory(engines: Engines) -> None:
    with load(engines("fp32")) as session:
        session.bind(image=frame(0, 32, 48), depth=np.zeros((1, 32, 48), np.float32))
        for _ in range(100):
            session.run()
        free, _ = check(cudart().cudaMemGetInfo)
        for _ in range(10_000):
            session.run()
        assert check(cudart().cudaMemGetInfo)[0] >= free - (1 << 20)
