"""Reading without warnings, by several threads at a time."""

from __future__ import annotations

import warnings
from threading import Lock
from typing import Final

__all__ = ["quiet"]


class _Quiet:
    """Without warnings, in any number of threads at a time; the last one that leaves has the filters as they were.

    `warnings.catch_warnings` alone is not made for threads: one of them would restore what another one had set.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


quiet: Final = _Quiet()
"""The only one."""
