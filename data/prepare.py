"""`prepare`: decode and resize a data set once, into a folder that `Prepared` reads."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ..cores import usable_cores
from ..documents import to_json
from ..errors import DataError, OutputError
from ..files import atomic_write, make_folder, remove, write_text
from ..names import DEPTH_UNITS
from .dataset import RGBD, RGBDDataset, Split, raise_all
from .prepared import (
    KINDS,
    MILLIMETRES,
    PREPARED,
    TAUGHT,
    PreparedDocument,
    PreparedSplit,
    PreparedTeacher,
    array_path,
    rows_digest,
)
from .sources import open_dataset

__all__ = ["AnsweringTeacher", "prepare"]

_SPLITS: Final[tuple[Split, ...]] = ("train", "val")
_AHEAD: Final = 128  # samples that may be decoded but not yet written; it bounds memory use
_ASKED_AT_ONCE: Final = 16  # pictures for which a teacher is asked at once
_FARTHEST: Final = np.iinfo(np.uint16).max / MILLIMETRES  # metres


class AnsweringTeacher(Protocol):
    """What `prepare` needs of a teacher; `train.teacher.Teacher` is one."""

    weights_sha256: str

    def depths(self, images: np.ndarray) -> np.ndarray:
        """Depth in metres, N x H x W float32, of N x H x W x 3 uint8 pictures."""


def prepare(
    source: str | Path,
    out: Path,
    *,
    size: tuple[int, int],
    depth_units: float = DEPTH_UNITS,
    skip_bad: bool = False,
    workers: int | None = None,
    teacher: AnsweringTeacher | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> PreparedDocument:
    """Write `source`'s training and validation splits to the folder `out`, for `open_dataset`.

    Memory use does not grow with the data. Depth is rounded to millimetres and clipped at 65.535 m. Samples without a
    measured pixel at `size` are skipped. If this fails or is interrupted, `out` is removed; files that a killed run
    left there are replaced.

    Args:
        source: see `open_dataset`.
        out: a new or empty folder.
        size: height and width.
        depth_units: see `open_dataset`.
        skip_bad: skip samples that cannot be read; otherwise they are an error, after all samples were tried.
        workers: decoding threads; None: one per usable core.
        teacher: its depth of every training sample is stored too, rounded to millimetres.
        on_progress: called with the fraction that is done, 0 to 1.

    Raises:
        DataError: no such data, samples that cannot be read (all counted, the first ones named), no measured pixel, or
            a teacher's depth that is not finite or not within 0 to 65.535 m.
        OutputError: `out` contains other files, or cannot be written.
    """
    data = {split: open_dataset(source, split, size=size, depth_units=depth_units) for split in _SPLITS}
    total = sum(map(len, data.values())) + (0 if teacher is None else len(data["train"]))
    done = 0

    def advance(samples: int = 1) -> None:
        nonlocal done
        done += samples
        if on_progress is not None:
            on_progress(done / total)

    with _claimed(out):
        with _decoding(workers or usable_cores()) as pool:
            train, val = (_write_split(out, split, data[split], pool, advance) for split in _SPLITS)
        _check(str(source), train, val, skip_bad=skip_bad)
        origin = str(source) if str(source) == "scenes" else str(Path(source).resolve())
        taught = None
        if teacher is not None:
            advance(len(data["train"]) - len(train.sources))  # for skipped samples it is not asked
            taught = _write_taught(out, train, size, teacher, advance)
        document = PreparedDocument(origin, depth_units, size, train, val, data["train"].focal, taught)
        write_text(out / PREPARED, to_json(document))
    return document


def _check(source: str, *parts: PreparedSplit, skip_bad: bool) -> None:
    faults = [fault for part in parts for fault in part.unreadable]
    if not skip_bad:
        raise_all(faults, f"{len(faults)} samples of {source} cannot be read (--skip-bad skips them)")
    for split, part in zip(_SPLITS, parts, strict=True):
        if not part.sources:
            raise DataError(f"no readable sample of {source} ({split}) has a measured pixel; check its depth maps")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, delete files that a killed run left there, and remove all files again if the block fails.

    Raises OutputError if it contains anything else.
    """
    make_folder(folder)
    if (folder / PREPARED).exists():
        raise OutputError(f"{folder} is already a prepared data set; delete it, or choose another folder")
    left = _files_in(folder)
    others = sorted(path.name for path in folder.iterdir() if path not in left)
    if others:
        raise OutputError(f"{folder} contains other files ({others[0]}, …); choose a new or empty folder")
    for path in left:
        remove(path)
    try:
        yield
    except BaseException:
        for path in _files_in(folder):
            remove(path)
        with suppress(OSError):  # somebody else may have put a file there
            folder.rmdir()
        raise


