"""The interface `Session`, which predicts depth with any library, and the base class of its implementations.

It is here and not in `runtime/`, because PyTorch's session in `train/` implements it too, and `train` and `runtime` do
not import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import wraps
from threading import RLock, local
from time import perf_counter
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from .documents import STRICT
from .errors import EngineError, FrameError
from .spec import ModelSpec

__all__ = ["Call", "Device", "LayerTime", "Peer", "Prepare", "RunPhase", "Session", "SessionBase"]

Device: TypeAlias = Literal["cpu", "gpu"]
RunPhase: TypeAlias = Literal["h2d", "device", "d2h", "enqueue"]


@dataclass(frozen=True, config=STRICT)
class LayerTime:
    """A layer of an engine in the vendor's profiler: mean milliseconds per run, measured while profiling."""

    name: str
    kind: str
    ms: float


@runtime_checkable
class Session(Protocol):
    """A loaded model, for one thread at a time: while one thread uses it, calls from others raise EngineError.

    Concurrent threads each open their own session. Sessions share no mutable state.

    Attributes:
        spec: the model's tensors, preprocessing and depth range.
        provider: the provider that really computes, as the vendor names it, for instance "CPUExecutionProvider".
        precision: the precision it really computes in: "fp32", "fp16", or "fp16→fp32" for FP16 weights in FP32
            arithmetic.
        device: kind of device that computes; its memory and energy are measured.
    """

    spec: ModelSpec
    provider: str
    precision: str
    device: Device

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """Let every following `run()` read frames from `image` and write depth to `depth`, in place.

        The caller owns both; the session keeps a reference until the next `bind` or `close`. GPU sessions also take
        arrays on the GPU (CUDA array interface or DLPack) for either, and use them in place; see their `bind`.

        Raises:
            FrameError: shape or dtype is not the spec's, memory is not C-contiguous, or `depth` is read-only.
        """

    def run(self) -> None:
        """Compute the depth of the bound image.

        Raises:
            EngineError: nothing is bound, the session is closed or in use, or another thread has bound other memory
                since this thread did.
        """

    def run_phases(self) -> dict[RunPhase, float]:
        """Run once and return the milliseconds of each phase. Measuring makes the run slower.

        On CUDA, events time `h2d`, `device` and `d2h`, and the host's clock times `enqueue`, the launch of all three.
        On a CPU, `device` is the host's time for the whole run. Phases that do not exist or are unknown are missing.
        """

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Depth (float32, H x W or N x H x W) of uint8 RGB frames (H x W x 3 or N x H x W x 3).

        It is in metres if `spec.is_metric`. Returns a new array, owned by the caller. It replaces the binding: `bind`
        again before the next `run()`.

        Raises:
            FrameError: wrong size or dtype, or a number of frames that does not divide into the engine's batches.
        """

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Depth of a series of inputs, in order, for throughput: several may be in flight.

        Args:
            frames: arrays of the spec's input shape (N x H x W x 3 uint8, N the engine's batch). A few are read ahead.
                The caller may reuse an array only after its depth was yielded.

        Yields:
            N x H x W float32 (metres if `spec.is_metric`), each a new array. May replace the binding, as `__call__`
            does.

        Raises:
            FrameError: an array of the wrong shape or dtype, after the depth of all arrays before it was yielded.
        """

    def close(self) -> None:
        """Free the session's resources. Closing twice is harmless; running a closed session is an error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _exclusive(method: _Method) -> _Method:
    """Let one thread at a time call the method, reentrantly. Raises EngineError in other threads."""

    @wraps(method)
    def guarded(self: SessionBase, *args: Any, **kwargs: Any) -> Any:
        if not self._use.acquire(blocking=False):
            raise EngineError(_IN_USE)
        try:
            return method(self, *args, **kwargs)
        finally:
            self._use.release()

    return cast("_Method", guarded)


def _exclusive_steps(method: _Method) -> _Method:
    """The same for a generator: it holds the session only while it computes, not between yields."""

    @wraps(method)
    def guarded(self: SessionBase, *args: Any, **kwargs: Any) -> Iterator[Any]:
        steps = method(self, *args, **kwargs)

        @_exclusive
        def step(_: SessionBase) -> Any:
            return next(steps, None)

        with closing(steps):
            while (answer := step(self)) is not None:
                yield answer

    return cast("_Method", guarded)


_EXCLUSIVE: Final = {
    **dict.fromkeys(("bind", "run", "run_phases", "__call__", "enqueue", "synchronize", "close"), _exclusive),
    "stream": _exclusive_steps,
}
"""Guards of the methods that use a vendor's session, in which a second thread causes errors or wrong depth."""

