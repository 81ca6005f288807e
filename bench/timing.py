"""How long a run takes. Frames stand in the bound buffer before the clock starts; what is timed is `session.run()`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Final

import numpy as np

from ..session import Session
from ..spec import Dim, ModelSpec
from .statistics import LEAST_TURNS, bootstrap_medians, interval

__all__ = ["PAPER_RUNS", "PAPER_WARM_UPS", "Steady", "Times", "allocate", "time_paper", "time_steady"]

PAPER_WARM_UPS: Final = 100
PAPER_RUNS: Final = 10
_SLICE: Final = 0.1  # seconds that one session runs before the next has its turn; short, to share the same noise


class Times(list[float]):
    """Milliseconds of every run, in order.

    Attributes:
        turns: how many of them each turn had; they add up to all.
        error: why there are no more; None: there are as many as were wanted.
    """

    def __init__(self, samples: Iterable[float] = (), turns: Iterable[int] = ()) -> None:
        super().__init__(samples)
        self.turns = list(turns)
        self.error: Exception | None = None


@dataclass(frozen=True)
class Steady:
    """The steady protocol, after trtexec's defaults: warm up, then run for a while, and at least a few times.

    Where several sessions take turns, each turn begins with a rest: the threads of ONNX Runtime keep the cores busy for
    40 ms after a run (docs/log.md).

    Attributes:
        warm_up_s, duration_s: seconds of each session.
        min_runs: of each session, also if they take longer.
        max_runs: more samples would say nothing new of what is so fast; a session with as many runs once a turn.
        rest_s: see above.
        until: go on until the 95 % interval of every median is as narrow as this share of it, see `Interval.width`.
        max_duration_s: seconds for each session after which `until` is given up: rests and runs that do not count are
            in them, and what one does not need the others may have.
    """

    warm_up_s: float = 0.2
    duration_s: float = 3.0
    min_runs: int = 10
    max_runs: int = 10_000
    rest_s: float = 0.1
    until: float | None = None
    max_duration_s: float = 60.0


def time_paper(session: Session, seed: int = 0) -> Times:
    """The paper's protocol: random input, 100 warm-up runs, then 10 that count. Milliseconds of each of the 10."""
    image, _ = allocate(session)
    image[...] = np.random.default_rng(seed).integers(0, 256, image.shape, np.uint8)
    for _ in range(PAPER_WARM_UPS):
        session.run()
    return Times((_timed(session) for _ in range(PAPER_RUNS)), [PAPER_RUNS])


def time_steady(
    sessions: Sequence[Session],
    frames: Sequence[np.ndarray],
    protocol: Steady | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
    into: Sequence[Times] | None = None,
) -> list[Times]:
    """Time several sessions in turns, so that a noisy machine hits all alike; milliseconds of every run of each.

    In rounds of shuffled order each session runs for about 0.1 s, after a rest that lets the threads of the one before
    it come to an end; the first run of a turn finds caches as that one left them, and does not count. All take part in
    every round; it ends when each has run long and often enough.

    Args:
        sessions: open sessions; they are bound here.
        frames: for each session, N x H x W x 3 uint8 real frames of its size, shown in turn.
        protocol: how long.
        seed: of the order.
        on_progress: told the share of the whole that is done, 0 to 1.
        into: where the samples go as they come; whoever gives these finds there what there is when this is interrupted,
            and what a session raised, which then has no more turns. Otherwise what a session raises is passed on.
    """
    protocol = protocol or Steady()
    times = [Times() for _ in sessions] if into is None else list(into)
    turns = []
    for session, pictures, samples in zip(sessions, frames, times, strict=True):
        with _kept(samples, passed_on=into is None):
            turn = _Turn(session, pictures, samples)
            turn.warm_up(protocol)
            turns.append(turn)
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    alone = len(turns) == 1
    start, most = perf_counter(), protocol.max_duration_s * len(turns)
    while turns := [turn for turn in turns if turn.samples.error is None]:
        for turn in order.sample(turns, len(turns)):
            if not alone:
                sleep(protocol.rest_s)
            with _kept(turn.samples, passed_on=into is None):
                turn.run_for(min(_SLICE, protocol.duration_s), protocol.max_runs)
        over = perf_counter() - start >= most
        share = sum(turn.share(protocol, over=over) for turn in turns) / len(turns)
        if on_progress is not None:
            on_progress(share)
        if share >= 1:
            break
    return times


def allocate(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Buffers of the session's size (a dynamic batch at its optimum), bound to it."""
    image = np.zeros(_shape(session.spec, session.spec.input.shape), np.uint8)
    depth = np.zeros(_shape(session.spec, session.spec.output.shape), np.float32)
    session.bind(image=image, depth=depth)
    return image, depth


@contextmanager
def _kept(samples: Times, *, passed_on: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if passed_on:
            raise
        samples.error = error


class _Turn:
    """One session with its frames and the runs that counted."""

    def __init__(self, session: Session, frames: np.ndarray, samples: Times) -> None:
        self._session = session
        self._frames = frames
        self._next = 0
        self._image, _ = allocate(session)
        self._checked: tuple[int, float] = (0, 0.0)
        self.samples = samples

    def warm_up(self, protocol: Steady) -> None:
        """Run for a while; nothing of it counts."""
        self.run_for(protocol.warm_up_s, protocol.max_runs)
        self.samples.clear()
        self.samples.turns.clear()

    def run_for(self, seconds: float, max_runs: int) -> None:
        """Run once that does not count, then until the time is over or there are enough samples, at least once."""
        self._show()
        self._session.run()
        end = perf_counter() + seconds
        self.samples.turns.append(0)
        while True:
            self._show()
            self.samples.append(_timed(self._session))
            self.samples.turns[-1] += 1
            if perf_counter() >= end or len(self.samples) >= max_runs:
                return

    def share(self, protocol: Steady, *, over: bool) -> float:
        """How much of what is wanted is done, at most 1; `over`: the time for `until` is."""
        seconds = sum(self.samples) / 1000
        runs = len(self.samples)
        done = 1.0 if runs >= protocol.max_runs or not protocol.duration_s else seconds / protocol.duration_s
        share = min(done, runs / protocol.min_runs, 1.0)
        if protocol.until is None or share < 1 or over:
            return share
        return min(self._narrow(protocol.until), 1.0)

    def _narrow(self, until: float) -> float:
        """How near the interval is to what is wanted; looked at when there are a tenth more turns, since it costs."""
        turns, share = self._checked
        if len(self.samples.turns) >= max(LEAST_TURNS, 1.1 * turns):
            found = interval(bootstrap_medians(self.samples, self.samples.turns), median(self.samples))
            share = (until / found.width) ** 2 if found.width else 1.0  # it narrows with the root of the turns
            self._checked = len(self.samples.turns), share
        return share

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
