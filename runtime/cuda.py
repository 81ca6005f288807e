"""CUDA through cuda-python: owning wrappers for streams, events, buffers and graphs; views of GPU arrays.

Everything uses the device's primary context, which torch, CuPy, Numba and PyCUDA (with `pycuda.autoprimaryctx`) share,
so their arrays can be used in place. An object belongs to the device that is current when it is created.
"""

from __future__ import annotations

import ctypes
import math
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from typing_extensions import Self

from ..errors import BackendError, EngineError, FrameError

__all__ = [
    "CudaError",
    "CudaGraphWarning",
    "DeviceBuffer",
    "DeviceView",
    "Event",
    "Graph",
    "MappedBuffer",
    "PinnedBuffer",
    "Stream",
    "check",
    "cudart",
    "device_view",
]


class CudaError(BackendError):
    """A CUDA call that failed.

    Attributes:
        call: the function, e.g. "cudaMalloc".
        name: CUDA's name for the error, e.g. "cudaErrorMemoryAllocation".
    """

    def __init__(self, call: str, name: str, words: str) -> None:
        super().__init__(f"{call} failed with {name}: {words}")
        self.call = call
        self.name = name


class CudaGraphWarning(UserWarning):
    """A session could not record its CUDA graph and runs without it, which is slower."""


@cache
def cudart() -> Any:
    """Return the module `cuda.bindings.runtime`. Raises BackendError if cuda-python is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError("cuda-python is not installed; run `pip install 'depthkit[gpu]'`") from error
    return runtime


def check(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of `cuda.bindings.runtime` and return its result without the error code.

    Raises:
        CudaError: the error code is not cudaSuccess.
    """
    runtime = cudart()
    try:
        code, *result = function(*arguments)
    except RuntimeError as error:  # cuda-python 12 raises this if there is no driver; 13 returns the code
        name = runtime.cudaError_t.cudaErrorInsufficientDriver.name
        raise CudaError(function.__name__, name, f"{error}; install NVIDIA's driver") from error
    if code != runtime.cudaError_t.cudaSuccess:
        # CUDA keeps the error until it is read: the next library to launch a kernel would take it for its own.
        runtime.cudaGetLastError()
        _, words = runtime.cudaGetErrorString(code)
        raise CudaError(function.__name__, code.name, words.decode())
    return result[0] if len(result) == 1 else tuple(result)


class _Owner(ABC):
    """Base class: owns a CUDA resource, frees it once, and cannot be used afterwards."""

    _handle: int | None = None

    @property
    def handle(self) -> int:
        """The handle that CUDA and other libraries use. Raises EngineError after `close`."""
        if self._handle is None:
            raise EngineError(f"this {type(self).__name__} is closed; create another")
        return self._handle

    def close(self) -> None:
        """Free the resource. Further calls do nothing. Raises CudaError."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._free(handle)

    @abstractmethod
    def _free(self, handle: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._handle is not None and not sys.is_finalizing():
            warnings.warn(f"a {type(self).__name__} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()


class Stream(_Owner):
    """A non-blocking stream: unlike ordinary streams, it does not synchronise with the default stream."""

    def __init__(self) -> None:
        runtime = cudart()
        self._handle = int(check(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes; CUDA infers from each address whether it is on the host or on the device.

        With pageable host memory the call blocks: a copy to the host waits for the stream, a copy from the host for the
        driver's staging copy.
        """
        runtime = cudart()
        check(runtime.cudaMemcpyAsync, target, source, size, runtime.cudaMemcpyKind.cudaMemcpyDefault, self.handle)

    def synchronize(self) -> None:
        """Wait until the work on this stream is done. Raises CudaError if it failed."""
        check(cudart().cudaStreamSynchronize, self.handle)

    def _free(self, handle: int) -> None:
        check(cudart().cudaStreamDestroy, handle)


