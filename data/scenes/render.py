"""Built-in rooms for training without a download: seeded scenes, ray cast in one batch with exact depth.

Each seed becomes a room with furniture, pictures, windows, lamps and a camera (see `rooms`); one ray a pixel is cast
against boxes, balls and drums (upright cylinders). Depth is the analytic z-depth of a pinhole camera.

World axes: x and z span the floor, y points up, the origin is the middle of the floor. Vectors are three planes
of B scenes by N rays, which keeps every elementwise operation contiguous.

Every depth lies within 0.5 .. 10 m without clamping:
* Each room's diagonal is below 10 m, and the camera and everything that it sees are inside.
* A visible point with z-depth below 0.5 m would lie in the frustum's tip, hence within 0.5 sqrt(1 + tan²) of the
  camera, with tan of half the diagonal field of view. `CLEARANCE` exceeds this for the widest field, and the layout
  keeps walls, floor, ceiling and things at least that far away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ...errors import UserError
from .rooms import (
    ACCENT,
    BALL_ROWS,
    BALL_SLOT,
    CEILING,
    DRUM_ROWS,
    FLOOR,
    ITEMS,
    LAMPS,
    PARTS,
    SLOTS,
    WALLS,
    Scene,
    Shapes,
    dot,
    draw_scenes,
    to_local,
    to_world,
)
from .textures import albedo, develop, gather_rows

__all__ = ["render_scenes", "scene_seed"]

Vector = tuple[Tensor, Tensor, Tensor]

_SPLITS = {"train": 0, "val": 1, "test": 2}
_MAX_INDEX = 1 << 40

_SHADOWING = 2  # lamps that cast shadows; the third is a fill light


def _camera_rays(scene: Scene, size: tuple[int, int]) -> Vector:
    """Directions through the pixel centres, row by row, with forward component 1: ray parameter t is z-depth."""
    height, width = size
    device = scene.eye.device
    scale = scene.field / math.hypot(height, width)
    across = (2.0 * torch.arange(width, device=device) + 1.0 - width).repeat(height) * scale
    down = (2.0 * torch.arange(height, device=device) + 1.0 - height).repeat_interleave(width) * scale
    right, up, forward = (axis[..., None] for axis in scene.axes.unbind(1))
    x, y, z = (right[:, i] * across - up[:, i] * down + forward[:, i] for i in range(3))
    return x, y, z


def _box_ends(shapes: Shapes, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper ends (3, B, M) of the shapes' extents along their own axes, seen from the origins (B, 3)."""
    x, z = to_local(shapes.cos, shapes.sin, shapes.x - origin[:, :1], shapes.z - origin[:, 2:])
    centre = torch.stack((x, shapes.y - origin[:, 1:2], z))
    half = torch.stack(shapes[3:6])
    return centre - half, centre + half


