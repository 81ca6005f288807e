"""The camera of a picture: its intrinsics, where they come from, and what they mean for depth.

The convention is that of OpenCV and ROS: u to the right, v down, and whole numbers at the centres of pixels. The
first pixel's centre is (0, 0), the picture's own centre ((width - 1) / 2, (height - 1) / 2).
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..data.images import DataWarning, Picture
from ..errors import UserError
from .camera_files import SUFFIXES, StoredCamera, read_camera_file, read_exif_camera

__all__ = ["Intrinsics", "corrected", "describe_correction", "read_intrinsics"]

_SHORTEST, _LONGEST = 0.15, 20.0
"""Focal lengths per picture width that cameras without distortion have: fields of view of 147 to 3 degrees."""

_FORMS: Final = "fx,fy,cx,cy[@WxH], a .json or .yaml file, exif, or fov=DEGREES"


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera without distortion, for pictures of one size.

    Attributes:
        fx: focal length in pixels, horizontally.
        fy: focal length in pixels, vertically.
        cx: column of the principal point; 0 is the centre of the first column.
        cy: row of the principal point; 0 is the centre of the first row.
        size: height and width of the pictures.

    Raises:
        UserError: a number is not finite, or a focal length or size not above 0.

    >>> str(Intrinsics(518.86, 519.47, 325.58, 253.74, (480, 640)))
    '518.86,519.47,325.58,253.74@640x480'
    """

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int]

    def __post_init__(self) -> None:
        _require_size(self.size)
        for name in ("fx", "fy", "cx", "cy"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}; intrinsics are finite numbers of pixels")
            if name in {"fx", "fy"} and value <= 0:
                raise UserError(f"{name} is {value:g}; a focal length is above 0 pixels")

    @classmethod
    def from_fov(cls, degrees: float, size: tuple[int, int]) -> Intrinsics:
        """A camera with square pixels, its principal point in the middle, and this horizontal field of view.

        The field of view reaches from the left edge of the first pixel to the right edge of the last. Raises UserError.

        >>> Intrinsics.from_fov(90, (480, 640))
        Intrinsics(fx=320.0, fy=320.0, cx=319.5, cy=239.5, size=(480, 640))
        """
        least, most = (2 * math.degrees(math.atan(0.5 / share)) for share in (_LONGEST, _SHORTEST))
        if not least <= degrees <= most:
            raise UserError(
                f"the horizontal field of view is {degrees:g}, not {math.ceil(least)} to {math.floor(most)}; give it "
                "in degrees"
            )
        height, width = size
        focal = round(width / 2 / math.tan(math.radians(degrees) / 2), 9)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2, size)

    @property
    def focal(self) -> float:
        """Focal length in pixels per pixel of picture width, like `ModelSpec.focal`."""
        return self.fx / self.size[1]

    @property
    def fov(self) -> float:
        """Horizontal field of view in degrees, for a principal point in the middle."""
        return 2 * math.degrees(math.atan(0.5 / self.focal))

    def resized(self, size: tuple[int, int]) -> Intrinsics:
        """The same camera for pictures resized to `size` (height, width).

        Raises:
            UserError: another aspect ratio (by more than one pixel of rounding), as a crop has, or a turned picture.

        >>> Intrinsics(500, 500, 319.5, 239.5, (480, 640)).resized((240, 320))
        Intrinsics(fx=250.0, fy=250.0, cx=159.5, cy=119.5, size=(240, 320))
        """
        if size == self.size:
            return self
        _require_size(size)
        if not (_is_resize(self.size, size) or _is_resize(size, self.size)):
            turned = _is_resize(self.size, size[::-1]) or _is_resize(size[::-1], self.size)
            why = "is turned by 90 degrees" if turned else "has another aspect ratio (a crop?)"
            raise UserError(
                f"the intrinsics are for pictures of {_named(self.size)} (width x height), and this one of "
                f"{_named(size)} {why}; give intrinsics for this shape"
            )
        down, across = (new / old for new, old in zip(size, self.size, strict=True))
        cx, cy = (self.cx + 0.5) * across - 0.5, (self.cy + 0.5) * down - 0.5
        return Intrinsics(self.fx * across, self.fy * down, cx, cy, size)

    def __str__(self) -> str:
        """As `read_intrinsics` reads it."""
        return f"{self.fx},{self.fy},{self.cx},{self.cy}@{_named(self.size)}"


def read_intrinsics(
    text: str, picture_size: tuple[int, int], *, picture: Picture | None = None, files: bool = True
) -> Intrinsics:
    """The intrinsics of a picture, rescaled to its size.

    Args:
        text: `fx,fy,cx,cy` or `fx,fy,cx,cy@WxH` in pixels, for pictures of the picture's size or of WxH; a .json or
            .yaml file (see `read_camera_file`); `exif`; or `fov=63`, the horizontal field of view in degrees.
        picture_size: height and width of the picture, upright.
        picture: the picture's file, for `exif`.
        files: whether `text` may name a file; not if it comes from a stranger.

    Raises:
        UserError: none of these forms; not in pixels, or of no camera; or for pictures of another aspect ratio.

    A DataWarning names distortion coefficients, which are not applied, and a principal point far from the middle.

    >>> read_intrinsics("1000,1000,639.5,359.5@1280x720", (360, 640))
    Intrinsics(fx=500.0, fy=500.0, cx=319.5, cy=179.5, size=(360, 640))
    """
    source = text.strip()
    try:
        if source.lower().startswith("fov="):
            return Intrinsics.from_fov(_number(source[4:]), picture_size)
        stored = _stored(source, picture, files=files)
        found = Intrinsics(*stored.numbers, stored.size or picture_size)
        _require_plausible(found)
        _warn(source, stored, found)
        return found.resized(picture_size)
    except UserError as error:
        if files and Path(source).suffix.lower() in SUFFIXES and source in str(error):
            raise
        raise type(error)(f"intrinsics {source or repr(text)}: {error}") from error


