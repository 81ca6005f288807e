"""A stand-in for `cuda.bindings.runtime` on the host's memory, for machines without a GPU.

It is stricter than the real one. It has no name that the real module lacks, and takes as many arguments. Work on a
stream is done only when somebody waits for it, so a missing wait gives wrong answers; fresh memory is full of rubbish;
memory that is mapped has another address on the device. What is freed twice, used after it was freed, or used from
the wrong side is an AssertionError; what is never freed is told by `live`.
"""
# ruff: noqa: N802  the names are CUDA's

from __future__ import annotations

import ctypes
import gc
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depthkit.engines import gpu
from depthkit.runtime.cuda import cudart

from .device_array import DeviceArray

__all__ = ["OK", "DeviceArray", "FakeCudart", "installed", "real"]

real = pytest.importorskip("cuda.bindings.runtime")
OK = real.cudaError_t.cudaSuccess
Work = Callable[[], None]

MAPPED_OFFSET = 1 << 46
"""Between a mapped buffer's address on the host and on the device."""


@dataclass
class Memory:
    """One allocation; it is never given back to the operating system, so that its use after `free` can be told."""

    kind: str
    size: int
    device: int = 0
    freed: bool = False
    blocks: Any = None

    def __post_init__(self) -> None:
        self.blocks = np.full(self.size + 256, 0xCD, np.uint8)
        self.address: int = -(-self.blocks.ctypes.data // 256) * 256

    @property
    def device_address(self) -> int:
        return self.address + (MAPPED_OFFSET if self.kind == "mapped" else 0)


@dataclass
class Marker:
    """What an event stands for: a place in a stream."""

    stream: int
    passed: bool = False


@dataclass
class StreamState:
    queue: deque[Work] = field(default_factory=deque)
    recording: list[Work] | None = None
    broken: bool = False


class FakeCudart:
    """One device and its driver; see `installed`."""

    def __init__(self, *, integrated: bool = False, total: int = 1 << 30) -> None:
        self.integrated = integrated
        self.total = total
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.memories: list[Memory] = []
        self.streams: dict[int, StreamState] = {real.cudaStreamLegacy: StreamState()}
        self.events: dict[int, Marker | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self._handles = iter(range(0x1000, 1 << 30))
        self._failures: dict[str, tuple[int, Any]] = {}
        self._last = OK
        for name in [name for name in dir(type(self)) if name.startswith("cuda")]:
            setattr(self, name, self._guarded(name))

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        assert isinstance(found, type) or not callable(found), f"the stand-in lacks {name}"
        return found

    # What tests use.

    def fail(self, name: str, error: str, nth: int = 1) -> None:
        """Let the `nth` call of a function from now on fail."""
        self._failures[name] = nth, getattr(real.cudaError_t, error)

    def count(self, name: str) -> int:
        """How often a function was called."""
        return sum(each == name for each, _ in self.calls)

    def live(self) -> Counter[str]:
        """What exists and was not freed."""
        counts = Counter(memory.kind for memory in self.memories if not memory.freed)
        counts += Counter(
            stream=len(self.streams) - 1, event=len(self.events), graph=len(self.graphs), exec=len(self.executables)
        )
        return counts

    def forgive(self) -> None:
        """Forget what was not freed, where a test made that fail."""
        self.memories.clear()
        self.events.clear()
        self.executables.clear()

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work on a stream, as a kernel launch does."""
        state = self.streams[stream or real.cudaStreamLegacy]
        (state.queue if state.recording is None else state.recording).append(work)

    def on_device(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address, as the device sees them."""
        memory = self._find(address, size, on_device=True)
        assert memory is not None, "the device uses memory that it cannot reach"
        host = address - memory.device_address + memory.address
        return _bytes(host, size)

    def drain(self, stream: int) -> None:
        """Do everything that is on a stream."""
        queue = self.streams[stream or real.cudaStreamLegacy].queue
        while queue:
            queue.popleft()()

    # Memory.

    def cudaMalloc(self, size: int) -> Any:
        free = self.total - sum(memory.size for memory in self.memories if not memory.freed and memory.kind == "device")
        if size > free:
            return self._error(real.cudaError_t.cudaErrorMemoryAllocation)
        return self._unsafe() or (OK, self._allocate("device", size))

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        kind = {real.cudaHostAllocDefault: "pinned", real.cudaHostAllocMapped: "mapped"}[flags]
        return self._unsafe() or (OK, self._allocate(kind, size))

    def cudaFree(self, address: int) -> Any:
        return self._free(address, {"device"})

    def cudaFreeHost(self, address: int) -> Any:
        return self._free(address, {"pinned", "mapped"})

    def cudaMemGetInfo(self) -> Any:
        used = sum(memory.size for memory in self.memories if not memory.freed and memory.kind == "device")
        return OK, self.total - used, self.total

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> Any:
        memory = self._find(address, 1)
        assert memory is not None and memory.kind == "mapped" and flags == 0
        return OK, memory.device_address

    def cudaPointerGetAttributes(self, address: int) -> Any:
        memory = self._find(address, 1, on_device=True)
        if memory is None:
            return OK, SimpleNamespace(type=real.cudaMemoryType.cudaMemoryTypeUnregistered, device=-2)
        on_device = memory.kind == "device"
        kind = real.cudaMemoryType.cudaMemoryTypeDevice if on_device else real.cudaMemoryType.cudaMemoryTypeHost
        return OK, SimpleNamespace(type=kind, device=memory.device)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        assert kind == real.cudaMemcpyKind.cudaMemcpyDefault
        ends = [self._find(address, size) or self._find(address, size, on_device=True) for address in (target, source)]
        pageable = None in ends
        if pageable and self.streams[stream].recording is not None:
            return self._unsafe()
        if ends[1] is None:  # the driver takes its own copy before it returns
            copy = _bytes(source, size).copy()
            self.enqueue(stream, lambda: np.copyto(self._see(target, size), copy))
        else:
            self.enqueue(stream, lambda: np.copyto(self._see(target, size), self._see(source, size)))
        if ends[0] is None:  # and returns after the copy
            self.drain(stream)
        return (OK,)

    # Streams and events.

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = StreamState()
        return OK, real.cudaStream_t(handle)

    def cudaStreamDestroy(self, stream: int) -> Any:
        self.drain(stream)
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if failed := self._unsafe():
            return failed
        self.drain(stream)
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        marker = self.events[event]
        self.enqueue(stream, lambda: self._reach(marker))
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        assert flags in {real.cudaEventDefault, real.cudaEventDisableTiming}
        handle = next(self._handles)
        self.events[handle] = None
        return OK, real.cudaEvent_t(handle)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        marker = self.events[event] = Marker(stream or real.cudaStreamLegacy)
        self.enqueue(stream, lambda: setattr(marker, "passed", True))
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> Any:
        self._reach(self.events[event])
        return (OK,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        assert all(marker is not None and marker.passed for marker in (self.events[start], self.events[end]))
        return OK, 1.5

    def cudaEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (OK,)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        state = self.streams[stream]
        assert stream != real.cudaStreamLegacy and state.recording is None and not state.queue
        state.recording, state.broken = [], False
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        state = self.streams[stream]
        work, state.recording = state.recording, None
        if work is None:
            return self._error(real.cudaError_t.cudaErrorIllegalState)
        if state.broken:
            return self._error(real.cudaError_t.cudaErrorStreamCaptureInvalidated)
        handle = next(self._handles)
        self.graphs[handle] = work
        return OK, real.cudaGraph_t(handle)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        assert flags == 0
        handle = next(self._handles)
        self.executables[handle] = list(self.graphs[int(graph)])
        return OK, real.cudaGraphExec_t(handle)

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        for work in self.executables[executable]:
            self.enqueue(stream, work)
        return (OK,)

    def cudaGraphDestroy(self, graph: Any) -> Any:
        del self.graphs[int(graph)]
        return (OK,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        del self.executables[executable]
        return (OK,)

    # The device and its errors.

    def cudaGetDevice(self) -> Any:
        return OK, 0

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return OK, SimpleNamespace(name=b"Stand-in\0\0", major=8, minor=9, integrated=int(self.integrated))

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13000

    def cudaGetErrorName(self, error: Any) -> Any:
        return OK, error.name.encode()

    def cudaGetErrorString(self, error: Any) -> Any:
        return OK, f"the words for {error.value}".encode()

    def cudaGetLastError(self) -> Any:
        last, self._last = self._last, OK
        return (last,)

    # Within.

    def _guarded(self, name: str) -> Callable[..., Any]:
        """A method with the real function's manners."""
        signature = re.match(rf"{name}\((.*)\)", getattr(real, name).__doc__ or "")
        assert signature is not None, f"cuda-python does not tell the arguments of {name}"
        wanted = [each.partition(": ")[2] for each in signature[1].split(",") if each.strip()]
        method = getattr(type(self), name)

        def call(*arguments: Any) -> Any:
            if len(arguments) != len(wanted):
                raise TypeError(f"{name}() takes exactly {len(wanted)} positional arguments ({len(arguments)} given)")
            assert all(
                isinstance(each, getattr(real, kind)) for each, kind in zip(arguments, wanted, strict=True) if kind
            )
            self.calls.append((name, arguments))
            nth, error = self._failures.pop(name, (0, OK))
            if nth > 1:
                self._failures[name] = nth - 1, error
            if nth == 1:
                return self._error(error)
            return method(self, *arguments)

        call.__name__ = name
        return call

    def _reach(self, marker: Marker | None) -> None:
        """Do what is on a stream before a marker."""
        while marker is not None and not marker.passed:
            self.streams[marker.stream].queue.popleft()()

    def _error(self, error: Any) -> tuple[Any, None]:
        self._last = error
        return error, None

    def _unsafe(self) -> Any:
        """Refuse what must not be done while a stream is recorded."""
        recording = [state for state in self.streams.values() if state.recording is not None]
        for state in recording:
            state.broken = True
        return self._error(real.cudaError_t.cudaErrorStreamCaptureUnsupported) if recording else None

    def _allocate(self, kind: str, size: int) -> int:
        self.memories.append(Memory(kind, size))
        return int(self.memories[-1].address)

    def _free(self, address: int, kinds: set[str]) -> Any:
        if failed := self._unsafe():
            return failed
        for stream in list(self.streams):
            self.drain(stream)
        (memory,) = [memory for memory in self.memories if memory.address == address and memory.kind in kinds]
        assert not memory.freed, f"{memory.kind} memory was freed twice"
        memory.freed = True
        return (OK,)

    def _find(self, address: int, size: int, *, on_device: bool = False) -> Memory | None:
        for memory in self.memories:
            start = memory.device_address if on_device else memory.address
            if start <= address < start + memory.size:
                assert not memory.freed, f"{memory.kind} memory is used after it was freed"
                assert address + size <= start + memory.size, f"more than the {memory.kind} memory is used"
                return memory
        return None

    def _see(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address of either side, as a copy finds them."""
        if self._find(address, size, on_device=True) is not None:
            return self.on_device(address, size)
        self._find(address, size)
        return _bytes(address, size)


def _bytes(address: int, size: int) -> np.ndarray:
    return np.frombuffer(memoryview((ctypes.c_ubyte * size).from_address(address)), np.uint8)


@contextmanager
def installed(*, integrated: bool = False, total: int = 1 << 30) -> Iterator[FakeCudart]:
    """Let depthkit find this stand-in; at the end nothing of it may be left."""
    fake = FakeCudart(integrated=integrated, total=total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cuda.bindings.runtime", fake)
        _forget_the_machine()
        yield fake
        if fake.live():
            gc.collect()
        assert not fake.live(), f"left behind: {dict(fake.live())}"
    _forget_the_machine()


def _forget_the_machine() -> None:
    cudart.cache_clear()
    gpu._describe.cache_clear()
