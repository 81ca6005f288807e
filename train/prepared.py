"""A data set decoded and resized once, in memory-mapped arrays: reading a sample is one copy of its bytes.

<split>.images.npy   uint8, N x H x W x 3, RGB
<split>.depths.npy   uint16, N x H x W, millimetres, 0 where not measured
prepared.json        what they were made from; written last, so that a folder without it is not finished

The splits are train and val. There is no test split: scores are taken on the source, at its own size and in its crop.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..cores import usable_cores
from ..errors import DataError, OutputError
from ..files import atomic_write, make_folder, remove, write_text
from ..spec import STRICT, from_json, to_json
from .datasets import PREPARED, RGBD, RGBDDataset, Split, evenly_spaced, open_dataset, raise_all

__all__ = ["Prepared", "PreparedDocument", "PreparedSplit", "prepare"]

_SPLITS: Final[tuple[Split, ...]] = ("train", "val")
_KINDS: Final = ("images", "depths")
_MILLIMETRES: Final = 1000
_DIGEST_ROWS: Final = 16
_REMEDY: Final = "delete the folder and run `depthkit data prepare` again"
_AHEAD: Final = 128  # samples that may be decoded and not yet written: what memory use is bounded by

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class PreparedSplit:
    """One split.

    Attributes:
        sources: where each row of the arrays comes from, see `RGBDDataset.source`.
        unreadable: samples that `skip_bad` left out, each with what is wrong with it.
        unmeasured: samples that were left out because no pixel of their depth is measured: they teach nothing.
        images_digest, depths_digest: SHA-256 of 16 evenly spaced rows, or of all where there are fewer. It tells an
            array of another data set at opening, without reading the whole; it is no proof against single bits.
    """

    sources: tuple[str, ...]
    unreadable: tuple[str, ...]
    unmeasured: tuple[str, ...]
    images_digest: _Digest
    depths_digest: _Digest


@dataclass(frozen=True, config=STRICT)
class PreparedDocument:
    """`prepared.json`.

    Attributes:
        source: the data set that was prepared: `scenes`, or an absolute path.
        depth_units: what a `pairs` folder was read with.
        size: height and width of every sample.
    """

    source: str
    depth_units: float
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    train: PreparedSplit
    val: PreparedSplit
    schema_version: Literal[1] = 1


class Prepared(RGBDDataset):
    """A split of a prepared folder, read through the page cache. Depth is within 0.5 mm of the source's.

    Raises:
        DataError: the test split; an array that is missing, cut short, or not the one of `prepared.json`.
        SpecError: a `prepared.json` of another schema version, or with keys that are unknown or missing.
    """

    name = "prepared"

    def __init__(self, folder: Path, split: Split, *, size: tuple[int, int] | None = None) -> None:
        super().__init__(size)
        document = from_json(PreparedDocument, (folder / PREPARED).read_bytes(), source=str(folder / PREPARED))
        parts: dict[Split, PreparedSplit] = {"train": document.train, "val": document.val}
        if split not in parts:
            raise DataError(
                f"{folder} has no {split} split: scores are taken at the source's own size and crop; "
                f"use --data {document.source}"
            )
        if size is not None and (size[0] > document.size[0] or size[1] > document.size[1]):
            raise DataError(
                f"{folder} was prepared at {document.size[0]}x{document.size[1]}, smaller than {size[0]}x{size[1]}; "
                "use it at its size, or prepare the source at a larger one"
            )
        self._folder, self._split, self._part, self._stored = folder, split, parts[split], document.size
        self.depth_units = document.depth_units
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._open()

    def __len__(self) -> int:
        return len(self._part.sources)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # pickled, a memory map would be read whole

    def source(self, index: int) -> str:
        """See `RGBDDataset.source`."""
        return self._part.sources[index]

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        images, depths = self._open()
        return np.array(images[index]), depths[index].astype(np.float32) / _MILLIMETRES

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._arrays is None:
            images, depths = (_array_path(self._folder, self._split, kind) for kind in _KINDS)
            shape = len(self), *self._stored
            self._arrays = (
                _map_array(images, np.dtype(np.uint8), (*shape, 3), self._part.images_digest),
                _map_array(depths, np.dtype(np.uint16), shape, self._part.depths_digest),
            )
        return self._arrays


def prepare(
    source: str | Path,
    out: Path,
    *,
    size: tuple[int, int],
    depth_units: float = 1000.0,
    skip_bad: bool = False,
    workers: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> PreparedDocument:
    """Write `source`'s training and validation splits to the folder `out`, which `open_dataset` then takes.

    Memory use does not grow with the data. Depth is rounded to millimetres and ends at 65.535 m. Samples without a
    measured pixel at `size` are left out. When this fails or is interrupted, nothing stays in `out`; what a killed
    one left there is replaced.

    Args:
        source: see `open_dataset`.
        out: a new or empty folder.
        size: height and width.
        depth_units: see `open_dataset`.
        skip_bad: leave out samples that cannot be read, instead of raising once all are known.
        workers: threads that decode; None: one a CPU.
        on_progress: told the share of the whole that is done, 0 to 1.

    Raises:
        DataError: no such data, samples that cannot be read (all counted, the first named), nothing measured at all.
        OutputError: `out` holds something else, or cannot be written.
    """
    data = {split: open_dataset(source, split, size=size, depth_units=depth_units) for split in _SPLITS}
    total = sum(map(len, data.values()))
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done / total)

    with _claimed(out):
        with _decoding(workers or usable_cores()) as pool:
            train, val = (_write_split(out, split, data[split], pool, advance) for split in _SPLITS)
        _check(str(source), train, val, skip_bad=skip_bad)
        origin = str(source) if str(source) == "scenes" else str(Path(source).resolve())
        document = PreparedDocument(origin, depth_units, size, train, val)
        write_text(out / PREPARED, to_json(document))
    return document


def _check(source: str, *parts: PreparedSplit, skip_bad: bool) -> None:
    faults = [fault for part in parts for fault in part.unreadable]
    if not skip_bad:
        raise_all(faults, f"{len(faults)} samples of {source} cannot be read (--skip-bad leaves them out)")
    for split, part in zip(_SPLITS, parts, strict=True):
        if not part.sources:
            raise DataError(f"no readable sample of {source} ({split}) has a measured pixel; check its depth maps")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, cleared of what a killed run left there, and remove all of it if the block fails.

    Raises OutputError where it holds anything else.
    """
    make_folder(folder)
    if (folder / PREPARED).exists():
        raise OutputError(f"{folder} is a prepared data set already; delete it, or choose another folder")
    left = _files_in(folder)
    strangers = sorted(path.name for path in folder.iterdir() if path not in left)
    if strangers:
        raise OutputError(f"{folder} holds other files ({strangers[0]}, …); choose a new or empty folder")
    for path in left:
        remove(path)
    try:
        yield
    except BaseException:
        for path in _files_in(folder):
            remove(path)
        with suppress(OSError):  # somebody put a file of his own there
            folder.rmdir()
        raise


