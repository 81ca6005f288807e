"""Both resizes of a graph answer as the host's do, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.images import fill_image, resize_depth
from depthkit.data.resample import weights
from depthkit.train.resize import Average, Filter, Resample, shrinking

SIDES = st.integers(1, 24)
LENGTHS = st.integers(1, 60)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width, and larger ones."""
    small = draw(SIDES), draw(SIDES)
    return small, (small[0] + draw(LENGTHS) - 1, small[1] + draw(LENGTHS) - 1)


def _frames(size: tuple[int, int], count: int = 2) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (count, *size, 3), np.uint8)


@given(goal=SIDES, more=LENGTHS)
def test_weights_are_pillows_and_keep_the_mean(goal: int, more: int) -> None:
    length = goal + more - 1
    found = weights(length, goal)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert (found >= 0).all()
    # Each column of this picture has one white pixel, so shrinking it gives the weights.
    dots = Image.fromarray(np.eye(length, dtype=np.float32))
    by_pillow = np.asarray(dots.resize((length, goal), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found, by_pillow, atol=1e-6)


@given(small=st.tuples(SIDES, SIDES), ratios=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_whole_ratios_are_means_of_blocks(small: tuple[int, int], ratios: tuple[int, int]) -> None:
    (height, width), (down, across) = small, ratios
    frames = _frames((height * down, width * across))
    module = shrinking(frames.shape[1:3], small)
    assert isinstance(module, Average)
    blocks = frames.reshape(2, height, down, width, across, 3).mean((2, 4), np.float64)
    found = module(torch.from_numpy(frames)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, blocks.transpose(0, 3, 1, 2), atol=1e-4)


@given(sizes=pairs())
def test_filter_is_the_host_s_up_to_its_rounding(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    small, large = sizes
    frames = _frames(large)
    found = Filter(large, small)(torch.from_numpy(frames)).numpy().transpose(0, 2, 3, 1)
    for image, shrunk in zip(frames, found, strict=True):
        target = np.empty((*small, 3), np.uint8)
        fill_image(target, image)
        assert np.abs(shrunk - target).max() < 1.3  # the host rounds to whole levels after each of its two passes


@given(sizes=pairs())
def test_depth_is_enlarged_as_on_the_host(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    small, large = sizes
    depth = np.random.default_rng(small).uniform(0, 10, (2, *small)).astype(np.float32)
    found = Resample(small, large)(torch.from_numpy(depth)).numpy()
    for each, enlarged in zip(depth, found, strict=True):
        np.testing.assert_allclose(enlarged, resize_depth(each, large, smooth=True), atol=1e-5)


@pytest.mark.parametrize(("size", "goal"), [((480, 640), (96, 128)), ((64, 96), (64, 48))])
def test_ratio_is_whole_also_in_one_direction_only(size: tuple[int, int], goal: tuple[int, int]) -> None:
    assert isinstance(shrinking(size, goal), Average)
    assert isinstance(shrinking((size[0] + 1, size[1]), goal), Filter)
