"""The folder where a run is trained: never over a finished run, and by one process at a time. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ..errors import OutputError, TrainingError, UserError
from ..files import make_folder
from .document import CHECKPOINT, MODEL, read_document

__all__ = [
    "UNFINISHED",
    "checkpoint_in",
    "claimed",
    "discard",
    "is_finished",
    "replace_run",
    "require_free",
    "workplace",
]

UNFINISHED: Final = "unfinished"
"""Folder in a finished run's folder where its replacement is trained."""

_LOCK: Final = ".lock"


def is_finished(folder: Path) -> bool:
    """Whether `folder` contains a finished run."""
    return (folder / MODEL).is_file()


def workplace(folder: Path) -> Path:
    """Where to train the run of `folder`: in it, or if it contains a finished run, in a folder inside."""
    return folder / UNFINISHED if is_finished(folder) else folder


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint to resume from: of the unfinished run, else of the finished run; None if there is none."""
    paths = (workplace(folder) / CHECKPOINT, folder / CHECKPOINT)
    return next((path for path in paths if path.is_file()), None)


def require_free(folder: Path, network: str, *, resume: bool, force: bool) -> None:
    """Raise TrainingError if training would replace a finished run without `force`, or a run of another network."""
    if not is_finished(folder):
        return
    try:
        there = read_document(folder).model.network
    except UserError:
        there = network  # damaged, so the network is unknown
    if there != network:  # two imported networks may have the same folder name
        raise TrainingError(f"{folder} is a run of {there}; choose another --out for {network}")
    if not force and not (resume and checkpoint_in(folder)):
        raise TrainingError(
            f"{folder} contains a finished run; choose another --out, or replace it with --force when the new run is "
            "complete"
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, and lock it against other trainings. Raises TrainingError if one is running, OutputError."""
    path = make_folder(folder) / _LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f"another training is running in {folder}; wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose a writable folder") from error
    try:
        yield
    finally:
        # Deleted while the lock is held, which is safe: filelock never locks a deleted file.
        path.unlink(missing_ok=True)
        lock.release()


def discard(folder: Path) -> None:
    """Delete the unfinished run inside a finished run."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def replace_run(work: Path, folder: Path) -> None:
    """Move a complete run from `work` into `folder`, replacing the run there. Raises OutputError.

    The checkpoint is moved last: if the process is killed before that, `--resume` finds it in `work`.
    """
    try:
        for path in sorted(work.iterdir(), key=lambda path: path.name == CHECKPOINT):
            goal = folder / path.name
            if goal.is_dir():  # output of a logger
                shutil.rmtree(goal)
            path.replace(goal)
        work.rmdir()
    except OSError as error:
        raise OutputError(f"cannot replace {folder}: {error}; `--resume` tries again") from error
