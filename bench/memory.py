"""How much memory an engine takes: measured in a process of its own, which loads it and runs it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ..session import Session
from .timing import allocate

__all__ = ["peak_memory"]


def peak_memory(open_session: Callable[[], Session]) -> int | None:
    """Bytes by which the resident memory of a fresh Python rose, at its highest, to load and run a session.

    The vendor's library is in it, Python itself and NumPy are not. None where it cannot be told: no /proc, or the
    process died.

    Args:
        open_session: can be pickled; called in the other process.
    """
    if not Path("/proc/self/status").is_file():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, open_session).result()
        except BrokenProcessPool:
            return None


def _peak(open_session: Callable[[], Session]) -> int:
    before = _status("VmRSS")
    with open_session() as session:
        allocate(session)
        for _ in range(3):
            session.run()
    # VmHWM and not getrusage's ru_maxrss: that one survives exec, and would tell the parent's.
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
