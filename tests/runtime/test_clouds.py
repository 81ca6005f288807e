"""Points where they belong: flat walls, no points between two surfaces, and files that foreign readers open."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import depthkit
from depthkit.data.images import resize_depth, write_image
from depthkit.errors import FrameError, OutputError, UserError
from depthkit.pipeline import predictor
from depthkit.runtime.cameras import Intrinsics, corrected
from depthkit.runtime.clouds import STEEPEST, Axes, Cloud, cloud, unproject, write_pcd, write_ply
from depthkit.runtime.null import NullSession

from ..support import files_at_most, model_spec

SIZE = (480, 640)
CAMERA = Intrinsics.from_fov(63, SIZE)
Write = Callable[..., None]
WRITERS: dict[str, Write] = {".ply": write_ply, ".pcd": write_pcd}


def _picture(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Every pixel of its own colour, as far as there are enough."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack((rows % 256, columns % 256, (rows + 2 * columns) % 251), -1).astype(np.uint8)


def _random(count: int = 1000) -> Cloud:
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -1, 1), (2, 1, 5), (count, 3)).astype(np.float32)
    return Cloud(points, rng.integers(0, 256, (count, 3), np.uint8))


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    focal=st.floats(0.2, 10),
    middle=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 999),
)
def test_projected_points_are_the_pixels(
    height: int, width: int, focal: float, middle: tuple[float, float], seed: int
) -> None:
    camera = Intrinsics(focal * width, 1.1 * focal * width, middle[0] * width, middle[1] * height, (height, width))
    depth = np.random.default_rng(seed).uniform(0.1, 20, (height, width)).astype(np.float32)
    points = unproject(depth, camera)
    assert points.dtype == np.float32
    assert points.shape == (height, width, 3)
    np.testing.assert_array_equal(points[..., 2], depth)
    x, y, z = np.moveaxis(points.astype(np.float64), -1, 0)
    rows, columns = np.mgrid[:height, :width]
    np.testing.assert_allclose(x / z * camera.fx + camera.cx, columns, atol=1e-4 * width)
    np.testing.assert_allclose(y / z * camera.fy + camera.cy, rows, atol=1e-4 * height)


def test_axes_are_those_of_opencv() -> None:
    """A pixel at the lower right lies at positive x and y."""
    assert (unproject(np.ones(SIZE, np.float32), CAMERA)[-1, -1] > 0).all()


@pytest.mark.parametrize("engine", [(96, 128), (240, 320), SIZE])
def test_a_wall_at_two_metres_is_flat_within_a_millimetre(engine: tuple[int, int]) -> None:
    """By an engine that predicts it as its training camera would see it."""
    predicted = np.full(engine, 2 * 0.8107 / CAMERA.focal, np.float32)
    depth = corrected(resize_depth(predicted, SIZE, smooth=True), CAMERA, 0.8107)
    found = cloud(depth, _picture(), CAMERA, engine_size=engine)
    assert len(found) == depth.size
    assert np.abs(found.points[:, 2] - 2).max() < 1e-3
    width = 2 * 2 * math.tan(math.radians(63) / 2)
    assert np.ptp(found.points[:, 0]) == pytest.approx(width * 639 / 640, abs=1e-3)
    assert np.ptp(found.points[:, 1]) == pytest.approx(width * 479 / 640, abs=1e-3)


def _shapes(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Where the nearer of two surfaces is."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return {
        "upright": columns < size[1] // 3,
        "level": rows < size[0] // 3,
        "diagonal": rows + columns < size[0],
        "slanted": 3 * rows + columns < 2 * size[0],
        "disc": (columns - 60) ** 2 + (rows - 45) ** 2 < 900,
        "pole": columns == 40,
        "wire": np.abs(columns - rows - 5) < 1,
    }


@pytest.mark.parametrize("shape", _shapes((1, 1)))
@pytest.mark.parametrize("size", [(480, 640), (374, 500), (1080, 1440)])
@pytest.mark.parametrize(("engine", "far"), [((96, 128), 2.6), ((96, 128), 6), ((240, 320), 2.2), ((240, 320), 8)])
def test_no_point_lies_between_two_surfaces(
    engine: tuple[int, int], size: tuple[int, int], far: float, shape: str
) -> None:
    """Depth of 2 m and `far`, interpolated from the engine's size. Every step here is at least twice `STEEPEST`'s."""
    small = np.where(_shapes(engine)[shape], np.float32(2), np.float32(far))
    depth = resize_depth(small, size, smooth=True)
    flies = np.minimum(np.abs(depth - 2), np.abs(depth - far)) > 1e-3
    assert flies.sum() > 100
    camera = Intrinsics.from_fov(63, size)
    z = cloud(depth, _picture(size), camera, engine_size=engine).points[:, 2]
    assert np.minimum(np.abs(z - 2), np.abs(z - far)).max() < 1e-3
    assert len(z) > 0.95 * depth.size - flies.sum()  # little of the surfaces is lost


@given(step=st.floats(1.2, 5), height=st.integers(100, 700), near=st.floats(0.3, 3))
def test_no_point_lies_between_two_surfaces_with_a_straight_edge_without_the_engines_size(
    step: float, height: int, near: float
) -> None:
    size = (height, height * 4 // 3)
    small = np.full((96, 128), step * near, np.float32)
    small[:, :60] = near
    z = cloud(resize_depth(small, size, smooth=True), _picture(size), Intrinsics.from_fov(63, size)).points[:, 2]
    assert np.minimum(np.abs(z - near), np.abs(z - step * near)).max() < 1e-3 * near


@pytest.mark.parametrize("toward", range(0, 360, 45))
@pytest.mark.parametrize("engine", [(96, 128), (240, 320), SIZE])
def test_a_wall_that_is_seen_at_up_to_80_degrees_keeps_its_points(engine: tuple[int, int], toward: int) -> None:
    """Also after interpolation. `STEEPEST` leaves room for what a network adds."""
    angle, around = math.radians(78), math.radians(toward)
    normal = np.array([math.sin(angle) * math.cos(around), math.sin(angle) * math.sin(around), math.cos(angle)])

    def seen(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Depth of a wall 1 m away, at most 30 m, and the cosine under which a pixel sees it."""
        rays = unproject(np.ones(size, np.float32), Intrinsics.from_fov(63, size))
        towards = rays @ normal
        return (1 / np.maximum(towards, 1 / 30)).astype(np.float32), towards / np.linalg.norm(rays, axis=-1)

    depth = resize_depth(seen(engine)[0], SIZE, smooth=True)
    moderate = seen(SIZE)[1] > math.cos(math.radians(80))
    assert moderate.mean() > 0.3
    numbers = np.arange(depth.size, dtype="<u4").view(np.uint8).reshape(*SIZE, 4)[..., :3]
    red, green, blue = cloud(depth, numbers, CAMERA, engine_size=engine).colours.T.astype(np.int64)
    kept = np.zeros(depth.size, bool)
    kept[red + 256 * green + 65536 * blue] = True
    assert kept[moderate.ravel()].all()
    assert STEEPEST > 80


