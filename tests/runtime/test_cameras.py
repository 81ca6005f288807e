"""Intrinsics in every form that people have them, for pictures of any size, and each bad one with its sentence."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from depthkit.data.images import DataWarning, resize_depth
from depthkit.errors import DataError, UserError
from depthkit.runtime.cameras import Intrinsics, corrected, describe_correction, read_intrinsics
from depthkit.runtime.clouds import unproject

from ..support import save_array

SIZE = (480, 640)
NYU = Intrinsics(518.86, 519.47, 325.58, 253.74, SIZE)
ROWS: list[list[float]] = [[NYU.fx, 0, NYU.cx], [0, NYU.fy, NYU.cy], [0, 0, 1]]
FLAT = [number for row in ROWS for number in row]
COLUMNS = [number for column in zip(*ROWS, strict=True) for number in column]
WIDE = {"width": 640, "height": 480}
IMAGE_WIDE = {"image_width": 640, "image_height": 480}
NAMED = {"fx": NYU.fx, "fy": NYU.fy, "cx": NYU.cx, "cy": NYU.cy}

_ORIENTATION, _EXIF = 0x0112, 0x8769
_FOCAL_MM, _FOCAL_35MM, _PLANE_X, _PLANE_Y, _PLANE_UNIT = 0x920A, 0xA405, 0xA20E, 0xA20F, 0xA210
_RECORDED_WIDTH, _RECORDED_HEIGHT = 0xA002, 0xA003


@st.composite
def intrinsics(draw: st.DrawFn) -> Intrinsics:
    """Cameras that are not refused, of pictures large enough that a pixel of rounding is not much."""
    height, width = draw(st.integers(60, 2000)), draw(st.integers(60, 2000))
    fx = width * draw(st.floats(0.2, 10))
    fy = fx * draw(st.floats(0.8, 1.25))
    cx, cy = width * draw(st.floats(0.3, 0.7)), height * draw(st.floats(0.3, 0.7))
    return Intrinsics(fx, fy, cx, cy, (height, width))


def _project(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    return np.stack((x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy), -1)


def _close(camera: Intrinsics) -> Any:
    return pytest.approx((camera.fx, camera.fy, camera.cx, camera.cy), abs=1e-6)


def _numbers(camera: Intrinsics) -> tuple[float, float, float, float]:
    return camera.fx, camera.fy, camera.cx, camera.cy


def _refusal(text: str, size: tuple[int, int] = SIZE, picture: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_intrinsics(text, size, picture=picture)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _file(folder: Path, name: str, document: Any) -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


@given(camera=intrinsics())
def test_what_is_written_is_read(camera: Intrinsics) -> None:
    assert read_intrinsics(str(camera), camera.size) == camera
    assert read_intrinsics(str(camera).partition("@")[0], camera.size) == camera


@given(camera=intrinsics(), scale=st.integers(1, 5), seed=st.integers(0, 999))
def test_projection_for_a_resized_picture_is_the_resized_projection(camera: Intrinsics, scale: int, seed: int) -> None:
    points = np.random.default_rng(seed).uniform((-1, -1, 1), (1, 1, 5), (20, 3))
    resized = camera.resized((scale * camera.size[0], scale * camera.size[1]))
    assert _project(points, resized) == pytest.approx((_project(points, camera) + 0.5) * scale - 0.5, rel=1e-6)
    assert resized.focal == pytest.approx(camera.focal)
    assert _numbers(resized.resized(camera.size)) == _close(camera)


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (480, 640)])
def test_resizing_the_depth_of_a_plane_leaves_it_on_the_plane(size: tuple[int, int]) -> None:
    """Inverse depth is linear over the picture, so that interpolation is exact inside."""
    camera = Intrinsics.from_fov(63, (48, 64))
    normal = np.array([0.4, -0.3, 0.866])
    rays = unproject(np.ones(camera.size, np.float32), camera)
    inverse = (rays @ normal / 2).astype(np.float32)
    larger = camera.resized(size)
    depth = 1 / resize_depth(inverse, size, smooth=True)
    border = math.ceil(size[0] / 48)
    inner = unproject(depth, larger)[border:-border, border:-border]
    assert inner @ normal == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    "size", [(480, 640), (240, 320), (241, 320), (720, 960), (80, 107), (80, 106), (1000, 1333), (375, 500)]
)
def test_resized_pictures_may_be_rounded(size: tuple[int, int]) -> None:
    resized = NYU.resized(size)
    assert resized.size == size
    assert resized.focal == pytest.approx(NYU.focal)
    assert resized.resized(SIZE).fy == pytest.approx(NYU.fy)


@pytest.mark.parametrize("size", [(360, 640), (480, 480), (480, 650), (256, 320)])
def test_another_aspect_ratio_is_refused(size: tuple[int, int]) -> None:
    message = _refusal(str(NYU), size)
    assert f"640x480 (width x height), and this one of {size[1]}x{size[0]} has another aspect ratio" in message


def test_a_turned_picture_is_named() -> None:
    assert "this one of 480x640 is turned by 90 degrees; give intrinsics for this shape" in _refusal(
        str(NYU), (640, 480)
    )


def test_field_of_view() -> None:
    camera = read_intrinsics("fov=63", SIZE)
    edges = _project(unproject(np.ones(SIZE, np.float32), camera), camera)
    assert edges[0, 0] == pytest.approx((0, 0), abs=1e-3)
    left = math.degrees(math.atan((camera.cx + 0.5) / camera.fx))
    assert (2 * left, camera.fov) == pytest.approx((63, 63))
    assert camera.fx == camera.fy
    assert _numbers(camera.resized((240, 320))) == _close(read_intrinsics("fov=63", (240, 320)))


@pytest.mark.parametrize("field", [63.0, 40.0, 100.0])
def test_a_camera_twice_as_wide_gives_half_the_depth_at_the_same_places(field: float) -> None:
    """Twice as wide: at one depth it sees twice the width, tan(wide / 2) = 2 tan(fov / 2)."""
    wider = 2 * math.degrees(math.atan(2 * math.tan(math.radians(field) / 2)))
    predicted = np.random.default_rng(0).uniform(1, 5, SIZE).astype(np.float32)
    narrow, wide = (Intrinsics.from_fov(degrees, SIZE) for degrees in (field, wider))
    near, far = (unproject(corrected(predicted, camera, 0.81), camera) for camera in (wide, narrow))
    np.testing.assert_allclose(near[..., 2], far[..., 2] / 2, rtol=1e-5)
    np.testing.assert_allclose(near[..., :2], far[..., :2], rtol=1e-5, atol=1e-6)


def test_correction_is_true_depth_over_predicted_depth() -> None:
    depth = np.full((2, 3), 2, np.float32)
    found = corrected(depth, NYU, 0.5)
    assert found.dtype == np.float32
    assert found == pytest.approx(2 * (518.86 / 640) / 0.5)
    assert corrected(depth, NYU, NYU.focal) == pytest.approx(2)
    assert corrected(np.array([2]), NYU, 0.5).dtype == np.float64  # not cut to whole metres
    assert f"multiplied by {518.86 / 640 / 0.5:.3f}" in describe_correction(NYU, 0.5)


def test_without_a_focal_length_nothing_is_corrected_and_that_is_said() -> None:
    depth = np.full((2, 3), 2, np.float32)
    assert corrected(depth, NYU, None) is depth
    assert "not corrected" in describe_correction(NYU, None)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("K.json", ROWS),
        ("K.json", {"K": ROWS}),
        ("K.json", {"K": FLAT, **WIDE}),
        ("K.json", {"camera_matrix": ROWS, "dist_coeffs": [[0, 0, 0, 0, 0]]}),
        ("K.json", {"intrinsics": ROWS}),
        ("K.json", {"intrinsics": [NYU.fx, NYU.fy, NYU.cx, NYU.cy]}),  # Kalibr
        ("K.json", {"intrinsics": {**NAMED, **WIDE}}),
        ("K.json", NAMED),
        ("K.JSON", {**NAMED, **WIDE}),
        ("realsense.json", {"fx": NYU.fx, "fy": NYU.fy, "ppx": NYU.cx, "ppy": NYU.cy, **WIDE, "coeffs": [0, 0]}),
        ("open3d.json", {**WIDE, "intrinsic_matrix": COLUMNS}),
        ("open3d_view.json", {"intrinsic": {**WIDE, "intrinsic_matrix": COLUMNS}, "extrinsic": [1.0] * 16}),
        ("matlab.json", {"IntrinsicMatrix": 0, "K": list(zip(*ROWS, strict=True))}),
        ("ros.yaml", {**IMAGE_WIDE, "camera_matrix": {"rows": 3, "cols": 3, "data": FLAT}}),  # JSON is YAML
        ("ros.yaml", f"image_width: 640\nimage_height: 480\ncamera_matrix:\n  rows: 3\n  cols: 3\n  data: {FLAT}\n"),
        ("ros1.yml", f"header:\n  seq: 0\nheight: 480\nwidth: 640\nD: [0.0, 0.0]\nK: {FLAT}\n---\nheight: 1\n"),
        ("ros2.yaml", f"height: 480\nwidth: 640\nd: []\nk: {FLAT}\n"),
        ("opencv.yaml", f"%YAML:1.0\n---\ncameraMatrix: !!opencv-matrix\n  rows: 3\n  dt: d\n  data: {FLAT}\n"),
    ],
)
def test_files_that_people_have(tmp_path: Path, name: str, document: Any) -> None:
    found = read_intrinsics(_file(tmp_path, name, document), SIZE)
    assert _numbers(found) == _close(NYU)
    if "640" in json.dumps(document):
        assert _numbers(read_intrinsics(_file(tmp_path, name, document), (240, 320))) == _close(NYU.resized((240, 320)))


def test_distortion_is_named_and_what_is_about_zero_is_not(tmp_path: Path) -> None:
    path = _file(tmp_path, "ros.yaml", {"K": FLAT, "D": {"data": [-0.28, 0.07, 0.0, 1e-9, 0]}})
    with pytest.warns(DataWarning, match=r"ros.yaml: the lens distortion \(-0.28, 0.07\) is ignored"):
        read_intrinsics(path, SIZE)
    with pytest.warns(DataWarning, match=r"\(0.1\)"):
        read_intrinsics(_file(tmp_path, "K.json", {**NAMED, "k1": 0.1, "p1": 0}), SIZE)


def test_principal_point_far_from_the_middle_is_warned_of() -> None:
    with pytest.warns(DataWarning, match=r"\(159.5, 119.5\) is far from the middle of a picture of 640x480.*@WxH"):
        read_intrinsics("260,260,159.5,119.5", SIZE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is none of fx,fy,cx,cy[@WxH], a .json or .yaml file, exif, or fov=DEGREES"),
        ("webcam", "is none of"),
        ("500,500,320", "is none of"),
        ("500,500,320,240,0", "is none of"),
        ("500,x,320,240", "'x' is not a number"),
        ("500,,320,240", "'' is not a number"),
        ("nan,500,320,240", "fx is nan; intrinsics are finite numbers of pixels"),
        ("500,500,inf,240", "cx is inf; intrinsics are finite"),
        ("500,-500,320,240", "fy is -500; a focal length is above 0 pixels"),
        ("0,500,320,240", "fx is 0; a focal length is above 0"),
        ("500,500,320,240@", "'' is no size; write width x height, as in 640x480"),
        ("500,500,320,240@640", "'640' is no size"),
        ("500,500,320,240@0x480", "a picture of 0x480 has no camera; both sides must be above 0"),
        ("4.2mm,4.2mm,3,2", "4.2mm is in millimetres; pixels are needed"),
        (
            "4.2,4.2,3.1,2.4",
            "a focal length of 4.2 is too short for a picture 640 pixels wide (178° of view); if it is in",
        ),
        ("24,24,18,12", "if it is in millimetres, pixels are needed: millimetres * picture width / sensor width"),
        ("0.81,1.08,0.5,0.5", "are shares of the picture's width and height; multiply by them, pixels are needed"),
        ("40000,40000,320,240", "a focal length of 40000 is too long for a picture 640 pixels wide"),
        (
            "1000,1000,960,540",
            "the principal point (960, 540) is outside a picture of 640x480; if they are for pictures of",
        ),
        ("500,500,320,-1", "the principal point (320, -1) is outside"),
        ("500,100,320,240", "fx 500 and fy 100 are too different; the order is fx,fy,cx,cy"),
        ("fov=", "'' is not a number"),
        ("fov=wide", "'wide' is not a number"),
        ("fov=1.1", "the horizontal field of view is 1.1, not 3 to 146; give it in degrees"),
        ("fov=180", "the horizontal field of view is 180, not"),
        ("fov=nan", "the horizontal field of view is nan, not"),
        ("exif", "only a picture file has EXIF tags; give the intrinsics in pixels, or fov="),
    ],
)
def test_bad_text_is_refused_in_a_sentence(text: str, said: str) -> None:
    message = _refusal(text)
    assert said in message
    assert message.startswith(f"intrinsics {text or repr(text)}: ")


@pytest.mark.parametrize("size", [(0, 640), (480, 0), (-480, 640)])
def test_picture_without_size_is_refused(size: tuple[int, int]) -> None:
    assert "must be above 0" in _refusal("fov=63", size)
    with pytest.raises(UserError):
        NYU.resized(size)


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("K.json", "", "cannot be read as JSON"),
        ("K.json", "{", "cannot be read as JSON"),
        ("K.json", "[" * 100_000, "cannot be read as JSON"),
        ("K.yaml", "a: [", "cannot be read as YAML"),
        ("K.yaml", "a: !!python/object:os.system {}", "cannot be read as YAML"),
        ("K.yaml", "", "has no camera matrix"),
        ("K.json", " " * (1 << 21), "has more than 1 MiB, and is no camera calibration"),
        (
            "K.json",
            {},
            "has no camera matrix; needed are K (3x3), camera_matrix, intrinsic_matrix, or fx, fy, cx and cy",
        ),
        ("K.json", {"fx": 500, "fy": 500}, "has no camera matrix"),
        ("K.json", 5, "has no camera matrix"),
        ("K.json", {"K": [[1, 2], [3]]}, "the camera matrix is not a list of numbers"),
        ("K.json", {"K": "500"}, "the camera matrix has 1 numbers, not 3x3"),
        ("K.json", {"K": [1] * 12}, "the camera matrix has 12 numbers, not 3x3"),
        ("K.json", {"K": [1] * 9}, "the camera matrix is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
        ("K.json", {"K": [0] * 9}, "the camera matrix is all zero: this camera was not calibrated"),
        ("K.json", {"K": [500, 3, 320, 0, 500, 240, 0, 0, 1]}, "a skew of 3; only 0 is supported"),
        ("K.json", '{"K": [NaN, 0, 320, 0, 500, 240, 0, 0, 1]}', "fx is nan"),
        ("K.json", {"K": [[None, 0, 320], [0, 500, 240], [0, 0, 1]]}, "fx is nan"),
        ("K.json", {**NAMED, "fx": "wide"}, "fx is 'wide', not a number"),
        ("K.json", {**NAMED, "cx": True}, "cx is True, not a number"),
        ("K.json", {**NAMED, "width": 640}, "has width but not height"),
        ("K.json", {**NAMED, "width": 0, "height": 0}, "is for pictures of 0x0; width and height must be whole"),
        ("K.json", {**NAMED, "width": 640.5, "height": 480}, "is for pictures of 640.5x480"),
        ("K.json", {**NAMED, "width": "640", "height": 480}, "width is '640', not a number"),
        ("K.json", {"fx": 4.2, "fy": 4.2, "cx": 3, "cy": 2}, "too short for a picture 640 pixels wide"),
        ("K.json", {**NAMED, "width": 640, "height": 360}, "has another aspect ratio"),
    ],
)
def test_bad_file_is_refused_in_a_sentence_that_names_it(tmp_path: Path, name: str, document: Any, said: str) -> None:
    path = _file(tmp_path, name, document)
    message = _refusal(path)
    assert said in message
    assert message.count(path) == 1


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in _refusal(str(tmp_path / "K.json"))
    (tmp_path / "K.yaml").mkdir()
    assert "Is a directory" in _refusal(str(tmp_path / "K.yaml"))
    (tmp_path / "latin.json").write_bytes(b'{"K": "\xff"}')
    assert "cannot be read as JSON" in _refusal(str(tmp_path / "latin.json"))


def test_yaml_without_pyyaml_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "needs PyYAML, which is not installed; pip install pyyaml" in _refusal(
        _file(tmp_path, "K.yaml", {"K": FLAT})
    )


def _photo(path: Path, tags: dict[int, Any], *, size: tuple[int, int] = (60, 80), orientation: int = 1) -> Path:
    """A JPEG with these EXIF tags; `size` as stored."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    exif.get_ifd(_EXIF).update(tags)
    Image.new("RGB", size[::-1]).save(path, exif=exif)
    return path


