"""Recorded sessions, their reference, and a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest

from depthkit.bench import timing
from depthkit.bench.contender import SampleSet
from depthkit.reference import Reference

from ..support import Recorded


@pytest.fixture(scope="session")
def recorded() -> type[Recorded]:
    """The class; a session of it is made in the test."""
    return Recorded


@pytest.fixture
def reference() -> Reference:
    """Four frames of 16 x 32, each with its number in the first pixel; torch's depth for them is made of waves."""
    images = np.zeros((4, 16, 32, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    y, x = np.mgrid[:16, :32]
    depths = np.stack([3 + np.sin(x / 3 + n) + y / 9 for n in range(4)]).astype(np.float32)
    return Reference(images, depths, depths * np.float32(1.1))


@pytest.fixture
def measured(reference: Reference) -> SampleSet:
    """Those frames with their measured depth."""
    return SampleSet("d", 4, 4, None, list(zip(reference.images, reference.truths, strict=True)))


class Clock:
    """Stands still until something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of `bench.timing`: nothing that is measured by it depends on the machine."""
    made = Clock()
    monkeypatch.setattr(timing, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing, "sleep", made.sleep)
    return made
