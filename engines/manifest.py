"""The manifest: a JSON sidecar that says what an engine file is, and whether it may be opened here.

The engine itself stays a clean vendor file. `<engine>.json` stands beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..errors import EngineError
from ..files import sha256, write_text
from ..spec import STRICT, ModelSpec, from_json, to_json
from ..tolerances import Precision
from .fingerprint import Fingerprint

__all__ = ["Layer", "Manifest", "manifest_path", "read_manifest", "verify", "write_manifest"]

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class Layer:
    """One layer as the built engine has it: the vendor's name and operator, and the type that it computes in."""

    name: str
    operator: str
    precision: str


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """What an engine is.

    Attributes:
        model: the ModelSpec of the ONNX file.
        backend, backend_version: which library built it.
        device: where it was built.
        precision_asked: the ONNX file's precision.
        precision_found: read back from the built engine: "fp32", "fp16", or "fp16→fp32" where the ONNX file stores FP16
            and this engine computes it in FP32, as ONNX Runtime does on CPUs without FP16 arithmetic.
        layers: read back from the built engine.
        engine_sha256, onnx_sha256, weights_sha256: hashes of the engine, of the ONNX file, of the bundle's weights.
        onnx, reference: names of the files beside the engine that it belongs to.
        options: what the builder was told.
        build_seconds: how long it took.
        created: UTC, ISO 8601.
    """

    model: ModelSpec
    backend: str
    backend_version: str
    device: Fingerprint
    precision_asked: Precision
    precision_found: str
    layers: tuple[Layer, ...]
    engine_sha256: _Sha256
    onnx_sha256: _Sha256
    weights_sha256: _Sha256
    onnx: str
    reference: str
    options: dict[str, str | int | bool]
    build_seconds: float
    created: str
    schema_version: Literal[1] = 1


def manifest_path(engine: Path) -> Path:
    """`<engine>.json`."""
    return engine.with_name(engine.name + ".json")


def write_manifest(engine: Path, manifest: Manifest) -> None:
    """Write the sidecar of `engine`. Raises OutputError."""
    write_text(manifest_path(engine), to_json(manifest))


def read_manifest(engine: Path) -> Manifest:
    """Read the sidecar of `engine`.

    Raises:
        EngineError: the engine or its manifest is missing or unreadable.
        SpecError: another schema version, or keys that are unknown or missing.
    """
    if not engine.is_file():
        raise EngineError(f"there is no engine {engine}; build one with `depthkit export`")
    path = manifest_path(engine)
    if not path.is_file():
        raise EngineError(f"{engine} has no manifest {path.name} beside it; copy both, or run `depthkit export` again")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read ({error}); run `depthkit export` again") from error
    return from_json(Manifest, text, source=str(path))


def verify(engine: Path, manifest: Manifest, *, here: Fingerprint, backend_version: str) -> None:
    """Raise EngineError unless the file is the manifest's, and was built for this device and vendor version."""
    rebuild = f"rebuild it here with `depthkit export {engine.with_name(manifest.onnx)} --backend {manifest.backend}`"
    if sha256(engine) != manifest.engine_sha256:
        raise EngineError(
            f"{engine} is not the file that its manifest describes (SHA-256 differs); restore it or {rebuild}"
        )
    if not here.accepts(manifest.device):
        raise EngineError(
            f"{engine} was built on {_describe(manifest.device)}, and this is {_describe(here)}; {rebuild}"
        )
    if backend_version != manifest.backend_version:
        raise EngineError(
            f"{engine} was built by {manifest.backend} {manifest.backend_version}, "
            f"and {backend_version} is installed; {rebuild}"
        )


def _describe(device: Fingerprint) -> str:
    return f"{device.name} ({device.architecture}: {' '.join(device.isa)})"
