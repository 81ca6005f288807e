"""Pictures on object stores (`s3://`, `gs://`, …): found, and fetched to be read like local ones. By PyArrow.

`pyarrow.fs` reads credentials and endpoints from the environment, as the vendors' own tools do.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import has_magic
from pathlib import Path
from typing import Any, Final

from ..data.images import looks_like_picture
from ..errors import DataError
from ..files import atomic_write

__all__ = ["SCHEMES", "changed", "fetch", "find_remote", "is_remote"]

SCHEMES: Final = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""Schemes of `pyarrow.fs.FileSystem.from_uri`."""

_PIECE: Final = 1 << 20  # bytes that are read at once


def is_remote(place: str) -> bool:
    """Whether it is the address of a file, folder or pattern on a file system of `SCHEMES`."""
    scheme, separator, _ = place.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def find_remote(place: str) -> list[str]:
    """The addresses of the pictures that `place` names, sorted.

    Args:
        place: a picture, a folder, or a pattern of file names: `s3://bucket/folder/*.jpg`.

    Raises:
        DataError: it does not exist, holds no picture, or the store refuses.
    """
    folder, _, pattern = place.rstrip("/").rpartition("/")
    top = folder if has_magic(pattern) else place.rstrip("/")
    if has_magic(top):
        raise DataError(f"{place}: only the name of the file may have *, ? or [; name the folder in full")
    try:
        system, root, path = _opened(top)
        found = _listed(system, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{top} cannot be listed ({_line(error)}); check the address and your credentials") from error
    start = place.partition("://")[0] + "://" + _authority(place) + "/"
    pictures = [each for each in found if looks_like_picture(Path(each))]
    if has_magic(pattern):
        pictures = [each for each in pictures if fnmatchcase(each.rpartition("/")[2], pattern)]
    if not pictures:
        raise DataError(f"{place} holds no picture; check the address")
    return [start + each.removeprefix(root) for each in sorted(pictures)]


def fetch(place: str, folder: Path) -> Path:
    """Copy a picture into a folder, under its own name.

    Raises:
        DataError: it cannot be read.
        OutputError: it cannot be written.
    """
    goal = folder / place.rpartition("/")[2]
    with atomic_write(goal) as temporary, temporary.open("wb") as stream:
        stream.writelines(_pieces(place))
    return goal


def changed(place: str) -> int | None:
    """When the store says that a picture was last written, in nanoseconds since the epoch; None: it does not say.

    Raises:
        DataError: it is not there, or the store refuses.
    """
    from pyarrow import fs

    try:
        system, _, path = _opened(place)
        (info,) = system.get_file_info([path])
    except (OSError, ValueError) as error:
        raise _unreadable(place, _line(error)) from error
    if info.type == fs.FileType.NotFound:
        raise _unreadable(place, "there is no such file")
    found: int | None = info.mtime_ns
    return found


def _pieces(place: str) -> Iterator[bytes]:
    try:
        system, _, path = _opened(place)
        with system.open_input_stream(path) as source:
            while piece := source.read(_PIECE):
                yield piece
    except (OSError, ValueError) as error:
        raise _unreadable(place, _line(error)) from error


def _unreadable(place: str, reason: str) -> DataError:
    return DataError(f"{place} cannot be read ({reason}); check that it is still there")


def _authority(place: str) -> str:
    """The bucket or host."""
    return place.partition("://")[2].partition("/")[0]


def _opened(place: str) -> tuple[Any, str, str]:
    """The file system, the start that all its paths have, and the path of `place`."""
    scheme, _, rest = place.partition("://")
    system, root = _system(scheme.lower(), _authority(place))
    return system, root, root + rest.partition("/")[2]


@lru_cache(maxsize=16)
def _system(scheme: str, authority: str) -> tuple[Any, str]:
    """The file system of a bucket or host. Made once, because S3 is asked for the bucket's region.

    Only this part is parsed as a URI: a key may hold spaces, `?` and `%`, which mean nothing in it.
    """
    from pyarrow import fs

    system, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/")
    return system, f"{root.rstrip('/')}/"


def _listed(system: Any, path: str) -> list[str]:
    """The path itself if it is a file, otherwise the files in it."""
    from pyarrow import fs

    (info,) = system.get_file_info([path])
    if info.type == fs.FileType.File:
        return [path]
    return [each.path for each in system.get_file_info(fs.FileSelector(path)) if each.type == fs.FileType.File]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
