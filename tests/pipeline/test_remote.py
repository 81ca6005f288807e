"""Pictures on object stores, by a file system that needs no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.errors import DataError
from depthkit.pipeline.remote import fetch, find_remote, is_remote

from ..support import save_noise


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "deeper/c.png"):
        save_noise(tmp_path / name, 20, 30)
    (tmp_path / "notes.txt").touch()
    return tmp_path


def names(place: str) -> list[str]:
    return [address.rpartition("/")[2] for address in find_remote(place)]


def test_folder_pattern_and_picture(bucket: Path) -> None:
    assert names(f"file://{bucket}") == names(f"file://{bucket}/") == ["a.jpg", "b.png"]
    assert names(f"file://{bucket}/*.png") == ["b.png"]
    assert names(f"file://{bucket}/[ab].*") == ["a.jpg", "b.png"]
    assert find_remote(f"file://{bucket}/b.png") == [f"file://{bucket}/b.png"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/gone", "cannot be listed"),
        ("/notes.txt", "holds no picture"),
        ("/*.tif", "holds no picture"),
        ("/*/c.png", "only the name of the file"),
    ],
)
def test_what_holds_no_picture_is_refused(bucket: Path, place: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_remote(f"file://{bucket}{place}")


def test_fetched_bytes_are_those_of_the_store(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fetched")
    copy = fetch(f"file://{bucket}/a.jpg", folder)
    assert copy == folder / "a.jpg"
    assert copy.read_bytes() == (bucket / "a.jpg").read_bytes()
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read"):
        fetch(f"file://{bucket}/gone.jpg", folder)


@settings(max_examples=30, deadline=None)
@given(stem=st.text(st.characters(codec="utf-8", exclude_characters="/\0*?[", exclude_categories=["Cc"]), min_size=1))
def test_any_name_is_found_and_fetched(stem: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A key may hold what means something in a URI."""
    folder = tmp_path_factory.mktemp("named")
    name = f"{stem[:50]}.png"
    save_noise(folder / name, 2, 3)
    (address,) = find_remote(f"file://{folder}")
    assert address == f"file://{folder}/{name}"
    (folder / "copy").mkdir()
    assert fetch(address, folder / "copy").read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/a.jpg", True),
        ("S3://bucket/a.jpg", True),
        ("gs://bucket/*.png", True),
        ("rtsp://camera/1", False),
        ("https://a.b/clip.mp4", False),
        ("photos/a.jpg", False),
        ("s3:/a.jpg", False),
    ],
)
def test_which_addresses_are_stores(place: str, expected: bool) -> None:
    assert is_remote(place) is expected


def test_a_bucket_is_opened_once(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening one on S3 asks for its region."""
    from pyarrow import fs

    from depthkit.pipeline import remote

    opened: list[str] = []
    local = fs.FileSystem.from_uri

    class Counting:
        @staticmethod
        def from_uri(address: str) -> object:
            opened.append(address)
            return local("file:///")[0], str(bucket)

    make: Callable[[str, str], object] = remote._system
    make.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(fs, "FileSystem", Counting)
    addresses = find_remote("s3://photos")
    assert addresses == ["s3://photos/a.jpg", "s3://photos/b.png"]
    (bucket / "copy").mkdir()
    for address in addresses:
        fetch(address, bucket / "copy")
    assert opened == ["s3://photos/"]
    make.cache_clear()  # type: ignore[attr-defined]
