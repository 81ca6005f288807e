"""One version of a model: its proven sessions, a thread for each, and a bounded queue before them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from ..pipeline.proven import Proven
    from ..session import Session
    from ..spec import ModelSpec

__all__ = ["RETRY", "Model", "unit_of"]

RETRY: Final = {"Retry-After": "1"}
"""Header of every 503: whole seconds are the finest that HTTP has."""

_POLL_S: Final = 0.02  # while the last answers of a replaced version are waited for


class Model:
    """Computes depth. Its methods belong to the event loop.

    Attributes:
        name, version: by which clients ask for it.
        proven: its sessions, and what is known about them.
        most: how many requests it accepts at a time.
        accepted: how many it has accepted and not answered yet.
        fault: why it computes no more; empty if it does.
        drops: how many requests it has refused, by reason: "queue", "timeout" or "engine".
    """

    def __init__(self, name: str, version: str, proven: Proven, queue: int) -> None:
        self.name, self.version, self.proven = name, version, proven
        self.most = queue + len(proven.sessions)
        self.accepted = 0
        self.fault = ""
        self.drops = {"queue": 0, "timeout": 0, "engine": 0}
        self._free = deque(_Bound(session) for session in proven.sessions)
        self._threads = ThreadPoolExecutor(len(proven.sessions), f"depthkit {name} {version}")

    @property
    def running(self) -> int:
        """How many sessions compute now."""
        return len(self.proven.sessions) - len(self._free)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the accepted requests, which keeps this version open until the block ends.

        Raises HTTPException: 503, if all places are taken or the engine has failed.
        """
        if self.fault:
            raise self._refusal("engine", f"the engine of model {self.name} has failed, and is being opened again")
        if self.accepted >= self.most:
            raise self._refusal("queue", f"model {self.name} has {self.accepted} requests, as many as it accepts")
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def run(self, images: np.ndarray, deadline: float | None, spent: dict[str, float]) -> np.ndarray:
        """Depth of N x H x W x 3 uint8 images, as the session gives it: N x H x W float32, a new array.

        Args:
            images: of a shape that the engine takes; only read.
            deadline: the value of `perf_counter` until which computing has to begin; None: any time.
            spent: gets the seconds of "queue" and "run".

        Raises:
            HTTPException: 503, if the deadline has passed or the engine fails.
        """
        begin = perf_counter()
        loop = asyncio.get_running_loop()
        try:
            depth = await loop.run_in_executor(self._threads, self._compute, images, deadline, begin, spent)
        except Exception as error:
            self.fault = str(error) or type(error).__name__
            raise self._refusal("engine", f"the engine of model {self.name} has failed") from error
        if depth is None:
            raise self._refusal("timeout", "the request's timeout passed before a session was free")
        return depth

    def _refusal(self, reason: str, sentence: str) -> HTTPException:
        self.drops[reason] += 1
        return HTTPException(503, f"{sentence}; try again", RETRY)

    def _compute(
        self, images: np.ndarray, deadline: float | None, begin: float, spent: dict[str, float]
    ) -> np.ndarray | None:
        """In a thread: run a free session; None after the deadline."""
        now = perf_counter()
        spent["queue"] = now - begin
        if deadline is not None and now > deadline:
            return None
        session = self._free.pop()  # there are as many as threads
        try:
            return session(images)
        finally:
            self._free.append(session)
            spent["run"] = perf_counter() - now

    async def close(self) -> None:
        """Answer what was accepted, then free the sessions."""
        while self.accepted:
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(self._threads.shutdown)
        self.proven.close()


class _Bound:
    """A session on memory of its own, which is bound again only for another number of images.

    Copying a frame in and its depth out takes less time than binding the memory of every request would.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._image = np.empty((0, *session.spec.size, 3), np.uint8)
        self._depth = np.empty((0, *session.spec.size), np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape != self._image.shape:
            self._image, self._depth = np.empty_like(images), np.empty(images.shape[:3], np.float32)
            self._session.bind(image=self._image, depth=self._depth)
        np.copyto(self._image, images)
        self._session.run()
        return self._depth.copy()


def unit_of(spec: ModelSpec) -> str:
    """What the numbers of a model's depth are. All answers name it by this function."""
    return "metres" if spec.is_metric else f"{spec.answers} depth without unit"
