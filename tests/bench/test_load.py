"""Load generators: what they count, and that latency in an open loop begins when a request is due."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.bench import load as loads
from depthkit.bench.load import BUSY, OK, Load, Outcome, closed_loop, in_turns, open_loop
from depthkit.errors import BackendError


class Fake:
    """A client whose requests take so long, and end so."""

    def __init__(self, seconds: float = 0.001, ask: Callable[[int], Outcome] = lambda _: Outcome(OK)) -> None:
        self.seconds, self._ask = seconds, ask
        self.asked, self.closed = 0, False
        self.threads: set[int] = set()

    def ask(self) -> Outcome:
        self.threads.add(threading.get_ident())
        self.asked += 1
        time.sleep(self.seconds)
        return self._ask(self.asked)

    def close(self) -> None:
        self.closed = True


def opener(made: list[Fake], **options: Any) -> Callable[[], Fake]:
    def open_client() -> Fake:
        made.append(Fake(**options))
        return made[-1]

    return open_client


def slept(seconds: Iterator[float]) -> Callable[[int], Outcome]:
    """Requests that take so long, one after the other."""

    def ask(_: int) -> Outcome:
        time.sleep(next(seconds))
        return Outcome(OK)

    return ask


def test_a_closed_loop_has_a_thread_for_each_client_and_closes_them() -> None:
    made: list[Fake] = []
    load = closed_loop(opener(made), 3, window_s=0.05)
    assert (load.kind, load.level, len(made)) == ("closed", 3, 3)
    assert all(client.closed and len(client.threads) == 1 for client in made)
    assert len(set.union(*(client.threads for client in made))) == 3
    assert 0 < len(load.answers) <= sum(client.asked for client in made)
    assert min(load.answers) >= 1
    assert load.rate == len(load.answers) / load.seconds


def test_a_closed_loop_ends_when_it_is_steady_or_after_the_last_window() -> None:
    steady = closed_loop(opener([], seconds=0.005), 1, window_s=0.2, most_windows=30)
    assert steady.steady
    assert steady.seconds < 4
    spent = itertools.count(0.0, 2e-4)
    restless = closed_loop(lambda: Fake(0.0, slept(spent)), 1, window_s=0.05, most_windows=4)
    assert not restless.steady
    assert restless.seconds == pytest.approx(0.2, abs=0.15)


def test_refusals_failures_and_wrong_answers_are_counted_apart() -> None:
    kinds = [Outcome(OK), Outcome(BUSY), Outcome(0), Outcome(500), Outcome(OK, right=False)]
    load = closed_loop(opener([], ask=lambda number: kinds[number % 5]), 2, window_s=0.05, most_windows=3)
    count = len(load.refusals)
    assert count > 3
    assert len(load.answers) == pytest.approx(2 * count, abs=4)
    assert set(load.others) == {0, 500}
    assert load.wrong == pytest.approx(count, abs=3)


def test_turns_give_every_client_the_same_time() -> None:
    made = [Fake(0.002), Fake(0.004)]
    first, second = in_turns(made, window_s=0.1, most_windows=4)
    assert first.level == second.level == 1
    assert first.seconds == pytest.approx(second.seconds, rel=0.3)
    assert first.percentile(50) < second.percentile(50)
    assert made[0].asked > len(first.answers)  # the first request of each turn does not count


@pytest.mark.parametrize("outcome", [Outcome(BUSY, text="the queue is full"), Outcome(0, text="Connection refused")])
def test_turns_of_a_server_that_never_answers_end(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    monkeypatch.setattr(loads, "_PATIENCE_S", 0.1)
    begin = time.perf_counter()
    with pytest.raises(BackendError, match=f"no request was answered in 0 s; .* It said: {outcome.text}$"):
        in_turns([Fake(), Fake(ask=lambda _: outcome)], window_s=0.05)
    assert time.perf_counter() - begin < 3


def test_turns_outlast_a_server_that_is_busy_for_a_while() -> None:
    (load,) = in_turns([Fake(ask=lambda number: Outcome(BUSY if number < 100 else OK))], window_s=0.02)
    assert load.refusals
    assert load.answers


def test_connections_that_fail_at_once_are_not_tried_without_pause() -> None:
    made: list[Fake] = []
    load = closed_loop(opener(made, seconds=0.0, ask=lambda _: Outcome(0)), 2, window_s=0.05, most_windows=2)
    assert not load.answers
    assert 0 < load.others[0] <= sum(client.asked for client in made) < 100


def test_an_open_loop_ends_although_the_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_PATIENCE_S", 0.0)
    made: list[Fake] = []
    load = open_loop(opener(made, seconds=0.3), 100, seconds=0.3, clients=1)
    assert load.seconds < 2
    assert len(load.answers) == made[0].asked < 5
    assert load.others[0] > 10  # were never sent


def test_latency_in_an_open_loop_begins_when_a_request_is_due() -> None:
    """A server that stalls once makes all that are due meanwhile late; a closed loop would see one late request."""
    stalls = slept(itertools.chain([0.0] * 5, [0.5], itertools.repeat(0.0)))
    load = open_loop(opener([], seconds=0.0, ask=stalls), 100, seconds=1.0, clients=1)
    assert sum(latency > 100 for latency in load.answers) > 20
    assert max(load.answers) == pytest.approx(500, abs=200)


def test_an_open_loop_sends_as_many_as_are_due_whatever_the_server_does() -> None:
    made: list[Fake] = []
    load = open_loop(opener(made, seconds=0.05, ask=lambda _: Outcome(BUSY)), 200, seconds=1.0, clients=40)
    assert len(load.refusals) == sum(client.asked for client in made) == pytest.approx(200, abs=60)
    assert all(client.closed for client in made)
    assert (load.kind, load.level) == ("open", 200)
    assert np.isnan(load.percentile(50))


@given(rate=st.floats(1, 1000), seed=st.integers(0, 9))
def test_due_times_are_a_poisson_process(rate: float, seed: int) -> None:
    from depthkit.bench.load import _times

    times = list(_times(rate, 20.0, seed))
    assert times == sorted(times)
    assert all(0 < at < 20 for at in times)
    assert abs(len(times) - 20 * rate) < 6 * (20 * rate) ** 0.5 + 1
    assert list(_times(rate, 20.0, seed)) == times


def test_an_error_of_a_client_is_raised_and_all_are_closed() -> None:
    made: list[Fake] = []

    def broken(number: int) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        closed_loop(opener(made, ask=broken), 2, window_s=0.01)
    assert all(client.closed for client in made)


def test_a_load_without_answers_has_no_percentile() -> None:
    assert np.isnan(Load("closed", 1).percentile(99))
    assert Load("closed", 1).rate == 0
