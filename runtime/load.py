"""Open an engine or ONNX file as a Session. The manifest and hash are verified before a vendor library reads it."""

from __future__ import annotations

from pathlib import Path

from ..engines.build import backend, rebuild_command, require_fit
from ..engines.manifest import Manifest, read_manifest, verify_file
from ..errors import EngineError
from ..names import BACKENDS
from ..session import Session
from .run_options import RunOptions, Transfer
from .runner import onnx_runner, runner

__all__ = ["is_onnx_file", "load", "verified"]


def load(path: str | Path, *, transfer: Transfer = "auto", cuda_graph: bool = True) -> Session:
    """Open an engine with its manifest, or an ONNX file that depthkit exported (run by ONNX Runtime on the CPU).

    The session is for one thread; open one for each thread.

    Args:
        path: the engine file; its manifest `<path>.json` must be beside it.
        transfer: where a GPU session keeps its own buffers; see `RunOptions`.
        cuda_graph: whether a GPU session records its work once as a CUDA graph and replays it.

    Raises:
        EngineError: missing, altered, built for another device or vendor version, or not depthkit's.
        BackendError: the library that runs it is not installed, or refuses it.
        SpecError: the manifest has another schema version, or unknown or missing keys.
        UserError: a transfer mode was given for an engine that runs on the CPU.
    """
    path, run = Path(path), RunOptions(transfer, cuda_graph)
    if path.is_dir():
        raise EngineError(
            f"{path} is a folder; name the engine file in it, or export one with `depthkit export {path}`"
        )
    if is_onnx_file(path):
        return onnx_runner().open_onnx(path, run)
    manifest = verified(path)
    return runner(manifest.backend).open_engine(path, manifest, run)


def is_onnx_file(path: Path) -> bool:
    """Whether `path` has the name of an ONNX file, and not of an engine that is stored as ONNX."""
    engine = any(path.name.endswith(f".{backend(name).extension}") for name in BACKENDS)
    return path.suffix == ".onnx" and not engine


def verified(path: Path) -> Manifest:
    """Read an engine's manifest, and check that the engine runs on this machine and that its file is unaltered.

    Raises EngineError, SpecError, BackendError.
    """
    manifest = read_manifest(path)
    require_fit(path, manifest)
    verify_file(path, manifest, rebuild_command(path, manifest))
    return manifest