_IN_USE: Final = "another thread uses this session now; open one session for each thread, or wait for that thread"


class SessionBase:
    """Base of all sessions: calls on whole arrays, one thread at a time, and closing.

    A backend implements `run`, extends `bind`, and extends `close` if it has resources to free.
    """

    spec: ModelSpec
    provider: str
    precision: str
    device: Device = "cpu"
    _use: RLock
    _thread: local
    _bound: tuple[np.ndarray, np.ndarray] | None = None
    _closed: bool = False
    _bindings: int = 0

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the session's lock and thread-local state, even if a backend does not call `super().__init__`."""
        session = super().__new__(cls)
        session._use = RLock()
        session._thread = local()
        return session

    def __init_subclass__(cls) -> None:
        """Guard the methods that a backend defines, so that no backend can forget to."""
        for name, guard in _EXCLUSIVE.items():
            if name in vars(cls):
                setattr(cls, name, guard(vars(cls)[name]))

    @_exclusive
    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`. Backends call this to check the arrays before they use them."""
        self._require_open()
        self.spec.input.check_buffer(image, written=False)
        self.spec.output.check_buffer(depth, written=True)
        if image.shape[0] != depth.shape[0]:
            raise FrameError(f"image has {image.shape[0]} frames, but depth has {depth.shape[0]}; bind the same number")
        self._bound = image, depth
        self._bindings += 1
        self._thread.binding = self._bindings

    def run(self) -> None:
        """See `Session.run`."""
        raise NotImplementedError

    @_exclusive
    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`; this is the version for the CPU."""
        start = perf_counter()
        self.run()
        return {"device": (perf_counter() - start) * 1000}

    @_exclusive
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See `Session.__call__`."""
        self._require_open()
        if not isinstance(frames, np.ndarray | np.generic):
            raise FrameError(f"frames must be a NumPy array, not {type(frames).__name__}; see numpy.asarray")
        batch = frames if frames.ndim == 4 else frames[None]
        depth = np.empty(batch.shape[:3], np.float32)
        start = 0
        for count in self._chunks(len(batch)):
            stop = start + count
            self.bind(image=np.ascontiguousarray(batch[start:stop]), depth=depth[start:stop])
            self.run()
            start = stop
        return depth if frames.ndim == 4 else depth[0]

    @_exclusive_steps
    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `Session.stream`. This default runs one input at a time."""
        for image in frames:
            depth = np.empty(image.shape[:3], np.float32)
            self.bind(image=image, depth=depth)
            self.run()
            yield depth

    @_exclusive
    def close(self) -> None:
        """See `Session.close`."""
        self._bound = None
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunks(self, frames: int) -> list[int]:
        """The number of frames of each run. Raises FrameError if the engine's batch does not allow it."""
        batch = self.spec.batch
        if isinstance(batch, int):
            if frames == 0 or frames % batch:
                raise FrameError(f"{frames} frames are not a multiple of the engine's batch of {batch}; pad them")
            return [batch] * (frames // batch)
        runs = -(-frames // batch.max)
        if frames < max(runs, 1) * batch.min:
            raise FrameError(f"{frames} frames cannot be divided into batches of {batch.min} to {batch.max}; pad them")
        least, longer = divmod(frames, runs)
        return [least + 1] * longer + [least] * (runs - longer)

    def _buffers(self) -> tuple[np.ndarray, np.ndarray]:
        self._require_open()
        if self._bound is None:
            raise EngineError("nothing is bound; call bind(image=…, depth=…) before run()")
        if getattr(self._thread, "binding", self._bindings) != self._bindings:
            raise EngineError("another thread has bound other memory since this one did; bind again before run()")
        return self._bound

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("this session is closed; load the engine again")


Call: TypeAlias = Callable[[], object]
Prepare: TypeAlias = Callable[[np.ndarray, np.ndarray], Call]
"""Takes arrays for image and depth, and returns a call that reads the first and writes the second."""


class Peer(SessionBase):
    """The raw vendor API as a session, to benchmark depthkit against: `run` is the vendor's call and nothing else.

    Args:
        spec: the model's spec.
        provider: see `Session`.
        precision: see `Session`.
        prepare: see `Prepare`.
    """

    def __init__(self, spec: ModelSpec, provider: str, precision: str, prepare: Prepare) -> None:
        self.spec = spec
        self.provider = provider
        self.precision = precision
        self.prepare = prepare

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`."""
        super().bind(image=image, depth=depth)
        self.run = self.prepare(image, depth)  # type: ignore[method-assign, assignment]

    def run(self) -> None:
        """See `Session.run`; `bind` replaces this method by the vendor's call."""
        self._buffers()
        raise AssertionError("bind replaces run")

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self.__dict__.pop("run", None)
