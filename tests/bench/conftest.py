"""Sessions that keep the protocol, need no vendor, and remember what was done to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from depthkit.reference import Reference
from depthkit.runtime.null import NullSession
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready


class Recorded(NullSession):
    """Answers what `answer` makes of a frame, and writes its name into `log` at every run."""

    def __init__(
        self,
        log: list[str],
        name: str = "a",
        batch: int | Dim = 1,
        answer: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        spec = ModelSpec(name, (8,), *camera_ready(16, 32, batch), Preprocessing(), (0.0, 10.0), 123, 456)
        super().__init__(spec, 2.5)
        self.log, self.name, self.answer = log, name, answer
        self.seen: list[np.ndarray] = []

    def run(self) -> None:
        image, depth = self._buffers()
        self.log.append(self.name)
        self.seen.append(image[:, 0, 0, 0].copy())
        depth[...] = 2.5 if self.answer is None else np.stack([self.answer(frame) for frame in image])


@pytest.fixture(scope="session")
def recorded() -> type[Recorded]:
    """The class; a session of it is made in the test."""
    return Recorded


@pytest.fixture
def reference() -> Reference:
    """Four frames of 16 x 32 that are told apart by their first pixel; torch is said to have answered waves."""
    images = np.zeros((4, 16, 32, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    y, x = np.mgrid[:16, :32]
    depths = np.stack([3 + np.sin(x / 3 + n) + y / 9 for n in range(4)]).astype(np.float32)
    return Reference(images, depths, depths * np.float32(1.1))