def _files_in(folder: Path) -> set[Path]:
    """The files that `prepare` writes, and their temporary files."""
    arrays = [array_path(folder, split, kind) for split in _SPLITS for kind in KINDS]
    names = [PREPARED, *(path.name for path in (*arrays, array_path(folder, "train", TAUGHT)))]
    return {path for name in names for pattern in (name, f".tmp-*-{name}") for path in folder.glob(pattern)}


def _write_split(
    out: Path, split: Split, data: RGBDDataset, pool: Executor, advance: Callable[[], None]
) -> PreparedSplit:
    assert data.size is not None
    sources, unreadable, unmeasured = [], [], []
    images, depths = (array_path(out, split, kind) for kind in KINDS)
    with (
        _appending(images, np.dtype(np.uint8), (*data.size, 3)) as add_image,
        _appending(depths, np.dtype(np.uint16), data.size) as add_depth,
    ):
        for index, sample in enumerate(_in_order(data, pool)):
            advance()
            if isinstance(sample, str):
                unreadable.append(sample)
                continue
            depth = _millimetres(sample.depth)
            if not depth.any():
                unmeasured.append(data.source(index))
                continue
            add_image(sample.image)
            add_depth(depth)
            sources.append(data.source(index))
    digests = (rows_digest(np.load(path, mmap_mode="r")) for path in (images, depths))
    return PreparedSplit(tuple(sources), tuple(unreadable), tuple(unmeasured), *digests)


def _write_taught(
    out: Path, train: PreparedSplit, size: tuple[int, int], teacher: AnsweringTeacher, advance: Callable[[int], None]
) -> PreparedTeacher:
    """Ask the teacher about the written pictures, so that its rows are theirs whatever was skipped."""
    images = np.load(array_path(out, "train", KINDS[0]), mmap_mode="r")
    path = array_path(out, "train", TAUGHT)
    with _appending(path, np.dtype(np.uint16), size) as add:
        for start in range(0, len(images), _ASKED_AT_ONCE):
            rows = slice(start, start + _ASKED_AT_ONCE)
            batch = np.array(images[rows])
            for source, depth in zip(train.sources[rows], teacher.depths(batch), strict=True):
                # Written so that NaN is refused too.
                if not (depth.min() >= 0 and depth.max() <= _FARTHEST):
                    raise DataError(
                        f"the teacher predicts {depth.min():g} to {depth.max():g} m for {source}, and only answers of "
                        f"0 to {_FARTHEST:g} m can be stored; train with this teacher without storing its answers"
                    )
                add(_millimetres(depth))
            advance(len(batch))
    return PreparedTeacher(teacher.weights_sha256, rows_digest(np.load(path, mmap_mode="r")))


def _sample_or_fault(data: RGBDDataset, index: int) -> RGBD | str:
    try:
        return data[index]
    except DataError as error:
        return str(error)


def _in_order(data: RGBDDataset, pool: Executor) -> Iterator[RGBD | str]:
    """Every sample in order, or the message of its error."""
    waiting: deque[Future[RGBD | str]] = deque()
    for index in range(len(data)):
        waiting.append(pool.submit(_sample_or_fault, data, index))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _decoding(workers: int) -> Iterator[Executor]:
    """Threads that read pictures, with warnings off: filters set in one thread would undo those of the others."""
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        yield pool


def _millimetres(depth: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
    rounded: np.ndarray = np.rint(finite * MILLIMETRES)
    return rounded.clip(0, np.iinfo(np.uint16).max).astype(np.uint16)


@contextmanager
def _appending(path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a row to the .npy file `path`, which appears if the block succeeds.

    It writes a stream, because writing to a memory map on a full disk kills the process (SIGBUS), while a stream
    raises. NumPy's header has room for any number of rows, so the final number is written at the end.
    """
    rows = 0
    with atomic_write(path) as temporary, temporary.open("wb") as stream:

        def write_header() -> int:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *row)}
            np.lib.format.write_array_header_1_0(stream, header)
            return stream.tell()

        def append(values: np.ndarray) -> None:
            nonlocal rows
            assert (values.dtype, values.shape) == (dtype, row)
            stream.write(np.ascontiguousarray(values).data)
            rows += 1

        start = write_header()
        yield append
        stream.seek(0)
        assert write_header() == start
