"""Cameras as other programs store them: JSON and YAML calibrations, and the EXIF tags of photos."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ..data.images import Picture, read_exif
from ..errors import DataError, UserError

__all__ = ["SUFFIXES", "StoredCamera", "read_camera_file", "read_exif_camera"]

SUFFIXES: Final = (".json", ".yaml", ".yml")
"""Suffixes of the files that `read_camera_file` reads."""

_MOST_BYTES: Final = 1 << 20  # a calibration has a few kilobytes
_MATRICES: Final = ("K", "k", "camera_matrix", "cameraMatrix", "intrinsic_matrix", "intrinsics", "intrinsic")
_NUMBERS: Final = (("fx", "fy", "cx", "cy"), ("fx", "fy", "ppx", "ppy"))  # the second by librealsense
_SIZES: Final = (("height", "width"), ("image_height", "image_width"), ("h", "w"))
_DISTORTIONS: Final = (
    "D", "d", "distortion_coefficients", "distortion_coeffs", "dist_coeffs", "distCoeffs", "distortion", "dist",
    "coeffs", "k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2",
)  # fmt: skip
_SLIGHT: Final = 1e-4  # a coefficient below this moves no pixel of a usual lens by a tenth of a pixel

# EXIF 2.32, section 4.6.5
_ORIENTATION: Final = 0x0112
_FOCAL_MM, _FOCAL_35MM = 0x920A, 0xA405
_RECORDED: Final = (0xA003, 0xA002)  # height and width as the camera wrote them
_PLANE_X, _PLANE_Y, _PLANE_UNIT = 0xA20E, 0xA20F, 0xA210
_UNITS_MM: Final = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_DIAGONAL_MM: Final = math.hypot(36, 24)


class StoredCamera(NamedTuple):
    """What a file says about a camera, in pixels, unchecked."""

    numbers: tuple[float, float, float, float]
    """fx, fy, cx, cy."""
    size: tuple[int, int] | None
    """Height and width of the pictures that they are for; None: the file does not say."""
    distortion: tuple[float, ...] = ()
    """Distortion coefficients that are not about zero."""


def read_camera_file(path: Path) -> StoredCamera:
    """Read a camera from JSON or YAML.

    The file may hold a 3x3 matrix or nine numbers, by row or (Open3D, MATLAB) by column, alone or under `K`,
    `camera_matrix`, `intrinsics` or `intrinsic_matrix`; or the numbers `fx`, `fy`, `cx`, `cy`. So ROS's camera_info
    files and messages, OpenCV's FileStorage and Open3D's PinholeCameraIntrinsic are read.

    Raises:
        DataError: missing, damaged, or without a camera matrix.
        UserError: YAML, and PyYAML is not installed.
    """
    document = _document(path)
    try:
        if isinstance(document, list):
            return StoredCamera(_of_matrix(document), None)
        document = _flattened(document)
        return StoredCamera(_numbers(document), _size(document), _distortion(document))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {error}") from error


def read_exif_camera(path: Picture) -> StoredCamera:
    """The camera of a photo, upright, by its EXIF tags; the principal point is the picture's centre.

    A focal length in millimetres says nothing without the sensor's size. That is known by FocalLengthIn35mmFilm (of the
    picture's diagonal, CIPA DCG-001) or by FocalPlaneXResolution.

    Raises:
        DataError: not a picture, without these tags, or cropped since it was taken.
    """
    tags, stored = read_exif(path)
    height, width = (int(_real(tags.get(tag))) for tag in _RECORDED)
    if height <= 0 or width <= 0:
        height, width = stored
    if abs(stored[0] * width - stored[1] * height) > max(height, width):  # one pixel of rounding
        raise DataError(
            f"{path} was cropped or turned after it was taken ({width}x{height} by EXIF, now {stored[1]}x{stored[0]}), "
            "and its EXIF focal length no longer holds; give the intrinsics in pixels, or fov="
        )
    fx, fy = _exif_focal(path, tags, math.hypot(height, width))
    if _real(tags.get(_ORIENTATION)) >= 5:
        height, width, fx, fy = width, height, fy, fx
    return StoredCamera((fx, fy, (width - 1) / 2, (height - 1) / 2), (height, width))


def _exif_focal(path: Picture, tags: Mapping[int, Any], diagonal: float) -> tuple[float, float]:
    """Focal lengths fx and fy in pixels of a picture with this diagonal, before it is turned upright."""
    film, millimetres = _real(tags.get(_FOCAL_35MM)), _real(tags.get(_FOCAL_MM))
    if film > 0:
        return film * diagonal / _DIAGONAL_MM, film * diagonal / _DIAGONAL_MM
    across, unit = _real(tags.get(_PLANE_X)), _UNITS_MM.get(int(_real(tags.get(_PLANE_UNIT, 2))))
    if millimetres > 0 and across > 0 and unit is not None:
        down = _real(tags.get(_PLANE_Y))
        return millimetres * across / unit, millimetres * (down if down > 0 else across) / unit
    if millimetres > 0:
        raise DataError(
            f"{path} gives its focal length in millimetres only ({millimetres:g} mm), without the sensor's size; give "
            "the intrinsics in pixels, or fov="
        )
    raise DataError(f"{path} has no focal length in its EXIF tags; give the intrinsics in pixels, or fov=")


def _real(value: Any) -> float:
    """A tag's number; 0 if it has none (EXIF writes 0 or 0/0 for unknown)."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _document(path: Path) -> Any:
    """The parsed file. Raises DataError."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the intrinsics {path}: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} has more than {_MOST_BYTES >> 20} MiB, and is no camera calibration")
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text) if path.suffix.lower() == ".json" else _yaml(path, text)
    except (ValueError, RecursionError) as error:  # of the encoding, or of JSON
        first, *_ = str(error).splitlines() or [""]
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()} ({first})") from error


def _yaml(path: Path, text: str) -> Any:
    """The first document of a YAML file; OpenCV's head and tag are dropped. Raises ValueError."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs PyYAML, which is not installed; pip install pyyaml, or save as JSON") from error
    plain = re.sub(r"\A%YAML[: ].*\n", "", text).replace("!!opencv-matrix", "")
    try:
        return next(iter(yaml.safe_load_all(plain)), None)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _flattened(document: Any) -> Mapping[str, Any]:
    """The document, with the entries of a camera within it, such as Open3D's PinholeCameraParameters has."""
    if not isinstance(document, Mapping):
        return {}
    inner = (document[name] for name in ("intrinsics", "intrinsic") if name in document)
    return next(
        ({**document, **found} for found in inner if isinstance(found, Mapping) and "data" not in found), document
    )


