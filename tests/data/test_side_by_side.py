"""A picture, its colours and the bar: what stands where, for any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.data.colours import colour
from depthkit.data.side_by_side import side_by_side, side_size


@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_it_is_even_and_holds_both_whole(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    depth = rng.uniform(1, 5, (height, width)).astype(np.float32)
    made = side_by_side(image, depth, (1.0, 5.0))
    assert made.shape == (*side_size((height, width)), 3)
    assert made.shape[0] % 2 == made.shape[1] % 2 == 0
    np.testing.assert_array_equal(made[:height, :width], image)
    np.testing.assert_array_equal(made[:height, width : 2 * width], colour(depth, (1.0, 5.0)))


@pytest.mark.parametrize("height", [48, 240, 480, 1080])
def test_the_bar_goes_from_near_below_to_far_above_and_has_numbers(height: int) -> None:
    made = side_by_side(np.zeros((height, 40, 3), np.uint8), np.ones((height, 40), np.float32), (0.5, 5.0), "gray")
    bar = made[:, 80:]
    column = bar[:, 8].astype(int)
    levels = column[(column != (24, 24, 24)).any(axis=1), 0]
    assert levels[0] > 245 > 10 > levels[-1]
    assert (np.diff(levels) <= 0).all()
    numbers = bar[:, -height // 8 :] if height > 400 else bar[:, 24:]
    assert (numbers.max(axis=(1, 2)) > 150).sum() >= 2 * 5  # rows with ink


def test_without_metres_the_bar_says_near_below_and_far_above() -> None:
    image, depth = np.zeros((240, 40, 3), np.uint8), np.full((240, 40), 2, np.float32)
    bars = [
        side_by_side(image, depth, span, "gray", is_metric=False)[:, 80:]
        for span in ((9.0, 1.0), (-10.0, 300.0), (1e-3, 1e-4))
    ]
    for bar in bars[1:]:
        np.testing.assert_array_equal(bar, bars[0], err_msg="no number of the span is in it")
    metric = side_by_side(image, depth, (1.0, 9.0), "gray")[:, 80:]
    assert (bars[0][:, :16] == metric[:, :16]).mean() > 0.95, "near is below, although it is larger"
    inked = np.flatnonzero((bars[0][:, 14:] > 150).any(axis=(1, 2)))
    assert inked.max() > 200
    assert inked.min() < 40
    assert not ((inked > 40) & (inked < 200)).any(), "nothing between the ends"