def test_exif_by_the_35_mm_equivalent(tmp_path: Path) -> None:
    """Of the diagonal: 36x24 mm has 43.27 mm."""
    path = _photo(tmp_path / "a.jpg", {_FOCAL_35MM: 26, _FOCAL_MM: IFDRational(42, 10)})
    found = read_intrinsics("exif", (60, 80), picture=path)
    assert found.fx == found.fy == pytest.approx(26 * 100 / math.hypot(36, 24))
    assert (found.cx, found.cy) == (39.5, 29.5)
    assert _numbers(read_intrinsics("exif", (600, 800), picture=path)) == _close(found.resized((600, 800)))


@pytest.mark.parametrize(("unit", "resolution"), [(2, 254.0), (3, 100.0), (4, 10.0), (None, 254.0)])
def test_exif_by_the_sensors_resolution(tmp_path: Path, unit: int | None, resolution: float) -> None:
    """5 mm and 10 pixels a millimetre of the recorded picture, which is twice as large as this one."""
    tags = {
        _FOCAL_MM: 5.0,
        _PLANE_X: resolution,
        _PLANE_Y: resolution * 1.1,
        _RECORDED_WIDTH: 160,
        _RECORDED_HEIGHT: 120,
    }
    if unit is not None:
        tags[_PLANE_UNIT] = unit
    found = read_intrinsics("exif", (60, 80), picture=_photo(tmp_path / "a.jpg", tags))
    assert (found.fx, found.fy) == pytest.approx((25, 27.5), rel=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_of_a_picture_that_is_shown_turned(tmp_path: Path, orientation: int) -> None:
    tags = {_FOCAL_MM: 5.0, _PLANE_X: 10.0, _PLANE_Y: 11.0, _PLANE_UNIT: 4}
    path = _photo(tmp_path / "a.jpg", tags, orientation=orientation)
    turned = orientation >= 5
    found = read_intrinsics("exif", (80, 60) if turned else (60, 80), picture=path)
    assert (found.fx, found.fy) == pytest.approx((55, 50) if turned else (50, 55))
    assert "is turned by 90 degrees" in _refusal("exif", (60, 80) if turned else (80, 60), path)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({}, "has no focal length in its EXIF tags; give the intrinsics in pixels, or fov="),
        ({_FOCAL_35MM: 0}, "has no focal length in its EXIF tags"),
        ({_FOCAL_MM: IFDRational(0, 0)}, "has no focal length in its EXIF tags"),
        ({_FOCAL_MM: 4.2}, "gives its focal length in millimetres only (4.2 mm), without the sensor's size"),
        ({_FOCAL_MM: 4.2, _PLANE_X: 10.0, _PLANE_UNIT: 1}, "in millimetres only"),
        (
            {_FOCAL_35MM: 26, _RECORDED_WIDTH: 80, _RECORDED_HEIGHT: 80},
            "was cropped or turned after it was taken (80x80 by",
        ),
        ({_FOCAL_35MM: 5}, "too short for a picture 80 pixels wide"),
    ],
)
def test_exif_that_says_no_focal_length_in_pixels_is_refused(tmp_path: Path, tags: dict[int, Any], said: str) -> None:
    path = _photo(tmp_path / "a.jpg", tags)
    message = _refusal("exif", (60, 80), path)
    assert said in message
    assert message.startswith("intrinsics exif: ")


def test_exif_of_a_file_that_is_no_picture_or_has_no_tags(tmp_path: Path) -> None:
    save_array(tmp_path / "a.png", np.zeros((60, 80, 3), np.uint8))
    assert "has no focal length" in _refusal("exif", (60, 80), tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="is not an image format"):
        read_intrinsics("exif", (60, 80), picture=tmp_path / "b.jpg")
