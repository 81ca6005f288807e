"""The built-in rooms: exact depth, reproducible pictures, disjoint splits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depthkit.data.scenes import rooms
from depthkit.data.scenes.render import render_scenes, scene_seed
from depthkit.data.scenes.scene_dataset import Scenes
from depthkit.errors import UserError

SIZE = (24, 32)


def _points(scene: rooms.Scene, size: tuple[int, int], depth: Tensor) -> Tensor:
    """Unproject with an independent camera: float64 points (B, N, 3)."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    focal = 0.5 * (height**2 + width**2) ** 0.5 / scene.field.double()[:, :, None]
    pixels = torch.stack((columns - width / 2, height / 2 - rows), -1).reshape(1, -1, 2).double() / focal
    rays = torch.cat((pixels, torch.ones_like(pixels[..., :1])), -1) @ scene.axes.double()
    return scene.eye.double()[:, None] + rays * depth.double().reshape(len(depth), -1, 1)


def _distance(scene: rooms.Scene, points: Tensor) -> Tensor:
    """Signed distance (B, N) to the nearest surface, from the distance functions of box, ball and cylinder."""
    shapes = rooms.Shapes(*(column.double()[:, None, :] for column in scene.shapes))
    x, y, z = (points[..., i, None] - centre for i, centre in enumerate(shapes[:3]))
    x, z = shapes.cos * x - shapes.sin * z, shapes.sin * x + shapes.cos * z
    box = torch.stack((x.abs() - shapes.half_x, y.abs() - shapes.half_y, z.abs() - shapes.half_z), -1)
    distance = box.clamp(min=0).norm(dim=-1) + box.amax(-1).clamp(max=0)
    balls, drums = (slice(rows.start, rows.stop) for rows in (rooms.BALL_ROWS, rooms.DRUM_ROWS))
    distance[..., balls] = (x**2 + y**2 + z**2).sqrt()[..., balls] - shapes.half_x[..., balls]
    tube = torch.stack(((x**2 + z**2).sqrt() - shapes.half_x, box[..., 1]), -1)[..., drums, :]
    distance[..., drums] = tube.clamp(min=0).norm(dim=-1) + tube.amax(-1).clamp(max=0)
    distance[..., rooms.FLOOR :] *= -1  # the room is seen from inside
    nearest: Tensor = distance.amin(-1)
    return nearest


def test_depth_agrees_with_sphere_tracing() -> None:
    """Marching by an independent distance function stops where the analytic depth says."""
    seeds = range(8)
    size = (15, 20)
    scene = rooms.draw_scenes(seeds, torch.device("cpu"))
    _, depth = render_scenes(seeds, size)
    end = _points(scene, size, depth)
    eye = scene.eye.double()[:, None]
    length = (end - eye).norm(dim=-1)
    ray = (end - eye) / length[..., None]
    travelled = torch.zeros_like(length)
    for _ in range(60):
        travelled += _distance(scene, eye + travelled[..., None] * ray)
    assert _distance(scene, end).abs().max() < 1e-4  # float32, near the rims of round things
    assert (travelled < length + 1e-4).all()
    # Rays that graze an edge converge slowly; they must be few, and short of the hit rather than past it.
    assert ((travelled - length).abs() < 1e-3).double().mean() > 0.995


def test_room_and_clearance_bound_the_depth() -> None:
    """The two facts from which the docstring derives 0.5 .. 10 m."""
    room = torch.tensor(rooms.ROOM_MOST)
    assert room.norm() < 10
    assert 0.5 * (1 + (5 / 3 * rooms.HALF_FIELD[1]) ** 2) ** 0.5 < rooms.CLEARANCE
    for kind in rooms.KINDS:
        for x0, x1, y0, y1, z0, z1, _ in kind.parts:
            assert -0.5 <= x0 < x1 <= 0.5
            assert 0 <= y0 < y1 <= 1
            assert 0 <= z0 < z1 <= 1
    scene = rooms.draw_scenes(range(400), torch.device("cpu"))
    assert _distance(scene, scene.eye.double()[:, None]).min() > rooms.CLEARANCE - 1e-6