class Event(_Owner):
    """A CUDA event. `timing` allows `elapsed_ms`, and makes the event slower."""

    def __init__(self, *, timing: bool = False) -> None:
        runtime = cudart()
        flags = runtime.cudaEventDefault if timing else runtime.cudaEventDisableTiming
        self._handle = int(check(runtime.cudaEventCreateWithFlags, flags))

    def record(self, stream: int) -> None:
        """Capture the work that is on a stream (given by its handle) now."""
        check(cudart().cudaEventRecord, self.handle, stream)

    def wait(self, stream: int) -> None:
        """Make later work on a stream (given by its handle) wait for the event. The host does not wait."""
        check(cudart().cudaStreamWaitEvent, stream, self.handle, 0)

    def synchronize(self) -> None:
        """Wait until the captured work is done."""
        check(cudart().cudaEventSynchronize, self.handle)

    def elapsed_ms(self, end: Event) -> float:
        """Wait for `end` and return the milliseconds from this event to it. Both need `timing`."""
        end.synchronize()
        return float(check(cudart().cudaEventElapsedTime, self.handle, end.handle))

    def _free(self, handle: int) -> None:
        check(cudart().cudaEventDestroy, handle)


class DeviceBuffer(_Owner):
    """`size` bytes of device memory."""

    def __init__(self, size: int) -> None:
        runtime = cudart()

        def explain() -> str:
            free, total = check(runtime.cudaMemGetInfo)
            return (
                f"{_mib(size)} requested, {_mib(free)} of the GPU's {_mib(total)} free; "
                "end other programs on this GPU, or export an engine of a smaller size or batch"
            )

        with _out_of_memory(explain):
            self._handle = int(check(runtime.cudaMalloc, size))

    @property
    def device_pointer(self) -> int:
        """The address, a multiple of 256."""
        return self.handle

    def _free(self, handle: int) -> None:
        check(cudart().cudaFree, handle)


class PinnedBuffer(_Owner):
    """Page-locked host memory, which the device copies by DMA; `handle` is its address.

    After `close` the memory is freed together with the last NumPy array that uses it, never earlier.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        runtime = cudart()
        size = math.prod(shape) * np.dtype(dtype).itemsize

        def explain() -> str:
            return f"{_mib(size)} of host memory could not be page-locked; free some, or load with transfer='device'"

        with _out_of_memory(explain):
            self._handle = int(check(runtime.cudaHostAlloc, size, self._flags()))
        memory = (ctypes.c_byte * size).from_address(self._handle)
        weakref.finalize(memory, check, runtime.cudaFreeHost, self._handle)
        self._array: np.ndarray | None = np.frombuffer(memoryview(memory), dtype).reshape(shape)

    @property
    def array(self) -> np.ndarray:
        """The memory as an array of the given shape and dtype. Raises EngineError after `close`."""
        _ = self.handle
        assert self._array is not None
        return self._array

    def _flags(self) -> int:
        return int(cudart().cudaHostAllocDefault)

    def _free(self, handle: int) -> None:
        self._array = None


class MappedBuffer(PinnedBuffer):
    """Page-locked host memory that the device also reads and writes in place: no copies.

    On an integrated GPU this is the GPU's own memory. On a discrete GPU every access crosses the bus.
    """

    @property
    def device_pointer(self) -> int:
        """The device's address of the memory."""
        return int(check(cudart().cudaHostGetDevicePointer, self.handle, 0))

    def _flags(self) -> int:
        return int(cudart().cudaHostAllocMapped)