def _numbers(document: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy. Raises ValueError."""
    for names in _NUMBERS:
        if all(name in document for name in names):
            fx, fy, cx, cy = (_number(name, document[name]) for name in names)
            return fx, fy, cx, cy
    for name in _MATRICES:
        if name in document:
            value = document[name]
            return _of_matrix(value.get("data") if isinstance(value, Mapping) else value)
    raise ValueError("has no camera matrix; needed are K (3x3), camera_matrix, intrinsic_matrix, or fx, fy, cx and cy")


def _of_matrix(value: Any) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a camera matrix, by row or by column, or of these four numbers. Raises ValueError."""
    try:
        flat = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError) as error:  # ragged, or not numbers
        raise ValueError("the camera matrix is not a list of numbers") from error
    if flat.size == 4:
        fx, fy, cx, cy = flat.tolist()
        return fx, fy, cx, cy
    if flat.size != 9:
        raise ValueError(f"the camera matrix has {flat.size} numbers, not 3x3")
    matrix = flat.reshape(3, 3)
    if not matrix.any():
        raise ValueError("the camera matrix is all zero: this camera was not calibrated")
    if matrix[2].tolist() != [0, 0, 1]:
        matrix = matrix.T
    if matrix[2].tolist() != [0, 0, 1] or matrix[1, 0] != 0:
        raise ValueError("the camera matrix is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    if abs(matrix[0, 1]) > 1e-6 * abs(matrix[0, 0]):
        raise ValueError(f"the camera matrix has a skew of {matrix[0, 1]:g}; only 0 is supported")
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])


def _size(document: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width. Raises ValueError."""
    for names in _SIZES:
        given = [name for name in names if name in document]
        if len(given) == 1:
            raise ValueError(f"has {given[0]} but not {next(name for name in names if name not in given)}")
        if given:
            height, width = (_number(name, document[name]) for name in names)
            if not (height >= 1 and width >= 1 and height.is_integer() and width.is_integer()):
                raise ValueError(f"is for pictures of {width:g}x{height:g}; width and height must be whole and above 0")
            return int(height), int(width)
    return None


def _distortion(document: Mapping[str, Any]) -> tuple[float, ...]:
    """The coefficients that are not about zero; what is not a number is none."""
    found: list[float] = []
    for name in _DISTORTIONS:
        value = document.get(name)
        value = value.get("data") if isinstance(value, Mapping) else value
        found += map(_real, value if isinstance(value, list) else [value])
    return tuple(value for value in found if abs(value) > _SLIGHT)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, not a number")
    return float(value)
