"""Built-in rooms for training without a download: seeded scenes, ray cast in one batch with exact depth.

Each seed becomes a room with furniture, pictures, windows, lamps and a camera; one ray a pixel is cast against
boxes, balls and drums (upright cylinders). Depth is the analytic z-depth of a pinhole camera.

World axes: x and z span the floor, y points up, the origin is the middle of the floor. Vectors are three planes
of B scenes by N rays, which keeps every elementwise operation contiguous.

Why every depth lies within 0.5 .. 10 m, with no clamp:
* The drawn sizes keep each room's diagonal below 10 m, and both the camera and all it sees are inside.
* A visible point with z-depth below 0.5 m would lie in the frustum's tip, hence within 0.5 sqrt(1 + tan²) of the
  camera, tan being that of half the diagonal field of view. `_CLEARANCE` exceeds this for the widest field, and
  the layout keeps walls, floor, ceiling and things at least that far away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import UserError
from .textures import Draws, Materials, Sensor, albedo, develop, draw_materials, draw_sensor, gather_rows, preset_rows

__all__ = ["render_scenes", "scene_seed"]

Vector = tuple[Tensor, Tensor, Tensor]
Part = tuple[float, float, float, float, float, float, int]

_SPLITS = {"train": 0, "val": 1, "test": 2}
_MAX_INDEX = 1 << 40

_ROOM_LEAST, _ROOM_MOST = (2.6, 2.35, 3.0), (6.0, 3.1, 7.2)  # width, height, depth: a diagonal of 9.87 m at most
_HALF_FIELD = (0.42, 0.48)  # tan of half the vertical field of a 4:3 picture: 45.6 .. 51.3 degrees
_CLEARANCE = 0.65  # metres; above 0.5 * sqrt(1 + (5 / 3 * 0.48)²) = 0.6403
_FLAT = 0.06  # thickness of what hangs on a wall or under the ceiling

_PARTS, _CANDIDATES = 6, 4
_LAMPS, _SHADOWING = 3, 2  # the third lamp is a fill light and casts no shadow
_BURIED = -50.0  # height of what a scene does not have: under the floor, where no ray gets


class Thing(NamedTuple):
    """A kind of thing: ranges of its size in metres, where it stands, what it looks like, the boxes it is made of.

    A part is (x0, x1, y0, y1, z0, z1, look) in units of the thing's width, height and depth: x in -0.5 .. 0.5,
    y in 0 .. 1, z in 0 .. 1 from its back to its front.
    """

    width: tuple[float, float]
    height: tuple[float, float]
    depth: tuple[float, float]
    at_wall: float  # probability that its back stands at a wall
    base: float  # height above the floor; below zero: from the ceiling down
    looks: tuple[tuple[str, str, str, str], tuple[str, str, str, str]]  # presets of look 0 and look 1
    parts: tuple[Part, ...] = ()


def _legs(top: float, inset: float, thick: float) -> tuple[Part, ...]:
    ends = ((inset, inset + thick), (1.0 - inset - thick, 1.0 - inset))
    return tuple((x0 - 0.5, x1 - 0.5, 0.0, top, z0, z1, 0) for x0, x1 in ends for z0, z1 in ends)


_WOOD, _CLOTH = ("wood", "wood", "paint", "colour"), ("fabric", "fabric", "colour", "carpet")
_BOARD, _DOORS = ("wood", "wood", "white", "marble"), ("panels", "panels", "wood", "colour")
_BOX, _DRUM = ("panels", "colour", "wood", "fabric"), ("colour", "stripes", "wood", "white")
_WALL, _LINEN = ("paint", "plaster", "white", "bricks"), ("fabric", "stripes", "white", "checker")
_BALL = ("colour", "fabric", "checker", "marble")
_FURNITURE = (
    Thing((0.3, 0.8), (0.25, 0.8), (0.3, 0.7), 0.4, 0, (_BOX, _BOX), ((-0.5, 0.5, 0, 1, 0, 1, 0),)),  # chest
    Thing((0.3, 1.2), (3.2, 3.2), (0.25, 0.6), 1, 0, (_WALL, _WALL), ((-0.5, 0.5, 0, 1, 0, 1, 0),)),  # pillar
    Thing((0.8, 1.8), (0.7, 1.95), (0.4, 0.6), 1, 0, (_DOORS, _WOOD), (
        (-0.48, 0.48, 0, 0.06, 0, 0.92, 1), (-0.49, 0.49, 0.06, 0.97, 0, 0.97, 0), (-0.5, 0.5, 0.97, 1, 0, 1, 1),
    )),  # cupboard
    Thing((0.8, 1.7), (0.6, 1.05), (0.6, 0.95), 0.35, 0, (_WOOD, _BOARD), (
        *_legs(0.69, 0.03, 0.07), (-0.5, 0.5, 0.69, 0.74, 0, 1, 1), (-0.3, -0.05, 0.74, 1, 0.3, 0.7, 0),
    )),  # table with a box on it
    Thing((1.0, 1.6), (1.1, 1.25), (0.55, 0.75), 0.9, 0, (_WOOD, _DOORS), (
        (-0.49, -0.45, 0, 0.6, 0, 1, 0), (0.15, 0.49, 0, 0.6, 0.05, 0.97, 1), (-0.45, 0.15, 0.25, 0.6, 0, 0.04, 0),
        (-0.5, 0.5, 0.6, 0.63, 0, 1, 0), (-0.25, 0.2, 0.68, 1, 0.3, 0.35, 1), (-0.05, 0, 0.63, 0.68, 0.25, 0.4, 1),
    )),  # desk with a screen
    Thing((0.7, 1.3), (1.0, 1.95), (0.25, 0.38), 1, 0, (_WOOD, ("books",) * 4), (
        (-0.5, -0.46, 0, 1, 0, 1, 0), (0.46, 0.5, 0, 1, 0, 1, 0), (-0.46, 0.46, 0, 0.06, 0, 1, 0),
        (-0.46, 0.46, 0.48, 0.51, 0, 1, 0), (-0.46, 0.46, 0.97, 1, 0, 1, 0), (-0.46, 0.3, 0.51, 0.8, 0, 0.75, 1),
    )),  # shelf
    Thing((0.42, 0.52), (0.8, 1.0), (0.42, 0.52), 0.2, 0, (_WOOD, _CLOTH), (
        *_legs(0.44, 0, 0.1), (-0.5, 0.5, 0.44, 0.49, 0, 1, 1), (-0.5, 0.5, 0.49, 1, 0, 0.1, 1),
    )),  # chair
    Thing((1.3, 2.1), (0.7, 0.9), (0.75, 0.95), 0.9, 0, (_CLOTH, _CLOTH), (
        (-0.5, 0.5, 0.06, 0.4, 0, 1, 0), (-0.5, 0.5, 0.4, 1, 0, 0.25, 0), (-0.5, -0.39, 0.06, 0.7, 0, 1, 0),
        (0.39, 0.5, 0.06, 0.7, 0, 1, 0), (-0.38, -0.01, 0.4, 0.55, 0.25, 1, 1), (0.01, 0.38, 0.4, 0.55, 0.25, 1, 1),
    )),  # sofa
    Thing((0.95, 1.7), (0.8, 1.1), (1.9, 2.05), 1, 0, (_WOOD, _LINEN), (
        (-0.5, 0.5, 0, 0.28, 0, 1, 0), (-0.5, 0.5, 0, 1, 0, 0.03, 0), (-0.48, 0.48, 0.28, 0.5, 0.03, 0.99, 1),
        (-0.42, -0.04, 0.5, 0.62, 0.06, 0.25, 1), (0.04, 0.42, 0.5, 0.62, 0.06, 0.25, 1),
    )),  # bed
)  # fmt: skip
_PLATES = (
    Thing((0.3, 1.1), (0.3, 0.8), (_FLAT, _FLAT), 1, 1.25, (("picture",) * 4, ("picture",) * 4)),
    Thing((0.8, 1.8), (0.9, 1.3), (_FLAT, _FLAT), 1, 0.95, (("window",) * 4, ("window",) * 4)),
    Thing((0.8, 0.95), (2.0, 2.1), (_FLAT, _FLAT), 1, 0, (("door",) * 4, ("door",) * 4)),
)
_BALLS = (Thing((0.16, 0.6), (0.16, 0.6), (0.16, 0.6), 0.3, 0, (_BALL, _BALL)),)
_DRUMS = (
    Thing((0.2, 0.5), (0.25, 0.8), (0.2, 0.5), 0.6, 0, (_DRUM, _DRUM)),
    Thing((0.15, 0.35), (1.0, 3.2), (0.15, 0.35), 0.7, 0, (_DRUM, _WALL)),
)
_DISCS = (Thing((0.3, 0.6), (_FLAT, _FLAT), (0.3, 0.6), 0, -_FLAT, (("lamp",) * 4, ("lamp",) * 4)),)
_KINDS = (*_FURNITURE, *_PLATES, *_BALLS, *_DRUMS, *_DISCS)

# A scene's things are a fixed list of slots. Rows of shapes: the parts of the furniture, slot by slot, then one
# row for each other slot, then the room as floor, ceiling, walls and accent wall.
_POOLS = [_FURNITURE] * 7 + [_PLATES] * 3 + [_BALLS] * 3 + [_DRUMS] * 3 + [_DISCS]
_SLOTS, _ITEMS = len(_POOLS), _POOLS.count(_FURNITURE)
_BALL_SLOT, _DRUM_SLOT = _POOLS.index(_BALLS), _POOLS.index(_DRUMS)
_BALL_ROWS = range(_ITEMS * _PARTS + 3, _ITEMS * _PARTS + 6)
_DRUM_ROWS = range(_BALL_ROWS.stop, _BALL_ROWS.stop + 4)
_FLOOR, _CEILING, _WALLS, _ACCENT = range(_DRUM_ROWS.stop, _DRUM_ROWS.stop + 4)

_RANGES = torch.tensor([(*k.width, *k.height, *k.depth, k.at_wall, k.base) for k in _KINDS]).double()
_LOOKS = torch.stack([preset_rows(kind.looks) for kind in _KINDS])
_NO_PART = (0.0,) * 6 + (0, 0)
_PART_TABLE = torch.tensor([
    [(*part, 1) for part in k.parts] + [_NO_PART] * (_PARTS - len(k.parts)) for k in _FURNITURE
]).double()  # fmt: skip
_ROOM_LOOKS = preset_rows((
    ("planks", "planks", "carpet", "tiles", "checker", "plaster"),
    ("white", "white", "white", "ceiling", "paint", "white"),
    ("paint", "paint", "plaster", "white", "stripes", "tiles"),
    ("paint", "colour", "stripes", "bricks", "paint", "planks"),
))  # fmt: skip
_QUARTER = torch.tensor([(1, 0), (0, 1), (-1, 0), (0, -1)]).double()  # cos, sin of quarter turns


class Shapes(NamedTuple):
    """Upright primitives (B, M): centre, half extents, yaw. A ball or drum has its radius in half_x."""

    x: Tensor
    y: Tensor
    z: Tensor
    half_x: Tensor
    half_y: Tensor
    half_z: Tensor
    cos: Tensor
    sin: Tensor


class Scene(NamedTuple):
    """A batch of rooms, each with its camera."""

    eye: Tensor  # (B, 3)
    axes: Tensor  # (B, 3, 3): rows right, up, forward, orthonormal
    field: Tensor  # (B, 1): tan of half the diagonal field of view
    sensor: Sensor
    shapes: Shapes  # (B, _ACCENT + 1)
    materials: Materials  # likewise
    things: Shapes  # (B, _SLOTS): bounding boxes
    lamps: Tensor  # (B, _LAMPS, 3)
    power: Tensor  # (B, _LAMPS, 3): radiant intensity in red, green, blue
    ambient: Tensor  # (B, 1)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vector: Tensor) -> Tensor:
    return vector / _dot(vector.unbind(1), vector.unbind(1)).sqrt()[:, None]


def _to_local(cos: Tensor, sin: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return cos * x - sin * z, sin * x + cos * z


def _to_world(cos: Tensor, sin: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return cos * x + sin * z, cos * z - sin * x


def _draw_camera(draws: Draws, room: Tensor) -> tuple[Tensor, Tensor]:
    """Eye (B, 3) and axes (B, 3, 3) of a camera that stands clear of the walls and looks across the room."""
    margin = _CLEARANCE + _FLAT + 0.01
    reach = 0.5 * room - margin
    x, z = (reach[:, axis] * draws.uniform(-1.0, 1.0) for axis in (0, 2))
    y = draws.uniform(margin, (room[:, 1] - margin).clamp(max=2.2))
    aim_x, aim_z = (0.25 * room[:, axis] * draws.uniform(-1.0, 1.0) for axis in (0, 2))
    aim_x, aim_z = aim_x - 0.8 * x, aim_z - 0.8 * z
    level = (aim_x * aim_x + aim_z * aim_z).sqrt() + 1e-9
    pitch = draws.uniform(-0.35, 0.2) - 0.35 * (y - 1.0)  # the higher the eye, the more it looks down
    forward = _unit(torch.stack((aim_x / level, pitch, aim_z / level), 1))
    roll = draws.uniform(-0.07, 0.07)
    lean = torch.stack((roll * forward[:, 2], torch.ones_like(roll), -roll * forward[:, 0]), 1)
    up = _unit(lean - forward * _dot(lean.unbind(1), forward.unbind(1))[:, None])  # Gram-Schmidt
    ux, uy, uz, fx, fy, fz = *up.unbind(1), *forward.unbind(1)
    right = torch.stack((uy * fz - uz * fy, uz * fx - ux * fz, ux * fy - uy * fx), 1)
    return torch.stack((x, y, z), 1), torch.stack((right, up, forward), 1)


def _draw_things(draws: Draws, room: Tensor, eye: Tensor, forward: Tensor) -> tuple[Shapes, Tensor]:
    """Bounding boxes of the things and their kinds (B, _SLOTS); what finds no free place is buried.

    A thing takes the best of a few candidate places: clear of the camera, clear of the things before it, and
    in front of the camera rather than behind it.
    """
    first = torch.tensor([_KINDS.index(pool[0]) for pool in _POOLS])
    kind = first + draws.uniform(0.0, torch.tensor([len(pool) for pool in _POOLS]), _SLOTS).long()
    least, most = _RANGES[kind][..., :6].reshape(-1, _SLOTS, 3, 2).unbind(-1)
    share = draws.uniform(0.0, 1.0, _SLOTS, 3)
    share[:, _BALL_SLOT:, 2] = share[:, _BALL_SLOT:, 0]  # round things are as deep as wide
    share[:, _BALL_SLOT:_DRUM_SLOT, 1] = share[:, _BALL_SLOT:_DRUM_SLOT, 0]
    half = (0.5 * (least + (most - least) * share))[..., None, :].expand(-1, -1, _CANDIDATES, -1)
    half_x, half_y, half_z = half.unbind(-1)
    at_wall, base = _RANGES[kind][..., None, 6:].unbind(-1)
    y = half_y + torch.where(base < 0, base + room[:, 1, None, None], base)
    x, z, cos, sin = _draw_places(draws, room, half_x, half_z, draws.chance(at_wall, _SLOTS, 1))

    eye_x, eye_y, eye_z = (c[:, None, None] for c in eye.unbind(1))
    local_x, local_z = _to_local(cos, sin, eye_x - x, eye_z - z)
    gap = (torch.stack((local_x, eye_y - y, local_z), -1).abs() - half).clamp(min=0.0).unbind(-1)
    clear = _dot(gap, gap) > _CLEARANCE**2
    ahead = forward[:, 0, None, None] * (x - eye_x) + forward[:, 2, None, None] * (z - eye_z) > 0.8
    wish = clear * (1.0 + ahead - 0.1 * torch.arange(_CANDIDATES))

    extent_x, extent_z = ((cos * half_x).abs() + (sin * half_z).abs(), (sin * half_x).abs() + (cos * half_z).abs())
    places = torch.stack((x, y, z, extent_x, half_y, extent_z, cos, sin), -1)  # (B, slots, candidates, 8)
    present = draws.chance(draws.uniform(0.6, 1.0, 1), _SLOTS)
    chosen = places[:, :, 0].clone()
    for slot in range(_SLOTS):
        offer, taken = places[:, slot, :, None], chosen[:, None, :slot]
        apart = ((offer[..., :3] - taken[..., :3]).abs() > offer[..., 3:6] + taken[..., 3:6]).any(-1).all(-1)
        score, best = (wish[:, slot] * apart).max(1)
        chosen[:, slot] = places[:, slot].take_along_dim(best[:, None, None], 1)[:, 0]
        chosen[:, slot, 1] = torch.where(present[:, slot] & (score > 0), chosen[:, slot, 1], _BURIED)
    chosen[..., 3:6] = half[:, :, 0]
    return Shapes(*chosen.unbind(-1)), kind


def _draw_places(draws: Draws, room: Tensor, half_x: Tensor, half_z: Tensor, at_wall: Tensor) -> Sequence[Tensor]:
    """Candidate places x, z and yaws cos, sin, each (B, slots, candidates): back to a wall, or anywhere."""
    shape = half_x.shape[1:]
    quarter = draws.pick(4, *shape)
    cos, sin = _QUARTER[quarter].unbind(-1)
    half_width, half_depth = 0.5 * room[:, 0, None, None], 0.5 * room[:, 2, None, None]
    sideways = quarter % 2 == 1
    across = torch.where(sideways, half_depth, half_width)
    away = torch.where(sideways, half_width, half_depth)
    radius = (half_x.square() + half_z.square()).sqrt()
    x = (across - torch.where(at_wall, half_x, radius)).clamp(min=0.0) * draws.uniform(-1.0, 1.0, *shape)
    free = (away - radius).clamp(min=0.0) * draws.uniform(-1.0, 1.0, *shape)
    x, z = _to_world(cos, sin, x, torch.where(at_wall, half_z - away, free))
    turn = draws.uniform(-0.414, 0.414, *shape) * ~at_wall  # tan of half the yaw: +-45 degrees
    turn_cos, turn_sin = (1.0 - turn * turn) / (1.0 + turn * turn), 2.0 * turn / (1.0 + turn * turn)
    return x, z, cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin


def _build_shapes(things: Shapes, kind: Tensor, room: Tensor) -> Shapes:
    """Take the furniture apart into boxes and add the room, once for each of its four looks."""
    x, y, z, half_x, half_y, half_z, cos, sin = (column[:, :_ITEMS, None] for column in things)
    x0, x1, y0, y1, z0, z1, _, exists = _PART_TABLE[kind[:, :_ITEMS]].unbind(-1)
    part_x, part_z = _to_world(cos, sin, (x0 + x1) * half_x, (z0 + z1 - 1.0) * half_z)
    part_y = torch.where(exists > 0, y + (y0 + y1 - 1.0) * half_y, _BURIED)
    size = ((x1 - x0) * half_x, (y1 - y0) * half_y, (z1 - z0) * half_z)
    yaw = (cos.expand_as(part_x), sin.expand_as(part_x))
    parts = (x + part_x, part_y, z + part_z, *size, *yaw)
    half, zero = 0.5 * room, torch.zeros_like(room[:, 0])
    shell = (zero, half[:, 1], zero, *half.unbind(1), zero + 1.0, zero)
    columns = zip(parts, things, shell, strict=True)
    return Shapes(*(torch.cat((p.flatten(1), t[:, _ITEMS:], r[:, None].expand(-1, 4)), 1) for p, t, r in columns))


def _draw_materials(draws: Draws, things: Shapes, kind: Tensor, room: Tensor) -> Materials:
    """Two looks a thing and four for the room, spread over the rows of shapes."""
    look = _LOOKS[kind].take_along_dim(draws.pick(_LOOKS.shape[-1], _SLOTS, 2)[..., None], -1).flatten(1)
    room_look = _ROOM_LOOKS.expand(len(look), -1, -1)
    room_look = room_look.take_along_dim(draws.pick(_ROOM_LOOKS.shape[-1], 4)[..., None], -1)[..., 0]
    width, height = (
        torch.cat((2.0 * half.repeat_interleave(2, 1), room[:, :1].expand(-1, 4)), 1)
        for half in (things.half_x, things.half_y)
    )
    materials = draw_materials(draws, torch.cat((look, room_look), 1), width, height)
    slots = 2 * torch.arange(_SLOTS + 2).expand(len(look), -1)
    parts = slots[:, :_ITEMS, None] + _PART_TABLE[kind[:, :_ITEMS]][..., 6].long()
    shell = 2 * _SLOTS + torch.arange(4).expand(len(look), -1)
    return gather_rows(materials, torch.cat((parts.flatten(1), slots[:, _ITEMS:_SLOTS], shell), 1))


def _draw_scenes(seeds: Sequence[int], device: torch.device) -> Scene:
    """Lay out the rooms on the CPU in float64 and hand them over in float32."""
    draws = Draws(seeds)
    room = torch.stack([draws.uniform(*ends) for ends in zip(_ROOM_LEAST, _ROOM_MOST, strict=True)], 1)
    eye, axes = _draw_camera(draws, room)
    things, kind = _draw_things(draws, room, eye, axes[:, 2])
    lamps = draws.uniform(-0.4, 0.4, _LAMPS, 3) * room[:, None]
    lamps[:, 0, 0], lamps[:, 0, 2] = things.x[:, -1], things.z[:, -1]  # the first lamp hangs below the disc
    lamps[:, :, 1] = room[:, None, 1] - draws.uniform(0.15, torch.tensor([0.3, 0.8, 1.2]), _LAMPS)
    lit = torch.cat((draws.chance(1.1, 1), draws.chance(0.5, _LAMPS - 1)), 1)
    warmth = draws.uniform(-0.15, 0.3, _LAMPS)
    colour = torch.stack((1.0 + warmth, torch.ones_like(warmth), 1.0 - warmth), -1)
    scene = Scene(
        eye=eye,
        axes=axes,
        field=draws.uniform(*_HALF_FIELD, 1) * (5.0 / 3.0),
        sensor=draw_sensor(draws),
        shapes=_build_shapes(things, kind, room),
        materials=_draw_materials(draws, things, kind, room),
        things=things,
        lamps=lamps,
        power=(draws.uniform(0.3, 1.0, _LAMPS) * lit)[..., None] * colour,
        ambient=draws.uniform(0.06, 0.16, 1),
    )
    moved: Scene = tree_map_only(Tensor, lambda column: column.to(device, torch.float32), scene)
    return moved


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
    x, z = _to_local(shapes.cos, shapes.sin, shapes.x - origin[:, :1], shapes.z - origin[:, 2:])
    centre = torch.stack((x, shapes.y - origin[:, 1:2], z))
    half = torch.stack(shapes[3:6])
    return centre - half, centre + half


def _slab(low: Tensor, high: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters between which a ray is within a slab (Kay and Kajiya, "Ray tracing complex scenes", 1986)."""
    a, b = low * inverse, high * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def _box_span(low: Tensor, high: Tensor, inverse: Vector) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave boxes, given their ends (3, ...) and 1 / ray; on a miss they leave first."""
    (in_x, out_x), (in_y, out_y), (in_z, out_z) = map(_slab, low, high, inverse)
    return torch.maximum(torch.maximum(in_x, in_y), in_z), torch.minimum(torch.minimum(out_x, out_y), out_z)


def _room_exit(scene: Scene, ray: Vector) -> tuple[Tensor, Tensor]:
    """Where rays from the eye leave the room: parameter t and row, both (B, N)."""
    low, high = (ends[..., _FLOOR, None] for ends in _box_ends(scene.shapes, scene.eye))
    _, t = _box_span(low, high, (1.0 / ray[0], 1.0 / ray[1], 1.0 / ray[2]))
    floor, ceiling = t == low[1] * (1.0 / ray[1]), t == high[1] * (1.0 / ray[1])
    wall = torch.where(t == high[0] * (1.0 / ray[0]), _ACCENT, _WALLS)
    return t, torch.where(floor, _FLOOR, torch.where(ceiling, _CEILING, wall))


def _first_hit(scene: Scene, origin: Tensor, ray: Vector, t: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Parameter and row (B, N) of the nearest primitive before t on rays from outside all; else those given."""
    t, row = t.clone(), row.clone()
    inverse_y = 1.0 / ray[1]
    low, high = _box_ends(scene.shapes, origin)
    bound_low, bound_high = _box_ends(scene.things, origin)
    for slot in range(_BALL_SLOT):
        cos, sin = scene.things.cos[:, slot, None], scene.things.sin[:, slot, None]
        local_x, local_z = _to_local(cos, sin, ray[0], ray[2])
        inverse = (1.0 / local_x, inverse_y, 1.0 / local_z)
        enter, leave = _box_span(bound_low[..., slot, None], bound_high[..., slot, None], inverse)
        if slot < _ITEMS:
            rows = slice(slot * _PARTS, (slot + 1) * _PARTS)
            inside = (enter < torch.minimum(leave, t)) & (leave > 0.0)
            _hit_parts((low[..., rows], high[..., rows]), inverse, inside, (t, row), rows.start)
        else:
            _keep_nearer(enter, leave, t, row, _ITEMS * (_PARTS - 1) + slot)
    for this in (*_BALL_ROWS, *_DRUM_ROWS):
        at = slice(this, this + 1)
        enter, leave = _round_span(Shapes(*(column[:, at] for column in scene.shapes)), origin, ray, this in _BALL_ROWS)
        if this in _DRUM_ROWS:
            in_y, out_y = _slab(low[1, :, at], high[1, :, at], inverse_y)
            enter, leave = torch.maximum(enter, in_y), torch.minimum(leave, out_y)
        _keep_nearer(enter, leave, t, row, this)
    return t, row