def test_range_and_variety() -> None:
    images, depth = render_scenes(range(64), SIZE)
    assert images.shape == (64, *SIZE, 3)
    assert images.dtype == torch.uint8
    assert depth.shape == (64, *SIZE)
    assert depth.dtype == torch.float32
    assert bool(torch.isfinite(depth).all())
    assert depth.min() >= 0.5
    assert depth.max() <= 10
    medians = depth.flatten(1).median(1).values
    assert medians.std() > 0.5
    assert medians.max() / medians.min() > 2
    means = images.double().mean((1, 2, 3))
    assert means.min() > 40
    assert means.max() < 220
    assert images.double().flatten(1).std(1).min() > 5


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (31, 17)])
def test_every_shape_of_picture_keeps_the_range(size: tuple[int, int]) -> None:
    images, depth = render_scenes(range(32), size)
    assert images.shape == (32, *size, 3)
    assert depth.min() >= 0.5
    assert depth.max() <= 10


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (64, 64), (90, 160)])
def test_focal_length_is_that_of_the_middle_field(size: tuple[int, int]) -> None:
    scene = rooms.draw_scenes(range(256), torch.device("cpu"))
    diagonal = 0.5 * (size[0] ** 2 + size[1] ** 2) ** 0.5 / scene.field  # focal length in pixels, as in `_points`
    drawn, focal = diagonal / size[1], Scenes("val", size=size).focal
    assert focal is not None
    assert drawn.mean().item() == pytest.approx(focal, rel=0.01)
    assert 0.93 * focal < drawn.min() < drawn.max() < 1.08 * focal


@pytest.mark.parametrize("size", [(24, 32), (29, 37), (96, 128)])
def test_a_seed_is_one_picture_in_every_batch(size: tuple[int, int]) -> None:
    seeds = [11, 3, 2**70, 5, 8]
    images, depth = render_scenes(seeds, size)
    for i, seed in enumerate(seeds):
        image, alone = render_scenes([seed], size)
        assert torch.equal(image[0], images[i])
        assert torch.equal(alone[0], depth[i])
    assert len({image.numpy().tobytes() for image in images}) == len(seeds)


def test_one_scene_at_every_size() -> None:
    """At three times the size every third pixel centre is a pixel centre of the small picture."""
    small, small_depth = render_scenes(range(8), SIZE)
    large, large_depth = render_scenes(range(8), (3 * SIZE[0], 3 * SIZE[1]))
    difference = (large_depth[:, 1::3, 1::3] - small_depth).abs()
    assert (difference < 1e-4).double().mean() > 0.999  # rounding may decide a ray along an edge either way
    pooled = large.double().reshape(8, SIZE[0], 3, SIZE[1], 3, 3).mean((2, 4))
    assert (pooled - small.double()).abs().mean() < 12


def test_global_state_is_left_alone() -> None:
    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(), torch.get_num_threads()

    before = state()
    render_scenes([1, 2], SIZE)
    assert state() == before


_KEYS = st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 2**40 - 1), st.integers(0, 2**64))


@settings(max_examples=200, deadline=None)
@given(_KEYS, _KEYS)
def test_seeds_are_unique(a: tuple[str, int, int], b: tuple[str, int, int]) -> None:
    assert (scene_seed(*a) == scene_seed(*b)) == (a == b)  # type: ignore[arg-type]
    assert scene_seed(*a) >= 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("seeds", "size"), [([], SIZE), ([-1], SIZE), ([1], (0, 4)), ([1], (4, -1))])
def test_bad_requests_are_refused(seeds: list[int], size: tuple[int, int]) -> None:
    with pytest.raises(UserError):
        render_scenes(seeds, size)


@pytest.mark.parametrize(("split", "index", "base"), [("dev", 0, 0), ("val", -1, 0), ("val", 2**40, 0), ("val", 0, -1)])
def test_bad_seed_requests_are_refused(split: str, index: int, base: int) -> None:
    with pytest.raises(UserError):
        scene_seed(split, index, base)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_casts_the_same_depth() -> None:
    images, depth = render_scenes(range(4), SIZE)
    gpu_images, gpu_depth = render_scenes(range(4), SIZE, device="cuda")
    assert ((gpu_depth.cpu() - depth).abs() < 1e-4).double().mean() > 0.999
    assert (gpu_images.cpu().double() - images.double()).abs().mean() < 1
