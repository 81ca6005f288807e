"""Latency of a run: the time of `session.run()`, with the frames already in the bound buffer."""

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
_SLICE: Final = 0.1  # seconds of a turn; short, so that all sessions see the same noise


class Times(list[float]):
    """Milliseconds of every run, in order.

    Attributes:
        turns: number of runs of each turn.
        error: the session's error, after which it has no more turns; None: no error.
    """

    def __init__(self, samples: Iterable[float] = (), turns: Iterable[int] = ()) -> None:
        super().__init__(samples)
        self.turns = list(turns)
        self.error: Exception | None = None


@dataclass(frozen=True)
class Steady:
    """The steady protocol, after trtexec's defaults: warm up, then run for a duration and a minimum number of runs.

    If several sessions take turns, each turn begins with a rest, because ONNX Runtime's threads keep the cores busy for
    40 ms after a run (docs/log.md).

    Attributes:
        warm_up_s, duration_s: seconds per session.
        min_runs: per session, even if they take longer.
        max_runs: per session; from then on it runs only once per turn, since more samples add nothing.
        rest_s: seconds of rest before a turn.
        until: go on until the 95 % interval of every median is as narrow as this share, see `Interval.width`.
        max_duration_s: seconds per session after which `until` is given up. It includes rests and warm-up runs, and the
            sessions share the sum.
    """

    warm_up_s: float = 0.2
    duration_s: float = 3.0
    min_runs: int = 10
    max_runs: int = 10_000
    rest_s: float = 0.1
    until: float | None = None
    max_duration_s: float = 60.0


def time_paper(session: Session, seed: int = 0) -> Times:
    """Time a session by the paper's protocol: random input, 100 warm-up runs, then 10 measured runs (milliseconds)."""
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
    """Time several sessions in turns, so that noise affects all alike; return milliseconds of every run of each.

    In each round, all sessions run for about 0.1 s in shuffled order. A rest before each turn lets the previous
    session's threads go idle; the first run of a turn meets cold caches and does not count. Rounds go on until every
    session has run long and often enough.

    Args:
        sessions: open sessions; they are bound here.
        frames: for each session, N x H x W x 3 uint8 real frames of its size, used in turn.
        protocol: durations and numbers of runs.
        seed: of the order.
        on_progress: called with the share that is done, 0 to 1.
        into: receives the samples as they are taken, so that an interruption does not lose them, and each session's
            error, after which it has no more turns. None: errors are raised.
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
    """Allocate buffers of the session's size (a dynamic batch at its optimum), and bind them."""
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
    """One session with its frames and samples."""

    def __init__(self, session: Session, frames: np.ndarray, samples: Times) -> None:
        self._session = session
        self._frames = frames
        self._next = 0
        self._image, _ = allocate(session)
        self._checked: tuple[int, float] = (0, 0.0)
        self.samples = samples

    def warm_up(self, protocol: Steady) -> None:
        """Run for a while without keeping samples."""
        self.run_for(protocol.warm_up_s, protocol.max_runs)
        self.samples.clear()
        self.samples.turns.clear()

    def run_for(self, seconds: float, max_runs: int) -> None:
        """Run once without a sample, then sample until the time is over or there are enough, at least once."""
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
        """Share of the work that is done, at most 1; `over`: the time for `until` is over."""
        seconds = sum(self.samples) / 1000
        runs = len(self.samples)
        done = 1.0 if runs >= protocol.max_runs or not protocol.duration_s else seconds / protocol.duration_s
        share = min(done, runs / protocol.min_runs, 1.0)
        if protocol.until is None or share < 1 or over:
            return share
        return min(self._narrow(protocol.until), 1.0)

    def _narrow(self, until: float) -> float:
        """Progress towards an interval as narrow as `until`; recomputed after 10 % more turns, since it is slow."""
        turns, share = self._checked
        if len(self.samples.turns) >= max(LEAST_TURNS, 1.1 * turns):
            found = interval(bootstrap_medians(self.samples, self.samples.turns), median(self.samples))
            share = (until / found.width) ** 2 if found.width else 1.0  # narrows with the root of the turns
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
