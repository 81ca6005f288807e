"""Layout of the built-in rooms: furniture, pictures, windows, lamps and a camera, drawn from seeds (see `scenes`).

World axes: x and z span the floor, y points up, the origin is the middle of the floor.

The depth range of `scenes` depends on this layout:
* Each room's diagonal is below 10 m, and the camera and everything that it sees are inside.
* Walls, floor, ceiling and things are at least `CLEARANCE` from the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .textures import Draws, Materials, Sensor, draw_materials, draw_sensor, gather_rows, preset_rows

__all__ = [
    "ACCENT",
    "BALL_ROWS",
    "BALL_SLOT",
    "CEILING",
    "CLEARANCE",
    "DRUM_ROWS",
    "FLOOR",
    "HALF_FIELD",
    "ITEMS",
    "KINDS",
    "LAMPS",
    "PARTS",
    "ROOM_MOST",
    "SLOTS",
    "WALLS",
    "Scene",
    "Shapes",
    "Thing",
    "dot",
    "draw_scenes",
    "to_local",
    "to_world",
]

Part = tuple[float, float, float, float, float, float, int]

_ROOM_LEAST: Final = (2.6, 2.35, 3.0)
ROOM_MOST: Final = (6.0, 3.1, 7.2)
"""Largest width, height and depth of a room in metres: a diagonal of 9.87 m."""

HALF_FIELD: Final = (0.42, 0.48)
"""Range of the tan of half the vertical field of view of a 4:3 picture: 45.6 .. 51.3 degrees."""

CLEARANCE: Final = 0.65
"""Smallest distance of anything from the camera in metres; above 0.5 * sqrt(1 + (5 / 3 * 0.48)²) = 0.6403."""

PARTS: Final = 6
"""Most boxes of a piece of furniture."""

LAMPS: Final = 3
"""Lamps in a room."""

_FLAT = 0.06  # thickness of things on a wall or under the ceiling
_CANDIDATES = 4
_BURIED = -50.0  # height of unused slots: below the floor, where no ray gets


class Thing(NamedTuple):
    """A kind of thing: ranges of its size in metres, its place, its looks and its boxes.

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
KINDS: Final = (*_FURNITURE, *_PLATES, *_BALLS, *_DRUMS, *_DISCS)
"""The catalogue."""

# A scene has a fixed list of slots for things. Rows of shapes: the parts of the furniture, slot by slot, then one
# row for each other slot, then the room as floor, ceiling, walls and accent wall.
_POOLS = [_FURNITURE] * 7 + [_PLATES] * 3 + [_BALLS] * 3 + [_DRUMS] * 3 + [_DISCS]
SLOTS: Final = len(_POOLS)
"""Most things in a room."""

ITEMS: Final = _POOLS.count(_FURNITURE)
"""Slots of furniture; they come first."""

BALL_SLOT: Final = _POOLS.index(_BALLS)
"""The first slot of a ball; the slots before it hold boxes."""

_DRUM_SLOT = _POOLS.index(_DRUMS)

BALL_ROWS: Final = range(ITEMS * PARTS + 3, ITEMS * PARTS + 6)
"""Rows of shapes that are balls."""

DRUM_ROWS: Final = range(BALL_ROWS.stop, BALL_ROWS.stop + 4)
"""Rows of shapes that are drums, including the disc of the lamp."""

FLOOR: Final = DRUM_ROWS.stop
"""The room with the look of its floor, the first of the room's four rows."""

CEILING: Final = FLOOR + 1
"""The room with the look of its ceiling."""

WALLS: Final = FLOOR + 2
"""The room with the look of its walls."""

ACCENT: Final = FLOOR + 3
"""The room with the look of its accent wall."""

