"""From what a user names (a run, an ONNX file, an engine, shipped weights) to sessions and contenders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, EngineError, SchemaVersionError, UserError

if TYPE_CHECKING:
    import numpy as np

    from ..bench.suite import Contender, SampleSet
    from ..session import Session
    from ..train.datasets import RGBDDataset

__all__ = [
    "contenders",
    "find_engines",
    "find_runs",
    "is_run",
    "locate",
    "open_target",
    "open_torch",
    "resolve_run",
    "sample_set",
]


def find_runs(folder: Path) -> list[Path]:
    """Run folders below `folder`. Raises UserError when there is none."""
    from ..train.document import MODEL
    from ..train.shipped import shipped_names

    runs = sorted(path.parent for path in folder.glob(f"*/{MODEL}"))
    if not runs:
        raise UserError(
            f"there is no finished run in {folder}/; train one with `depthkit train --out {folder}`, or name weights "
            f"that come with depthkit ({', '.join(shipped_names())})"
        )
    return runs


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run, finished or not."""
    from ..train.document import CHECKPOINT, MODEL, WEIGHTS

    return any((path / name).is_file() for name in (MODEL, WEIGHTS, CHECKPOINT))


def resolve_run(target: Path, runs: Path) -> Path:
    """A path that exists as it is; the name of shipped weights as a run folder in `runs`, which may be written to.

    The shipped run is copied to `<runs>/<name>-pretrained`, unless it lies there already, and the console says so.
    Raises UserError for anything else.
    """
    from rich.markup import escape

    from ..files import sha256
    from ..train.document import MODEL
    from .console import out

    found = locate(target)
    if found == target:
        return target
    goal = runs / f"{target}-pretrained"
    here = (goal / MODEL).is_file() and sha256(goal / MODEL) == sha256(found / MODEL)
    if not here:
        _copy_run(found, goal)
    said = "are in" if here else "were copied to"
    out.print(f"[bold]{target}[/]: the weights that come with depthkit {said} {escape(str(goal))}")
    return goal


def locate(target: Path) -> Path:
    """A path that exists as it is, the name of shipped weights as their folder. Raises UserError for anything else."""
    from ..train.shipped import shipped_names, shipped_run

    if target.exists():
        return target
    names = shipped_names()
    if str(target) in names:
        return shipped_run(str(target))
    raise UserError(
        f"there is no run, ONNX file or engine {target}; make one with `depthkit train` and `depthkit export`, or name "
        f"weights that come with depthkit ({', '.join(names)})"
    )


def _copy_run(source: Path, goal: Path) -> None:
    """Copy a run's files, last the one that makes a folder a run. Raises OutputError."""
    from ..files import atomic_write
    from ..train.document import MODEL

    for path in sorted(source.iterdir(), key=lambda path: path.name == MODEL):
        with atomic_write(goal / path.name) as temporary:
            shutil.copyfile(path, temporary)


def find_engines(folder: Path) -> list[Path]:
    """Engines in the runs below `folder` that run here; says which do not. Raises UserError when there is none."""
    from ..engines.build import require_fit
    from ..engines.manifest import read_manifest
    from .console import err

    engines = []
    for path in _with_manifest(folder):
        try:
            manifest = read_manifest(path)
        except SchemaVersionError as error:
            err.print(f"left out {path}: {error}", style="yellow", markup=False)
            continue
        try:
            require_fit(path, manifest)
        except UserError as error:
            err.print(f"left out {path}: {error}", style="yellow", markup=False)
        else:
            engines.append(path)
    if not engines:
        raise UserError(
            f"no engine in {folder}/ runs here; build some with `depthkit export`, or name one with --engine"
        )
    return engines


def _with_manifest(folder: Path) -> list[Path]:
    """Engines in the runs below `folder`: files of a backend's kind that have a manifest."""
    from ..engines.build import BACKENDS, backend

    kinds = tuple(f".{backend(name).extension}" for name in BACKENDS)
    return sorted(path.with_suffix("") for path in folder.glob("*/*.json") if path.stem.endswith(kinds))


def open_target(target: Path) -> Session:
    """A run folder or shipped weights by torch; an ONNX file or engine by the runtime. Raises UserError kinds."""
    path = locate(target)
    if path.is_dir():
        return open_torch(path, None)
    from ..runtime.load import load

    return load(path)


