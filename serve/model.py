"""One version of a model: its proven sessions, a thread for each, and a bounded queue before them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from ..pipeline.proven import Proven
    from ..pipeline.tell import Tell
    from ..session import Session
    from ..spec import ModelSpec
    from .telemetry import Record

__all__ = ["REASONS", "RETRY", "Model", "unit_of"]

RETRY: Final = {"Retry-After": "1"}
"""Header of every 503: whole seconds are the finest that HTTP has."""

REASONS: Final = ("queue", "timeout", "engine")
"""Why requests are refused with 503."""

_POLL_S: Final = 0.02  # while the last answers of a replaced version are waited for


class Model:
    """Computes depth. Its methods belong to the event loop.

    Args:
        name, version: by which clients ask for it.
        proven: its sessions, and what is known about them.
        queue: how many requests may wait for a session.
        tell: is told if the engine fails.
        drops: counts what is refused, by `REASONS`; of all engines that this version has had.

    Attributes:
        most: how many requests it accepts at a time.
        accepted: how many it has accepted and not answered yet.
        fault: why it computes no more; empty if it does.
        drops: see above.
    """

    def __init__(self, name: str, version: str, proven: Proven, queue: int, tell: Tell, drops: Counter[str]) -> None:
        self.name, self.version, self.proven = name, version, proven
        self.most = queue + len(proven.sessions)
        self.accepted = 0
        self.fault = ""
        self.drops, self._tell = drops, tell
        self._sessions = [_Bound(session) for session in proven.sessions]
        # Each thread keeps its session: memory that one thread has bound is not what another one computes with.
        self._own, free = threading.local(), iter(self._sessions)

        def take_session() -> None:
            self._own.session = next(free)

        self._threads = ThreadPoolExecutor(len(self._sessions), f"depthkit {name} {version}", take_session)

    @property
    def running(self) -> int:
        """How many sessions compute now."""
        return sum(session.busy for session in self._sessions)

    def require_place(self) -> None:
        """Raise HTTPException, 503, if all places are taken or the engine has failed."""
        if self.fault:
            raise self._refusal("engine", f"the engine of model {self.name} has failed, and is being opened again")
        if self.accepted >= self.most:
            raise self._refusal("queue", f"model {self.name} has {self.accepted} requests, as many as it accepts")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the accepted requests, which keeps this version open until the block ends.

        Raises HTTPException: see `require_place`.
        """
        self.require_place()
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def run(self, images: np.ndarray, deadline: float, record: Record) -> np.ndarray:
        """Depth of N x H x W x 3 uint8 images, as the session gives it: N x H x W float32, a new array.

        Args:
            images: of a shape that the engine takes; only read.
            deadline: the value of `perf_counter` until which computing has to begin; `inf`: any time.
            record: gets the seconds of "queue" and "run". If its client leaves before computing begins, nothing is
                computed.

        Raises:
            HTTPException: 503, if the deadline passes or the engine fails.
            ClientDisconnect: the client has gone.
        """
        if record.left:
            raise ClientDisconnect
        begin, waiting = perf_counter(), [images]
        too_late = "the request's timeout passed before a session was free"
        if begin > deadline:
            raise self._refusal("timeout", too_late)
        job = self._threads.submit(self._compute, waiting, begin, record.spent)
        record.on_leave = job.cancel
        late = False

        def give_up() -> None:
            nonlocal late
            late = job.cancel()  # False: it computes already, and the answer is as good as any

        timer = asyncio.get_running_loop().call_later(deadline - begin, give_up)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if late:
                raise self._refusal("timeout", too_late) from None
            if record.left:
                raise ClientDisconnect from None
            raise
        except Exception as error:
            if not self.fault:
                self.fault = str(error) or type(error).__name__
                self._tell("FAIL", f"{self.name} {self.version}: the engine failed while it computed: {self.fault}")
            raise self._refusal("engine", f"the engine of model {self.name} has failed") from error
        finally:
            waiting.clear()  # a job that was cancelled stays in the threads' queue until one of them passes it
            record.on_leave = None
            timer.cancel()

    def _refusal(self, reason: str, sentence: str) -> HTTPException:
        self.drops[reason] += 1
        return HTTPException(503, f"{sentence}; try again", RETRY)

    def _compute(self, waiting: list[np.ndarray], begin: float, spent: dict[str, float]) -> np.ndarray:
        """In a thread: run its session."""
        session: _Bound = self._own.session
        start = perf_counter()
        spent["queue"] = start - begin
        try:
            return session(*waiting)
        finally:
            spent["run"] = perf_counter() - start

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
        self.busy = False
        self._session = session
        self._image = np.empty((0, *session.spec.size, 3), np.uint8)
        self._depth = np.empty((0, *session.spec.size), np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.busy = True
        try:
            if images.shape != self._image.shape:
                self._image, self._depth = np.empty_like(images), np.empty(images.shape[:3], np.float32)
                self._session.bind(image=self._image, depth=self._depth)
            np.copyto(self._image, images)
            self._session.run()
            return self._depth.copy()
        finally:
            self.busy = False


def unit_of(spec: ModelSpec) -> str:
    """What the numbers of a model's depth are. All answers name it by this function."""
    return "metres" if spec.is_metric else f"{spec.answers} depth without unit"