def _hit_parts(
    ends: tuple[Tensor, Tensor], inverse: Vector, inside: Tensor, hit: tuple[Tensor, Tensor], first: int
) -> None:
    """Update hit (t and row) by the boxes of one piece of furniture, for the few rays `inside` its bounding box."""
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
    root = (b * b - a * c).clamp(min=0.0).sqrt()  # a miss enters and leaves at once
    return (-b - root) / a, (root - b) / a


def _keep_nearer(enter: Tensor, leave: Tensor, t: Tensor, row: Tensor, this: int) -> None:
    """Update t and row where a primitive is entered before t."""
    closer = (enter < torch.minimum(leave, t)) & (enter > 0.0)
    torch.where(closer, enter, t, out=t)
    row.masked_fill_(closer, this)


def _surface(shape: Shapes, row: Tensor, point: Vector) -> tuple[Vector, Tensor, Tensor]:
    """Outward unit normal and texture coordinates u, v in metres at points on the shapes found for them.

    The texture is projected along the dominant axis (cube mapping) and starts in the shape's lower corner.
    """
    x, z = _to_local(shape.cos, shape.sin, point[0] - shape.x, point[2] - shape.z)
    y = point[1] - shape.y
    qx, qy, qz = x / shape.half_x, y / shape.half_y, z / shape.half_z
    along_x = qx.abs() > torch.maximum(qy.abs(), qz.abs())
    along_y = ~along_x & (qy.abs() >= qz.abs())
    along_z = ~along_x & ~along_y
    ball = (row >= _BALL_ROWS.start) & (row < _BALL_ROWS.stop)
    side = (row >= _DRUM_ROWS.start) & (row < _DRUM_ROWS.stop) & (qx * qx + qz * qz > qy * qy)
    inward = torch.where(row >= _FLOOR, -1.0, 1.0)
    nx = torch.where(ball | side, qx, qx.sign() * along_x * inward)
    ny = torch.where(ball, qy, qy.sign() * (along_y & ~side) * inward)
    nz = torch.where(ball | side, qz, qz.sign() * along_z * inward)
    world_x, world_z = _to_world(shape.cos, shape.sin, nx, nz)
    u = torch.where(along_x, z + shape.half_z, x + shape.half_x)
    v = torch.where(along_y, z + shape.half_z, y + shape.half_y)
    return (world_x, ny, world_z), u, v


