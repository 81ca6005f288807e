"""Accuracy on depth that is known exactly, at the camera's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple

import numpy as np
import pytest

from depthkit.bench.accuracy import measure_accuracy

Sample = tuple[np.ndarray, np.ndarray]


def _room(depth: float, size: tuple[int, int] = (40, 60)) -> Sample:
    return np.zeros((*size, 3), np.uint8), np.full(size, depth, np.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_session_that_knows_the_depth_makes_no_error(recorded: type, batch: int) -> None:
    rooms = [_room(2.5), _room(2.5, (16, 32)), _room(2.5, (100, 31))]
    scores = measure_accuracy(recorded([], batch=batch), rooms, None)
    assert scores.frames == 3
    assert scores.mse == 0
    assert scores.ssim == pytest.approx(1)
    assert astuple(scores.pooled) == astuple(scores.per_image) == (0, 0, 0, 1, 1, 1)


def test_session_that_is_off_is_off_by_that_much(recorded: type) -> None:
    scores = measure_accuracy(recorded([]), [_room(2.0)], None)
    assert scores.mse == pytest.approx(0.05**2)
    assert scores.pooled.abs_rel == pytest.approx(0.25)
    assert scores.pooled.rmse == pytest.approx(0.5)
    assert scores.pooled.log10 == pytest.approx(math.log10(1.25))
    assert (scores.pooled.delta1, scores.pooled.delta2) == (0, 1)


def test_each_answer_is_held_to_its_own_picture(recorded: type) -> None:
    """Brightness is depth: a picture that met its neighbour's truth would show."""
    rooms = [(np.full((20, 30, 3), 10 * n, np.uint8), np.full((20, 30), n, np.float32)) for n in range(1, 8)]
    session = recorded([], batch=3, answer=lambda frame: frame[..., 0].astype(np.float32) / 10)
    assert measure_accuracy(session, rooms, None).pooled.rmse == pytest.approx(0, abs=1e-6)


def test_pixels_that_were_not_measured_and_outside_the_crop_do_not_count(recorded: type) -> None:
    image, truth = _room(2.5)
    truth[:, 30:] = 0
    truth[:10] = 9
    scores = measure_accuracy(recorded([]), [(image, truth)], (slice(10, 40), slice(0, 60)))
    assert scores.pooled.rmse == 0
    assert scores.mse > 0, "the paper's takes the whole frame"


def test_samples_are_read_one_by_one(recorded: type) -> None:
    session = recorded([])
    ahead: list[int] = []

    def samples() -> Iterator[Sample]:
        for index in range(6):
            ahead.append(index - len(session.log))
            yield _room(2.5)

    assert measure_accuracy(session, samples(), None).frames == 6
    assert max(ahead) <= 1


def test_nothing_to_measure_is_nan(recorded: type) -> None:
    scores = measure_accuracy(recorded([]), [], None)
    assert scores.frames == 0
    assert math.isnan(scores.mse)
