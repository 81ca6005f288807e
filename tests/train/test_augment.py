"""Augmentation: repeatable, geometrically consistent, and without depth where none was measured."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depthkit.train.augment import Augmentation

NEAR, FAR = 3.0, 9.0


@pytest.fixture(scope="module", params=["paper", "strong"])
def augmentation(request: pytest.FixtureRequest) -> Augmentation:
    return Augmentation(request.param)


def _disc(count: int = 8, side: int = 96, radius: float = 22.0) -> tuple[Tensor, Tensor]:
    """Pictures of a bright disc before a dark wall, and their depth: the disc at NEAR, the wall at FAR."""
    axis = torch.arange(side) + 0.5 - side / 2
    inside = (axis[:, None] ** 2 + axis**2 <= radius**2).expand(count, 1, -1, -1)
    image = torch.where(inside, 0.45, 0.15).expand(-1, 3, -1, -1).contiguous()
    return image, torch.where(inside, NEAR, FAR)


def _ramp(count: int = 8, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """Pictures with as many colours, and depth maps with as many values, as there are pixels."""
    height, width = size
    depth = torch.linspace(1, 9, height * width).reshape(1, 1, height, width).expand(count, -1, -1, -1).contiguous()
    return (depth / 10).expand(-1, 3, -1, -1).contiguous(), depth


def test_the_same_seed_gives_the_same_result(augmentation: Augmentation) -> None:
    image, depth = _ramp()
    first = augmentation(image, depth, 7)
    torch.manual_seed(99)  # whatever the global generator says
    augmentation(image, depth, 1)  # and whatever came before
    again = augmentation(image, depth, 7)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = augmentation(image, depth, 8)
    assert not torch.equal(first[1], other[1])


def test_samples_of_a_batch_differ(augmentation: Augmentation) -> None:
    image, depth = augmentation(*_ramp(), 3)
    assert len({sample.numpy().tobytes() for sample in image}) == 8
    assert len({sample.numpy().tobytes() for sample in depth}) == 8


def test_global_random_state_and_inputs_are_left_alone(augmentation: Augmentation) -> None:
    image, depth = _ramp()
    copies = image.clone(), depth.clone()
    before = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    augmentation(image, depth, 7)
    assert (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()) == before
    assert torch.equal(image, copies[0])
    assert torch.equal(depth, copies[1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_shapes_types_and_range_stay(augmentation: Augmentation, seed: int) -> None:
    image, depth = augmentation(*_ramp(3), seed)
    assert image.shape == (3, 3, 32, 48)
    assert depth.shape == (3, 1, 32, 48)
    assert image.dtype == depth.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert 0 <= depth.min() <= depth.max() <= 9 / 0.85 + 1e-4  # the farthest that a zoom takes 9 m


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_depth_is_interpolated_between_two_surfaces(augmentation: Augmentation, seed: int) -> None:
    """A sample has the wall's depth, the disc's and 0, and nothing between."""
    _, depth = augmentation(*_disc(), seed)
    for sample in depth:
        values = torch.unique(sample).tolist()
        assert values[-1] / values[-2] == pytest.approx(FAR / NEAR, rel=1e-6)
        assert values[:-2] in ([], [0.0])


def test_the_papers_augmentation_does_not_zoom() -> None:
    for seed in range(10):
        _, depth = Augmentation("paper")(*_disc(), seed)
        assert set(torch.unique(depth).tolist()) <= {0.0, NEAR, FAR}
        areas = (depth == NEAR).sum((1, 2, 3)).double()
        assert areas.min() / areas.max() > 0.97  # the rim falls on other pixels when it turns


def test_a_zoom_moves_the_room() -> None:
    """A disc's true width is its width in pixels times its depth, whatever the zoom."""
    image, depth = _disc()
    true_width = (depth == NEAR).sum((1, 2, 3)).double().sqrt()[0] * NEAR
    zooms = []
    for seed in range(8):
        _, zoomed = Augmentation("strong")(image, depth, seed)
        for sample in zoomed:
            near = torch.unique(sample)[-2]
            zooms.append(NEAR / near.item())
            width = (sample == near).sum().double().sqrt()
            assert (width * near / true_width).item() == pytest.approx(1, abs=0.03)
    assert 0.85 - 1e-6 <= min(zooms) < 0.95
    assert 1.05 < max(zooms) <= 1.15 + 1e-6


