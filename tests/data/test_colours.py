"""Depth as colours: matplotlib's, clipped at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps

from depthkit.data.colours import colour, colour_planes
from depthkit.errors import UserError


def test_colours_run_from_blue_to_red_and_clip_at_both_ends() -> None:
    near, far, below, above = colour(np.array([[1.0, 4.0, -9.0, 99.0]], np.float32), (1.0, 4.0))[0].astype(int)
    assert near.tolist() == below.tolist() == [48, 18, 59]
    assert far.tolist() == above.tolist() == [122, 4, 2]
    blue, red = colour(np.array([[1.3, 3.7]], np.float32), (1.0, 4.0))[0].astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


@given(near=st.floats(-9, 9), reach=st.floats(0.1, 9))
def test_near_may_be_larger_than_far(near: float, reach: float) -> None:
    """As of inverse depth: the colours are those of the same scene the other way round."""
    answers = np.linspace(-12, 12, 60, dtype=np.float32).reshape(6, 10)
    np.testing.assert_array_equal(colour(answers, (near, near - reach)), colour(-answers, (-near, reach - near)))


def test_colours_of_one_depth_need_no_span() -> None:
    flat = colour(np.full((2, 3), 2.0, np.float32), (2.0, 2.0))
    assert flat.shape == (2, 3, 3)
    assert flat.dtype == np.uint8


@given(colormap=st.sampled_from(["turbo", "viridis", "gray"]), low=st.floats(-2, 2), width=st.floats(0.1, 9))
def test_colours_are_those_of_matplotlib(colormap: str, low: float, width: float) -> None:
    depth = np.linspace(-3, 12, 300, dtype=np.float32).reshape(150, 2)
    expected = colormaps[colormap]((np.clip(depth, low, low + width) - low) / width, bytes=True)[..., :3]
    steps = np.abs(colour(depth, (low, low + width), colormap).astype(int) - expected)
    assert (steps.max(axis=-1) > 0).mean() < 0.02  # at the borders of two colours, by rounding
    assert steps.max() <= 16


def test_an_unknown_colormap_is_refused() -> None:
    with pytest.raises(UserError, match="no colormap 'rainbows'"):
        colour(np.ones((2, 2), np.float32), (0, 1), "rainbows")


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    colormap=st.sampled_from(["turbo", "gray", "magma"]),
    seed=st.integers(0, 99),
)
def test_planes_are_the_same_colours_by_bt709_at_an_even_size(shape: tuple[int, int], colormap: str, seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0.5, 6, shape).astype(np.float32)
    y, cb, cr = colour_planes(depth, (1.0, 5.0), colormap)
    height, width = (side + side % 2 for side in shape)
    assert y.shape == (height, width)
    assert cb.shape == cr.shape == (height // 2, width // 2)
    red, green, blue = np.moveaxis(colour(depth, (1.0, 5.0), colormap) / 255, 2, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709
    assert np.abs(y[: shape[0], : shape[1]] - (16 + 219 * luma)).max() <= 0.51
    assert np.abs(cb - (128 + 224 * (blue - luma) / 1.8556)[::2, ::2]).max() <= 0.51
    assert np.abs(cr - (128 + 224 * (red - luma) / 1.5748)[::2, ::2]).max() <= 0.51
    np.testing.assert_array_equal(y[-1, : shape[1]], y[shape[0] - 1, : shape[1]])
    np.testing.assert_array_equal(y[:, -1], y[:, shape[1] - 1])