def _slab(low: Tensor, high: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters between which a ray is within a slab (Kay and Kajiya, "Ray tracing complex scenes", 1986)."""
    a, b = low * inverse, high * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def _box_span(low: Tensor, high: Tensor, inverse: Vector) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave boxes, given their ends (3, ...) and 1 / ray; for a miss, enter > leave."""
    (in_x, out_x), (in_y, out_y), (in_z, out_z) = map(_slab, low, high, inverse)
    return torch.maximum(torch.maximum(in_x, in_y), in_z), torch.minimum(torch.minimum(out_x, out_y), out_z)


def _room_exit(scene: Scene, ray: Vector) -> tuple[Tensor, Tensor]:
    """Where rays from the eye leave the room: parameter t and row, both (B, N)."""
    low, high = (ends[..., FLOOR, None] for ends in _box_ends(scene.shapes, scene.eye))
    _, t = _box_span(low, high, (1.0 / ray[0], 1.0 / ray[1], 1.0 / ray[2]))
    floor, ceiling = t == low[1] * (1.0 / ray[1]), t == high[1] * (1.0 / ray[1])
    wall = torch.where(t == high[0] * (1.0 / ray[0]), ACCENT, WALLS)
    return t, torch.where(floor, FLOOR, torch.where(ceiling, CEILING, wall))


def _first_hit(scene: Scene, origin: Tensor, ray: Vector, t: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Parameter and row (B, N) of the nearest primitive before t, else t and row; rays start outside of all."""
    t, row = t.clone(), row.clone()
    inverse_y = 1.0 / ray[1]
    low, high = _box_ends(scene.shapes, origin)
    bound_low, bound_high = _box_ends(scene.things, origin)
    for slot in range(BALL_SLOT):
        cos, sin = scene.things.cos[:, slot, None], scene.things.sin[:, slot, None]
        local_x, local_z = to_local(cos, sin, ray[0], ray[2])
        inverse = (1.0 / local_x, inverse_y, 1.0 / local_z)
        enter, leave = _box_span(bound_low[..., slot, None], bound_high[..., slot, None], inverse)
        if slot < ITEMS:
            rows = slice(slot * PARTS, (slot + 1) * PARTS)
            inside = (enter < torch.minimum(leave, t)) & (leave > 0.0)
            _hit_parts((low[..., rows], high[..., rows]), inverse, inside, (t, row), rows.start)
        else:
            _keep_nearer(enter, leave, t, row, ITEMS * (PARTS - 1) + slot)
    for this in (*BALL_ROWS, *DRUM_ROWS):
        at = slice(this, this + 1)
        enter, leave = _round_span(Shapes(*(column[:, at] for column in scene.shapes)), origin, ray, this in BALL_ROWS)
        if this in DRUM_ROWS:
            in_y, out_y = _slab(low[1, :, at], high[1, :, at], inverse_y)
            enter, leave = torch.maximum(enter, in_y), torch.minimum(leave, out_y)
        _keep_nearer(enter, leave, t, row, this)
    return t, row


def _hit_parts(
    ends: tuple[Tensor, Tensor], inverse: Vector, inside: Tensor, hit: tuple[Tensor, Tensor], first: int
) -> None:
    """Update hit (t and row) with the boxes of one piece of furniture, for the few rays `inside` its bounding box."""
    index = inside.flatten().nonzero()[:, 0]
    owner = index // inside.shape[1]
    t, row = hit
    low, high = (end.transpose(1, 2).index_select(2, owner) for end in ends)  # (3, parts, rays)
    x, y, z = (component.flatten()[index] for component in inverse)
    enter, leave = _box_span(low, high, (x, y, z))
    nearest, part = torch.where((enter < leave) & (enter > 0.0), enter, torch.inf).min(0)
    closer = nearest < t.flatten()[index]
    index = index[closer]
    t.view(-1)[index], row.view(-1)[index] = nearest[closer], first + part[closer]


def _round_span(shape: Shapes, origin: Tensor, ray: Vector, ball: bool) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a ball or an endless upright cylinder (Inigo Quilez, "Intersectors")."""
    x, y, z = origin[:, :1] - shape.x, origin[:, 1:2] - shape.y, origin[:, 2:] - shape.z
    a = ray[0] * ray[0] + ray[2] * ray[2]
    b = x * ray[0] + z * ray[2]
    c = x * x + z * z - shape.half_x * shape.half_x
    if ball:
        a, b, c = a + ray[1] * ray[1], b + y * ray[1], c + y * y
    root = (b * b - a * c).clamp(min=0.0).sqrt()  # for a miss, enter == leave
    return (-b - root) / a, (root - b) / a


def _keep_nearer(enter: Tensor, leave: Tensor, t: Tensor, row: Tensor, this: int) -> None:
    """Update t and row where a ray enters a primitive before t."""
    closer = (enter < torch.minimum(leave, t)) & (enter > 0.0)
    torch.where(closer, enter, t, out=t)
    row.masked_fill_(closer, this)


def _surface(shape: Shapes, row: Tensor, point: Vector) -> tuple[Vector, Tensor, Tensor]:
    """Outward unit normal and texture coordinates u, v in metres at points on shapes.

    The texture is projected along the dominant axis (cube mapping) and starts in the shape's lower corner.
    """
    x, z = to_local(shape.cos, shape.sin, point[0] - shape.x, point[2] - shape.z)
    y = point[1] - shape.y
    qx, qy, qz = x / shape.half_x, y / shape.half_y, z / shape.half_z
    along_x = qx.abs() > torch.maximum(qy.abs(), qz.abs())
    along_y = ~along_x & (qy.abs() >= qz.abs())
    along_z = ~along_x & ~along_y
    ball = (row >= BALL_ROWS.start) & (row < BALL_ROWS.stop)
    side = (row >= DRUM_ROWS.start) & (row < DRUM_ROWS.stop) & (qx * qx + qz * qz > qy * qy)
    inward = torch.where(row >= FLOOR, -1.0, 1.0)
    nx = torch.where(ball | side, qx, qx.sign() * along_x * inward)
    ny = torch.where(ball, qy, qy.sign() * (along_y & ~side) * inward)
    nz = torch.where(ball | side, qz, qz.sign() * along_z * inward)
    world_x, world_z = to_world(shape.cos, shape.sin, nx, nz)
    u = torch.where(along_x, z + shape.half_z, x + shape.half_x)
    v = torch.where(along_y, z + shape.half_z, y + shape.half_y)
    return (world_x, ny, world_z), u, v


def _openness(scene: Scene, point: Vector, normal: Vector, row: Tensor) -> Tensor:
    """Ambient occlusion by distance, 0 .. 1 (B, N): the room is darker in corners and near things."""
    shapes, things = scene.shapes, scene.things
    floor = slice(FLOOR, FLOOR + 1)
    gaps = [half[:, floor] - (p - c[:, floor]).abs() for p, c, half in zip(point, shapes[:3], shapes[3:6], strict=True)]
    openness = torch.ones_like(point[0])
    for gap, n in zip(gaps, normal, strict=True):
        near = (1.0 - gap / 0.7).clamp(min=0.0)
        openness = openness * (1.0 - 0.45 * near * near * (1.0 - n.abs()))
    room = row >= FLOOR
    for slot in (*range(ITEMS), *range(BALL_SLOT, SLOTS - 1)):  # without flat things on walls and the ceiling
        c = Shapes(*(column[:, slot, None] for column in things))
        x, z = to_local(c.cos, c.sin, point[0] - c.x, point[2] - c.z)
        gaps = [(x.abs() - c.half_x), ((point[1] - c.y).abs() - c.half_y), (z.abs() - c.half_z)]
        gaps = [gap.clamp(min=0.0) for gap in gaps]
        near = (1.0 - dot(gaps, gaps).sqrt() / 0.35).clamp(min=0.0)
        openness = openness * (1.0 - 0.6 * near * near * room)
    return openness


def _lamp_light(scene: Scene, lamp: int, point: Vector, normal: Vector, view: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """Light of one lamp at the points (B, N): Lambert's cosine, Blinn-Phong's cosine (1977), irradiance if facing it.

    The shadow ray runs from the lamp to the point, because one origin per scene is cheaper than one per ray.
    """
    origin = scene.lamps[:, lamp]
    ray = (point[0] - origin[:, :1], point[1] - origin[:, 1:2], point[2] - origin[:, 2:])
    squared = dot(ray, ray)
    distance = squared.sqrt()
    toward = [-component / distance for component in ray]
    halfway = [a + b for a, b in zip(toward, view, strict=True)]
    glint = (dot(normal, halfway) / (dot(halfway, halfway).sqrt() + 1e-6)).clamp(min=0.0)
    light = 1.0 / (squared + 0.3)
    if lamp < _SHADOWING:
        reach = torch.full_like(distance, 0.998)  # short of the point's own surface
        t, _ = _first_hit(scene, origin, ray, reach, torch.zeros_like(distance, dtype=torch.int64))
        light = light * (t == reach)
    return dot(normal, toward).clamp(min=0.0), glint, light


def _shade(scene: Scene, ray: Vector, t: Tensor, row: Tensor, pixel: Tensor) -> Tensor:
    """Radiance (3, B, N) toward the eye where rays hit `row` at t; `pixel` (B, 1) is a pixel's width at z = 1 m."""
    eye, (dx, dy, dz) = scene.eye, ray
    point = (t * dx + eye[:, :1], t * dy + eye[:, 1:2], t * dz + eye[:, 2:])
    normal, u, v = _surface(gather_rows(scene.shapes, row), row, point)
    length = dot(ray, ray).sqrt()
    view = (-dx / length, -dy / length, -dz / length)
    material = gather_rows(scene.materials, row)
    footprint = t * pixel / dot(normal, view).clamp(min=0.15)
    openness = _openness(scene, point, normal, row)
    diffuse = [scene.ambient * openness * (1.0 + 0.3 * normal[1]) + material.emission] * 3
    glossy = [torch.zeros_like(t)] * 3
    for lamp in range(LAMPS):
        cosine, glint, light = _lamp_light(scene, lamp, point, normal, view)
        glint = glint.square().square().square().square()  # to the 16th, and for polished surfaces the 128th, power
        sharp = glint.square().square().square()
        glint = (glint + (4.0 * sharp - glint) * material.gloss) * material.specular * light
        cosine = cosine * light * (0.4 + 0.6 * openness)
        power = scene.power[:, lamp].unbind(1)
        diffuse = [sum_ + cosine * p[:, None] for sum_, p in zip(diffuse, power, strict=True)]
        glossy = [sum_ + glint * p[:, None] for sum_, p in zip(glossy, power, strict=True)]
    colour = albedo(material, u, v, footprint)
    return torch.stack([c * d + g for c, d, g in zip(colour, diffuse, glossy, strict=True)])


def render_scenes(
    seeds: Sequence[int], size: tuple[int, int], *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Render the rooms of some seeds.

    Args:
        seeds: B non-negative integers of any size, see `scene_seed`.
        size: height and width of the pictures in pixels. A seed gives the same scene and diagonal field of view at
            every size.
        device: where to cast the rays and to return the tensors.

    Returns:
        The pictures, uint8 (B, H, W, 3) RGB, and their depth, float32 (B, H, W): metres along the optical axis,
        0.5 .. 10, exact at each pixel's centre. On one machine a seed's picture and depth are bit-identical in
        every batch; global random generators are not used.

    Raises:
        UserError: no seeds, a seed below zero or a size below one pixel.
    """
    if not seeds or min(seeds) < 0:
        raise UserError(f"Rooms cannot be drawn from the seeds {list(seeds)}: give one or more integers of 0 or above.")
    if min(size) < 1:
        raise UserError(f"A room cannot be drawn at {size[0]} x {size[1]}: give a height and width of 1 or above.")
    scene = draw_scenes(seeds, torch.device(device))
    with _one_thread():
        ray = _camera_rays(scene, size)
        depth, row = _first_hit(scene, scene.eye, ray, *_room_exit(scene, ray))
        radiance = _shade(scene, ray, depth, row, 2.0 * scene.field / math.hypot(*size))
        return develop(radiance, scene.sensor, size), depth.reshape(-1, *size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch's operations on the calling thread.

    A render is thousands of operations of about 50 microseconds. torch's threads wait at a barrier after each one,
    which costs many times the operation when another process uses the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scene_seed(split: Literal["train", "val", "test"], index: int, base_seed: int = 0) -> int:
    """The seed of scene `index` (0 .. 2^40 - 1) of a split.

    Splits are disjoint, because the seed modulo 3 is the split's number. Within a split, (index, base_seed) are the
    digits of the quotient in base 2^40, so no two pairs share a seed.

    Raises:
        UserError: an unknown split, or an index or base seed out of range.
    """
    if split not in _SPLITS:
        raise UserError(f"There is no split {split!r} of the built-in rooms: name one of {', '.join(_SPLITS)}.")
    if not 0 <= index < _MAX_INDEX or base_seed < 0:
        raise UserError(
            f"Scene {index} of base seed {base_seed} does not exist: give an index of 0 to 2^40 - 1 and a base seed of "
            "0 or above."
        )
    return 3 * (base_seed * _MAX_INDEX + index) + _SPLITS[split]
