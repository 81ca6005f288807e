"""From what a user names (a run, an ONNX file, an engine, shipped weights) to paths and sessions."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..session import Session

__all__ = [
    "find_engines",
    "find_runs",
    "is_run",
    "locate",
    "open_target",
    "open_torch",
    "resolve_run",
]


def find_runs(folder: Path) -> list[Path]:
    """Run folders below `folder`, or itself if it is one. Raises UserError when there is none."""
    from ..train.document import MODEL
    from ..train.shipped import shipped_names

    runs = sorted(path.parent for path in _here_and_below(folder, MODEL))
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
    """Engines in the runs below `folder`, or in itself, that run here; says which do not, and which are broken.

    Raises UserError when there is none.
    """
    from ..engines.build import require_fit
    from ..engines.manifest import read_manifest
    from .console import err

    engines = []
    for path in _engine_files(folder):
        try:
            require_fit(path, read_manifest(path))
        except (UserError, OSError) as error:
            err.print(f"left out {path}: {error}", style="yellow", markup=False)
        else:
            engines.append(path)
    if not engines:
        raise UserError(
            f"no engine in {folder}/ runs here; build some with `depthkit export`, or name one with --engine"
        )
    return engines


def _engine_files(folder: Path) -> list[Path]:
    """What is named as an engine of a backend, or its manifest, in the runs below `folder` and in itself."""
    from ..engines.build import BACKENDS, backend

    kinds = tuple(f".{backend(name).extension}" for name in BACKENDS)
    paths = {path.with_suffix("") if path.suffix == ".json" else path for path in _here_and_below(folder, "*.*")}
    return sorted(path for path in paths if path.name.endswith(kinds) and not path.name.startswith("."))


def _here_and_below(folder: Path, name: str) -> Iterator[Path]:
    """Files of that name, or pattern, in `folder` and in the folders in it."""
    yield from folder.glob(name)
    yield from folder.glob(f"*/{name}")


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
