"""CUDA objects and other libraries' arrays, on a stand-in for the CUDA runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.engines.gpu import find_gpu
from depthkit.errors import BackendError, EngineError, FrameError
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

from .cudart import DeviceArray, FakeCudart, installed, real
from .device_array import OnGpu


@pytest.fixture
def stream(fake: FakeCudart) -> Iterator[Stream]:
    with Stream() as stream:
        yield stream


OWNERS: dict[str, Callable[[], Any]] = {
    "stream": Stream,
    "event": Event,
    "device": lambda: DeviceBuffer(64),
    "pinned": lambda: PinnedBuffer((4, 4), "float32"),
    "mapped": lambda: MappedBuffer((4, 4), "float32"),
}


@pytest.mark.parametrize("kind", OWNERS)
def test_owner_frees_its_object_once(fake: FakeCudart, kind: str) -> None:
    with OWNERS[kind]() as made:
        assert fake.live() == {kind: 1}
        assert isinstance(made.handle, int)
        made.close()
        assert not fake.live()
        made.close()
    with pytest.raises(EngineError, match=f"{type(made).__name__} is closed"):
        _ = made.handle


@pytest.mark.parametrize("kind", OWNERS)
def test_owner_that_was_not_closed_warns_and_frees(fake: FakeCudart, kind: str) -> None:
    made = OWNERS[kind]()
    with pytest.warns(ResourceWarning, match=f"a {type(made).__name__} was never closed"):
        del made
    assert not fake.live()


@pytest.mark.parametrize("use", [lambda made: made.array, lambda made: made.device_pointer])
def test_closed_buffer_refuses_every_use(fake: FakeCudart, use: Callable[[MappedBuffer], object]) -> None:
    made = MappedBuffer((2,), "uint8")
    made.close()
    with pytest.raises(EngineError, match="closed"):
        use(made)


def test_array_of_page_locked_memory_outlives_its_buffer(fake: FakeCudart) -> None:
    with PinnedBuffer((3, 4), "float32") as buffer:
        row = buffer.array[1]
        assert row.ctypes.data == buffer.handle + row.nbytes
        buffer.array[:] = 7
    assert fake.live() == {"pinned": 1}
    assert row.tolist() == [7, 7, 7, 7]
    del row
    assert not fake.live()


def test_mapped_memory_is_visible_on_both_sides(fake: FakeCudart) -> None:
    with MappedBuffer((8,), "uint8") as buffer:
        buffer.array[:] = range(8)
        assert fake.on_device(buffer.device_pointer, 8).tolist() == list(range(8))


def test_error_has_cudas_name_and_the_call(fake: FakeCudart) -> None:
    fake.fail("cudaStreamCreateWithFlags", "cudaErrorDevicesUnavailable")
    with pytest.raises(CudaError, match="the words for 46") as caught:
        Stream()
    assert (caught.value.name, caught.value.call) == ("cudaErrorDevicesUnavailable", "cudaStreamCreateWithFlags")
    assert fake.cudaGetLastError() == (real.cudaError_t.cudaSuccess,), "a later caller would take the error for its own"


def test_out_of_memory_names_the_free_memory() -> None:
    error = pytest.raises(CudaError, match="cudaErrorMemoryAllocation")
    with installed(total=64 << 20), error as caught, DeviceBuffer(24 << 20):
        DeviceBuffer(48 << 20)
    assert "48.0 MiB requested, 40.0 MiB of the GPU's 64.0 MiB free" in str(caught.value)


def test_missing_page_locked_memory_has_a_remedy(fake: FakeCudart) -> None:
    fake.fail("cudaHostAlloc", "cudaErrorMemoryAllocation")
    with pytest.raises(CudaError, match=r"3\.0 MiB of host memory .* transfer='device'"):
        PinnedBuffer((3 << 20,), "uint8")


def test_other_errors_do_not_mention_free_memory(fake: FakeCudart) -> None:
    fake.fail("cudaMalloc", "cudaErrorIllegalAddress")
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress") as caught:
        DeviceBuffer(64)
    assert "requested" not in str(caught.value)


def test_copies_run_in_order_on_synchronize(fake: FakeCudart, stream: Stream) -> None:
    with DeviceBuffer(4) as device, PinnedBuffer((4,), "uint8") as source, PinnedBuffer((4,), "uint8") as target:
        source.array[:], target.array[:] = [1, 2, 3, 4], 0
        stream.copy(device.device_pointer, source.handle, 4)
        stream.copy(target.handle, device.device_pointer, 4)
        assert not target.array.any()
        stream.synchronize()
        assert target.array.tolist() == [1, 2, 3, 4]


def test_event_blocks_another_stream(fake: FakeCudart, stream: Stream) -> None:
    done = []
    with Stream() as other, Event() as event:
        fake.enqueue(other.handle, lambda: done.append("first"))
        event.record(other.handle)
        event.wait(stream.handle)
        fake.enqueue(stream.handle, lambda: done.append("second"))
        stream.synchronize()
    assert done == ["first", "second"]


def test_time_between_events(fake: FakeCudart, stream: Stream) -> None:
    with Event(timing=True) as start, Event(timing=True) as end:
        start.record(stream.handle)
        end.record(stream.handle)
        assert start.elapsed_ms(end) > 0
    flags = [flags for name, (flags, *_) in fake.calls if name == "cudaEventCreateWithFlags"]
    assert flags == [real.cudaEventDefault] * 2


def test_graph_repeats_the_recorded_work_at_every_launch(fake: FakeCudart, stream: Stream) -> None:
    done: list[int] = []
    with Graph(stream, lambda: fake.enqueue(stream.handle, lambda: done.append(1))) as graph:
        stream.synchronize()
        assert not done
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
        assert done == [1, 1, 1]
        assert fake.live() == {"stream": 1, "exec": 1}
    with pytest.raises(EngineError, match="Graph is closed"):
        graph.launch(stream)


def test_recording_is_local_to_its_thread(fake: FakeCudart, stream: Stream) -> None:
    Graph(stream, lambda: None).close()
    mode = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert ("cudaStreamBeginCapture", (stream.handle, mode)) in fake.calls


def usable(fake: FakeCudart, stream: Stream) -> bool:
    done: list[int] = []
    fake.enqueue(stream.handle, lambda: done.append(1))
    stream.synchronize()
    return done == [1] and fake.live() == {"stream": 1}


def test_exception_in_a_recording_ends_it(fake: FakeCudart, stream: Stream) -> None:
    def fails() -> None:
        raise BackendError("refused")

    with pytest.raises(BackendError, match="refused"):
        Graph(stream, fails)
    assert usable(fake, stream)


def test_unrecordable_call_ends_the_recording(fake: FakeCudart, stream: Stream) -> None:
    with pytest.raises(CudaError) as caught:
        Graph(stream, lambda: DeviceBuffer(4).close())
    assert caught.value.name == "cudaErrorStreamCaptureUnsupported"
    assert usable(fake, stream)


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_failed_graph_leaves_nothing(fake: FakeCudart, stream: Stream, call: str) -> None:
    fake.fail(call, "cudaErrorNotSupported")
    with pytest.raises(CudaError, match="cudaErrorNotSupported"):
        Graph(stream, lambda: None)
    fake.streams[stream.handle].recording = None  # where it is the end that failed, CUDA would not record either
    assert usable(fake, stream)


def test_missing_driver_with_cuda_python_12(fake: FakeCudart) -> None:
    def without_a_driver() -> tuple[object, ...]:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(CudaError, match=r"libcuda.so.1; install NVIDIA's driver") as caught:
        check(without_a_driver)
    assert caught.value.name == "cudaErrorInsufficientDriver"


def test_missing_cuda_python_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    cudart.cache_clear()
    with pytest.raises(BackendError, match=r"pip install 'depthkit\[gpu\]'"):
        Stream()


@pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")
@pytest.mark.parametrize("make", [*OWNERS.values()], ids=[*OWNERS])
def test_missing_gpu_with_the_real_runtime(make: Callable[[], object]) -> None:
    with pytest.raises(CudaError) as caught:
        make()
    assert caught.value.name in {"cudaErrorInsufficientDriver", "cudaErrorNoDevice"}


# Other libraries' arrays.


@pytest.fixture
def array(on_gpu: OnGpu) -> DeviceArray:
    return on_gpu(np.arange(24, dtype=np.float32).reshape(2, 3, 4))


def test_cuda_array_interface(array: DeviceArray, stream: Stream) -> None:
    view = device_view(array, stream)
    assert (view.pointer, view.shape, view.dtype) == (array.pointer, (2, 3, 4), np.dtype(np.float32))
    assert view.c_contiguous
    assert view.writeable
    assert view.stream == real.cudaStreamLegacy
    assert view.owner is array
    array.stream = 77
    assert device_view(array, stream).stream == 77


def test_cuda_array_interface_version_2(array: DeviceArray, stream: Stream) -> None:
    interface = {key: value for key, value in array.__cuda_array_interface__.items() if key != "stream"}
    torchs = SimpleNamespace(__cuda_array_interface__=interface | {"version": 2, "data": (array.pointer, True)})
    view = device_view(torchs, stream)
    assert view.stream == real.cudaStreamLegacy
    assert not view.writeable


def test_a_pycuda_array_is_used_in_place(array: DeviceArray, stream: Stream) -> None:
    """By what `pycuda.gpuarray.GPUArray` offers: strides always, and no stream. docs/run.md shows one bound."""
    array.overrides = {"strides": array.values.strides, "stream": None, "version": 3}
    view = device_view(array, stream)
    assert (view.pointer, view.shape, view.dtype) == (array.pointer, (2, 3, 4), np.dtype(np.float32))
    assert view.c_contiguous
    assert view.writeable
    assert view.stream == real.cudaStreamLegacy


@given(data=st.data())
def test_contiguity_equals_numpys(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    values = np.zeros(shape, np.float32).transpose(data.draw(st.permutations(range(len(shape)))))
    values = values[tuple(slice(None, None, data.draw(st.integers(1, 2))) for _ in shape)]
    with installed() as fake, Stream() as stream:
        array = DeviceArray(fake, np.zeros(256, np.float32), overrides={"shape": values.shape})
        array.overrides["strides"] = values.strides
        assert device_view(array, stream).c_contiguous == values.flags.c_contiguous
        array.free()


class Exporter:
    """An array that has DLPack only, such as cuda.core's own buffers."""

    def __init__(self, values: np.ndarray, kind: int = 2) -> None:
        self.values = values
        self.kind = kind
        self.asked: object = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> object:
        self.asked = stream
        return self.values.__dlpack__(max_version=max_version)


