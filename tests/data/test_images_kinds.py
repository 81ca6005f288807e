"""Every kind of picture is read as it looks or refused; large ones in bounded memory; folders by what is in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.images import (
    DataWarning,
    find_images,
    picture_size,
    read_depth,
    read_image,
    read_pair,
    read_resized,
    resize_image,
)
from depthkit.errors import DataError

from ..support import run_python

RAMP = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
ORIENTATION = 0x0112


def _turned(path: Path, orientation: int, shape: tuple[int, int] = (24, 40)) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.resize(COLOURS, (*shape, 3))).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
@pytest.mark.parametrize("read", [read_image, lambda path: read_resized(path, (24, 40))[0]])
def test_16_bit_grey_is_scaled_and_rounded(tmp_path: Path, suffix: str, read: object) -> None:
    assert callable(read)
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    found = read(tmp_path / f"a.{suffix}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.repeat(np.rint(RAMP / 257)[..., None], 3, axis=-1))


@given(values=st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_any_16_bit_value_is_rounded_right(values: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "values.png"
    Image.fromarray(np.array([values], np.uint16)).save(path)
    assert read_image(path)[0, :, 0].tolist() == [round(value / 257) for value in values]


def test_big_endian_and_white_is_zero(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (40, 24), RAMP.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    Image.fromarray(RAMP).save(tmp_path / "negative.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(tmp_path / "big.tif")[..., 0], np.rint(RAMP / 257))
    np.testing.assert_array_equal(
        read_image(tmp_path / "negative.tif")[..., 0], np.rint((65535 - RAMP.astype(int)) / 257)
    )


def test_16_bit_colour_png_is_read_as_8_bit(tmp_path: Path) -> None:
    """Pillow cannot write one, so the file is put together by hand."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in RAMP)
    header = struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.abs(read_image(tmp_path / "a.png").astype(float) - RAMP[..., None] / 257).max() < 1


