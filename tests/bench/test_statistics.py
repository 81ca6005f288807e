"""Intervals: they hold the truth as often as they say, whole turns are drawn, and what hits both rows cancels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.bench.statistics import (
    DRAWS,
    Interval,
    bootstrap_medians,
    bootstrap_ratios,
    coefficient_of_variation,
    interval,
    turn_medians,
)

TURNS, RUNS = 15, 12
TIMES = st.floats(0.01, 1000)


def _samples(seed: int, *, turn: float = 0.03, run: float = 0.03) -> np.ndarray:
    """TURNS x RUNS times whose median is 1: noise of every turn, and of every run."""
    random = np.random.default_rng(seed)
    samples: np.ndarray = np.exp(random.normal(0, turn, (TURNS, 1)) + random.normal(0, run, (TURNS, RUNS)))
    return samples


def _interval(samples: np.ndarray, turns: list[int] | None = None) -> Interval:
    values = samples.ravel().tolist()
    return interval(bootstrap_medians(values, turns or [RUNS] * TURNS), float(np.median(values)))


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    found = [_interval(_samples(seed)) for seed in range(60)]
    assert np.mean([each.low <= 1 <= each.high for each in found]) >= 0.88


def test_single_runs_for_turns_would_promise_too_much() -> None:
    """The noise of a turn is shared by its runs; who draws runs takes them for so many independent samples."""
    pairs = [(_interval(samples), _interval(samples, [1] * TURNS * RUNS)) for samples in map(_samples, range(20))]
    assert all(runs.width < turns.width for turns, runs in pairs)
    assert np.mean([runs.low <= 1 <= runs.high for _, runs in pairs]) < 0.8


def test_noise_that_hits_both_rows_cancels_in_their_ratio() -> None:
    """Even where a machine is twice as slow for some turns."""
    a = _samples(0, turn=0.3)
    b = 2 * a * _samples(1, turn=0.0, run=0.01)
    over, under = (turn_medians(each.ravel().tolist(), [RUNS] * TURNS) for each in (b, a))
    paired, middle = bootstrap_ratios(over, under)
    apart, _ = bootstrap_ratios(over, np.roll(under, 1))
    assert middle == pytest.approx(2, rel=0.01)
    assert np.std(paired) < np.std(apart) / 10


@given(rounds=st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=8), more=st.lists(TIMES, max_size=3))
def test_ratios_are_of_rounds_in_which_both_ran(rounds: list[tuple[float, float]], more: list[float]) -> None:
    over, under = (np.array(each) for each in zip(*rounds, strict=True))
    draws, middle = bootstrap_ratios(over, under)
    assert draws.shape == (DRAWS,)
    assert middle == pytest.approx(np.median(over / under))
    assert (over / under).min() <= draws.min() <= draws.max() <= (over / under).max()
    longer, same = bootstrap_ratios(np.append(over, more), under)
    assert same == middle
    assert np.array_equal(longer, draws)


def test_draws_follow_the_seed() -> None:
    samples = _samples(0).ravel().tolist()
    one, again, other = (bootstrap_medians(samples, [RUNS] * TURNS, seed=seed) for seed in (3, 3, 4))
    assert one.shape == (DRAWS,)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@given(turns=st.lists(st.lists(TIMES, min_size=1, max_size=4), min_size=1, max_size=6), factor=st.floats(0.1, 10))
@settings(deadline=None, max_examples=25)
def test_draws_are_medians_of_turns(turns: list[list[float]], factor: float) -> None:
    samples, lengths = [time for turn in turns for time in turn], [len(turn) for turn in turns]
    draws = bootstrap_medians(samples, lengths)
    assert min(samples) <= draws.min()
    assert draws.max() <= max(samples)
    assert bootstrap_medians([factor * each for each in samples], lengths) == pytest.approx(factor * draws)
    if len(turns) == 1:
        assert np.ptp(draws) == 0
    found = interval(draws, float(np.median(samples)))
    assert found.low <= found.middle <= found.high


@pytest.mark.parametrize(("samples", "turns"), [([1.0, 2.0], [1]), ([], []), ([1.0], [1, 1])])
def test_turns_that_are_not_the_samples_are_refused(samples: list[float], turns: list[int]) -> None:
    with pytest.raises(ValueError, match="turns"):
        bootstrap_medians(samples, turns)


def test_width_is_half_the_interval_as_a_share_of_the_figure() -> None:
    assert Interval(1, 1.5, 2).width == pytest.approx(1 / 3)


@given(samples=st.lists(TIMES, min_size=1, max_size=20), factor=st.floats(0.1, 10))
def test_coefficient_of_variation_has_no_unit(samples: list[float], factor: float) -> None:
    found = coefficient_of_variation(samples)
    assert coefficient_of_variation([factor * each for each in samples]) == pytest.approx(found, abs=1e-9)
    assert found == pytest.approx(np.std(samples) / np.mean(samples))
