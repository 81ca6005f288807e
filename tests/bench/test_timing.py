"""Who runs when, on what, and which runs count."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.bench.statistics import bootstrap_medians, interval
from depthkit.bench.timing import PAPER_RUNS, PAPER_WARM_UPS, Steady, Times, allocate, time_paper, time_steady
from depthkit.spec import Dim

if TYPE_CHECKING:
    from .conftest import Clock

FRAMES = np.zeros((5, 16, 32, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
BRIEF = Steady(warm_up_s=0.0, duration_s=0.0, min_runs=12, rest_s=0.0)
"""Turns of two runs: one that does not count and one that does."""


def test_paper_protocol_is_100_warm_ups_and_10_runs_that_count(recorded: type) -> None:
    session = recorded([])
    times = time_paper(session)
    assert (PAPER_WARM_UPS, PAPER_RUNS) == (100, 10)
    assert len(session.log) == 110
    assert len(times) == 10
    assert all(value > 0 for value in times)


def test_paper_protocol_shows_random_pixels_that_a_seed_repeats(recorded: type) -> None:
    shown = []
    for seed in (0, 0, 1):
        session = recorded([])
        time_paper(session, seed)
        image, _ = session._buffers()
        assert len(np.unique(image)) > 200
        shown.append(image.copy())
    assert np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


def test_sessions_take_turns_within_every_round(recorded: type) -> None:
    log: list[str] = []
    sessions = [recorded(log, name) for name in "abc"]
    samples = time_steady(sessions, [FRAMES] * 3, BRIEF)
    turns = [(name, len(list(runs))) for name, runs in groupby(log)]
    assert sum(count for _, count in turns) == len(log) == 3 * 2 * (1 + BRIEF.min_runs)
    rounds = [log[start : start + 6] for start in range(0, len(log), 6)]
    assert rounds[0] == list("aabbcc"), "the warm-up"
    assert all(sorted(one) == list("aabbcc") and one[::2] == one[1::2] for one in rounds)
    assert len({tuple(one) for one in rounds[1:]}) > 1, "the order is shuffled"
    assert [len(times) for times in samples] == [BRIEF.min_runs] * 3


def test_order_is_the_seeds(recorded: type) -> None:
    logs: list[list[str]] = []
    for seed in (0, 0, 1):
        log: list[str] = []
        time_steady([recorded(log, name) for name in "abcd"], [FRAMES] * 4, BRIEF, seed=seed)
        logs.append(log)
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_first_run_of_a_turn_does_not_count(recorded: type) -> None:
    """A session is slow whenever another ran before it; none of those runs may be among the samples."""
    log: list[str] = []

    def cold(session: str) -> np.float32:
        if len(log) < 2 or log[-2] != session:
            time.sleep(0.02)
        return np.float32(1)

    sessions = [recorded(log, name, answer=lambda _, name=name: cold(name)) for name in "ab"]
    samples = time_steady(sessions, [FRAMES] * 2, BRIEF)
    assert sum(log[i] != log[i - 1] for i in range(1, len(log))) >= BRIEF.min_runs
    assert all(np.median(times) < 20 for times in samples)


@given(runs=st.integers(1, 30))
def test_every_session_runs_often_enough_and_turns_add_up_to_its_runs(recorded: type, runs: int) -> None:
    samples = time_steady([recorded([]), recorded([])], [FRAMES] * 2, Steady(0.0, 0.0, runs, rest_s=0.0))
    assert [len(times) for times in samples] == [runs, runs]
    assert all(sum(times.turns) == len(times.turns) == runs for times in samples)


def _slow(_: np.ndarray) -> np.float32:
    time.sleep(0.002)
    return np.float32(1)


def test_every_session_runs_long_enough(recorded: type) -> None:
    sessions = [recorded([]), recorded([], answer=_slow)]
    samples = time_steady(sessions, [FRAMES] * 2, Steady(0.0, 0.05, 3, max_runs=10**6))
    assert all(sum(times) >= 50 for times in samples)
    assert all(len(times) >= 3 for times in samples)


def test_fast_session_stops_at_the_most_runs(recorded: type) -> None:
    samples = time_steady([recorded([])], [FRAMES], Steady(0.0, 1e6, 3, max_runs=7))
    assert len(samples[0]) == 7


def test_real_frames_are_shown_in_turn(recorded: type) -> None:
    session = recorded([], batch=2)
    time_steady([session], [FRAMES], BRIEF)
    shown = np.concatenate(session.seen)
    assert shown.tolist() == [n % 5 for n in range(len(shown))]
    assert len(shown) == 2 * len(session.log)


def test_progress_rises_to_one(recorded: type) -> None:
    told: list[float] = []
    time_steady([recorded([]), recorded([])], [FRAMES] * 2, BRIEF, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert all(0 < share <= 1 for share in told)


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (3, 3), (Dim("batch", 1, 4, 8), 4)])
def test_buffers_are_bound_at_the_batch_that_engines_are_tuned_for(
    recorded: type, batch: int | Dim, frames: int
) -> None:
    session = recorded([], batch=batch)
    image, depth = allocate(session)
    assert (image.shape, image.dtype.name) == ((frames, 16, 32, 3), "uint8")
    assert (depth.shape, depth.dtype.name) == ((frames, 16, 32), "float32")
    session.run()
    assert (depth == 2.5).all()


def test_sessions_and_frames_come_in_pairs(recorded: type) -> None:
    with pytest.raises(ValueError, match="argument"):
        time_steady([recorded([])], [FRAMES, FRAMES], BRIEF)


def test_it_goes_on_until_the_interval_is_narrow(recorded: type) -> None:
    """Runs of anything from 1 to 2 ms: what the median is takes many turns to tell, far from a minute."""
    draw = np.random.default_rng(0)

    def answer(_: np.ndarray) -> np.float32:
        time.sleep(draw.uniform(0.001, 0.002))
        return np.float32(1)

    long = Steady(0.0, 0.0, 2, rest_s=0.0, until=0.1, max_duration_s=60.0)
    (few,) = time_steady([recorded([], answer=answer)], [FRAMES], BRIEF)
    (many,) = time_steady([recorded([], answer=answer)], [FRAMES], long)
    found = interval(bootstrap_medians(many, many.turns), float(np.median(many)))
    assert found.width <= 0.1
    assert len(many) > 10
    assert len(few) == BRIEF.min_runs


def test_narrowing_is_given_up_in_time(recorded: type) -> None:
    never = Steady(0.0, 0.0, 2, rest_s=0.0, until=1e-9, max_duration_s=0.05)
    started = time.perf_counter()
    time_steady([recorded([], answer=_slow)], [FRAMES], never)
    assert 0.05 <= time.perf_counter() - started < 1


def test_a_session_that_fails_has_no_more_turns_and_the_others_go_on(recorded: type) -> None:
    runs: list[int] = []

    def fail(_: np.ndarray) -> np.float32:
        runs.append(1)
        if len(runs) > 6:
            raise RuntimeError("lost the device")
        return np.float32(1)

    sessions = [recorded([], answer=fail), recorded([])]
    into = [Times(), Times()]
    assert time_steady(sessions, [FRAMES] * 2, BRIEF, into=into)[0] is into[0]
    assert str(into[0].error) == "lost the device"
    assert len(into[0]) < BRIEF.min_runs == len(into[1])
    with pytest.raises(RuntimeError, match="lost the device"):
        time_steady(sessions, [FRAMES] * 2, BRIEF)


@pytest.mark.parametrize("runs_ms", [(0.5, 0.5), (75.0, 75.0), (0.5, 400.0), (20.0,)])
def test_until_takes_at_most_a_minute_a_row(recorded: type, runs_ms: tuple[float, ...], clock: Clock) -> None:
    """By the clock that a person sees: rests and runs that do not count are in it, and single runs a turn end too."""
    random = np.random.default_rng(0)

    def busy(milliseconds: float) -> np.float32:
        clock.sleep(milliseconds / 1000 * random.lognormal(0, 0.6))
        return np.float32(1)

    sessions = [recorded([], answer=lambda _, ms=ms: busy(ms)) for ms in runs_ms]
    steady = Steady(duration_s=1.0, until=1e-6, max_runs=500, max_duration_s=6.0)
    time_steady(sessions, [FRAMES] * len(sessions), steady)
    assert Steady.max_duration_s == 60
    assert 6 <= clock.now / len(sessions) <= 7
