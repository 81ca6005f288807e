"""The candidates of `depthkit tune`: the grid, the pictures that judge them, and how each is built."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ..bench.contender import Contender
from ..data.images import resize_depth, resize_image
from ..documents import to_json
from ..engines.build import BuildOptions, backend, build, fastest, require, runnable
from ..engines.fingerprint import cpu_fingerprint, usable_cores
from ..engines.manifest import manifest_path, read_manifest
from ..engines.store import locked
from ..errors import BackendError, DataError, UserError
from ..export.recipe import ExportOptions, find_current
from ..files import atomic_folder, atomic_write, make_folder, sha256_arrays, sha256_text
from ..names import DEPTH_UNITS
from ..precisions import PRECISIONS, WIDENED, Precision
from ..reference import reference_path
from ..runtime.load import load
from ..sizes import smaller_size
from .budget import Candidate
from .calibration import PrecisionOptions
from .contenders import contenders
from .pictures import Pictures, read_pictures
from .runs import open_source
from .targets import folder_names
from .tell import silent

if TYPE_CHECKING:
    from ..export.recipe import Calibration
    from ..export.source import Source

__all__ = ["Scope", "Workshop", "candidates", "read_panel", "read_runs", "workshop"]

SCALES: Final = (1.0, 0.75, 0.5)
"""Factors of the run's height and width: the sizes that are tried by default, of a network in torch."""


@dataclass(frozen=True)
class Scope:
    """What to try; empty: everything (for sizes `SCALES` of each run's own, for batches 1)."""

    backends: Sequence[str] = ()
    precisions: Sequence[Precision] = ()
    sizes: Sequence[tuple[int, int]] = ()
    batches: Sequence[int] = ()


def read_runs(folders: Sequence[Path]) -> dict[str, Source]:
    """Read runs, by the name that their candidates have: unique, or empty for a single run.

    Raises:
        UserError: one is named twice.
        BundleError, SpecError: see `open_source`.
    """
    sources = [open_source(folder) for folder in folders]
    for one, other in combinations(sources, 2):
        if one.document == other.document:
            raise UserError(f"{one.folder} and {other.folder} are the same run; name each run once")
    if len(sources) == 1:
        return {"": sources[0]}
    names = folder_names(folder.resolve() for folder in folders)
    return dict(zip(names.values(), sources, strict=True))


def candidates(sources: Mapping[str, Source], scope: Scope) -> list[Candidate]:
    """All candidates, one of each run in turn, so that each has its share if there is no time for all.

    Raises:
        BackendError: a backend cannot run here.
        SpecError: a network cannot take a size.
    """
    fastest()  # raises if no backend can run here
    for name in scope.backends:
        require(name, to_run=True)
    grids = [_grid(run, source, scope) for run, source in sources.items()]
    return [candidate for row in zip_longest(*grids) for candidate in row if candidate is not None]


def _grid(run: str, source: Source, scope: Scope) -> list[Candidate]:
    full = source.document.model.size
    scales = SCALES if source.document.adopted is None else (1.0,)  # nothing tells which sizes a foreign network takes
    sizes = scope.sizes or [smaller_size(full, scale) for scale in scales]
    return [
        replace(variant, backend=name, precision=precision, size=source.spec_at(size).size, batch=batch, run=run)
        for size in dict.fromkeys(sizes)
        for precision in scope.precisions or PRECISIONS
        for name in scope.backends or runnable()
        for batch in scope.batches or (1,)
        for variant in _variants(name)
    ]