def _openness(scene: Scene, point: Vector, normal: Vector, row: Tensor) -> Tensor:
    """Ambient occlusion by distance, 0 .. 1 (B, N): the room's corners darken, and so does what is near a thing."""
    shapes, things = scene.shapes, scene.things
    floor = slice(_FLOOR, _FLOOR + 1)
    gaps = [half[:, floor] - (p - c[:, floor]).abs() for p, c, half in zip(point, shapes[:3], shapes[3:6], strict=True)]
    openness = torch.ones_like(point[0])
    for gap, n in zip(gaps, normal, strict=True):
        near = (1.0 - gap / 0.7).clamp(min=0.0)
        openness = openness * (1.0 - 0.45 * near * near * (1.0 - n.abs()))
    room = row >= _FLOOR
    for slot in (*range(_ITEMS), *range(_BALL_SLOT, _SLOTS - 1)):  # not what hangs flat on a wall or the ceiling
        c = Shapes(*(column[:, slot, None] for column in things))
        x, z = _to_local(c.cos, c.sin, point[0] - c.x, point[2] - c.z)
        gaps = [(x.abs() - c.half_x), ((point[1] - c.y).abs() - c.half_y), (z.abs() - c.half_z)]
        gaps = [gap.clamp(min=0.0) for gap in gaps]
        near = (1.0 - _dot(gaps, gaps).sqrt() / 0.35).clamp(min=0.0)
        openness = openness * (1.0 - 0.6 * near * near * room)
    return openness


