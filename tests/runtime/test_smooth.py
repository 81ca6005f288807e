"""Depth of a clip that trembles less, and follows what moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from depthkit.runtime.smooth import Smoother, Smoothing, find_shift

SIZE = (48, 64)
RANDOM = np.random.default_rng(0)
ROOM = RANDOM.integers(0, 256, (*SIZE, 3), np.uint8)


def _trembling(frames: int) -> np.ndarray:
    """Depth of a wall at 2 m, each frame off by another factor and noise."""
    factors = np.exp(RANDOM.normal(0, 0.03, (frames, 1, 1)) + RANDOM.normal(0, 0.02, (frames, *SIZE)))
    return (2 * factors).astype(np.float32)


def _flicker(depths: np.ndarray) -> float:
    return float(np.abs(np.diff(np.log(depths), axis=0)).mean())


def test_a_still_room_trembles_less_and_keeps_its_depth() -> None:
    depths = _trembling(40)
    smoother = Smoother()
    smoothed = np.stack([smoother(depth, ROOM) for depth in depths])
    assert _flicker(smoothed[1:]) < 0.4 * _flicker(depths[1:])
    assert np.median(smoothed[-10:]) == pytest.approx(2, rel=0.02)


def test_a_thing_that_moves_leaves_no_trail() -> None:
    """A bright square at 1 m before a wall at 3 m, four pixels a frame: its old place is the wall's at once."""
    smoother = Smoother()
    for step in range(10):
        image, depth = ROOM // 4, np.full(SIZE, 3, np.float32)
        left = 4 * step
        image[16:32, left : left + 12], depth[16:32, left : left + 12] = 255, 1
        smoothed = smoother(depth, image)
    np.testing.assert_allclose(smoothed[16:32, : left - 2], 3, rtol=0.02)
    np.testing.assert_allclose(smoothed[18:30, left + 2 : left + 10], 1, rtol=0.02)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -5), (-4, 6)])
def test_the_turn_of_the_camera_is_found_and_followed(shift: tuple[int, int]) -> None:
    wide = RANDOM.random((96, 128)).astype(np.float32)
    before, after = wide[24:72, 32:96], wide[24 - shift[0] : 72 - shift[0], 32 - shift[1] : 96 - shift[1]]
    assert find_shift(before, after) == shift

    depth = 1 + wide
    smoother = Smoother()
    pictures = [np.repeat((part * 255).astype(np.uint8)[..., None], 3, axis=2) for part in (before, after)]
    smoother(depth[24:72, 32:96], pictures[0])
    moved = depth[24 - shift[0] : 72 - shift[0], 32 - shift[1] : 96 - shift[1]]
    np.testing.assert_allclose(smoother(moved, pictures[1]), moved, rtol=1e-5)


def test_a_real_change_is_reached_after_some_frames() -> None:
    smoother = Smoother(Smoothing(keep=0.8))
    smoother(np.full(SIZE, 2.0, np.float32), ROOM)
    found = [float(smoother(np.full(SIZE, 2.1, np.float32), ROOM).mean()) for _ in range(30)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(2.1, rel=1e-3)


def test_another_size_and_a_reset_begin_anew() -> None:
    smoother = Smoother()
    smoother(np.full(SIZE, 2.0, np.float32), ROOM)
    other = np.full((24, 32), 5.0, np.float32)
    np.testing.assert_array_equal(smoother(other, ROOM[:24, :32]), other)
    smoother(np.full(SIZE, 2.0, np.float32), ROOM)
    smoother.reset()
    np.testing.assert_array_equal(smoother(np.full(SIZE, 2.2, np.float32), ROOM), np.full(SIZE, 2.2, np.float32))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            hnp.arrays(np.float32, (9, 11), elements=st.floats(0.125, 10, width=32)),
            hnp.arrays(np.uint8, (9, 11, 3)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_depth_stays_between_what_was_seen(frames: list[tuple[np.ndarray, np.ndarray]]) -> None:
    smoother = Smoother()
    for depth, image in frames:
        given_depth, given_image = depth.copy(), image.copy()
        smoothed = smoother(depth, image)
        assert smoothed.dtype == np.float32
        assert smoothed is not depth
        np.testing.assert_array_equal(depth, given_depth)
        np.testing.assert_array_equal(image, given_image)
        low, high = min(float(d.min()) for d, _ in frames), max(float(d.max()) for d, _ in frames)
        assert low * 0.999 <= smoothed.min() <= smoothed.max() <= high * 1.001


@pytest.mark.parametrize("wrong", [{"keep": 1.0}, {"keep": -0.1}, {"colour": 0.0}, {"depth": -1.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="keep"):
        Smoothing(**wrong)


def test_answers_without_metres_are_smoothed_as_they_are() -> None:
    """Also where they are zero or negative, which have no logarithm."""
    answers = 40 * RANDOM.normal(0, 0.02, (40, *SIZE)).astype(np.float32) + np.linspace(-20, 20, 64, dtype=np.float32)
    smoother = Smoother(span=40.0)
    smoothed = np.stack([smoother(answer, ROOM) for answer in answers])
    assert np.isfinite(smoothed).all()
    assert np.abs(np.diff(smoothed[1:], axis=0)).mean() < 0.4 * np.abs(np.diff(answers[1:], axis=0)).mean()
    np.testing.assert_allclose(np.median(smoothed[-10:], axis=(0, 1)), np.linspace(-20, 20, 64), atol=1)


def test_a_metre_of_zero_is_smoothed_to_no_nonsense() -> None:
    smoother = Smoother()
    for _ in range(3):
        found = smoother(np.zeros(SIZE, np.float32), ROOM)
    assert (found <= 0.001).all()
