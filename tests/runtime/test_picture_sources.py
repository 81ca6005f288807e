"""Sources that need no video library: pictures, folders, globs, numbered sequences, and raw frames."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.images import read_image, resize_image, write_image
from depthkit.errors import DataError, UserError
from depthkit.runtime.pictures import open_raw
from depthkit.runtime.sources import open_source

from ..support import run_python

NOISE = np.random.default_rng(0)


def picture(size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Random pixels."""
    return NOISE.integers(0, 256, (*size, 3), np.uint8)


def write_pictures(folder: Path, *names: str) -> list[np.ndarray]:
    """Pictures of these names."""
    images = [picture() for _ in names]
    for name, image in zip(names, images, strict=True):
        write_image(folder / name, image)
    return images


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))


def test_one_picture(tmp_path: Path) -> None:
    (image,) = write_pictures(tmp_path, "photo.png")
    with open_source(tmp_path / "photo.png") as source:
        assert (source.size, source.count, source.fps, source.live) == ((24, 32), 1, None, False)
        (frame,) = source
    assert (frame.time, frame.index, frame.name) == (0, 0, "photo")
    assert np.array_equal(frame.image(), image)
    assert np.array_equal(frame.image((12, 16)), resize_image(image, (12, 16)))


def test_a_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((24, 32))).save(tmp_path / "photo.jpg", exif=exif)
    with open_source(tmp_path / "photo.jpg") as source:
        assert source.size == (32, 24)
        (frame,) = source
        assert frame.image().shape == (32, 24, 3)


def test_a_folder_and_a_glob_give_all_pictures_by_name(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, "a.png", "b.bmp", "b.png")
    write_image(tmp_path / "c.png", picture((10, 12)))
    with open_source(tmp_path, fps=10) as source:
        frames = list(source)
    assert [frame.name for frame in frames] == ["a", "b.bmp", "b.png", "c"]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert np.array_equal(frames[1].image(), images[1])
    assert frames[3].image().shape == (10, 12, 3)  # photos need not have one size
    (tmp_path / "notes.txt").write_text("none of this is a picture")
    with open_source(f"{tmp_path}/[bcn]*") as source:
        assert [frame.name for frame in source] == ["b.bmp", "b.png", "c"]
        assert source.faults == ["skipped 1 of 4 files, which are not pictures"]


def test_names_are_unique_across_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_pictures(tmp_path / folder, "a.png")
    with open_source(f"{tmp_path}/**/*.png") as source:
        assert [frame.name for frame in source] == ["000000_a", "000001_a"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 6), begin=st.integers(0, 99_998), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_a_sequence_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, count: int, begin: int, size: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    images = [picture(size) for _ in range(count)]
    for number, image in enumerate(images, begin):
        write_image(folder / f"x{number:05d}.png", image)
    with open_source(folder / "x%05d.png", fps=20) as source:
        assert (source.size, source.count, source.fps) == (size, count, 20)
        frames = list(source)
        assert source.faults == []
    assert all(np.array_equal(frame.image(), image) for frame, image in zip(frames, images, strict=True))
    assert [frame.index for frame in frames] == list(range(count))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(count) / 20)


def test_a_sequence_names_what_is_missing_or_broken(tmp_path: Path) -> None:
    write_pictures(tmp_path, "0001.png", "0002.png", "0004.png", "0005.png", "5.png", "x0003.png")
    (tmp_path / "0005.png").write_bytes(b"broken")
    with open_source(tmp_path / "%04d.png", fps=10) as source:
        frames = list(source)
        assert source.faults == [
            "1 number is missing between 0001.png and 0005.png",
            "1 picture could not be read and was skipped",
        ]
    assert [frame.index for frame in frames] == [0, 1, 3]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.3])
    assert [frame.name for frame in frames] == ["0001", "0002", "0004"]


def test_a_sequence_of_another_size_is_refused_by_both_sizes(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png")
    write_image(tmp_path / "2.png", picture((30, 32)))
    with open_source(tmp_path / "%d.png") as source, pytest.raises(DataError, match=r"24x32 to 30x32 .* 2\.png"):
        list(source)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing.mp4", "no such file or folder"),
        ("%03d.png", "no files are named like"),
        ("*.png", "nothing matches"),
        ("*.txt", "matches 1 files and no picture"),
        (".", "has no pictures"),
        ("ftp://host/clip.mp4", "ftp:// is not an address"),
        ("a\0b", "no such file or folder"),
    ],
)
def test_places_without_frames_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_source(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3), np.uint8), [], None])
def test_frames_are_no_place(frames: Any) -> None:
    with pytest.raises(UserError, match="a path, an address or a camera"):
        open_source(frames)


def test_a_broken_picture_is_refused_when_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"a\.png"):
        open_source(tmp_path / "a.png")


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    count=st.integers(1, 5),
    rest=st.integers(0, 2),
    part=st.integers(1, 50),
)
def test_raw_frames_of_any_size_and_a_partial_last_one(size: tuple[int, int], count: int, rest: int, part: int) -> None:
    class Pipe(io.BytesIO):
        """Gives a few bytes at a time."""

        def read(self, length: int | None = -1) -> bytes:
            return super().read(min(part, length or 0))

    images = NOISE.integers(0, 256, (count, *size, 3), np.uint8)
    with open_raw(Pipe(images.tobytes() + bytes(rest)), size, fps=25) as source:
        frames = list(source)
        assert len(source.faults) == (rest > 0)
    assert all(np.array_equal(frame.image(), image) for frame, image in zip(frames, images, strict=True))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(count) / 25)


def test_standard_input_holds_raw_frames_or_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    images = NOISE.integers(0, 256, (3, 4, 5, 3), np.uint8)
    stdin(monkeypatch, images.tobytes())
    with open_source("-", input_size=(4, 5)) as source:
        assert (source.name, source.count) == ("standard input", None)
        frames = list(source)
    assert [frame.image().tolist() for frame in frames] == images.tolist()
    changed = frames[0].image()
    changed[:] = 0
    assert np.array_equal(frames[0].image(), images[0])
    stdin(monkeypatch, bytes(59))
    with pytest.raises(DataError, match=r"59 bytes, less than one frame of 4x5 \(HxW\) rgb24 \(60 bytes\)"):
        open_source("-", input_size=(4, 5))
    with pytest.raises(UserError, match="at least 1"):
        open_source("-", input_size=(0, 5))


def test_standard_input_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(isatty=lambda: True)))
    with pytest.raises(UserError, match="terminal"):
        open_source("-")


def test_pictures_load_no_video_library(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    code = """
import sys
sys.modules["av"] = None
from depthkit.runtime.sources import open_source
folder = sys.argv[1]
for place in (f"{folder}/1.png", folder, f"{folder}/%d.png", f"{folder}/*.png"):
    with open_source(place) as source:
        print(sum(frame.image((4, 4)).size > 0 for frame in source))
"""
    assert run_python("-c", code, str(tmp_path)).split() == ["1", "2", "2", "2"]


def test_real_photos(samples: Path) -> None:
    with open_source(samples / "photos" / "*.jpg") as source:
        frames = list(source)
        assert len(frames) == source.count == 17
    assert frames[0].name == "da2_demo01"
    expected = resize_image(read_image(samples / "photos" / "da2_demo01.jpg"), (240, 320))
    assert np.array_equal(frames[0].image((240, 320)), expected)
