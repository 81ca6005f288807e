"""Throughput: frames per second of several sessions at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np

from ..session import Session
from .results import Throughput
from .timing import allocate

__all__ = ["measure_throughput"]


def measure_throughput(
    open_session: Callable[[], Session], frames: np.ndarray, streams: int, *, seconds: float, warm_up_s: float = 0.2
) -> Throughput:
    """Run `streams` sessions side by side, each opened and run in its own thread.

    The result is frames over the time from the start of the first run to the end of the last, as in trtexec.

    Args:
        open_session: opens one session.
        frames: N x H x W x 3 uint8 of its size.
        streams: number of sessions.
        seconds: how long to run after the warm-up.

    Raises:
        Exception: whatever a session raises.
    """
    ready = threading.Barrier(streams)
    spans: list[tuple[float, float, int]] = []
    errors: list[Exception] = []
    batch = 0

    def work() -> None:
        nonlocal batch
        try:
            with open_session() as session:
                image, _ = allocate(session)
                batch = len(image)
                np.take(frames, range(batch), axis=0, mode="wrap", out=image)
                _run_for(session, warm_up_s)
                ready.wait()
                start = perf_counter()
                runs = _run_for(session, seconds)
                spans.append((start, perf_counter(), runs))
        except threading.BrokenBarrierError:
            pass  # another session failed; its error is raised
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, name=f"stream {number}") for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    whole = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    return Throughput(streams, batch, batch * sum(runs for _, _, runs in spans), whole)


def _run_for(session: Session, seconds: float) -> int:
    end, runs = perf_counter() + seconds, 0
    while not runs or perf_counter() < end:
        session.run()
        runs += 1
    return runs
