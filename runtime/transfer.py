"""Transfer between the caller's memory and the addresses that an engine on the GPU uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
from typing_extensions import Self

from ..session import RunPhase
from ..spec import Dim, ModelSpec, TensorSpec
from . import run_options as options
from .cuda import DeviceBuffer, DeviceView, Event, MappedBuffer, PinnedBuffer, Stream

__all__ = ["Mode", "Route", "Transfer", "choose_transfer"]

Mode: TypeAlias = Literal["device", "pinned", "mapped"]


def choose_transfer(transfer: options.Transfer, *, integrated: bool) -> Mode:
    """Resolve "auto": mapped memory is an integrated GPU's own, but across the bus for a discrete one.

    >>> choose_transfer("auto", integrated=True), choose_transfer("device", integrated=True)
    ('mapped', 'device')
    """
    if transfer == "auto":
        return "mapped" if integrated else "pinned"
    return transfer


@dataclass(frozen=True)
class Route:
    """How one tensor gets from the caller to the engine, or back.

    Attributes:
        engine: the address that the engine uses.
        size: bytes.
        device: an address from or to which the device copies, in stream order.
        driver: an address in pageable memory from or to which the driver copies while the host waits.
        host: the caller's array and a page-locked one, between which the host copies.
    """

    engine: int
    size: int
    device: int | None = None
    driver: int | None = None
    host: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the host copies nothing."""
        return self.driver is None and self.host is None

    @property
    def is_copied(self) -> bool:
        """Whether the device or the driver copies anything."""
        return self.driver is not None or self.device is not None


