"""How much memory an engine takes: measured in a process of its own, which loads it and runs it.

That is also the rehearsal of a bench: what crashes there takes nothing else with it.
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
    """By how much the memory of a fresh Python rose, to load and run a session.

    The vendor's library is in it, Python itself and NumPy are not. None where it cannot be told: no /proc.

    Args:
        open_session: can be pickled; called in the other process.

    Raises:
        EngineError: the process died.
        Exception: what opening or running the session raised.
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
        # VmHWM and not getrusage's ru_maxrss: that one survives exec, and would tell the parent's.
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
    """Bytes of the GPU's memory that nobody uses; None: no GPU."""
    if isinstance(find_gpu(), str):
        return None

    free, _ = check(cudart().cudaMemGetInfo)
    return int(free)
