"""Runs for a vendor's profiler, and the mean of its measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import FrameError
from ..session import LayerTime, Session

__all__ = ["mean_times", "profiled_runs"]


def profiled_runs(session: Session, images: np.ndarray, runs: int) -> Iterator[None]:
    """Run a session on images in turn, and yield after each run: one warm-up run, then `runs` measured ones.

    Raises:
        FrameError: there are no images, or they are of another size or dtype.
    """
    if not len(images):
        raise FrameError("there are no images to profile with; give at least one")
    batch = session.spec.opt_batch
    image = np.empty((batch, *images.shape[1:]), images.dtype)
    session.bind(image=image, depth=np.empty((batch, *session.spec.size), np.float32))
    for run in range(1 + runs):
        np.take(images, range(run * batch, (run + 1) * batch), axis=0, mode="wrap", out=image)
        session.run()
        yield


def mean_times(measured: Sequence[LayerTime], runs: int) -> tuple[LayerTime, ...]:
    """Mean times of layers over all `profiled_runs` but the warm-up; each layer once, in execution order."""
    warm_up = len(measured) // (1 + runs)
    kinds: dict[str, str] = {}
    times: dict[str, float] = {}
    for layer in measured[warm_up:]:
        kinds.setdefault(layer.name, layer.kind)
        times[layer.name] = times.get(layer.name, 0.0) + layer.ms
    return tuple(LayerTime(name, kinds[name], ms / runs) for name, ms in times.items())