class Transfer:
    """Copies one engine's frames to the device and its depth back, on its own stream.

    A run is `prepare`, `upload`, the engine on `stream`, `download`, and `finish` (or, if `is_direct`, `release`).
    `upload` and `download` enqueue the same work in every run as long as `routes` stays the same, so it can be recorded
    in a CUDA graph together with the engine's work.

    The transfer's own memory is allocated for the largest batch by the first `bind` that needs it, and does not move.

    Attributes:
        mode: see `RunOptions.transfer`.
        stream: the stream that the engine must use.
        routes: of the bound image and depth; empty before `bind`.
    """

    def __init__(self, spec: ModelSpec, mode: Mode, *, fixed: bool = False) -> None:
        """Create the stream. `fixed`: arrays on the device are copied too, since the engine needs fixed addresses."""
        self.mode = mode
        self._spec = spec
        self._fixed = fixed
        self._memories: dict[str, _Memory] = {}
        self._callers: frozenset[int] = frozenset()
        self.routes: tuple[Route, ...] = ()
        with ExitStack() as stack:
            self.stream = stack.enter_context(Stream())
            self._event = stack.enter_context(Event())
            self._resources = stack.pop_all()

    def bind(self, image: np.ndarray | DeviceView, depth: np.ndarray | DeviceView, stream: int | None = None) -> None:
        """Use these checked arrays from now on; `stream`: the caller's stream for arrays on the device.

        Raises:
            CudaError: there is no memory for the session's own buffers. The previous arrays then stay bound.
        """
        self.routes = self._route(self._spec.input, image), self._route(self._spec.output, depth)
        views = [array for array in (image, depth) if isinstance(array, DeviceView)]
        self._callers = frozenset(view.stream if stream is None else stream for view in views)

    @property
    def is_direct(self) -> bool:
        """Whether the host copies neither frames nor depth."""
        return all(route.is_direct for route in self.routes)

    def prepare(self) -> None:
        """Make the stream wait for the callers' streams, and do the host's part of the upload."""
        for caller in self._callers:
            self._event.record(caller)
            self._event.wait(self.stream.handle)
        image, _ = self.routes
        if image.host is not None:
            callers, locked = image.host
            np.copyto(locked, callers)
        if image.driver is not None:
            self.stream.copy(image.engine, image.driver, image.size)

    def upload(self) -> None:
        """Enqueue the device's part of the upload."""
        image, _ = self.routes
        if image.device is not None:
            self.stream.copy(image.engine, image.device, image.size)

    def download(self) -> None:
        """Enqueue the device's part of the download."""
        _, depth = self.routes
        if depth.device is not None:
            self.stream.copy(depth.device, depth.engine, depth.size)

    def finish(self, copied: Callable[[], None] = lambda: None) -> None:
        """Wait for the stream, and do the host's part of the download; `copied` is called after the last enqueued copy.

        Raises:
            CudaError: the work failed.
        """
        _, depth = self.routes
        if depth.driver is not None:
            self.stream.copy(depth.driver, depth.engine, depth.size)
        copied()
        self.stream.synchronize()
        if depth.host is not None:
            callers, locked = depth.host
            np.copyto(callers, locked)

    def time_phases(self, work: Callable[[], None]) -> dict[RunPhase, float]:
        """Do a whole run, where `work` enqueues the engine's part, and return milliseconds by CUDA events.

        `enqueue` is the host's time for `work`; it is meaningful only if `work` does not wait for the device. If the
        engine uses the caller's memory, nothing is copied and the phase is missing. Raises CudaError, and what `work`
        raises.
        """
        with ExitStack() as stack:
            begin, copied, ran, end = (stack.enter_context(Event(timing=True)) for _ in range(4))
            begin.record(self.stream.handle)
            self.prepare()
            self.upload()
            copied.record(self.stream.handle)
            start = perf_counter()
            work()
            enqueue = (perf_counter() - start) * 1000
            ran.record(self.stream.handle)
            self.download()
            self.finish(lambda: end.record(self.stream.handle))
            phases: dict[RunPhase, float] = {"device": copied.elapsed_ms(ran), "enqueue": enqueue}
            image, depth = self.routes
            if image.is_copied:
                phases["h2d"] = begin.elapsed_ms(copied)
            if depth.is_copied:
                phases["d2h"] = ran.elapsed_ms(end)
        return phases

    def release(self) -> None:
        """Instead of `finish`: make the callers' streams wait for this one. The host does not wait."""
        self._event.record(self.stream.handle)
        for caller in self._callers:
            self._event.wait(caller)

    def allocate(self) -> tuple[np.ndarray, np.ndarray]:
        """Page-locked arrays for image and depth of the largest batch; ordinary arrays in mode "device"."""
        image, depth = (self._memory(tensor).host for tensor in (self._spec.input, self._spec.output))
        if image is None or depth is None:
            return _empty(self._spec.input), _empty(self._spec.output)
        return image.array, depth.array

    def close(self) -> None:
        """Free stream and memory. Further calls do nothing."""
        self.routes = ()  # they hold page-locked arrays
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _route(self, tensor: TensorSpec, array: np.ndarray | DeviceView) -> Route:
        if isinstance(array, DeviceView):
            size = math.prod(array.shape) * array.dtype.itemsize
            if not self._fixed:
                return Route(array.pointer, size)
            return Route(self._memory(tensor).device.device_pointer, size, device=array.pointer)
        memory, size = self._memory(tensor), array.nbytes
        if memory.host is None:
            return Route(memory.device.device_pointer, size, driver=array.ctypes.data)
        locked, offset, host = memory.host.array, 0, None
        if np.may_share_memory(array, locked):
            offset = array.ctypes.data - memory.host.handle
        else:
            host = array, locked[: len(array)]
        if memory.device is memory.host:
            return Route(memory.device.device_pointer + offset, size, host=host)
        return Route(memory.device.device_pointer, size, device=memory.host.handle + offset, host=host)

    def _memory(self, tensor: TensorSpec) -> _Memory:
        if tensor.name not in self._memories:
            with ExitStack() as stack:
                self._memories[tensor.name] = _allocate(tensor, self.mode, stack)
                self._resources.enter_context(stack.pop_all())
        return self._memories[tensor.name]


@dataclass(frozen=True)
class _Memory:
    """A session's own memory for one tensor; mapped memory is both host and device."""

    host: PinnedBuffer | None
    device: DeviceBuffer | MappedBuffer


def _allocate(tensor: TensorSpec, mode: Mode, stack: ExitStack) -> _Memory:
    shape = _largest(tensor)
    if mode == "mapped":
        mapped = stack.enter_context(MappedBuffer(shape, tensor.dtype))
        return _Memory(mapped, mapped)
    device = stack.enter_context(DeviceBuffer(math.prod(shape) * np.dtype(tensor.dtype).itemsize))
    return _Memory(stack.enter_context(PinnedBuffer(shape, tensor.dtype)) if mode == "pinned" else None, device)


def _empty(tensor: TensorSpec) -> np.ndarray:
    return np.empty(_largest(tensor), tensor.dtype)


def _largest(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size.max if isinstance(size, Dim) else size for size in tensor.shape)