def on_device(fake: FakeCudart, array: DeviceArray) -> np.ndarray:
    values = fake.on_device(array.pointer, array.values.nbytes)
    return values.view(array.values.dtype).reshape(array.values.shape)


def test_dlpack_is_asked_for_our_stream(fake: FakeCudart, array: DeviceArray, stream: Stream) -> None:
    pytest.importorskip("cuda.core")
    exporter = Exporter(on_device(fake, array))
    view = device_view(exporter, stream)
    assert (view.pointer, view.shape, view.dtype) == (array.pointer, (2, 3, 4), np.dtype(np.float32))
    assert view.c_contiguous
    assert exporter.asked == stream.handle
    assert not device_view(Exporter(on_device(fake, array)[:, ::2]), stream).c_contiguous


def test_dlpack_on_the_host_is_refused(fake: FakeCudart, stream: Stream) -> None:
    pytest.importorskip("cuda.core")
    with pytest.raises(FrameError, match="image is in host memory; bind it as a NumPy array"):
        device_view(Exporter(np.zeros(4), kind=1), stream, name="image")


def test_missing_cuda_core_has_a_remedy(
    array: DeviceArray, stream: Stream, fake: FakeCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    with pytest.raises(BackendError, match="pip install cuda-core"):
        device_view(Exporter(on_device(fake, array)), stream)


def test_other_types_are_refused(fake: FakeCudart, stream: Stream) -> None:
    with pytest.raises(FrameError, match=r"depth must be a NumPy array or a GPU array, not builtins\.list"):
        device_view([1, 2], stream, name="depth")


def test_mask_is_refused(array: DeviceArray, stream: Stream) -> None:
    array.overrides["mask"] = array
    with pytest.raises(FrameError, match="mask"):
        device_view(array, stream)


def test_error_of_the_library_is_quoted(fake: FakeCudart, stream: Stream) -> None:
    class Tensor:
        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            raise RuntimeError("requires grad; use detach()")

    with pytest.raises(FrameError, match=r"image does not share its memory: .*detach"):
        device_view(Tensor(), stream, name="image")


def test_array_of_another_gpu_is_refused(fake: FakeCudart, array: DeviceArray, stream: Stream) -> None:
    (memory,) = (memory for memory in fake.memories if memory.address == array.pointer)
    memory.device = 1
    with pytest.raises(FrameError, match="image is on GPU 1 and the engine on GPU 0"):
        device_view(array, stream, name="image")


# The stand-in itself.


def test_stand_in_has_no_other_names_than_cuda_python(fake: FakeCudart) -> None:
    with pytest.raises(AttributeError):
        _ = fake.cudaStreamInvented


def test_stand_in_has_the_arguments_of_cuda_python(fake: FakeCudart) -> None:
    functions: list[Any] = [fake.cudaMalloc, real.cudaMalloc]
    for function in functions:
        with pytest.raises(TypeError, match="exactly 1 positional argument"):
            function(1, 2)


def test_stand_in_refuses_double_free_and_use_after_free(fake: FakeCudart) -> None:
    _, address = fake.cudaMalloc(16)
    fake.cudaFree(address)
    with pytest.raises(AssertionError, match="freed twice"):
        fake.cudaFree(address)
    with pytest.raises(AssertionError, match="used after it was freed"):
        fake.on_device(address, 16)
