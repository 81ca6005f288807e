"""A server under load: closed loops of so many clients, and open loops of so many requests a second.

In a closed loop each client sends its next request when the last was answered, so a slow server is asked less often. In
an open loop requests are due at random times that do not depend on the server (a Poisson process), and latency counts
from when they were due: a server that stalls is not spared the requests that wait meanwhile ("coordinated omission").
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Final, Literal, Protocol

import numpy as np
from typing_extensions import Self

from ..errors import BackendError

__all__ = ["BUSY", "OK", "Client", "Load", "Outcome", "closed_loop", "in_turns", "open_loop"]

OK: Final = 200
BUSY: Final = 503
_FAILED: Final = 0
_STEADY: Final = (
    0.1  # throughput and median of each of the last windows are this near to their mean, as in perf_analyzer
)
_WINDOWS: Final = 3
_REST_S: Final = 0.1
_PATIENCE_S: Final = 10.0  # that a server may take to answer at all, and longer than an open loop should
_PAUSE_S: Final = 0.01  # after a request that failed: a connection that is refused at once would be tried without end
_CLIENTS: Final = 128  # of an open loop: more requests than this are never under way


class Client(Protocol):
    """Sends requests, one after the other."""

    def ask(self) -> Outcome:
        """Send one, and wait for the answer."""

    def close(self) -> None:
        """Leave."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        status: HTTP's; 0: the connection failed.
        right: whether the answer is what it has to be.
        text: of a failure or a refusal: what the server said.
    """

    status: int
    right: bool = True
    text: str = ""


@dataclass
class Load:
    """What clients saw.

    Attributes:
        kind: of loop.
        level: clients of a closed loop; requests a second of an open one.
        seconds: that it was measured.
        answers: milliseconds of each request that was answered, in the order of the answers.
        refusals: milliseconds of each that was refused with 503.
        others: how often each other status came; 0: the connection failed.
        wrong: answers that were not what they had to be.
        steady: whether it was measured until figures no longer changed.
    """

    kind: Literal["closed", "open"]
    level: float
    seconds: float = 0.0
    answers: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    others: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    steady: bool = True

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Milliseconds of an answer; NaN without answers."""
        return float(np.percentile(self.answers, percent)) if self.answers else float("nan")

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count a request that took so long."""
        if outcome.status == OK:
            self.answers.append(seconds * 1000)
            self.wrong += not outcome.right
        elif outcome.status == BUSY:
            self.refusals.append(seconds * 1000)
        else:
            self.others[outcome.status] += 1


def closed_loop(
    open_client: Callable[[], Client], clients: int, *, window_s: float = 1.0, most_windows: int = 10
) -> Load:
    """Let so many clients ask at a time, until three windows in a row agree.

    Args:
        open_client: opens one; each is used by a thread of its own.
        clients: how many.
        window_s: seconds of a window. The first one warms up and does not count.
        most_windows: after which it ends, steady or not.
    """
    windows: list[Load] = []
    with _Crowd(open_client, clients) as crowd:
        crowd.start(lambda client: _ask(client, perf_counter()))
        crowd.gather(window_s)
        while len(windows) < most_windows and not _agree(windows):
            begin, window = perf_counter(), Load("closed", clients)
            for outcome, seconds in crowd.gather(window_s):
                window.add(outcome, seconds)
            window.seconds = perf_counter() - begin
            windows.append(window)
    return _joined(windows)


def in_turns(clients: Sequence[Client], *, window_s: float = 1.0, most_windows: int = 10) -> list[Load]:
    """Let clients ask alone, one after the other and again, so that noise affects all alike, until all are steady.

    Before each turn is a rest, and its first request does not count, as in `timing.time_steady`.

    Raises:
        BackendError: no request of a client was answered for `_PATIENCE_S` seconds.
    """
    windows: list[list[Load]] = [[] for _ in clients]
    while len(windows[0]) < most_windows and not all(_agree(each) for each in windows):
        for client, found in zip(clients, windows, strict=True):
            sleep(min(_REST_S, window_s))
            client.ask()
            begin, window = perf_counter(), Load("closed", 1)
            while perf_counter() - begin < window_s or not window.answers:
                outcome, seconds = _ask(client, perf_counter())
                window.add(outcome, seconds)
                if not window.answers and perf_counter() - begin > window_s + _PATIENCE_S:
                    raise BackendError(
                        f"no request was answered in {perf_counter() - begin:.0f} s; check that the server runs, and "
                        f"that it has no other clients. It said: {outcome.text or f'HTTP status {outcome.status}'}"
                    )
            window.seconds = perf_counter() - begin
            found.append(window)
    return [_joined(each) for each in windows]


def open_loop(
    open_client: Callable[[], Client], rate: float, *, seconds: float, clients: int = _CLIENTS, seed: int = 0
) -> Load:
    """Send requests at random times, `rate` a second on average, whatever the server does.

    Args:
        open_client: opens one; each is used by a thread of its own.
        rate: requests a second.
        seconds: how long. Requests that are due then are still sent, for as long again and `_PATIENCE_S` more; what
            is left then counts as failed.
        clients: how many may wait at a time. If all do, the next request is late, which its latency shows.
        seed: of the times.
    """
    load = Load("open", rate, seconds)
    due = _times(rate, seconds, seed)
    lock = threading.Lock()
    begin = perf_counter()

    def next_request(client: Client) -> tuple[Outcome, float] | None:
        with lock:
            at = next(due, None)
        if at is None:
            return None
        if perf_counter() - begin > 2 * seconds + _PATIENCE_S:
            return Outcome(_FAILED), 0.0
        sleep(max(0.0, begin + at - perf_counter()))
        return _ask(client, begin + at)

    with _Crowd(open_client, clients) as crowd:
        begin = perf_counter()
        crowd.start(next_request)
        for outcome, spent in crowd.gather(None):
            load.add(outcome, spent)
    load.seconds = perf_counter() - begin
    return load


def _times(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When requests are due, in seconds from the beginning: a Poisson process."""
    gaps = random.Random(seed)  # noqa: S311 - times, not a secret
    times = itertools.accumulate(iter(lambda: gaps.expovariate(rate), None))
    return itertools.takewhile(lambda at: at < seconds, times)


