"""Resolve what a user names (a run, an ONNX file, an engine, shipped weights) to paths and sessions."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.build import BuildOptions, backend, build, fastest, require_fit, runnable
from ..engines.manifest import read_manifest
from ..errors import UserError
from ..export.recipe import ExportOptions, find_current
from ..files import atomic_write, sha256
from ..names import BACKENDS, DEPTH_UNITS
from ..onnx_graph import describe_onnx
from ..reference import reference_path
from ..runtime.load import is_onnx_file, load
from ..train.document import CHECKPOINT, MODEL, ORIGINAL, WEIGHTS, read_document
from ..train.shipped import SHIPPED, shipped_names, shipped_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..session import Session
    from ..spec import ModelSpec
    from ..train.teacher import Teacher
    from .tell import Tell

__all__ = [
    "build_fp32",
    "copied_run",
    "depth_units_of",
    "describe_target",
    "find_engines",
    "find_runs",
    "folder_names",
    "is_run",
    "locate",
    "open_target",
    "open_teacher",
    "open_torch",
    "resolve_run",
]


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder`, or `folder` itself if it is one. Raises UserError if there is none."""
    runs = sorted(path.parent for path in _here_and_below(folder, MODEL))
    if not runs:
        raise UserError(
            f"no finished run in {folder}/; train one with `depthkit train --out {folder}`, or name built-in weights "
            f"({', '.join(shipped_names())})"
        )
    return runs


def folder_names(folders: Iterable[Path]) -> dict[Path, str]:
    """A unique name for each folder: its own, preceded by as many parent folders as needed; `folders` are resolved.

    >>> list(folder_names([Path("/a/compact"), Path("/b/compact"), Path("/b/nano")]).values())
    ['a/compact', 'b/compact', 'nano']
    """
    wanted = dict.fromkeys(folders)
    names = {}
    for folder in wanted:
        parts = folder.parts
        namesakes = (sum(other.parts[-n:] == parts[-n:] for other in wanted) for n in range(1, len(parts) + 1))
        length = next((n for n, count in enumerate(namesakes, 1) if count == 1), len(parts))
        names[folder] = "/".join(parts[-length:])
    return names


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run, finished or not."""
    return any((path / name).is_file() for name in (MODEL, WEIGHTS, CHECKPOINT))


def resolve_run(target: Path, runs: Path, tell: Tell) -> Path:
    """An existing path unchanged; for the name of shipped weights, a writable run folder in `runs`.

    The shipped run is copied to `<runs>/<name>-pretrained`, unless it is there already; both cases are reported.
    Raises UserError for anything else.
    """
    found = locate(target)
    if found == target:
        return target
    here = copied_run(target, runs)
    goal = here or runs / f"{target}-pretrained"
    if here is None:
        _copy_run(found, goal)
    verb = "copied to" if here is None else "are in"
    tell("copied", f"{target}: built-in weights {verb} {goal}")
    return goal


def copied_run(target: Path, runs: Path) -> Path | None:
    """The folder in `runs` to which `resolve_run` copied these shipped weights; None: not copied yet."""
    found, goal = locate(target), runs / f"{target}-pretrained"
    here = (goal / MODEL).is_file() and sha256(goal / MODEL) == sha256(found / MODEL)
    return goal if here else None


def locate(target: Path) -> Path:
    """An existing path unchanged; the folder of shipped weights for their name. Raises UserError for anything else."""
    if target.exists():
        return target
    names = shipped_names()
    if str(target) in names:
        return shipped_run(str(target))
    raise UserError(
        f"no run, ONNX file or engine {target}; make one with `depthkit train` and `depthkit export`, or name built-in "
        f"weights ({', '.join(names)})"
    )


def _copy_run(source: Path, goal: Path) -> None:
    """Copy a run's files; the one that makes a folder a run comes last. Raises OutputError."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == MODEL):
        with atomic_write(goal / path.name) as temporary:
            shutil.copyfile(path, temporary)


def find_engines(folder: Path, tell: Tell) -> list[Path]:
    """Engines in `folder` and its subfolders that run here; reports those that are skipped.

    Raises UserError if there is none.
    """
    engines = []
    for path in _engine_files(folder):
        try:
            require_fit(path, read_manifest(path))
        except (UserError, OSError) as error:
            tell("skipped", f"{path}: {error}")
        else:
            engines.append(path)
    if not engines:
        raise UserError(
            f"no engine in {folder}/ runs here; build one with `depthkit export`, or name one with --engine"
        )
    return engines


