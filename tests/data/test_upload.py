"""Pictures that somebody sent: read as files are, or refused before they cost anything."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from depthkit.data.images import read_exif, read_image
from depthkit.data.upload import Upload
from depthkit.errors import DataError, UserError
from depthkit.runtime.cameras import read_intrinsics

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_upload_is_read_as_the_file_is(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(kind, exif=exif)
    (tmp_path / "a").write_bytes(content)
    found = read_image(Upload(content))
    np.testing.assert_array_equal(found, read_image(tmp_path / "a"))
    assert found.shape == ((40, 24, 3) if orientation == 6 else (24, 40, 3))
    assert read_exif(Upload(content)) == read_exif(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the picture is no JPEG, PNG or WebP; send the file itself"),
        (b"GIF89a" + bytes(100), "is no JPEG, PNG or WebP"),
        (encoded("TIFF"), "is no JPEG, PNG or WebP"),
        (encoded("BMP"), "is no JPEG, PNG or WebP"),
        (encoded("PNG")[:400], "the picture cannot be decoded"),
        (png_that_declares(50_001, 1000), "declares 50001x1000 pixels, more than 50 million"),
        (png_that_declares(60_000, 60_000), "too large to decode"),
    ],
)
def test_what_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_image(Upload(content))


def test_a_camera_of_48_megapixels_passes() -> None:
    Upload(b"").require_fit(8000, 6000)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_pictures_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(encoded(data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_image(Upload(bytes(content[: data.draw(st.integers(0, len(content)))])))
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3


def test_intrinsics_of_a_stranger_name_no_file(tmp_path: Path) -> None:
    (tmp_path / "K.json").write_text('{"fx": 500, "fy": 500, "cx": 319.5, "cy": 239.5}')
    assert read_intrinsics(str(tmp_path / "K.json"), (480, 640)).fx == 500
    with pytest.raises(UserError, match="is none of"):
        read_intrinsics(str(tmp_path / "K.json"), (480, 640), files=False)


def test_intrinsics_by_the_exif_of_an_upload() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # FocalLengthIn35mmFilm
    camera = read_intrinsics("exif", (24, 40), picture=Upload(encoded("JPEG", exif=exif)), files=False)
    assert camera.fx == pytest.approx(28 * np.hypot(24, 40) / np.hypot(24, 36))