def test_pixels_without_depth_are_left_out_and_are_no_edge() -> None:
    depth = np.full((4, 5), 2, np.float32)
    depth[0, 0], depth[1, 1], depth[2, 2], depth[3, 3] = 0, np.nan, np.inf, -1
    picture = _picture((4, 5))
    found = cloud(depth, picture, Intrinsics.from_fov(63, (4, 5)))
    valid = depth == 2
    assert len(found) == valid.sum() == 16
    np.testing.assert_array_equal(found.colours, picture[valid])
    np.testing.assert_array_equal(found.points, unproject(depth, Intrinsics.from_fov(63, (4, 5)))[valid])
    assert len(cloud(np.zeros((4, 5)), picture, Intrinsics.from_fov(63, (4, 5)))) == 0


def test_jump_is_a_share_of_the_nearer_depth() -> None:
    depth = np.full((1, 6), 2, np.float32)
    depth[:, 3:] = 2.2
    camera, picture = Intrinsics.from_fov(63, (1, 6)), _picture((1, 6))
    assert len(cloud(depth, picture, camera, jump=0.101)) == 6
    assert len(cloud(depth, picture, camera, jump=0.099)) == 4
    assert len(cloud(depth, picture, camera, jump=0.099, engine_size=(1, 3))) == 2
    assert len(cloud(depth, picture, camera, jump=0.099, engine_size=(1, 1))) == 0
    assert len(cloud(depth, picture, camera, jump=0.099, engine_size=(2, 12))) == 4


@pytest.mark.parametrize("jump", [0, -1, math.nan])
def test_bad_jump_is_refused(jump: float) -> None:
    with pytest.raises(UserError, match="a share of depth above 0"):
        cloud(np.ones(SIZE, np.float32), _picture(), CAMERA, jump=jump)


def test_arrays_that_do_not_fit_are_refused() -> None:
    depth = np.ones(SIZE, np.float32)
    with pytest.raises(FrameError, match=r"depth has shape \(240, 320\).*Intrinsics.resized"):
        unproject(np.ones((240, 320), np.float32), CAMERA)
    with pytest.raises(FrameError, match="depth has shape"):
        unproject(depth[None], CAMERA)
    for picture in (_picture((240, 320)), _picture().astype(np.float32), _picture()[..., 0]):
        with pytest.raises(FrameError, match=r"the picture must be uint8 \(480, 640, 3\)"):
            cloud(depth, picture, CAMERA)


def _read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """By trimesh."""
    import trimesh

    found = trimesh.load(path, process=False)
    return np.asarray(found.vertices), np.asarray(found.colors)[:, :3]