def _engine_files(folder: Path) -> list[Path]:
    """Paths of engines, by the names of engines or manifests in `folder` and its subfolders."""
    kinds = tuple(f".{backend(name).extension}" for name in BACKENDS)
    paths = {path.with_suffix("") if path.suffix == ".json" else path for path in _here_and_below(folder, "*.*")}
    return sorted(path for path in paths if path.name.endswith(kinds) and not path.name.startswith("."))


def _here_and_below(folder: Path, name: str) -> Iterator[Path]:
    """Files that match `name`, a glob pattern, in `folder` and its subfolders."""
    yield from folder.glob(name)
    yield from folder.glob(f"*/{name}")


def depth_units_of(targets: Iterable[Path], given: float | None) -> float:
    """Depth units per metre of measured depth: `given`, else those of the targets' runs, else 1000.

    Args:
        targets: run folders or names of shipped weights; files in a run's folder or in its `best/`.
        given: the user's value.

    Raises:
        UserError: the runs were trained with different units.
    """
    if given is not None:
        return given
    found: dict[float, Path] = {}
    for target in targets:
        path = locate(target).absolute()
        run = next((folder for folder in (path, *path.parents[:2]) if (folder / MODEL).is_file()), None)
        with suppress(UserError):  # unreadable runs are reported when they are used
            training = None if run is None else read_document(run).training
            if training is not None and training.depth_units is not None:
                found.setdefault(training.depth_units, target)
    if len(found) > 1:
        listed = ", ".join(f"{units:g} ({target})" for units, target in found.items())
        raise UserError(f"these runs have different depth units per metre: {listed}; choose one with --depth-units")
    return next(iter(found), DEPTH_UNITS)


def open_target(target: Path) -> Session:
    """Open a run folder, shipped weights, an ONNX file or an engine.

    A run is computed by torch; without torch, by an engine of its FP32 ONNX file. Shipped weights have such a file, so
    that they are computed by an engine wherever there is a backend: it starts without torch's seconds, and is faster.
    So are adopted runs, which torch does not compute.

    Raises UserError, BundleError, EngineError, BackendError, SpecError.
    """
    path = locate(target)
    if not path.is_dir():
        return load(path)
    needs_no_torch = path.resolve().parent == SHIPPED or (path / ORIGINAL).is_file()
    by_engine = find_spec("torch") is None or (needs_no_torch and runnable())
    return _open_fp32(path) if by_engine else open_torch(path, None)


def describe_target(target: Path) -> tuple[ModelSpec, str]:
    """The model of a run, of shipped weights, an ONNX file or an engine, and its weights' SHA-256; opens no session.

    Raises UserError, BundleError, EngineError, SpecError.
    """
    path = locate(target)
    if path.is_dir():
        document = read_document(path)
        return document.model, document.weights_sha256
    made = describe_onnx(path) if is_onnx_file(path) else read_manifest(path)
    return made.model, made.weights_sha256


def open_teacher(target: Path) -> Teacher:
    """Open a run, built-in weights, an ONNX file or an engine as a teacher.

    Raises UserError, BundleError, EngineError, BackendError, SpecError.
    """
    from ..train.teacher import Teacher

    path = locate(target)
    _, weights = describe_target(path)
    return Teacher(open_target(target), path, weights)


def build_fp32(folder: Path, scratch: Path) -> Path:
    """Build an engine of a run's FP32 ONNX file for the fastest backend; torch is not needed.

    Args:
        folder: a run, or the folder of shipped weights; it may be read-only.
        scratch: folder of the engine, of its ONNX file and reference. The store keeps a copy of the engine.

    Raises:
        UserError: the run has no such file.
    """
    document = read_document(folder)
    onnx = find_current(folder, document, ExportOptions())
    if onnx is None and document.adopted is not None:
        raise UserError(f"{folder} has no engine yet; build one with `depthkit export {folder}`")
    if onnx is None:
        raise UserError(
            f"{folder} is PyTorch weights without an FP32 ONNX file; pip install 'depthkit[train]', or name an engine"
        )
    for path in (onnx, reference_path(onnx)):
        shutil.copyfile(path, scratch / path.name)
    return build(scratch / onnx.name, BuildOptions(fastest())).path


def _open_fp32(folder: Path) -> Session:
    """Build and open such an engine. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="depthkit-") as scratch:
        return load(build_fp32(folder, Path(scratch)))


def open_torch(
    folder: Path, size: tuple[int, int] | None, batch: int = 1, camera: tuple[int, int] | None = None
) -> Session:
    """Open a run in torch eager, FP32, on the CPU, see `TorchSession`. Raises UserError if torch is not installed."""
    if find_spec("torch") is None:
        raise UserError(f"{folder} is PyTorch weights; pip install 'depthkit[train]', or name an engine")
    from ..train.torch_session import TorchSession

    return TorchSession(folder, size, batch=batch, camera=camera)
