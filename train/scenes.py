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

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

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

_PARTS, _CANDIDATES, _LAMPS = 6, 4, 3
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
        (0.39, 0.5, 0.06, 0.7, 0, 1, 0), (-0.38, -0.01, 0.4, 0.55, 0.25, 0.98, 1), (0.01, 0.38, 0.4, 0.55, 0.25, 0.98, 1),
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
_BALL_ROWS = range(_ITEMS * _PARTS + 3, _ITEMS * _PARTS + 6)
_DRUM_ROWS = range(_BALL_ROWS.stop, _BALL_ROWS.stop + 4)
_FLOOR, _CEILING, _WALLS, _ACCENT = range(_DRUM_ROWS.stop, _DRUM_ROWS.stop + 4)
_BOX_GROUPS = [range(i * _PARTS, (i + 1) * _PARTS) for i in range(_ITEMS)]  # boxes that share a yaw
_BOX_GROUPS += [range(i, i + 1) for i in range(_ITEMS * _PARTS, _BALL_ROWS.start)]

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
    pitch = draws.uniform(-0.3, 0.3) - 0.35 * (y - 1.0)  # the higher the eye, the more it looks down
    forward = _unit(torch.stack((aim_x / level, pitch, aim_z / level), 1))
    roll = draws.uniform(-0.07, 0.07)
    lean = torch.stack((roll * forward[:, 2], torch.ones_like(roll), -roll * forward[:, 0]), 1)
    up = _unit(lean - forward * _dot(lean.unbind(1), forward.unbind(1))[:, None])  # Gram-Schmidt
    right = torch.linalg.cross(up, forward)
    return torch.stack((x, y, z), 1), torch.stack((right, up, forward), 1)


def _draw_things(draws: Draws, room: Tensor, eye: Tensor, forward: Tensor) -> tuple[Shapes, Tensor]:
    """Bounding boxes of the things and their kinds (B, _SLOTS); what finds no free place is buried.

    A thing takes the best of a few candidate places: clear of the camera, clear of the things before it, and
    in front of the camera rather than behind it.
    """
    first = torch.tensor([_KINDS.index(pool[0]) for pool in _POOLS])
    kind = first + draws.uniform(0.0, torch.tensor([len(pool) for pool in _POOLS]), _SLOTS).long()
    w0, w1, h0, h1, d0, d1, at_wall, base = (column[..., None] for column in _RANGES[kind].unbind(-1))
    size = draws.uniform(0.0, 1.0, _SLOTS, 1)
    half_x = 0.5 * (w0 + (w1 - w0) * size)
    half_z = 0.5 * torch.where(first[:, None] < len(_FURNITURE), draws.uniform(d0, d1, _SLOTS, 1), d0 + (d1 - d0) * size)
    return Shapes(half_x, half_x, half_x, half_x, half_x, half_z, half_x, half_x), kind
