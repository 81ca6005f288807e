"""From depth to points: unprojection, coloured clouds without flying points, PLY and PCD files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, get_args

import numpy as np

from ..errors import FrameError, UserError
from ..files import atomic_write
from .cameras import Intrinsics

__all__ = ["STEEPEST", "Axes", "Cloud", "cloud", "unproject", "write_pcd", "write_ply"]

Axes = Literal["opencv", "opengl"]
"""x right, y down, z forward; or x right, y up, z backward."""

STEEPEST: Final = 85.0
"""Angle in degrees between the line of sight and a surface's normal, above which `cloud` drops the points.

An engine's depth is interpolated to the picture's size. Between two surfaces that makes a ramp, one engine pixel wide,
of points on neither. Only its slope tells it from a wall: with an engine of 240x320 and 63 degrees of view, every step
of more than 4.4 % of the depth is steeper than a wall seen at 85 degrees.
"""

_SIGNS: Final = {"opencv": (1, 1, 1), "opengl": (1, -1, -1)}
_CHUNK: Final = 1 << 16  # points converted at a time


@dataclass(frozen=True, eq=False)
class Cloud:
    """Coloured points.

    Attributes:
        points: N x 3 float32, metres in OpenCV's axes.
        colours: N x 3 uint8, RGB.
    """

    points: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


def unproject(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """The point of every pixel: H x W x 3 float32 in metres, in OpenCV's axes (x right, y down, z forward).

    Args:
        depth: H x W metres along the camera's axis. A pixel without depth (0, NaN) gets a point that is no more valid.
        intrinsics: for pictures of this height and width.

    Raises:
        FrameError: depth is not H x W, or not of the intrinsics' size.

    >>> unproject(np.full((3, 3), 2.0), Intrinsics(2, 2, 1, 1, (3, 3)))[0].tolist()
    [[-1.0, -1.0, 2.0], [0.0, -1.0, 2.0], [1.0, -1.0, 2.0]]
    """
    _require_size(depth, intrinsics)
    points = np.empty((*depth.shape, 3), np.float32)
    points[..., 2] = depth
    across, down = _rays(intrinsics)
    with np.errstate(invalid="ignore"):  # infinitely far, straight ahead: 0 * inf
        np.multiply(points[..., 2], across, out=points[..., 0])
        np.multiply(points[..., 2], down, out=points[..., 1])
    return points


def cloud(
    depth: np.ndarray,
    image: np.ndarray,
    intrinsics: Intrinsics,
    *,
    jump: float | None = None,
    engine_size: tuple[int, int] | None = None,
) -> Cloud:
    """The coloured points of a picture, without pixels that have no depth or that fly between two surfaces.

    A pixel flies if its depth and that of the next pixel, in its row or column, differ by more than `jump`. Both are
    dropped, and with `engine_size` all pixels within half an engine pixel of them: surfaces lose a narrow border.
    Surfaces steeper than `jump` are dropped too, for instance a floor farther away than 11 times the camera's height.

    Args:
        depth: H x W metres; not finite or not above 0 where there is none.
        image: H x W x 3 uint8 RGB.
        intrinsics: for pictures of this height and width.
        jump: largest difference, as a share of the nearer depth; `math.inf` keeps all pixels. None: that of a
            surface seen at 85 degrees (`STEEPEST`), whatever the picture's size.
        engine_size: height and width at which depth was computed (`spec.network_size`), if it was resized since.

    Raises:
        FrameError: an array's shape or dtype does not fit.
        UserError: jump is not above 0.
    """
    _require_size(depth, intrinsics)
    if image.dtype != np.uint8 or image.shape != (*depth.shape, 3):
        raise FrameError(
            f"the picture must be uint8 {(*depth.shape, 3)}, like its depth, not {image.dtype} {image.shape}"
        )
    if jump is not None and not jump > 0:
        raise UserError(f"jump is {jump}; it is a share of depth above 0, for instance 0.05")
    metres = np.asarray(depth, np.float32)
    valid = np.isfinite(metres) & (metres > 0)
    metres = np.where(valid, metres, np.float32(np.nan))  # no comparison with NaN is true: holes are no jumps
    slope = math.tan(math.radians(STEEPEST))
    flying = _jumps(metres, jump or slope / intrinsics.fx, jump or slope / intrinsics.fy)
    if engine_size is not None:
        scale = max(size / small for size, small in zip(depth.shape, engine_size, strict=True))
        _grow(flying, math.ceil(scale / 2) if scale > 1 else 0)
    kept = valid & ~flying
    across, down = _rays(intrinsics)
    points = np.empty((np.count_nonzero(kept), 3), np.float32)
    points[:, 2] = metres[kept]
    for axis, rays in enumerate((across[None], down)):
        points[:, axis] = np.broadcast_to(rays, depth.shape)[kept]
        points[:, axis] *= points[:, 2]
    return Cloud(points, image[kept])


def write_ply(path: Path | BinaryIO, cloud: Cloud, *, axes: Axes = "opencv") -> None:
    """Write a cloud as binary little-endian PLY, a file atomically. Raises OutputError, UserError for unknown axes."""
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"comment depthkit: metres, axes of {axes}\n"
        f"element vertex {len(cloud)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        "end_header\n"
    )
    with _opened(path) as stream:
        _write(stream, header, np.dtype([("point", "<f4", 3), ("colour", "u1", 3)]), cloud, axes)


def write_pcd(path: Path, cloud: Cloud, *, axes: Axes = "opencv") -> None:
    """Write a cloud as binary PCD 0.7, atomically. Raises OutputError, UserError for unknown axes.

    As PCL and Open3D have it, `rgb` is a float whose bits are 0x00RRGGBB.
    """
    count = len(cloud)
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        "FIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n"
    )
    layout = np.dtype(
        {
            "names": ["point", "colour"],
            "formats": [("<f4", 3), ("u1", 3)],
            "offsets": [0, 12],
            "itemsize": 16,
        }
    )
    with _opened(path) as stream:
        _write(stream, header, layout, Cloud(cloud.points, cloud.colours[:, ::-1]), axes)


@contextmanager
def _opened(path: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file, which is written atomically, or a stream that is open already."""
    if not isinstance(path, Path):
        yield path
        return
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        yield stream


