"""Open an engine or an ONNX file as a Session; no engine is handed to a vendor before manifest and hash agree."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..engines.build import BACKENDS, backend, require
from ..engines.manifest import read_manifest, verify
from ..errors import EngineError
from ..session import Session

__all__ = ["is_onnx_file", "load"]


def load(path: str | Path) -> Session:
    """Open `path`: an engine with its manifest, or an ONNX file of ours (run by ONNX Runtime on the CPU).

    Raises:
        EngineError: missing, altered, made for another device or vendor version, or not ours.
        BackendError: the library that runs it is not installed, or refuses it.
        SpecError: a manifest of another schema version, or with keys that are unknown or missing.
    """
    path = Path(path)
    if path.is_dir():
        raise EngineError(
            f"{path} is a folder; give the engine file in it, or export one with `depthkit export {path}`"
        )
    if is_onnx_file(path):
        return _runner("onnxruntime").open_onnx(path)  # type: ignore[no-any-return]
    manifest = read_manifest(path)
    if manifest.backend not in BACKENDS:
        raise EngineError(f"{path} needs backend {manifest.backend!r}, which this depthkit lacks; upgrade depthkit")
    runner = _runner(manifest.backend)
    verify(path, manifest, here=backend(manifest.backend).fingerprint(), backend_version=require(manifest.backend))
    return runner.open_engine(path, manifest)  # type: ignore[no-any-return]


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is named as an ONNX file, and not as an engine that is stored as ONNX."""
    engine = any(path.name.endswith(f".{backend(name).EXTENSION}") for name in BACKENDS)
    return path.suffix == ".onnx" and not engine


def _runner(name: str) -> Any:
    require(name)
    return import_module(f".{BACKENDS[name]}", __package__)