class Graph(_Owner):
    """A CUDA graph: a stream's work, recorded once and launched as a whole."""

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        """Call `work` and record what it enqueues on `stream`, without executing it.

        Raises:
            CudaError: something cannot be recorded. Errors of `work` are passed on. Either way the stream is restored.
        """
        runtime = cudart()
        # Thread-local: other threads may meanwhile do what a recording forbids, such as allocating memory.
        # In this thread CUDA refuses it, since it would silently not be recorded.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(runtime.cudaStreamBeginCapture, stream.handle, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError):
                check(runtime.cudaGraphDestroy, check(runtime.cudaStreamEndCapture, stream.handle))
            raise
        graph = check(runtime.cudaStreamEndCapture, stream.handle)
        try:
            self._handle = int(check(runtime.cudaGraphInstantiate, graph, 0))
        finally:
            check(runtime.cudaGraphDestroy, graph)

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work on `stream`."""
        check(cudart().cudaGraphLaunch, self.handle, stream.handle)

    def _free(self, handle: int) -> None:
        check(cudart().cudaGraphExecDestroy, handle)


@dataclass(frozen=True)
class DeviceView:
    """Another library's array on the current device.

    Attributes:
        pointer, shape, dtype, c_contiguous, writeable: as in NumPy.
        stream: handle of the stream that the array's library names, else of the default stream.
        owner: object that keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    c_contiguous: bool
    writeable: bool
    stream: int
    owner: object = field(repr=False, compare=False)

    @property
    def flags(self) -> DeviceView:
        """Like `numpy.ndarray.flags`, so that `TensorSpec.check_buffer` accepts both."""
        return self


def device_view(array: object, stream: Stream, *, name: str = "array") -> DeviceView:
    """View a GPU array of torch, CuPy, Numba, PyCUDA or another library without copying it.

    The CUDA array interface is read here, in any version: torch's is 2, which cuda.core refuses. DLPack is left to
    cuda.core, whose import takes a quarter of a second, so it is used only for arrays without the interface.

    Args:
        array: has `__cuda_array_interface__` or `__dlpack__`.
        stream: where the memory will be used. DLPack orders the array's pending work before the stream's next work; for
            the other arrays, wait for `DeviceView.stream`.
        name: the array's name in messages.

    Raises:
        FrameError: not such an array, not on the current device, or its library refuses.
        BackendError: the array has only DLPack, and cuda-core is not installed.
    """
    try:
        if hasattr(array, "__cuda_array_interface__"):
            view = _from_cuda_array_interface(array)
        elif hasattr(array, "__dlpack__"):
            view = _from_dlpack(array, stream)
        else:
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            raise FrameError(f"{name} must be a NumPy array or a GPU array, not {kind}")
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FrameError(f"{name} does not share its memory: {error}") from error
    runtime = cudart()
    place, here = check(runtime.cudaPointerGetAttributes, view.pointer), check(runtime.cudaGetDevice)
    if place.type not in {runtime.cudaMemoryType.cudaMemoryTypeDevice, runtime.cudaMemoryType.cudaMemoryTypeManaged}:
        raise FrameError(f"{name} is in host memory; bind it as a NumPy array")
    if place.device != here:
        raise FrameError(f"{name} is on GPU {place.device} and the engine on GPU {here}; copy it there")
    return view


def _from_cuda_array_interface(array: Any) -> DeviceView:
    interface = array.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ValueError("it has a mask")
    (pointer, read_only), shape = interface["data"], tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    contiguous = _is_contiguous(shape, interface.get("strides"), dtype.itemsize)
    # None means "no need to wait"; but Numba uses it for its default stream, and version 2 has no stream.
    stream = interface.get("stream") or cudart().cudaStreamLegacy
    return DeviceView(pointer, shape, dtype, contiguous, not read_only, stream, array)


def _from_dlpack(array: object, stream: Stream) -> DeviceView:
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise BackendError("DLPack arrays need cuda-core, which is not installed; pip install cuda-core") from error
    view = StridedMemoryView(array, stream_ptr=stream.handle)
    contiguous = _is_contiguous(view.shape, view.strides, 1)
    return DeviceView(
        view.ptr, view.shape, view.dtype, contiguous, not view.readonly, cudart().cudaStreamLegacy, owner=view
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> bool:
    """Whether strides (None: no gaps) are in C order, the last one being `step`."""
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


@contextmanager
def _out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except CudaError as error:
        if error.name != "cudaErrorMemoryAllocation":
            raise
        raise CudaError(error.call, error.name, explain()) from error


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
