"""The choice: what a budget lets through, what could still win, what is worth a place in the picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.bench.environment import environment
from depthkit.errors import GateError
from depthkit.pipeline.budget import (
    HOPE,
    Budget,
    Candidate,
    Quality,
    Trial,
    Tuning,
    choose,
    could_win,
    pareto,
    require_choice,
)


def _trial(
    name: str, ms: float, abs_rel: float | None = 0.2, ssim: float = 0.99, batch: int = 1, mib: int | None = None
) -> Trial:
    quality = Quality(ssim, abs_rel, abs_rel and 0.6, abs_rel and abs_rel - 0.2)
    memory = None if mib is None else mib * 2**20
    return Trial(Candidate(name, "fp32", (32, 48), batch), "measured", (ms,) * 20, quality, memory)


FAST, TRUE, BLURRED = _trial("fast", 5, 0.203), _trial("true", 9, 0.2), _trial("blurred", 2, 0.3)


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(), "blurred"),
        (Budget(max_abs_rel_loss=0.005), "fast"),
        (Budget(max_abs_rel_loss=0.001), "true"),
        (Budget(max_latency_ms=33), "true"),
        (Budget(max_latency_ms=6), "fast"),
        (Budget(min_fps=150), "fast"),
        (Budget(min_fps=111), "true"),
        (Budget(max_latency_ms=1), None),
        (Budget(max_latency_ms=6, max_abs_rel_loss=0.001), None),
        (Budget(min_ssim=0.995), None),
    ],
)
def test_truest_that_is_fast_enough_or_fastest_that_is_true_enough(budget: Budget, chosen: str | None) -> None:
    found = choose([TRUE, BLURRED, FAST], budget)
    assert (found and found.candidate.backend) == chosen


def test_a_trial_that_failed_its_gate_or_was_not_measured_is_not_chosen() -> None:
    broken = replace(BLURRED, faults=("SSIM 0.9 < 0.995",))
    unsure = replace(BLURRED, state="short")
    assert choose([broken, unsure, FAST], Budget()) == FAST


def test_frames_of_a_batch_count_singly() -> None:
    single, batched = _trial("single", 5), _trial("batched", 16, batch=4)
    assert choose([single, batched], Budget()) == batched
    assert choose([single, batched], Budget(max_latency_ms=10)) == single
    assert batched.fps == pytest.approx(250)


def test_memory_that_was_not_measured_is_not_held_against_a_trial() -> None:
    large, unknown = _trial("large", 2, mib=300), _trial("unknown", 5)
    assert choose([large, unknown], Budget(max_memory_bytes=200 * 2**20)) == unknown


def test_nothing_within_the_budget_names_the_nearest_and_by_how_much_they_miss() -> None:
    budget = Budget(max_latency_ms=4, max_abs_rel_loss=0.001)
    tuning = Tuning("key", budget, environment(""), (TRUE, BLURRED, FAST))
    with pytest.raises(GateError) as caught:
        require_choice(tuning)
    told = str(caught.value)
    assert "blurred fp32 32x48 (AbsRel 0.1000 worse, 0.0990 too much)" in told
    assert "true fp32 32x48 (p95 9.00 ms, 5.00 ms too slow)" in told
    assert told.index("blurred") < told.index("true") < told.index("fast"), "fewer misses first"


latencies = st.floats(0.5, 100)
trials = st.lists(st.tuples(latencies, st.integers(2000, 3000), st.floats(1 / HOPE**0.5, HOPE**0.5)), min_size=1)
budgets = st.builds(
    Budget,
    max_latency_ms=st.none() | latencies,
    min_fps=st.none() | latencies,
    max_abs_rel_loss=st.none() | st.floats(0, 0.1),
)


@given(trials, budgets)
def test_no_short_measurement_loses_the_best(drawn: list[tuple[float, int, float]], budget: Budget) -> None:
    """As long as it is off by no more than it may be, what an exhaustive search chooses gets its long measurement."""
    true = [_trial(f"n{index}", ms, error / 10000) for index, (ms, error, _) in enumerate(drawn)]
    short = [
        replace(trial, state="short", wall_ms=tuple(ms * off for ms in trial.wall_ms))
        for trial, (_, _, off) in zip(true, drawn, strict=True)
    ]
    best = choose(true, budget)
    finalists = [trial.candidate for trial in short if could_win(trial, short, budget)]
    if best is not None:
        again = choose([trial for trial in true if trial.candidate in finalists], budget)
        assert again is not None
        assert budget.rank(again) == budget.rank(best)


@given(trials)
def test_front_is_what_no_other_beats(drawn: list[tuple[float, int, float]]) -> None:
    judged = [_trial(f"n{index}", ms, error / 10000) for index, (ms, error, _) in enumerate(drawn)]
    points = {(trial.p95_ms, trial.quality.error) for trial in judged if trial.quality}
    best = {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {(trial.p95_ms, trial.quality.error) for trial in pareto(judged) if trial.quality} == best
