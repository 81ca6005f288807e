"""Memory of an engine, measured in a separate process that loads and runs it.

The bench uses this as a rehearsal, too: an engine that crashes there does not crash the bench.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final

from ..engines.gpu import find_gpu
from ..errors import EngineError
from ..runtime.cuda import check, cudart
from ..session import Session
from .results import MemoryUse
from .timing import allocate

__all__ = ["CRASHED", "measure_memory"]

CRASHED: Final = "its process died: the vendor's library crashed, or memory ran out"
_STEADY_RUNS: Final = 10


def measure_memory(open_session: Callable[[], Session]) -> MemoryUse | None:
    """Measure how much memory a fresh Python process needs to load and run a session.

    The vendor's library counts, Python itself and NumPy do not. None: unknown, since there is no /proc.

    Args:
        open_session: can be pickled; called in the other process.

    Raises:
        EngineError: the process died.
        Exception: whatever opening or running the session raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, open_session).result()
        except BrokenProcessPool as error:
            raise EngineError(CRASHED) from error


def _measure(open_session: Callable[[], Session]) -> MemoryUse | None:
    before, free = _status("VmRSS"), _free_on_device()
    with open_session() as session:
        allocate(session)
        session.run()
        # Not getrusage's ru_maxrss, which survives exec and would be the parent's.
        load = _status("VmHWM")
        for _ in range(_STEADY_RUNS):
            session.run()
        steady, left = _status("VmRSS"), _free_on_device()
    if before is None or load is None or steady is None:
        return None
    taken = None if free is None or left is None else free - left
    return MemoryUse(load - before, steady - before, taken)


def _status(key: str) -> int | None:
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _free_on_device() -> int | None:
    """Free bytes of GPU memory; None: no GPU."""
    if isinstance(find_gpu(), str):
        return None

    free, _ = check(cudart().cudaMemGetInfo)
    return int(free)