def corrected(depth: np.ndarray, intrinsics: Intrinsics, focal: float | None) -> np.ndarray:
    """Predicted metres for this camera's focal length: depth * (fx / width) / focal, a new array of its float type.

    A picture does not show its camera's focal length, so a network predicts as if the picture came from its training
    camera (Yin et al., "Metric3D", 2023).

    Args:
        depth: predicted metres, of any shape.
        intrinsics: of the picture's camera.
        focal: `ModelSpec.focal`, of the training camera; None: unknown, and `depth` itself is returned.

    >>> corrected(np.float32([2.0]), Intrinsics(320, 320, 159.5, 119.5, (240, 320)), 0.5)
    array([4.], dtype=float32)
    """
    if focal is None:
        return depth
    return np.asarray(depth * (intrinsics.focal / focal))


def describe_correction(intrinsics: Intrinsics, focal: float | None) -> str:
    """What `corrected` does, in one sentence.

    >>> describe_correction(Intrinsics.from_fov(63, (480, 640)), 0.8107)
    'Depth is multiplied by 1.006: fx / width is 0.816 here, and 0.811 for the training camera.'
    """
    if focal is None:
        return (
            "Depth is not corrected for this camera, because the training camera's focal length is unknown: all of it "
            "may be too near or too far by one factor."
        )
    return (
        f"Depth is multiplied by {intrinsics.focal / focal:.3f}: fx / width is {intrinsics.focal:.3f} here, and "
        f"{focal:.3f} for the training camera."
    )


def _stored(source: str, picture: Picture | None, *, files: bool) -> StoredCamera:
    """What a file, a picture or the text itself says. Raises UserError."""
    if files and Path(source).suffix.lower() in SUFFIXES:
        return read_camera_file(Path(source))
    if source.lower() != "exif":
        return _parse(source)
    if picture is None:
        raise UserError("only a picture file has EXIF tags; give the intrinsics in pixels, or fov=")
    return read_exif_camera(picture)


def _parse(source: str) -> StoredCamera:
    """`fx,fy,cx,cy[@WxH]`. Raises UserError."""
    before, at, after = source.partition("@")
    parts = before.split(",")
    if len(parts) != 4:
        raise UserError(f"is none of {_FORMS}")
    fx, fy, cx, cy = map(_number, parts)
    if not at:
        return StoredCamera((fx, fy, cx, cy), None)
    size = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", after.strip())
    if size is None:
        raise UserError(f"{after!r} is no size; write width x height, as in 640x480")
    return StoredCamera((fx, fy, cx, cy), (int(size[2]), int(size[1])))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    if text.strip().lower().endswith("mm"):
        raise UserError(f"{text.strip()} is in millimetres; {_IN_PIXELS}")
    raise UserError(f"{text!r} is not a number")


_IN_PIXELS: Final = "pixels are needed: millimetres * picture width / sensor width in millimetres"


def _require_plausible(found: Intrinsics) -> None:
    """Raise UserError for numbers that are not pixels, or not those of this size."""
    height, width = found.size
    fx, fy, cx, cy = found.fx, found.fy, found.cx, found.cy
    resize = "if they are for pictures of another size, add it: @WxH"
    if found.focal < _SHORTEST and 0 < cx <= 1 and 0 < cy <= 1:
        raise UserError("are shares of the picture's width and height; multiply by them, pixels are needed")
    if found.focal < _SHORTEST:
        raise UserError(
            f"a focal length of {fx:g} is too short for a picture {width} pixels wide ({found.fov:.0f}° of view); if "
            f"it is in millimetres, {_IN_PIXELS}; {resize}"
        )
    if found.focal > _LONGEST:
        raise UserError(
            f"a focal length of {fx:g} is too long for a picture {width} pixels wide ({found.fov:.1f}° of view); "
            f"{resize}"
        )
    if not 0.5 <= fx / fy <= 2:
        raise UserError(f"fx {fx:g} and fy {fy:g} are too different; the order is fx,fy,cx,cy")
    if not (0 <= cx < width and 0 <= cy < height):
        raise UserError(f"the principal point ({cx:g}, {cy:g}) is outside a picture of {_named(found.size)}; {resize}")


def _warn(source: str, stored: StoredCamera, found: Intrinsics) -> None:
    height, width = found.size
    if stored.distortion:
        coefficients = ", ".join(f"{value:.4g}" for value in stored.distortion)
        warnings.warn(
            f"intrinsics {source}: the lens distortion ({coefficients}) is ignored: pictures are taken as "
            "undistorted; undistort them first",
            DataWarning,
            stacklevel=3,
        )
    if abs(found.cx / width - 0.5) > 0.25 or abs(found.cy / height - 0.5) > 0.25:
        warnings.warn(
            f"intrinsics {source}: the principal point ({found.cx:g}, {found.cy:g}) is far from the middle of a "
            f"picture of {_named(found.size)}; if they are for pictures of another size, add it: @WxH",
            DataWarning,
            stacklevel=3,
        )


def _is_resize(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether one scale leads from `old` to `new`, if each new side may be off by one pixel."""
    least = max((after - 1) / before for before, after in zip(old, new, strict=True))
    most = min((after + 1) / before for before, after in zip(old, new, strict=True))
    return least <= most


def _require_size(size: tuple[int, int]) -> None:
    if min(size) <= 0:
        raise UserError(f"a picture of {_named(size)} has no camera; both sides must be above 0")


def _named(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