_RANGES = torch.tensor([(*k.width, *k.height, *k.depth, k.at_wall, k.base) for k in KINDS]).double()
_LOOKS = torch.stack([preset_rows(kind.looks) for kind in KINDS])
_NO_PART = (0.0,) * 6 + (0, 0)
_PART_TABLE = torch.tensor([
    [(*part, 1) for part in k.parts] + [_NO_PART] * (PARTS - len(k.parts)) for k in _FURNITURE
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
    shapes: Shapes  # (B, ACCENT + 1)
    materials: Materials  # likewise
    things: Shapes  # (B, SLOTS): bounding boxes
    lamps: Tensor  # (B, LAMPS, 3)
    power: Tensor  # (B, LAMPS, 3): radiant intensity in red, green, blue
    ambient: Tensor  # (B, 1)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The dot product of two vectors, each given as three planes; `textures` explains why it is written out."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vector: Tensor) -> Tensor:
    return vector / dot(vector.unbind(1), vector.unbind(1)).sqrt()[:, None]


def to_local(cos: Tensor, sin: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Turn world x, z into the axes of a shape whose yaw has this cosine and sine."""
    return cos * x - sin * z, sin * x + cos * z


def to_world(cos: Tensor, sin: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Turn x, z along the axes of a shape whose yaw has this cosine and sine into world x, z."""
    return cos * x + sin * z, cos * z - sin * x


def _draw_camera(draws: Draws, room: Tensor) -> tuple[Tensor, Tensor]:
    """Eye (B, 3) and axes (B, 3, 3) of a camera that stands clear of the walls and looks across the room."""
    margin = CLEARANCE + _FLAT + 0.01
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
    up = _unit(lean - forward * dot(lean.unbind(1), forward.unbind(1))[:, None])  # Gram-Schmidt
    ux, uy, uz, fx, fy, fz = *up.unbind(1), *forward.unbind(1)
    right = torch.stack((uy * fz - uz * fy, uz * fx - ux * fz, ux * fy - uy * fx), 1)
    return torch.stack((x, y, z), 1), torch.stack((right, up, forward), 1)


def _draw_things(draws: Draws, room: Tensor, eye: Tensor, forward: Tensor) -> tuple[Shapes, Tensor]:
    """Bounding boxes of the things and their kinds (B, SLOTS); things without a free place are buried.

    Each thing takes the best of a few candidate places: clear of the camera and of the things before it, preferably
    in front of the camera.
    """
    first = torch.tensor([KINDS.index(pool[0]) for pool in _POOLS])
    kind = first + draws.uniform(0.0, torch.tensor([len(pool) for pool in _POOLS]), SLOTS).long()
    least, most = _RANGES[kind][..., :6].reshape(-1, SLOTS, 3, 2).unbind(-1)
    share = draws.uniform(0.0, 1.0, SLOTS, 3)
    share[:, BALL_SLOT:, 2] = share[:, BALL_SLOT:, 0]  # round things are as deep as wide
    share[:, BALL_SLOT:_DRUM_SLOT, 1] = share[:, BALL_SLOT:_DRUM_SLOT, 0]
    half = (0.5 * (least + (most - least) * share))[..., None, :].expand(-1, -1, _CANDIDATES, -1)
    half_x, half_y, half_z = half.unbind(-1)
    at_wall, base = _RANGES[kind][..., None, 6:].unbind(-1)
    y = half_y + torch.where(base < 0, base + room[:, 1, None, None], base)
    x, z, cos, sin = _draw_places(draws, room, half_x, half_z, draws.chance(at_wall, SLOTS, 1))

    eye_x, eye_y, eye_z = (c[:, None, None] for c in eye.unbind(1))
    local_x, local_z = to_local(cos, sin, eye_x - x, eye_z - z)
    gap = (torch.stack((local_x, eye_y - y, local_z), -1).abs() - half).clamp(min=0.0).unbind(-1)
    clear = dot(gap, gap) > CLEARANCE**2
    ahead = forward[:, 0, None, None] * (x - eye_x) + forward[:, 2, None, None] * (z - eye_z) > 0.8
    wish = clear * (1.0 + ahead - 0.1 * torch.arange(_CANDIDATES))

    extent_x, extent_z = ((cos * half_x).abs() + (sin * half_z).abs(), (sin * half_x).abs() + (cos * half_z).abs())
    places = torch.stack((x, y, z, extent_x, half_y, extent_z, cos, sin), -1)  # (B, slots, candidates, 8)
    present = draws.chance(draws.uniform(0.6, 1.0, 1), SLOTS)
    chosen = places[:, :, 0].clone()
    for slot in range(SLOTS):
        offer, taken = places[:, slot, :, None], chosen[:, None, :slot]
        apart = ((offer[..., :3] - taken[..., :3]).abs() > offer[..., 3:6] + taken[..., 3:6]).any(-1).all(-1)
        score, best = (wish[:, slot] * apart).max(1)
        chosen[:, slot] = places[:, slot].take_along_dim(best[:, None, None], 1)[:, 0]
        chosen[:, slot, 1] = torch.where(present[:, slot] & (score > 0), chosen[:, slot, 1], _BURIED)
    chosen[..., 3:6] = half[:, :, 0]
    return Shapes(*chosen.unbind(-1)), kind


def _draw_places(draws: Draws, room: Tensor, half_x: Tensor, half_z: Tensor, at_wall: Tensor) -> Sequence[Tensor]:
    """Candidate places x, z and yaws cos, sin, each (B, slots, candidates): with the back at a wall, or anywhere."""
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
    x, z = to_world(cos, sin, x, torch.where(at_wall, half_z - away, free))
    turn = draws.uniform(-0.414, 0.414, *shape) * ~at_wall  # tan of half the yaw: +-45 degrees
    turn_cos, turn_sin = (1.0 - turn * turn) / (1.0 + turn * turn), 2.0 * turn / (1.0 + turn * turn)
    return x, z, cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin


def _build_shapes(things: Shapes, kind: Tensor, room: Tensor) -> Shapes:
    """Split the furniture into boxes and add the room, once for each of its four looks."""
    x, y, z, half_x, half_y, half_z, cos, sin = (column[:, :ITEMS, None] for column in things)
    x0, x1, y0, y1, z0, z1, _, exists = _PART_TABLE[kind[:, :ITEMS]].unbind(-1)
    part_x, part_z = to_world(cos, sin, (x0 + x1) * half_x, (z0 + z1 - 1.0) * half_z)
    part_y = torch.where(exists > 0, y + (y0 + y1 - 1.0) * half_y, _BURIED)
    size = ((x1 - x0) * half_x, (y1 - y0) * half_y, (z1 - z0) * half_z)
    yaw = (cos.expand_as(part_x), sin.expand_as(part_x))
    parts = (x + part_x, part_y, z + part_z, *size, *yaw)
    half, zero = 0.5 * room, torch.zeros_like(room[:, 0])
    shell = (zero, half[:, 1], zero, *half.unbind(1), zero + 1.0, zero)
    columns = zip(parts, things, shell, strict=True)
    return Shapes(*(torch.cat((p.flatten(1), t[:, ITEMS:], r[:, None].expand(-1, 4)), 1) for p, t, r in columns))


def _draw_materials(draws: Draws, things: Shapes, kind: Tensor, room: Tensor) -> Materials:
    """Draw two looks per thing and four for the room, and assign them to the rows of shapes."""
    look = _LOOKS[kind].take_along_dim(draws.pick(_LOOKS.shape[-1], SLOTS, 2)[..., None], -1).flatten(1)
    room_look = _ROOM_LOOKS.expand(len(look), -1, -1)
    room_look = room_look.take_along_dim(draws.pick(_ROOM_LOOKS.shape[-1], 4)[..., None], -1)[..., 0]
    width, height = (
        torch.cat((2.0 * half.repeat_interleave(2, 1), room[:, :1].expand(-1, 4)), 1)
        for half in (things.half_x, things.half_y)
    )
    materials = draw_materials(draws, torch.cat((look, room_look), 1), width, height)
    slots = 2 * torch.arange(SLOTS + 2).expand(len(look), -1)
    parts = slots[:, :ITEMS, None] + _PART_TABLE[kind[:, :ITEMS]][..., 6].long()
    shell = 2 * SLOTS + torch.arange(4).expand(len(look), -1)
    return gather_rows(materials, torch.cat((parts.flatten(1), slots[:, ITEMS:SLOTS], shell), 1))


def draw_scenes(seeds: Sequence[int], device: torch.device) -> Scene:
    """Lay out the rooms on the CPU in float64; return them on `device` in float32."""
    draws = Draws(seeds)
    room = torch.stack([draws.uniform(*ends) for ends in zip(_ROOM_LEAST, ROOM_MOST, strict=True)], 1)
    eye, axes = _draw_camera(draws, room)
    things, kind = _draw_things(draws, room, eye, axes[:, 2])
    lamps = draws.uniform(-0.4, 0.4, LAMPS, 3) * room[:, None]
    lamps[:, 0, 0], lamps[:, 0, 2] = things.x[:, -1], things.z[:, -1]  # the first lamp hangs below the disc
    lamps[:, :, 1] = room[:, None, 1] - draws.uniform(0.15, torch.tensor([0.3, 0.8, 1.2]), LAMPS)
    lit = torch.cat((draws.chance(1.1, 1), draws.chance(0.5, LAMPS - 1)), 1)
    warmth = draws.uniform(-0.15, 0.3, LAMPS)
    colour = torch.stack((1.0 + warmth, torch.ones_like(warmth), 1.0 - warmth), -1)
    scene = Scene(
        eye=eye,
        axes=axes,
        field=draws.uniform(*HALF_FIELD, 1) * (5.0 / 3.0),
        sensor=draw_sensor(draws),
        shapes=_build_shapes(things, kind, room),
        materials=_draw_materials(draws, things, kind, room),
        things=things,
        lamps=lamps,
        power=(draws.uniform(0.3, 1.0, LAMPS) * lit)[..., None] * colour,
        ambient=draws.uniform(0.06, 0.16, 1),
    )
    moved: Scene = tree_map_only(Tensor, lambda column: column.to(device, torch.float32), scene)
    return moved