def _files_in(folder: Path) -> set[Path]:
    """What `prepare` writes, and the temporary files that it is written to."""
    names = [PREPARED, *(_array_path(folder, split, kind).name for split in _SPLITS for kind in _KINDS)]
    return {path for name in names for pattern in (name, f".tmp-*-{name}") for path in folder.glob(pattern)}


def _array_path(folder: Path, split: Split, kind: str) -> Path:
    return folder / f"{split}.{kind}.npy"


def _write_split(
    out: Path, split: Split, data: RGBDDataset, pool: Executor, advance: Callable[[], None]
) -> PreparedSplit:
    assert data.size is not None
    sources, unreadable, unmeasured = [], [], []
    images, depths = (_array_path(out, split, kind) for kind in _KINDS)
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
    digests = (_digest(np.load(path, mmap_mode="r")) for path in (images, depths))
    return PreparedSplit(tuple(sources), tuple(unreadable), tuple(unmeasured), *digests)


def _sample_or_fault(data: RGBDDataset, index: int) -> RGBD | str:
    try:
        return data[index]
    except DataError as error:
        return str(error)


def _in_order(data: RGBDDataset, pool: Executor) -> Iterator[RGBD | str]:
    """Every sample, or what is wrong with it."""
    waiting: deque[Future[RGBD | str]] = deque()
    for index in range(len(data)):
        waiting.append(pool.submit(_sample_or_fault, data, index))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _decoding(workers: int) -> Iterator[Executor]:
    """Threads that read pictures. Each mutes Pillow's warnings for a while, and would undo what the others do so."""
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        yield pool


def _millimetres(depth: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
    rounded: np.ndarray = np.rint(finite * _MILLIMETRES)
    return rounded.clip(0, np.iinfo(np.uint16).max).astype(np.uint16)


@contextmanager
def _appending(path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a row to the .npy file `path`, which is there when the block ends well.

    Written as a stream, because a memory map on a full disk ends the process (SIGBUS) where a stream raises. NumPy
    leaves room in the header for any number of rows, so the true one is put in at the end.
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


def _map_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], digest: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if (array.dtype, array.shape) != (dtype, shape) or _digest(array) != digest:
        raise DataError(f"{path} is not the array that {PREPARED} was written for; {_REMEDY}")
    return array


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array[evenly_spaced(array, _DIGEST_ROWS)].tobytes()).hexdigest()
