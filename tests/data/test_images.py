"""Pictures and depth maps on disk: exact round trips, one sentence for every broken file, resizing."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import read_depth, read_image, resize_depth, resize_image, write_image
from depthkit.data.quiet import quiet
from depthkit.errors import DataError, OutputError

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def _encoded(suffix: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(PICTURE).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return stream.getvalue()


ENCODED = {suffix: _encoded(suffix) for suffix in ("png", "jpg", "bmp", "tif", "webp")}
OTHERS = {suffix: _encoded(suffix) for suffix in ("gif", "ppm", "tga", "ico", "sgi", "pcx", "qoi", "dds")}


@given(depth=npst.arrays(np.uint16, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_millimetres_survive_a_16_bit_png(depth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "depth.png"
    write_depth_png(path, depth.astype(np.float32) / 1000)
    found = read_depth(path)
    assert found.dtype == np.int32
    assert np.array_equal(found, depth)


def test_depth_is_rounded_to_the_nearest_millimetre_and_clipped(tmp_path: Path) -> None:
    """NaN has no millimetres; 0 is what every reader of 16-bit depth takes for `not measured`."""
    depth = np.array([[1.0004, 1.0006, -3.0, 70.0, 0.0, np.nan]], np.float32)
    write_depth_png(tmp_path / "d.png", depth)
    assert read_depth(tmp_path / "d.png").tolist() == [[1000, 1001, 0, 65535, 0, 0]]


def test_eight_bit_depth_stays_eight_bit(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "d.png")
    found = read_depth(tmp_path / "d.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, levels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "LA"])
def test_depth_of_several_channels_or_a_palette_is_refused(tmp_path: Path, mode: str) -> None:
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "d.png")
    with pytest.raises(DataError, match=r"d\.png.*channel"):
        read_depth(tmp_path / "d.png")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_picture_survives_a_lossless_format(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a.{suffix}", PICTURE)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), PICTURE)


@pytest.mark.parametrize("read", [read_image, read_depth])
def test_missing_empty_and_foreign_files_each_get_their_sentence(tmp_path: Path, read: object) -> None:
    assert callable(read)
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("this is no picture")
    (tmp_path / "folder.png").mkdir()
    for name, words in {"gone": "no file", "empty": "empty", "notes": "not an image", "folder": "folder"}.items():
        with pytest.raises(DataError, match=rf"{name}\.png") as caught:
            read(tmp_path / f"{name}.png")
        assert words in str(caught.value)
    with pytest.raises(DataError):
        read(tmp_path / "notes.png" / "below.png")


@given(suffix=st.sampled_from(sorted(ENCODED)), share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_a_data_error_or_whole(
    suffix: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only bytes after the pixels may be missing; a picture that is read is never half grey."""
    content = ENCODED[suffix]
    path = tmp_path_factory.getbasetemp() / f"cut.{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    try:
        found = read_image(path)
    except DataError as error:
        assert path.name in str(error)
    else:
        path.write_bytes(content)
        assert np.array_equal(found, read_image(path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about damaged EXIF
@settings(deadline=None)
@given(
    suffix=st.sampled_from([*ENCODED, *OTHERS]),
    place=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1),
)
def test_damaged_file_is_a_data_error_or_a_picture(
    suffix: str, place: float, junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever Pillow makes of damaged bytes, no other exception comes out."""
    content = bytearray((ENCODED | OTHERS)[suffix])
    start = int(len(content) * place)
    content[start : start + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / f"bent.{suffix}"
    path.write_bytes(content)
    try:
        assert read_image(path).ndim == 3
    except DataError as error:
        assert path.name in str(error)


def test_nearest_keeps_holes_and_invents_no_depth() -> None:
    depth = np.where(np.random.default_rng(1).random((24, 32)) < 0.3, 0, 1).astype(np.float32)
    depth[:, 16:] *= 7
    small = resize_depth(depth, (9, 13), smooth=False)
    assert small.shape == (9, 13)
    assert set(np.unique(small)) == {0, 1, 7}


def test_smooth_resize_interpolates_and_stays_within_range() -> None:
    depth = np.zeros((4, 4), np.float32)
    depth[:, 2:] = 8
    large = resize_depth(depth, (16, 16), smooth=True)
    assert large.dtype == np.float32
    assert large.min() == 0
    assert large.max() == 8
    assert ((large > 0.5) & (large < 7.5)).any()


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_resize_gives_the_size_and_leaves_what_fits(height: int, width: int) -> None:
    image = resize_image(PICTURE, (height, width))
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert resize_image(image, (height, width)) is image
    depth = resize_depth(np.ones((7, 9), np.float32), (height, width), smooth=True)
    assert depth.shape == (height, width)
    assert resize_depth(depth, (height, width), smooth=False) is depth
    assert np.allclose(depth, 1)


def test_resizing_a_picture_is_antialiased() -> None:
    """Every other column white: without antialiasing the small picture would be all black or all white."""
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, (8, 8))
    assert abs(small.astype(int) - 127).max() < 40


def test_writing_where_nothing_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_image(tmp_path / "file" / "a.png", PICTURE)
    with pytest.raises(OutputError, match="file"):
        write_depth_png(tmp_path / "file" / "a.png", np.ones((2, 2), np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_threads_that_read_pictures_leave_the_filters_of_warnings_as_they_were() -> None:
    before = warnings.filters[:]
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(quiet)
        second.enter_context(quiet)
        first.close()
        warnings.warn("unheard", stacklevel=1)  # an error in tests, if it were heard
    assert warnings.filters == before