def _write(stream: BinaryIO, header: str, layout: np.dtype, cloud: Cloud, axes: Axes) -> None:
    """The header, then the points in chunks."""
    if axes not in get_args(Axes):
        raise UserError(f"axes {axes!r} are unknown; choose {' or '.join(get_args(Axes))}")
    signs = np.array(_SIGNS[axes], np.float32)
    records = np.zeros(min(len(cloud), _CHUNK), layout)
    stream.write(header.encode("ascii"))
    for start in range(0, len(cloud), _CHUNK):
        part = records[: len(cloud) - start]
        np.multiply(cloud.points[start : start + _CHUNK], signs, out=part["point"])
        part["colour"] = cloud.colours[start : start + _CHUNK]
        stream.write(part.data)


def _rays(intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel, x / z by its column (W) and y / z by its row (H x 1), float32."""
    height, width = intrinsics.size
    across = (np.arange(width) - intrinsics.cx) / intrinsics.fx
    down = (np.arange(height)[:, None] - intrinsics.cy) / intrinsics.fy
    return across.astype(np.float32), down.astype(np.float32)


def _jumps(metres: np.ndarray, across: float, down: float) -> np.ndarray:
    """The pixels (H x W bool) on both sides of every jump, by the limits along rows and columns."""
    found = np.zeros(metres.shape, bool)
    for depth, mask, limit in ((metres.T, found.T, across), (metres, found, down)):
        before, after = depth[:-1], depth[1:]
        jumps = np.abs(before - after) > np.float32(limit) * np.minimum(before, after)
        mask[:-1] |= jumps
        mask[1:] |= jumps
    return found


def _grow(mask: np.ndarray, reach: int) -> None:
    """Grow what is true by `reach` pixels in all eight directions, in place."""
    for lines in (mask, mask.T):
        done = 0
        while done < reach:
            step = min(2 * done + 1, reach - done)  # no gap is left by a step of up to the width so far
            old = lines.copy()
            lines[step:] |= old[:-step]
            lines[:-step] |= old[step:]
            done += step


def _require_size(depth: np.ndarray, intrinsics: Intrinsics) -> None:
    if depth.ndim != 2 or depth.shape != intrinsics.size:
        raise FrameError(
            f"depth has shape {depth.shape}, and the intrinsics are for (height, width) {intrinsics.size}; resize one: "
            "Intrinsics.resized"
        )