def _variants(name: str) -> Iterator[Candidate]:
    """Ways to run a backend's engines: numbers of threads on a CPU, transfer modes and CUDA graph on a GPU."""
    any_one = Candidate(name, "fp32", (1, 1))
    yield any_one
    cores = usable_cores()
    if any(option.name == "threads" for option in fields(backend(name).options)):
        if cores > 1:
            yield replace(any_one, options=(("threads", str(cores // 2)),))
    elif backend(name).here().kind == "gpu":
        yield replace(any_one, transfer="mapped")
        yield replace(any_one, transfer="device")
        yield replace(any_one, cuda_graph=False)


def read_panel(
    sources: Mapping[str, Source], source: str | None = None, count: int = 16, depth_units: float = DEPTH_UNITS
) -> Pictures:
    """The pictures that judge engines: of `source`'s validation split, or the first run's own frames.

    Raises:
        DataError: there are none, or they differ in size.
    """
    if source is None:
        run, first = next(iter(sources.items()))
        frames = first.frames
        return Pictures(f"{run or 'the run'}'s own frames", tuple(frames.images), tuple(frames.depths))
    found = read_pictures(source, "val", count, depth_units=depth_units)
    if len({image.shape for image in found.images}) > 1:
        raise DataError(f"the pictures of {source} differ in size; give pictures of one camera, all of one size")
    return found


@contextmanager
def workshop(sources: Mapping[str, Source], calibrate: str | Calibration | None) -> Iterator[Workshop]:
    """A workshop in the runs' folders, for one process at a time; an interrupted search keeps its files."""
    folders = [make_folder(_folder(source)) for source in sources.values()]
    with ExitStack() as locks:
        for folder in sorted(folder.resolve() for folder in folders):  # one order, so that no two searches deadlock
            locks.enter_context(locked(folder / "use"))
        yield Workshop(sources, calibrate)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(source: Source) -> Path:
    return source.folder / ".tune"


class Workshop:
    """Makes the candidates' ONNX files and engines, each once.

    Args:
        sources: the runs, see `read_runs`.
        calibrate: frames for INT8 at each run's own size, or their source; None: each run's training data.
    """

    def __init__(self, sources: Mapping[str, Source], calibrate: str | Calibration | None) -> None:
        self._sources = sources
        self._int8 = PrecisionOptions(("int8",))
        self._calibrations: dict[tuple[str, tuple[int, int]], Calibration] = {}
        if isinstance(calibrate, str):
            self._int8 = replace(self._int8, calibrate=calibrate)
        elif calibrate is not None:
            self._calibrations = {(run, source.document.model.size): calibrate for run, source in sources.items()}

    def key(self, pictures: Pictures, grid: Sequence[Candidate]) -> str:
        """Hash of what makes two searches comparable: weights, machine, versions, pictures, and INT8's frames.

        Raises:
            UserError, DataError: the frames named for INT8 cannot be read.
        """
        devices = [(name, backend(name).availability().version, to_json(backend(name).here())) for name in runnable()]
        machine = to_json(cpu_fingerprint()), usable_cores(), devices
        seen = sha256_arrays((*pictures.images, *pictures.depths))
        int8 = {candidate.run for candidate in grid if candidate.precision == "int8"}
        runs = [
            (run, source.document.weights_sha256, self._calibrated(run) if run in int8 else "")
            for run, source in self._sources.items()
        ]
        return sha256_text(repr((runs, machine, seen)))

    def _calibrated(self, run: str) -> str:
        """Hash of a run's frames for INT8; empty: its training data is missing, so INT8 will fail, with the reason."""
        try:
            return sha256_arrays(self._calibration(run, self._sources[run].document.model.size).frames[0].images)
        except UserError:
            if self._int8.calibrate is not None:
                raise
            return ""

    def _calibration(self, run: str, size: tuple[int, int]) -> Calibration:
        """The frames for INT8, read once per run and size. Raises UserError, DataError."""
        if (run, size) not in self._calibrations:
            found = self._int8.calibration(self._sources[run].document, size)
            assert found is not None, "INT8 always needs frames"
            self._calibrations[run, size] = found
        return self._calibrations[run, size]

    def panel(self, pictures: Pictures) -> Path:
        """Write the file for `pipeline.search.Panel`, with each run's own FP32 depth at its size."""
        import numpy as np

        depths = []
        for source in self._sources.values():
            spec = source.document.model
            answers = source.answer(spec, np.stack([resize_image(image, spec.size) for image in pictures.images]))
            pairs = zip(answers, pictures.images, strict=True)
            depths.append(np.stack([resize_depth(each, image.shape[:2], smooth=True) for each, image in pairs]))
        truths = np.stack(pictures.depths) if pictures.depths else np.zeros_like(depths[0])
        path = _folder(next(iter(self._sources.values()))) / "panel.npz"
        np.savez(path, images=np.stack(pictures.images), runs=list(self._sources), depths=depths, truths=truths)
        return path

    def prepare(self, candidate: Candidate) -> partial[Contender]:
        """Export a candidate's ONNX file unless it exists; return a function that builds it. Raises DepthkitError."""
        return partial(_make, self._onnx(candidate), self._place(candidate), candidate)

    def deliver(self, candidate: Candidate) -> Path:
        """Put a candidate's engine with its files into its run's folder `best`; return the engine's path there."""
        goal = self._sources[candidate.run].folder / "best"
        engine = _built(self._onnx(candidate), self._place(candidate), candidate)
        manifest = read_manifest(engine)
        with atomic_folder(goal) as fresh:  # an earlier winner stays until this one is complete
            for name in (manifest.onnx, manifest.reference, engine.name, manifest_path(engine).name):
                with atomic_write(fresh / name) as temporary:
                    shutil.copyfile(engine.with_name(name), temporary)
        return goal / engine.name

    def _place(self, candidate: Candidate) -> Path:
        """The candidate's own folder, so that nothing is built beside files of `depthkit export`."""
        return _folder(self._sources[candidate.run]) / replace(candidate, run="").name.replace(" ", "_")

    def _onnx(self, candidate: Candidate) -> Path:
        from ..export.onnx_file import export_onnx

        source = self._sources[candidate.run]
        maker = backend(candidate.backend)
        maker.asked(candidate.precision, maker.parse_options(dict(candidate.options)))  # raises if impossible
        calibration = self._calibration(candidate.run, candidate.size) if candidate.precision == "int8" else None
        keep: Literal["auto"] | None = "auto" if calibration else None
        options = ExportOptions(
            candidate.precision, candidate.size, candidate.batch, calibration, keep, out=_folder(source)
        )
        exported = replace(options, out=None)
        # A file of `depthkit export` serves as well; if it passed its gate, --keep auto would have kept no layer.
        for known in (options, exported, replace(exported, keep=None)):
            if (path := find_current(source.folder, source.document, known)) is not None:
                return path
        return export_onnx(source, options).path


def _make(onnx: Path, folder: Path, candidate: Candidate) -> Contender:
    """Make the candidate's contender; its engine is built unless the store has it. Raises DepthkitError."""
    (contender,) = contenders([_built(onnx, folder, candidate)], silent, with_torch=False)
    run = {"transfer": candidate.transfer, "cuda_graph": candidate.cuda_graph}
    set_options = {key: value for key, value in run.items() if value is not None}
    return replace(contender, open=partial(load, contender.target, **set_options))  # type: ignore[arg-type]


def _built(onnx: Path, folder: Path, candidate: Candidate) -> Path:
    for path in (onnx, reference_path(onnx)):
        with atomic_write(folder / path.name) as temporary:
            temporary.hardlink_to(path)
    built = build(folder / onnx.name, BuildOptions(candidate.backend, dict(candidate.options)))
    found = built.manifest.precision_found
    if found == WIDENED:
        raise BackendError(f"{candidate.precision} is computed as {found} here, so it cannot be faster")
    return built.path
