"""The engine store: all engines built on this machine, by key.

A build takes seconds to an hour, so an engine is built once per key: the ONNX file's hash, backend, vendor version,
device and options. While one process builds, a lock makes others that need the same engine wait. It is a lock of the
operating system, which is released when its process ends, even after a crash.

    <root>/engines-<schema>/<key>/engine.<extension>    with its manifest; <schema> is the manifest's schema version
    <root>/locks/<key>.lock
    <root>/timing/<name>                                TensorRT's timing caches
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ..errors import OutputError, UserError
from ..files import is_refused_write, make_folder, sha256
from .manifest import Manifest, read_manifest

__all__ = ["Entry", "Store", "locked", "store_root", "timing_cache_path"]

VARIABLE: Final = "DEPTHKIT_STORE"
_UNFINISHED: Final = ".unfinished-"
_REMEDY: Final = f"free space in the engine store with `depthkit engines prune`, or set {VARIABLE} to another folder"


def store_root() -> Path:
    """`$DEPTHKIT_STORE`, or `depthkit` in the user's cache folder (XDG Base Directory Specification)."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthkit"


def timing_cache_path(name: str) -> Path:
    """Path of a vendor's timing cache with this name; use `locked` to write it."""
    return store_root() / "timing" / name


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the inter-process lock of `path`; `on_wait` is called before waiting. Raises OutputError."""
    folder = _writable(path.parent)
    lock = FileLock(folder / f"{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is not None:
            on_wait()
        lock.acquire()
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Entry:
    """An engine in the store.

    Attributes:
        key: its key, see `Store`.
        engine, manifest: the file and its description.
        file_bytes: size of the file.
        used: time of the last build or use, in seconds since the epoch.
    """

    key: str
    engine: Path
    manifest: Manifest
    file_bytes: int
    used: float

    def unused_for(self, days: float) -> bool:
        """Whether it was not used for this many days."""
        return self.used < time.time() - days * 86_400


class Store:
    """Engines by key. Safe to use from several processes; `find` and `add` belong inside `locked(key)`.

    Attributes:
        root: its folder.
        engines: folder of the engines in it.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or store_root()
        # A version of depthkit with another schema of manifests may share the store.
        self.engines = self.root / f"engines-{Manifest.schema_version}"

    @contextmanager
    def locked(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock of `key`. Raises OutputError if the store cannot be written."""
        with locked(self.root / "locks" / key, on_wait):
            yield

    def find(self, key: str) -> Entry | None:
        """The engine of `key`, or None; a damaged one is removed."""
        folder = self.engines / key
        if not folder.is_dir():
            return None
        entry = _read(folder)
        if entry is None or sha256(entry.engine) != entry.manifest.engine_sha256:
            _discard(folder)
            return None
        os.utime(folder)
        return entry

    def add(self, key: str, extension: str, make: Callable[[Path], None]) -> Entry:
        """Let `make` write an engine and its manifest to the path that it gets; add both to the store, or neither.

        Raises:
            OutputError: no space or no permission.
            DepthkitError: whatever `make` raises.
        """
        goal = self.engines / key
        unfinished = _writable(self.engines) / f"{_UNFINISHED}{key}"
        _discard(unfinished)  # from a process that was killed: nobody else writes here while we hold the lock
        try:
            unfinished.mkdir()
            make(unfinished / f"engine.{extension}")
            _discard(goal)
            unfinished.rename(goal)
        except OutputError as error:
            raise OutputError(f"{error}; {_REMEDY}") from error
        except OSError as error:
            if not is_refused_write(error):
                raise  # about a file that `make` read
            raise _refused(self.root, error) from error
        finally:
            _discard(unfinished)
        entry = _read(goal)
        assert entry is not None
        return entry

    def entries(self) -> list[Entry]:
        """All engines with a readable manifest, last used first."""
        if not self.engines.is_dir():
            return []
        found = [_read(folder) for folder in self.engines.iterdir() if not folder.name.startswith(_UNFINISHED)]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used)

    def named(self, start: str) -> Entry:
        """The engine whose key begins with `start`. Raises UserError for none or several."""
        found = [entry for entry in self.entries() if entry.key.startswith(start)]
        if len(found) != 1:
            raise UserError(
                f"{len(found) or 'no'} engines in {self.root} have a key that begins with {start!r}; "
                "`depthkit engines list` shows all keys"
            )
        return found[0]

    def remove(self, entry: Entry) -> None:
        """Delete an engine; copies of it beside ONNX files stay."""
        with self.locked(entry.key):
            _discard(entry.engine.parent)

    def remove_broken(self) -> int:
        """Delete unfinished and unreadable entries that no process is writing, and return their number."""
        if not self.engines.is_dir():
            return 0
        removed = 0
        for folder in filter(_is_broken, list(self.engines.iterdir())):
            lock = FileLock(make_folder(self.root / "locks") / f"{folder.name.removeprefix(_UNFINISHED)}.lock")
            try:
                with lock.acquire(timeout=0):
                    if _is_broken(folder):  # still: another process may have built it meanwhile
                        _discard(folder)
                        removed += 1
            except Timeout:
                continue  # it is being built
        return removed


def _read(folder: Path) -> Entry | None:
    try:
        (engine,) = (path for path in folder.glob("engine.*") if path.suffix != ".json")
        manifest = read_manifest(engine)
        return Entry(folder.name, engine, manifest, engine.stat().st_size, folder.stat().st_mtime)
    except (UserError, ValueError, OSError):  # OSError: another process has just removed it
        return None


def _is_broken(folder: Path) -> bool:
    return folder.is_dir() and (folder.name.startswith(_UNFINISHED) or _read(folder) is None)


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _writable(folder: Path) -> Path:
    try:
        return make_folder(folder)
    except OutputError as error:
        raise OutputError(f"{error}; {_REMEDY}") from error


def _refused(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write the engine store {folder}: {error.strerror or error}; {_REMEDY}")