def test_picture_and_depth_move_together(augmentation: Augmentation) -> None:
    """Where the picture shows the disc, the depth map has it too, though off the centre and turned."""
    image, depth = (t.roll((9, 17), (-2, -1)) for t in _disc(radius=14.0))
    for seed in range(5):
        moved_image, moved_depth = augmentation(image, depth, seed)
        for picture, sample in zip(moved_image, moved_depth, strict=True):
            near = torch.unique(sample)[-2]
            level = picture.mean(0)
            bright = level > 0.65 * level.max()  # between the disc and a third of it, however it was recoloured
            disc = sample[0] == near
            assert disc.sum() > 100
            union = (bright | disc).sum().double()
            assert ((bright & disc).sum() / union).item() > 0.85


def test_uncovered_pixels_are_not_measured(augmentation: Augmentation) -> None:
    """What a rotation brings in from outside is black in the picture and 0 in the depth map, and only that."""
    image, depth = torch.full((8, 3, 48, 64), 0.6), torch.full((8, 1, 48, 64), 5.0)
    uncovered = 0
    for seed in range(6):
        moved_image, moved_depth = augmentation(image, depth, seed)
        level = moved_image.mean(1, keepdim=True)
        top = level.amax((1, 2, 3), keepdim=True)
        outside, inside = level == 0, level > 0.99 * top
        assert not moved_depth[outside].any()
        assert moved_depth[inside].min() > 0
        uncovered += int(outside.sum())
    assert uncovered > 20


def test_holes_stay_holes() -> None:
    image, depth = _disc()
    depth = torch.where(depth == NEAR, 0.0, depth)
    for seed in range(4):
        _, moved = Augmentation("strong")(image, depth, seed)
        assert (moved[:, :, 44:52, 44:52] == 0).all()


def _plane(count: int = 4, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """A slanted plane, which interpolation keeps, and its pictures: as bright as it is far."""
    height, width = size
    depth = 2 + 2 * torch.linspace(0, 1, height)[:, None] + 3 * torch.linspace(0, 1, width)
    depth = depth.expand(count, 1, -1, -1).contiguous()
    return (depth / 10).expand(-1, 3, -1, -1).contiguous(), depth


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_teachers_answers_move_like_depth(augmentation: Augmentation, seed: int) -> None:
    """Also their zoom; what a rotation uncovers has no answer, nor has a pixel that mixes with what it uncovers."""
    image, depth = _plane()
    moved = augmentation.augment(image, depth, seed, depth)
    assert moved.taught is not None
    answered = moved.taught > 0
    a_pixel = 0.75 * (2 / 31 + 3 / 47) / 0.85  # nearest neighbour takes depth from at most half a pixel away, each way
    assert ((moved.taught - moved.depth).abs()[answered & (moved.depth > 0)] < a_pixel).all()
    for clean, taught, where in zip(moved.clean, moved.taught, answered, strict=True):
        zooms = (clean[:1] * 10 / taught)[where]
        assert zooms.max() - zooms.min() < 1e-3
        assert 0.85 - 1e-3 < zooms.mean() < 1.15 + 1e-3
    lost = (moved.depth > 0) & ~answered
    assert lost.double().mean() < 0.08, "only along the rim"


def test_answers_change_no_draw(augmentation: Augmentation) -> None:
    image, depth = _ramp()
    plain, taught = augmentation.augment(image, depth, 7), augmentation.augment(image, depth, 7, depth)
    assert plain.taught is None
    assert all(map(torch.equal, plain[:3], taught[:3]))


def test_pixels_without_an_answer_stay_without(augmentation: Augmentation) -> None:
    image, depth = _disc()
    answers = torch.where(depth == NEAR, 0.0, depth)
    for seed in range(4):
        taught = augmentation.augment(image, depth, seed, answers).taught
        assert taught is not None
        assert (taught[:, :, 44:52, 44:52] == 0).all()
        some = taught[taught > 0]
        assert some.min() > FAR / 1.16, "no answer is mixed with a hole"


def test_half_precision_around_it_changes_nothing(augmentation: Augmentation) -> None:
    image, depth = _ramp()
    expected = augmentation(image, depth, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = augmentation(image, depth, 7)
    assert all(map(torch.equal, found, expected))


def test_half_of_the_pictures_are_mirrored() -> None:
    image, depth = _ramp(16)
    image[..., :24], image[..., 24:] = 0.1, 0.8
    flips = 0
    for seed in range(8):
        moved, _ = Augmentation("paper")(image, depth, seed)
        flips += int((moved[:, :, 8:24, 8:16].mean((1, 2, 3)) > moved[:, :, 8:24, 32:40].mean((1, 2, 3))).sum())
    assert 40 <= flips <= 88  # 128 fair coins: 4.2 standard deviations