def _read_pcd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """By pypcd4, which reads colours as PCL does."""
    from pypcd4 import PointCloud

    found = PointCloud.from_path(path)
    return found.numpy(("x", "y", "z")), np.asarray(PointCloud.decode_rgb(found.numpy(("rgb",)).astype(np.float32)))


READERS = {".ply": _read_ply, ".pcd": _read_pcd}


@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_foreign_readers_find_the_points_and_colours(tmp_path: Path, suffix: str, axes: Axes) -> None:
    made = _random()
    path = tmp_path / f"new/cloud{suffix}"
    WRITERS[suffix](path, made, axes=axes)
    points, colours = READERS[suffix](path)
    np.testing.assert_array_equal(points, made.points * ((1, 1, 1) if axes == "opencv" else (1, -1, -1)))
    np.testing.assert_array_equal(colours, made.colours)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("count", [0, 1, 65535, 65536, 65537, 150_000])
def test_any_number_of_points_is_written_in_full(tmp_path: Path, suffix: str, count: int) -> None:
    made, path = _random(count), tmp_path / f"cloud{suffix}"
    WRITERS[suffix](path, made)
    header, found, body = path.read_bytes().partition({".ply": b"end_header\n", ".pcd": b"DATA binary\n"}[suffix])
    assert found
    assert str(count).encode() in header
    size = {".ply": 15, ".pcd": 16}[suffix]
    assert len(body) == count * size
    records = np.frombuffer(body, np.uint8).reshape(count, size)
    np.testing.assert_array_equal(records[:, :12].copy().view("<f4").reshape(count, 3), made.points)
    np.testing.assert_array_equal(records[:, 12:15], made.colours if size == 15 else made.colours[:, ::-1])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_large_cloud_is_written_without_a_copy(tmp_path: Path, suffix: str) -> None:
    made = _random(600_000)  # 9 MB
    tracemalloc.start()
    try:
        WRITERS[suffix](tmp_path / f"cloud{suffix}", made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_500_000


_OPEN3D = """
import json, sys
import numpy as np, open3d
for path in sys.argv[1:]:
    read = open3d.io.read_point_cloud(path)
    points, colours = np.asarray(read.points), np.asarray(read.colors) * 255
    print(json.dumps([points.tolist(), np.rint(colours).tolist()]))
"""


def test_open3d_finds_the_points_and_colours(tmp_path: Path) -> None:
    """In a process of its own. Open3D brings Dash, whose plug-in pytest would load into every run, so that it is better
    kept in a venv of its own: DEPTHKIT_OPEN3D names its Python.
    """
    python = os.environ.get("DEPTHKIT_OPEN3D") or (sys.executable if find_spec("open3d") else None)
    if python is None:
        pytest.skip("Open3D is not installed: pip install open3d-cpu in another venv, DEPTHKIT_OPEN3D=its Python")
    depth = np.full((48, 64), 2, np.float32)
    depth[10:30, 20:40] = 1
    made = cloud(depth, _picture((48, 64)), Intrinsics.from_fov(63, (48, 64)))
    paths = [tmp_path / f"cloud{suffix}" for suffix in WRITERS]
    for path in paths:
        WRITERS[path.suffix](path, made)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", _OPEN3D, *map(str, paths)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read: list[Any] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(read) == 2
    for points, colours in read:
        np.testing.assert_array_equal(np.float32(points), made.points)
        np.testing.assert_array_equal(colours, made.colours)
        extent = np.ptp(points, axis=0)
        width = 4 * math.tan(math.radians(63) / 2)
        assert extent == pytest.approx((width * 63 / 64, width * 47 / 64, 1), rel=1e-5)


@pytest.mark.parametrize("suffix", WRITERS)
def test_full_disk_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    with files_at_most(1 << 19), pytest.raises(OutputError, match="cannot write"):
        WRITERS[suffix](tmp_path / f"cloud{suffix}", _random(100_000))
    assert list(tmp_path.iterdir()) == []


def test_unknown_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="axes 'ros' are unknown; choose opencv or opengl"):
        write_ply(tmp_path / "a.ply", _random(), axes="ros")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(depthkit.__file__).parent / "docs" / "run.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.*?)```", text.partition("\n## Cameras and point clouds\n")[2].partition("\n## ")[0], re.DOTALL
    )
    write_image(tmp_path / "photo.jpg", _picture((60, 80)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictor, "open_target", lambda _: NullSession(model_spec(48, 64), 2.0))
    names: dict[str, Any] = {}
    exec(code, names)
    camera = Intrinsics.from_fov(63, (60, 80))
    assert names["points"][..., 2] == pytest.approx(2 * camera.focal / 0.75, rel=1e-5)
    assert len(_read_ply(tmp_path / "photo.ply")[0]) == 60 * 80