def open_torch(folder: Path, size: tuple[int, int] | None, batch: int = 1) -> Session:
    """A run by torch eager, FP32, on the CPU. Raises UserError where torch is not installed."""
    if find_spec("torch") is None:
        raise UserError(f"{folder} is a run and needs torch; pip install 'depthkit[train]', or name an engine instead")
    from ..train.session import TorchSession

    return TorchSession(folder, size, batch=batch)


def contenders(paths: list[Path], *, with_torch: bool) -> list[Contender]:
    """What to bench; where torch is wanted and a run is there, it stands before the engines of each size and batch."""
    found: list[Contender] = []
    seen: set[tuple[Path, tuple[int, int], int]] = set()
    for path in paths:
        contender = _contender(path)
        of = path.parent, contender.reference.size, contender.batch
        if with_torch and of not in seen and _can_run_torch(path.parent):
            found.append(_torch_contender(path.parent, contender))
        seen.add(of)
        found.append(contender)
    return found


def _can_run_torch(folder: Path) -> bool:
    from ..train.document import MODEL

    return find_spec("torch") is not None and (folder / MODEL).is_file() and _weights(folder).is_file()


def _torch_contender(folder: Path, beside: Contender) -> Contender:
    return replace(
        beside,
        target=str(folder),
        backend="torch",
        open=partial(open_torch, folder, beside.reference.size, beside.batch),
        precision="fp32",
        file_bytes=_weights(folder).stat().st_size,
        faults=(),
        macs_share=None,
    )


def _weights(folder: Path) -> Path:
    from ..train.document import WEIGHTS

    return folder / WEIGHTS


def _contender(path: Path) -> Contender:
    """An ONNX file or an engine, with everything that is wrong with it as far as hashes tell."""
    from ..bench.suite import Contender
    from ..description import describe_onnx
    from ..engines.manifest import read_manifest
    from ..files import sha256
    from ..reference import read_reference, reference_path
    from ..runtime.load import is_onnx_file, load

    if locate(path).is_dir():
        raise EngineError(
            f"{path} is a run; build its engines with `depthkit export {path}`, and give these, or no --engine to "
            "bench every one"
        )
    faults = []
    if is_onnx_file(path):
        description = describe_onnx(path)
        model, precision, weights_sha256 = description.model, description.precision, description.weights_sha256
        backend, reference, share = "ONNX file", reference_path(path), None
        if not description.intact:
            faults.append(f"{path.name} was changed since its export")
    else:
        manifest = read_manifest(path)
        model, precision, weights_sha256 = manifest.model, manifest.precision_asked, manifest.weights_sha256
        backend, reference, share = manifest.backend, path.with_name(manifest.reference), manifest.share
        onnx = path.with_name(manifest.onnx)
        if onnx.is_file() and sha256(onnx) != manifest.onnx_sha256:
            faults.append(f"{onnx.name} is not the file that this engine was built from")
    weights = _weights(path.parent)
    if weights.is_file() and sha256(weights) != weights_sha256:
        faults.append(f"made from other weights than {weights.name} beside it")
    answers = read_reference(reference)
    if answers.weights_sha256 != weights_sha256:
        faults.append(f"{reference.name} holds the answers of other weights")
    return Contender(
        target=str(path),
        backend=backend,
        open=partial(load, path),
        precision=precision,
        reference=answers,
        batch=model.opt_batch,
        file_bytes=path.stat().st_size,
        faults=tuple(faults),
        macs_share=share,
    )


def sample_set(data: str, frames: int | None, depth_units: float) -> SampleSet:
    """The test split of `data`, or evenly spaced `frames` of it. Raises DataError."""
    from ..bench.suite import SampleSet
    from ..train.datasets import evenly_spaced, open_dataset

    dataset = open_dataset(data, "test", depth_units=depth_units)
    chosen = evenly_spaced(dataset, frames or len(dataset))
    return SampleSet(data, len(chosen), len(dataset), dataset.crop, _Chosen(dataset, chosen))


class _Chosen:
    """Some samples of a data set as pairs of picture and depth, read when they are asked for."""

    def __init__(self, dataset: RGBDDataset, indices: list[int]) -> None:
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._dataset[self._indices[index]]
        from ..metrics import EIGEN_SIZE

        if self._dataset.crop is not None and sample.depth.shape != EIGEN_SIZE:
            raise DataError(
                f"{self._dataset.source(self._indices[index])} is {sample.depth.shape} (H, W), and the Eigen crop is "
                f"made for {EIGEN_SIZE}; use NYU frames at their own size, or a `pairs` folder, which is not cropped"
            )
        return sample.image, sample.depth
