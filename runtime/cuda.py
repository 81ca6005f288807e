"""CUDA through cuda-python: streams, events, buffers and graphs that own what they hold, and other libraries' arrays.

Everything lives in the device's primary context, which torch, CuPy, Numba and PyCUDA (with `pycuda.autoprimaryctx`)
share, so that their arrays are used where they are. An object belongs to the device that is current when it is made.
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
        call: the function, for instance "cudaMalloc".
        name: CUDA's own name of the error, for instance "cudaErrorMemoryAllocation".
    """

    def __init__(self, call: str, name: str, words: str) -> None:
        super().__init__(f"{call} failed with {name}: {words}")
        self.call = call
        self.name = name


class CudaGraphWarning(UserWarning):
    """A session that was to replay a CUDA graph runs without one, and is slower for it."""


@cache
def cudart() -> Any:
    """The module `cuda.bindings.runtime`. Raises BackendError where cuda-python is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError("cuda-python is not installed; run `pip install 'depthkit[gpu]'`") from error
    return runtime


def check(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of `cuda.bindings.runtime` and return its answer without the error code.

    Raises:
        CudaError: the code is not cudaSuccess.
    """
    runtime = cudart()
    try:
        code, *answer = function(*arguments)
    except RuntimeError as error:  # so cuda-python 12 says that there is no driver; 13 returns the code
        name = runtime.cudaError_t.cudaErrorInsufficientDriver.name
        raise CudaError(function.__name__, name, f"{error}; install NVIDIA's driver") from error
    if code != runtime.cudaError_t.cudaSuccess:
        # CUDA keeps the code until somebody asks: a library that launches a kernel next would take it for its own.
        runtime.cudaGetLastError()
        _, words = runtime.cudaGetErrorString(code)
        raise CudaError(function.__name__, code.name, words.decode())
    return answer[0] if len(answer) == 1 else tuple(answer)


