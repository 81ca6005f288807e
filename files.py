"""Atomic writes, hashes and folders. A target path never holds a half-written file."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import OutputError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MOST_NAME_BYTES",
    "atomic_folder",
    "atomic_write",
    "is_refused_write",
    "make_folder",
    "refused_write",
    "remove",
    "require_writable",
    "sha256",
    "sha256_arrays",
    "sha256_text",
    "write_text",
]


MOST_NAME_BYTES: Final = 255
"""Longest file name that every common file system allows."""

_REFUSALS: Final = frozenset({
    errno.EACCES, errno.EDQUOT, errno.ENOENT, errno.EEXIST, errno.EFBIG, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
})  # fmt: skip


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, otherwise delete it.

    The temporary name keeps the suffix of `path`, because several writers choose the format by it.

    Raises:
        OutputError: the folder cannot be made, or the operating system refused the write (read-only, disk full).

    >>> import tempfile
    >>> goal = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(goal) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> goal.read_text(), len(list(goal.parent.iterdir()))
    ('whole', 1)
    """
    make_folder(path.parent)
    end = os.fsencode(path.name)[-200:].decode(errors="ignore")  # leaves room for the prefix in a file name
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{end}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if not is_refused_write(error) or _names_another(error, temporary, path):
            raise  # about a file that the block read, not about the one it wrote
        raise refused_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; it replaces `path` if the block succeeds.

    The old content of `path` is deleted only after that.

    Raises:
        OutputError: `path` is a file, or the operating system refused to make or to move the folder.
    """
    path = path.resolve()
    if path.is_file():
        raise OutputError(f"cannot make the folder {path}: it is a file; move it away")
    make_folder(path.parent)
    fresh, old = (path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name[-100:]}") for _ in range(2))
    try:
        yield make_folder(fresh)
        try:
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        except OSError as error:
            raise refused_write(path, error) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically. Raises OutputError."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Make `path` and its missing parents, and return it. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_write(path, error) from error
    return path


def remove(path: Path) -> None:
    """Delete a file if it exists. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise refused_write(path, error) from error


def require_writable(path: Path) -> None:
    """Raise OutputError early, before hours of work, if `path` obviously cannot be written."""
    place = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if place is not None and not place.is_dir():
        raise refused_write(path, NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder"))
    if place is not None and not os.access(place, os.W_OK | os.X_OK):
        raise refused_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text as UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_arrays(arrays: Iterable[np.ndarray]) -> str:
    """The SHA-256 of the arrays' shapes, dtypes and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def is_refused_write(error: OSError) -> bool:
    """Whether the operating system refused a write: disk full, no permission, no such folder."""
    return error.errno in _REFUSALS


def _names_another(error: OSError, temporary: Path, goal: Path) -> bool:
    """Whether the error names neither of these two files, and so concerns one that the block read.

    The error of a failed link names two files; ENOENT there means that the first, the link's target, is missing.
    """
    named = [error.filename] if error.errno == errno.ENOENT else [error.filename, error.filename2]
    names = [os.fsdecode(name) for name in named if isinstance(name, str | bytes | os.PathLike)]
    return bool(names) and not any(name == str(goal) or name.startswith(str(temporary)) for name in names)


def refused_write(path: Path, error: OSError) -> OutputError:
    """The OutputError for a write to `path` that the operating system refused."""
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}; choose a writable folder with enough free space")
