"""Depth as colours: matplotlib's, clipped at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps

from depthkit.data.colours import colour
from depthkit.errors import UserError


def test_colours_run_from_blue_to_red_and_clip_at_both_ends() -> None:
    near, far, below, above = colour(np.array([[1.0, 4.0, -9.0, 99.0]], np.float32), (1.0, 4.0))[0].astype(int)
    assert near.tolist() == below.tolist() == [48, 18, 59]
    assert far.tolist() == above.tolist() == [122, 4, 2]
    blue, red = colour(np.array([[1.3, 3.7]], np.float32), (1.0, 4.0))[0].astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


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
