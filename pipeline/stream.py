"""Depth of a source's frames in stages: the next frames are read and resized while the engine computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from time import perf_counter
from typing import Final

import numpy as np

from ..data.images import resize_depth
from ..runtime.smooth import Smoother
from ..runtime.source import Frame, Source, join

__all__ = ["Result", "stream"]

_AHEAD: Final = 2  # frames of a file that are read while others are computed


class Result:
    """A frame and its depth.

    Attributes:
        frame: of the source.
        image: the frame at the engine's size, h x w x 3 uint8 RGB.
        small: float32 depth at the engine's size, h x w; smoothed, if that was asked for. Like all depth here, in
            metres if the predictor's `spec.is_metric`.
        spent: seconds that each stage took: "decode" (with the wait for a frame, if the source is live), "resize",
            "engine".
    """

    def __init__(self, frame: Frame, image: np.ndarray, small: np.ndarray, spent: dict[str, float]) -> None:
        self.frame, self.image, self.small, self.spent = frame, image, small, spent

    @cached_property
    def depth(self) -> np.ndarray:
        """Float32 depth at the frame's own size, H x W."""
        return self.at(self.frame.size)

    @property
    def age(self) -> float:
        """Seconds since the frame was decoded or captured."""
        return perf_counter() - self.frame.arrived

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """Float32 depth at the height and width `size`; `small` itself where that fits."""
        return resize_depth(self.small, size, smooth=True)

    def __repr__(self) -> str:
        return f"<Result of {self.frame!r}: {self.small.min():.4g} to {self.small.max():.4g}>"


def stream(
    source: Source,
    predict: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    *,
    threads: int = 1,
    smoother: Smoother | None = None,
) -> Iterator[Result]:
    """The depth of all frames of `source`, in order.

    A file's next frames are read ahead, a bounded number of them. A live source is asked for its newest frame when
    the engine and the caller are ready for it, so that a result is never older than it must be.

    Args:
        source: closed at the end, also where the caller stops early.
        predict: computes the depth of a frame of the engine's size; called by `threads` threads.
        size: the engine's height and width.
        threads: how many frames are computed at the same time.
        smoother: applied in the order of the frames.

    Raises:
        DataError: the source cannot be read further; all results before are given. Errors of `predict` pass through.
    """
    room = Semaphore(threads if source.live else threads + _AHEAD)
    given: SimpleQueue[Future[Result] | BaseException | None] = SimpleQueue()
    stopped = Event()

    def compute(frame: Frame, image: np.ndarray, spent: dict[str, float]) -> Result:
        begin = perf_counter()
        small = predict(image)
        return Result(frame, image, small, {**spent, "engine": perf_counter() - begin})

    def read() -> None:
        try:
            frames = iter(source)
            while room.acquire() and not stopped.is_set():
                begin = perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                decoded = perf_counter()
                image = frame.image(size)
                spent = {"decode": decoded - begin, "resize": perf_counter() - decoded}
                given.put(workers.submit(compute, frame, image, spent))
            given.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised for the caller
            given.put(error)

    reader = Thread(target=read, name=f"depthkit reads {source.name}", daemon=True)
    with source, ThreadPoolExecutor(threads, thread_name_prefix="depthkit engine") as workers:
        reader.start()
        try:
            while (item := given.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                result = item.result()
                room.release()
                if smoother is not None:
                    result.small = smoother(result.small, result.image)
                yield result
        finally:
            stopped.set()
            room.release()
            source.close()
            join(reader)
