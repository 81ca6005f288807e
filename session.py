"""Session: what answers depth for frames, whichever library computes it. The contract, and the part that all share.

It stands on the ground floor, not in `runtime/`, because torch's own session (in `train/`) keeps the same contract and
the two halves of the house do not import each other.
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
    """A layer of an engine as its vendor's profiler tells it: mean milliseconds of a run, while it was profiled."""

    name: str
    kind: str
    ms: float


@runtime_checkable
class Session(Protocol):
    """A loaded model, for one thread at a time: while it is in use, it refuses every other thread by EngineError.

    Threads that work at the same time open a session each. Sessions share nothing that they change.

    Attributes:
        spec: the model's tensors, preprocessing and depth range.
        provider: what really computes, in the vendor's own words, for instance "CPUExecutionProvider".
        precision: what it really computes in: "fp32", "fp16", or "fp16→fp32" for FP16 weights in FP32 arithmetic.
        device: what kind of device computes, whose memory and energy count.
    """

    spec: ModelSpec
    provider: str
    precision: str
    device: Device

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """Read frames from `image` and write depth to `depth`, in place, at every `run()` from now on.

        Both stay the caller's; the session keeps a reference until the next `bind` or `close`. GPU sessions also take
        arrays on the GPU (CUDA array interface or DLPack) for either, and use them in place; see their `bind`.

        Raises:
            FrameError: shape or dtype is not the spec's, memory is not C-contiguous, or `depth` is read-only.
        """

    def run(self) -> None:
        """Compute what is bound.

        Raises:
            EngineError: nothing is bound, the session is closed or in use, or another thread bound other memory since
                this thread did.
        """

    def run_phases(self) -> dict[RunPhase, float]:
        """`run`, and the milliseconds of its phases, which measuring makes longer.

        On CUDA by events: `h2d`, `device`, `d2h`, and by the host's clock `enqueue`, what it takes to start all of it.
        On a CPU `device`, the host's time for the whole run. What there is not, or cannot be told, is missing.
        """

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Depth in metres (float32, H x W or N x H x W) of uint8 RGB frames (H x W x 3 or N x H x W x 3).

        The answer is a new array, the caller's own. Binds anew: `bind` again before the next `run()`.

        Raises:
            FrameError: frames of another size or dtype, or a number of frames that the engine's batch does not divide.
        """

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Depth of a series of inputs, in order, for throughput: several may be under way at a time.

        Args:
            frames: arrays of the spec's input shape (N x H x W x 3 uint8, N the engine's batch). A few more than were
                answered are drawn. An array may be reused by its owner only after its answer came.

        Yields:
            N x H x W float32 metres, each a new array. May bind anew, as `__call__` does.

        Raises:
            FrameError: an array that the engine does not take, after the answers of those before it.
        """

    def close(self) -> None:
        """Free what the session holds. Further calls are harmless; running is then an error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _exclusive(method: _Method) -> _Method:
    """The method, for one thread at a time; the thread that is in it may call others. Raises EngineError."""

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
    """The same for a generator: in use while it computes, and not while its caller holds an answer."""

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
"""The methods that use a vendor's session, which two threads would spoil: some vendors raise, some answer wrongly."""

_IN_USE: Final = "another thread uses this session now; open one session for each thread, or wait for that thread"


class SessionBase:
    """What every session does alike: calls on whole arrays, one thread at a time, and the end of its life.

    A backend adds `bind` and `run`, and `close` if there is something to free.
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
        """Give the session its lock and memory of threads, whether or not a backend calls `__init__` here."""
        session = super().__new__(cls)
        session._use = RLock()
        session._thread = local()
        return session

    def __init_subclass__(cls) -> None:
        """Guard what a backend defines, so that no backend can forget to."""
        for name, guard in _EXCLUSIVE.items():
            if name in vars(cls):
                setattr(cls, name, guard(vars(cls)[name]))

    @_exclusive
    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`. A backend checks through this before it takes the memory."""
        self._require_open()
        self.spec.input.check_buffer(image, written=False)
        self.spec.output.check_buffer(depth, written=True)
        if image.shape[0] != depth.shape[0]:
            raise FrameError(f"image holds {image.shape[0]} frames and depth {depth.shape[0]}; bind as many of each")
        self._bound = image, depth
        self._bindings += 1
        self._thread.binding = self._bindings

    def run(self) -> None:
        """See `Session.run`."""
        raise NotImplementedError

    @_exclusive
    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`: of what runs on the CPU."""
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
        """See `Session.stream`. One at a time, where a backend knows nothing better."""
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
        """How many frames each run takes. Raises FrameError where the engine's batch does not allow it."""
        batch = self.spec.batch
        if isinstance(batch, int):
            if frames == 0 or frames % batch:
                raise FrameError(f"{frames} frames are no multiple of the engine's batch of {batch}; pad them")
            return [batch] * (frames // batch)
        runs = -(-frames // batch.max)
        if frames < max(runs, 1) * batch.min:
            raise FrameError(f"{frames} frames do not divide into batches of {batch.min} to {batch.max}; pad them")
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
"""Takes the memory of image and depth, and gives the call that reads the one and writes the other."""


class Peer(SessionBase):
    """A vendor's own call where a session is expected, to be benched beside ours: `run` is that call and nothing else.

    Args:
        spec: the model's.
        provider: what computes, in the vendor's own words.
        precision: what it computes in.
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
        """See `Session.run`; `bind` puts the vendor's own call in its place."""
        self._buffers()
        raise AssertionError("what is bound has its call")

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self.__dict__.pop("run", None)
