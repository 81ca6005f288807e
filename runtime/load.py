"""Open an engine or an ONNX file as a Session; no engine is handed to a vendor before manifest and hash agree."""

from __future__ import annotations

from pathlib import Path

from ..engines.build import BACKENDS, backend, rebuild_command, require_fit
from ..engines.manifest import Manifest, read_manifest, verify_file
from ..errors import EngineError
from ..session import Session
from .run_options import RunOptions, Transfer
from .runner import onnx_runner, runner

__all__ = ["is_onnx_file", "load", "verified"]


def load(path: str | Path, *, transfer: Transfer = "auto", cuda_graph: bool = True) -> Session:
    """Open `path`: an engine with its manifest, or an ONNX file of ours (run by ONNX Runtime on the CPU).

    Args:
        path: the engine file; its manifest `<path>.json` must stand beside it.
        transfer: where a GPU session keeps its own buffers: see `RunOptions`.
        cuda_graph: whether a GPU session records its work once and replays it.

    Raises:
        EngineError: missing, altered, made for another device or vendor version, or not ours.
        BackendError: the library that runs it is not installed, or refuses it.
        SpecError: a manifest of another schema version, or with keys that are unknown or missing.
        UserError: a transfer mode for an engine that runs on the CPU.

    The session is for one thread; open one for each thread.
    """
    path, run = Path(path), RunOptions(transfer, cuda_graph)
    if path.is_dir():
        raise EngineError(
            f"{path} is a folder; give the engine file in it, or export one with `depthkit export {path}`"
        )
    if is_onnx_file(path):
        return onnx_runner().open_onnx(path, run)
    manifest = verified(path)
    return runner(manifest.backend).open_engine(path, manifest, run)


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is named as an ONNX file, and not as an engine that is stored as ONNX."""
    engine = any(path.name.endswith(f".{backend(name).extension}") for name in BACKENDS)
    return path.suffix == ".onnx" and not engine


def verified(path: Path) -> Manifest:
    """An engine's manifest, if it fits this machine and the file is the one it describes. Raises EngineError kinds."""
    manifest = read_manifest(path)
    require_fit(path, manifest)
    verify_file(path, manifest, rebuild_command(path, manifest))
    return manifest