class _Owner(ABC):
    """What all these objects do alike: own something of CUDA's, free it once, and refuse to be used afterwards."""

    _handle: int | None = None

    @property
    def handle(self) -> int:
        """What CUDA and other libraries know it by. Raises EngineError after `close`."""
        if self._handle is None:
            raise EngineError(f"this {type(self).__name__} is closed; make another")
        return self._handle

    def close(self) -> None:
        """Free it. Further calls are harmless. Raises CudaError."""
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
    """A queue of work on the device. It does not wait for the default stream, as ordinary streams do."""

    def __init__(self) -> None:
        runtime = cudart()
        self._handle = int(check(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes from one address to another; CUDA knows of each whether it is the host's or the device's.

        Host memory that is not page-locked makes this wait: for the stream before it is written, for the copy into the
        driver's own memory when it is read.
        """
        runtime = cudart()
        check(runtime.cudaMemcpyAsync, target, source, size, runtime.cudaMemcpyKind.cudaMemcpyDefault, self.handle)

    def synchronize(self) -> None:
        """Wait until the work on this stream is done. Raises CudaError where that work failed."""
        check(cudart().cudaStreamSynchronize, self.handle)

    def _free(self, handle: int) -> None:
        check(cudart().cudaStreamDestroy, handle)


class Event(_Owner):
    """A point in a stream's work. `timing` lets the time between two of them be asked for, and makes them slower."""

    def __init__(self, *, timing: bool = False) -> None:
        runtime = cudart()
        flags = runtime.cudaEventDefault if timing else runtime.cudaEventDisableTiming
        self._handle = int(check(runtime.cudaEventCreateWithFlags, flags))

    def record(self, stream: int) -> None:
        """Stand for all the work that a stream (its handle) has now."""
        check(cudart().cudaEventRecord, self.handle, stream)

    def wait(self, stream: int) -> None:
        """Make work that a stream (its handle) is given from now on wait for the event. The host does not wait."""
        check(cudart().cudaStreamWaitEvent, stream, self.handle, 0)

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        check(cudart().cudaEventSynchronize, self.handle)

    def elapsed_ms(self, end: Event) -> float:
        """Milliseconds from this event to `end`, for which it waits. Both need `timing`."""
        end.synchronize()
        return float(check(cudart().cudaEventElapsedTime, self.handle, end.handle))

    def _free(self, handle: int) -> None:
        check(cudart().cudaEventDestroy, handle)


class DeviceBuffer(_Owner):
    """`size` bytes of the device's memory."""

    def __init__(self, size: int) -> None:
        runtime = cudart()

        def explain() -> str:
            free, total = check(runtime.cudaMemGetInfo)
            return (
                f"{_mib(size)} were asked for, and {_mib(free)} of the GPU's {_mib(total)} are free; "
                "end other programs on this GPU, or export an engine of a smaller size or batch"
            )

        with _out_of_memory(explain):
            self._handle = int(check(runtime.cudaMalloc, size))

    @property
    def device_pointer(self) -> int:
        """Their address, a multiple of 256."""
        return self.handle

    def _free(self, handle: int) -> None:
        check(cudart().cudaFree, handle)


class PinnedBuffer(_Owner):
    """Page-locked host memory, which the device copies from and to by itself; `handle` is its address.

    After `close` it is freed as soon as the last NumPy array that shows it is gone: none ever shows freed memory.
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
        """The memory in the shape and dtype that it was made for. Raises EngineError after `close`."""
        _ = self.handle
        assert self._array is not None
        return self._array

    def _flags(self) -> int:
        return int(cudart().cudaHostAllocDefault)

    def _free(self, handle: int) -> None:
        self._array = None


class MappedBuffer(PinnedBuffer):
    """Page-locked host memory that the device also reads and writes in place: no copies.

    On an integrated GPU that is its own memory. To a discrete GPU every access crosses the bus.
    """

    @property
    def device_pointer(self) -> int:
        """The address by which the device knows it."""
        return int(check(cudart().cudaHostGetDevicePointer, self.handle, 0))

    def _flags(self) -> int:
        return int(cudart().cudaHostAllocMapped)


class Graph(_Owner):
    """Work of a stream that was recorded once, and is launched as a whole."""

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        """Call `work`, and record what it puts on `stream` instead of doing it.

        Raises:
            CudaError: something that cannot be recorded. What `work` raises is passed on. Either way the stream is
                as it was before.
        """
        runtime = cudart()
        # Thread-local: other threads, and the libraries in them, may meanwhile do what a recording does not allow,
        # such as allocating memory. In this thread that is refused, since it would silently not be recorded.
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
        """Put the whole work on `stream`."""
        check(cudart().cudaGraphLaunch, self.handle, stream.handle)

    def _free(self, handle: int) -> None:
        check(cudart().cudaGraphExecDestroy, handle)


@dataclass(frozen=True)
class DeviceView:
    """Another library's array on the current device.

    Attributes:
        pointer, shape, dtype, c_contiguous, writeable: as a NumPy array has them.
        stream: handle of the stream that its library works on, as far as the library says; else of the default stream.
        owner: what must live as long as the memory is used.
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
        """As `numpy.ndarray.flags`, so that `TensorSpec.check_buffer` takes both."""
        return self


def device_view(array: object, stream: Stream, *, name: str = "array") -> DeviceView:
    """Where an array of torch, CuPy, Numba, PyCUDA or another library lies: nothing is copied.

    The CUDA array interface is read here, in any version: torch's is 2, which cuda.core refuses. DLPack is left to
    cuda.core, which takes a quarter of a second to import, so it serves what has only that.

    Args:
        array: has `__cuda_array_interface__` or `__dlpack__`.
        stream: where the memory will be used. Arrays by DLPack are ordered before what it is given next; for the others
            wait for `DeviceView.stream`.
        name: of the array in messages.

    Raises:
        FrameError: not such an array, not on the current device, or its library refuses.
    """
    try:
        if hasattr(array, "__cuda_array_interface__"):
            view = _from_cuda_array_interface(array)
        elif hasattr(array, "__dlpack__"):
            view = _from_dlpack(array, stream)
        else:
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            raise FrameError(f"{name} must be a NumPy array or one on the GPU, not {kind}")
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FrameError(f"{name} does not let its memory be used: {error}") from error
    runtime = cudart()
    place, here = check(runtime.cudaPointerGetAttributes, view.pointer), check(runtime.cudaGetDevice)
    if place.type not in {runtime.cudaMemoryType.cudaMemoryTypeDevice, runtime.cudaMemoryType.cudaMemoryTypeManaged}:
        raise FrameError(f"{name} lies in the host's memory; bind it as a NumPy array")
    if place.device != here:
        raise FrameError(f"{name} lies on GPU {place.device} and the engine on GPU {here}; copy it there")
    return view


def _from_cuda_array_interface(array: Any) -> DeviceView:
    interface = array.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ValueError("it has a mask")
    (pointer, read_only), shape = interface["data"], tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    contiguous = _is_contiguous(shape, interface.get("strides"), dtype.itemsize)
    # None stands for "no need to wait"; but Numba says so of its default stream, and version 2 cannot name a stream.
    stream = interface.get("stream") or cudart().cudaStreamLegacy
    return DeviceView(pointer, shape, dtype, contiguous, not read_only, stream, array)


def _from_dlpack(array: object, stream: Stream) -> DeviceView:
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise BackendError("arrays by DLPack need cuda-core, which is not installed; pip install cuda-core") from error
    view = StridedMemoryView(array, stream_ptr=stream.handle)
    contiguous = _is_contiguous(view.shape, view.strides, 1)
    return DeviceView(
        view.ptr, view.shape, view.dtype, contiguous, not view.readonly, cudart().cudaStreamLegacy, owner=view
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> bool:
    """Whether strides (None: there are no gaps) are those of C order, whose last one is `step`."""
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