def _ask(client: Client, since: float) -> tuple[Outcome, float]:
    """The outcome of a request, and the seconds until now."""
    outcome = client.ask()
    seconds = perf_counter() - since
    if outcome.status not in {OK, BUSY}:
        sleep(_PAUSE_S)
    return outcome, seconds


def _agree(windows: Sequence[Load]) -> bool:
    """Whether the last of them do."""
    last = windows[-_WINDOWS:]
    if len(last) < _WINDOWS or not all(window.answers for window in last):
        return False
    figures = np.array([(window.rate, window.percentile(50)) for window in last])
    return bool((np.abs(figures / figures.mean(axis=0) - 1) <= _STEADY).all())


def _joined(windows: Sequence[Load]) -> Load:
    load = Load(windows[0].kind, windows[0].level, steady=_agree(windows))
    for window in windows:
        load.seconds += window.seconds
        load.answers += window.answers
        load.refusals += window.refusals
        load.others += window.others
        load.wrong += window.wrong
    return load


class _Crowd:
    """Threads with a client each."""

    def __init__(self, open_client: Callable[[], Client], count: int) -> None:
        self._open, self._count = open_client, count
        self._stop = threading.Event()
        self._found: list[tuple[Outcome, float]] = []
        self._threads: list[threading.Thread] = []
        self._clients = ExitStack()
        self._errors: list[BaseException] = []

    def start(self, ask: Callable[[Client], tuple[Outcome, float] | None]) -> None:
        """Let all clients ask again and again, until the end or until `ask` returns None."""

        def work(client: Client) -> None:
            try:
                while not self._stop.is_set() and (found := ask(client)) is not None:
                    self._found.append(found)
            except BaseException as error:  # noqa: BLE001 - raised again by `gather`
                self._errors.append(error)

        for _ in range(self._count):
            client = self._open()
            self._clients.callback(client.close)
            self._threads.append(threading.Thread(target=work, args=(client,), name="depthkit client", daemon=True))
        for thread in self._threads:
            thread.start()

    def gather(self, seconds: float | None) -> list[tuple[Outcome, float]]:
        """What was found in the next seconds; None: until all have ended."""
        if seconds is None:
            for thread in self._threads:
                thread.join()
        else:
            sleep(seconds)
        if self._errors:
            raise self._errors[0]
        found, self._found = self._found, []
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._clients.close()