def _lamp_light(scene: Scene, lamp: int, point: Vector, normal: Vector, view: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """Light of one lamp at the points (B, N): Lambert's cosine, Blinn-Phong's cosine (1977), irradiance if facing it.

    The shadow ray runs from the lamp to the point: one origin a scene is cheaper than one a ray.
    """
    origin = scene.lamps[:, lamp]
    ray = (point[0] - origin[:, :1], point[1] - origin[:, 1:2], point[2] - origin[:, 2:])
    squared = _dot(ray, ray)
    distance = squared.sqrt()
    toward = [-component / distance for component in ray]
    halfway = [a + b for a, b in zip(toward, view, strict=True)]
    glint = (_dot(normal, halfway) / (_dot(halfway, halfway).sqrt() + 1e-6)).clamp(min=0.0)
    light = 1.0 / (squared + 0.3)
    if lamp < _SHADOWING:
        reach = torch.full_like(distance, 0.998)  # short of the point's own surface
        t, _ = _first_hit(scene, origin, ray, reach, torch.zeros_like(distance, dtype=torch.int64))
        light = light * (t == reach)
    return _dot(normal, toward).clamp(min=0.0), glint, light


def _shade(scene: Scene, ray: Vector, t: Tensor, row: Tensor, pixel: Tensor) -> Tensor:
    """Radiance (3, B, N) toward the eye where rays hit `row` at t; `pixel` (B, 1) is a pixel's width at z = 1 m."""
    eye, (dx, dy, dz) = scene.eye, ray
    point = (t * dx + eye[:, :1], t * dy + eye[:, 1:2], t * dz + eye[:, 2:])
    normal, u, v = _surface(gather_rows(scene.shapes, row), row, point)
    length = _dot(ray, ray).sqrt()
    view = (-dx / length, -dy / length, -dz / length)
    material = gather_rows(scene.materials, row)
    footprint = t * pixel / _dot(normal, view).clamp(min=0.15)
    openness = _openness(scene, point, normal, row)
    diffuse = [scene.ambient * openness * (1.0 + 0.3 * normal[1]) + material.emission] * 3
    glossy = [torch.zeros_like(t)] * 3
    for lamp in range(_LAMPS):
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
        size: height and width of the pictures in pixels. One seed is one scene with one diagonal field of view
            at every size.
        device: where to cast the rays and to return the tensors.

    Returns:
        The pictures, uint8 (B, H, W, 3) RGB, and their depth, float32 (B, H, W): metres along the optical axis,
        0.5 .. 10, exact at each pixel's centre. On one machine a seed's picture and depth are the same bits in
        every batch; no global random generator is read or moved.

    Raises:
        UserError: no seeds, a seed below zero or a size below one pixel.
    """
    if not seeds or min(seeds) < 0:
        raise UserError(f"Rooms cannot be drawn from the seeds {list(seeds)}: give one or more integers of 0 or above.")
    if min(size) < 1:
        raise UserError(f"A room cannot be drawn at {size[0]} x {size[1]}: give a height and width of 1 or above.")
    scene = _draw_scenes(seeds, torch.device(device))
    with _one_thread():
        ray = _camera_rays(scene, size)
        depth, row = _first_hit(scene, scene.eye, ray, *_room_exit(scene, ray))
        radiance = _shade(scene, ray, depth, row, 2.0 * scene.field / math.hypot(*size))
        return develop(radiance, scene.sensor, size), depth.reshape(-1, *size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch's operations on the calling thread.

    A render is thousands of operations of some 50 microseconds. Torch's thread team meets at a barrier after each
    of them, which costs many times the operation as soon as another process wants the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scene_seed(split: Literal["train", "val", "test"], index: int, base_seed: int = 0) -> int:
    """The seed of scene `index` (0 .. 2^40 - 1) of a split.

    Splits are disjoint: the seed's remainder modulo 3 is the split's number, whatever the index and the base
    seed. Within a split (index, base_seed) are the digits of the quotient in base 2^40, so no two pairs share a
    seed either.

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
