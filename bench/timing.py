"""How long a run takes. Frames stand in the bound buffer before the clock starts; what is timed is `session.run()`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Final

import numpy as np

from ..session import Session
from ..spec import Dim, ModelSpec

__all__ = ["PAPER_RUNS", "PAPER_WARM_UPS", "Steady", "allocate", "time_paper", "time_steady"]

PAPER_WARM_UPS: Final = 100
PAPER_RUNS: Final = 10
_SLICE: Final = 0.3  # seconds that one session runs before the next has its turn
_REST: Final = (
    0.1  # seconds between turns: ONNX Runtime's threads keep the cores busy for 40 ms after a run (docs/log.md)
)


@dataclass(frozen=True)
class Steady:
    """The steady protocol, after trtexec's defaults: warm up, then run for a while, and at least a few times.

    `max_runs` ends it for what is so fast that more samples would say nothing new. Where several sessions take turns,
    each turn begins with a rest: the threads of ONNX Runtime keep the cores busy for 40 ms after a run (docs/log.md).
    """

    warm_up_s: float = 0.2
    duration_s: float = 3.0
    min_runs: int = 10
    max_runs: int = 10_000
    rest_s: float = 0.1


def time_paper(session: Session, seed: int = 0) -> list[float]:
    """The paper's protocol: random input, 100 warm-up runs, then 10 that count. Milliseconds of each of the 10."""
    image, _ = allocate(session)
    image[...] = np.random.default_rng(seed).integers(0, 256, image.shape, np.uint8)
    for _ in range(PAPER_WARM_UPS):
        session.run()
    return [_timed(session) for _ in range(PAPER_RUNS)]


def time_steady(
    sessions: Sequence[Session],
    frames: Sequence[np.ndarray],
    protocol: Steady | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[float]]:
    """Time several sessions in turns, so that a noisy machine hits all alike; milliseconds of every run of each.

    In rounds of shuffled order each session runs for about 0.3 s, after a rest that lets the threads of the one before
    it come to an end; the first run of a turn finds caches as that one left them, and does not count. It ends when
    every session has run long and often enough.

    Args:
        sessions: open sessions; they are bound here.
        frames: for each session, N x H x W x 3 uint8 real frames of its size, shown in turn.
        protocol: how long.
        seed: of the order.
        on_progress: told the share of the whole that is done, 0 to 1.
    """
    protocol = protocol or Steady()
    turns = [_Turn(session, pictures) for session, pictures in zip(sessions, frames, strict=True)]
    for turn in turns:
        turn.run_for(protocol.warm_up_s, protocol.max_runs)
        turn.samples.clear()
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    while unfinished := [turn for turn in turns if turn.share(protocol) < 1]:
        for turn in order.sample(unfinished, len(unfinished)):
            if len(turns) > 1:
                sleep(protocol.rest_s)
            turn.run_for(min(_SLICE, protocol.duration_s), protocol.max_runs)
        if on_progress is not None:
            on_progress(sum(turn.share(protocol) for turn in turns) / len(turns))
    return [turn.samples for turn in turns]


def allocate(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Buffers of the session's size (a dynamic batch at its optimum), bound to it."""
    image = np.zeros(_shape(session.spec, session.spec.input.shape), np.uint8)
    depth = np.zeros(_shape(session.spec, session.spec.output.shape), np.float32)
    session.bind(image=image, depth=depth)
    return image, depth


class _Turn:
    """One session with its frames and the runs that counted."""

    def __init__(self, session: Session, frames: np.ndarray) -> None:
        self._session = session
        self._frames = frames
        self._next = 0
        self._image, _ = allocate(session)
        self.samples: list[float] = []

    def run_for(self, seconds: float, max_runs: int) -> None:
        """Run once that does not count, then until the time is over or there are enough samples, at least once."""
        self._show()
        self._session.run()
        end = perf_counter() + seconds
        while True:
            self._show()
            self.samples.append(_timed(self._session))
            if perf_counter() >= end or len(self.samples) >= max_runs:
                return

    def share(self, protocol: Steady) -> float:
        if len(self.samples) >= protocol.max_runs:
            return 1.0
        time = sum(self.samples) / 1000 / protocol.duration_s if protocol.duration_s else 1.0
        return min(time, len(self.samples) / protocol.min_runs, 1.0)

    def _show(self) -> None:
        indices = range(self._next, self._next + len(self._image))
        np.take(self._frames, indices, axis=0, mode="wrap", out=self._image)
        self._next += len(self._image)


def _timed(session: Session) -> float:
    start = perf_counter()
    session.run()
    return (perf_counter() - start) * 1000


def _shape(spec: ModelSpec, shape: tuple[int | Dim, ...]) -> tuple[int, ...]:
    return spec.opt_batch, *(size for size in shape[1:] if isinstance(size, int))