@pytest.mark.parametrize("kind", ["float", "int32", "int16", "pfm"])
def test_values_without_a_known_white_are_refused_with_a_remedy(tmp_path: Path, kind: str) -> None:
    ramp = np.linspace(0.1, 1, 24 * 40, dtype=np.float32).reshape(24, 40)
    path = tmp_path / ("a.pfm" if kind == "pfm" else "a.tif")
    if kind == "int16":
        Image.fromarray((ramp * 900).astype(np.int32)).save(path)
        Image.fromarray((ramp * 900).astype(np.uint16)).save(path, tiffinfo={339: 2})
    else:
        Image.fromarray((ramp * 900).astype(np.int32) if kind == "int32" else ramp).save(path)
    with pytest.raises(DataError, match=rf"{path.name} holds .*without a defined white level; convert it to 8 bits"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_look_as_they_are(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOURS).convert(mode)
    path = tmp_path / ("a.png" if mode in {"1", "L", "LA", "P", "RGBA"} else "a.tif")
    picture.save(path)
    found = read_image(path)
    np.testing.assert_array_equal(found, np.array(picture.convert("RGB")))
    assert found.dtype == np.uint8
    assert found.flags.writeable


@pytest.mark.parametrize("suffix", ["gif", "avif", "jfif", "mpo", "jp2", "ppm", "tga", "qoi", "PNG", "ico"])
def test_what_pillow_opens_is_a_picture(tmp_path: Path, suffix: str) -> None:
    if f".{suffix.lower()}" not in Image.registered_extensions():
        pytest.skip("this Pillow is built without it")
    Image.fromarray(COLOURS).save(tmp_path / f"a.{suffix}", "JPEG" if suffix == "jfif" else None)
    (found,) = find_images(tmp_path)
    assert read_image(found).ndim == 3


@pytest.mark.parametrize("name", ["a.eps", "a.h5", "a.mpeg", "a.pdf", "a.onnx", "a.npy", "a"])
def test_what_pillow_cannot_decode_itself_is_no_picture(tmp_path: Path, name: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "b.png")
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.warns(DataWarning, match=f"skipped 1 of 2 .*{name}"):
        assert find_images(tmp_path) == [tmp_path / "b.png"]
    with pytest.raises(DataError, match="not an image format that Pillow knows"):
        read_image(tmp_path / name)


def test_heic_without_its_plugin_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    try:
        import pillow_heif  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(DataError, match=r"a\.HEIC .*pip install 'pillow-heif'"):
            read_image(tmp_path / "a.HEIC")
        with pytest.raises(DataError, match=r"no pictures, only a\.HEIC \(\.heic needs pip install 'pillow-heif'\)"):
            find_images(tmp_path)


def test_a_folder_gives_its_pictures_and_names_the_rest(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG"):
        Image.fromarray(COLOURS).save(tmp_path / name)
    (tmp_path / "._a.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "notes.txt").touch()
    with pytest.warns(DataWarning) as caught:
        assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png"]
    (warning,) = caught
    for name in ("5 of 7", "._a.png", "folder.jpg", "loop.png", "lost.png", "notes.txt"):
        assert name in str(warning.message)


def test_many_skipped_files_are_counted(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    for index in range(30):
        (tmp_path / f"{index:02d}.txt").touch()
    with pytest.warns(DataWarning, match=r"skipped 30 of 31 .*00\.txt.* and 20 more$"):
        find_images(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_resized_pictures_are_turned_as_whole_ones_are(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = _turned(tmp_path / f"a.{suffix}", orientation)
    whole = read_image(path)
    assert whole.shape[:2] == picture_size(path) == ((40, 24) if orientation >= 5 else (24, 40))
    small, shape = read_resized(path, (12, 16))
    assert shape == whole.shape[:2]
    np.testing.assert_array_equal(small, resize_image(whole, (12, 16)))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize(
    ("orientation", "shape", "depth", "fits"),
    [
        (1, (24, 40), (24, 40), True),
        (6, (24, 40), (40, 24), True),  # the depth lies as the picture is seen
        (6, (24, 40), (24, 40), False),
        (3, (24, 40), (24, 40), False),  # upside down: nothing shows how the depth lies
        (2, (24, 40), (24, 40), False),
        (8, (24, 24), (24, 24), False),
    ],
)
def test_a_turned_picture_needs_depth_that_shows_that_it_is_turned(
    tmp_path: Path, suffix: str, orientation: int, shape: tuple[int, int], depth: tuple[int, int], fits: bool
) -> None:
    picture = _turned(tmp_path / f"a.{suffix}", orientation, shape)
    Image.fromarray(np.full(depth, 2000, np.uint16)).save(tmp_path / "d.png")
    if fits:
        image, stored = read_pair(picture, tmp_path / "d.png")
        assert image.shape[:2] == stored.shape == depth
    else:
        with pytest.raises(DataError, match=rf"a\.{suffix} is rotated by its EXIF orientation .*d\.png is not; save"):
            read_pair(picture, tmp_path / "d.png")


def test_negative_depth_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[5, -3]], np.int32)).save(tmp_path / "d.tif")
    with pytest.raises(DataError, match=r"d\.tif holds negative depth \(-3\)"):
        read_depth(tmp_path / "d.tif")


def test_too_many_pixels_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 // 2 - 1)
    with pytest.raises(DataError, match=r"bomb\.png is too large to decode .*make it smaller"):
        read_image(tmp_path / "bomb.png")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture of 24 megapixels as JPEG and as PNG, 69 MiB as an array."""
    folder = tmp_path_factory.mktemp("large")
    small = Image.fromarray(COLOURS)
    picture = small.resize((6000, 4000), Image.Resampling.BICUBIC)
    picture.save(folder / "a.jpg", quality=95)
    picture.save(folder / "a.png", compress_level=1)
    return folder


def test_a_large_jpeg_is_resized_as_the_whole_would_be(large: Path) -> None:
    whole = resize_image(read_image(large / "a.jpg"), (96, 128))
    small, shape = read_resized(large / "a.jpg", (96, 128))
    assert shape == (4000, 6000)
    assert np.abs(small.astype(int) - whole).max() <= 2


_PEAK = """
import re
from pathlib import Path
from depthkit.data.images import read_image, read_resized, _formats


def peak():  # not ru_maxrss, which survives exec: of a large parent it never grows
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


_formats()
before = peak()
{call}
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("call", "mebibytes"),
    [
        ("read_resized(Path('a.jpg'), (96, 128))", 40),
        ("read_resized(Path('a.png'), (96, 128))", 130),  # Pillow's own picture: 4 bytes a pixel
        ("read_image(Path('a.jpg'))", 190),  # that and the array
    ],
)
def test_a_large_picture_takes_no_more_memory_than_it_must(large: Path, call: str, mebibytes: int) -> None:
    assert int(run_python("-c", _PEAK.format(call=call), cwd=large)) < mebibytes
