"""Build an engine from an ONNX file: the one place that knows all backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol, cast

from ..errors import BackendError, EngineError
from ..files import atomic_write, remove, sha256
from ..reference import reference_path
from ..spec import METADATA, ModelSpec, from_json, graph_sha256
from ..tolerances import TOLERANCES, Precision
from .availability import Availability
from .fingerprint import Fingerprint
from .manifest import Layer, Manifest, manifest_path, write_manifest

__all__ = ["BACKENDS", "BuildOptions", "OnnxDescription", "backend", "build", "describe_onnx", "require"]

BACKENDS: Final[Mapping[str, str]] = {"onnxruntime": "ort", "null": "null"}
"""Backend name -> module of that name in `engines/` and in `runtime/`."""


class _Backend(Protocol):
    """What each backend's module in this folder offers."""

    EXTENSION: str

    def availability(self) -> Availability: ...

    def fingerprint(self) -> Fingerprint: ...

    def build(self, onnx: Path, engine: Path, options: dict[str, str | int | bool]) -> tuple[Layer, ...]: ...

    def found_precision(self, layers: tuple[Layer, ...], asked: str) -> str: ...


@dataclass(frozen=True)
class BuildOptions:
    """How to build; vendor settings are the backend's own and recorded in the manifest."""

    backend: str = "onnxruntime"
    vendor: dict[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxDescription:
    """What an ONNX file of ours says of itself; `intact`: its nodes and weights are those that were exported."""

    model: ModelSpec
    precision: Precision
    weights_sha256: str
    intact: bool


def backend(name: str) -> _Backend:
    """A backend's module. Raises BackendError for an unknown name."""
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return cast("_Backend", import_module(f".{BACKENDS[name]}", __package__))


def require(name: str) -> str:
    """The version of a backend. Raises BackendError, with the remedy, where it cannot be used here."""
    available = backend(name).availability()
    if available.version is None:
        raise BackendError(f"{name} cannot be used here: {available.reason}; {available.remedy}")
    return available.version


def build(onnx: Path, options: BuildOptions | None = None) -> Path:
    """Build `<stem>.<precision>.<ext>` beside `<stem>.<precision>.onnx`, and its manifest; return the engine's path.

    The manifest is written last, so an engine without one was not finished.

    Raises:
        BackendError: the backend is missing, refuses the file, or does not compute in the precision that was asked for.
        EngineError: `onnx` is missing or none of ours.
        OutputError: the folder cannot be written.
    """
    options = options or BuildOptions()
    maker, version = backend(options.backend), require(options.backend)
    description = describe_onnx(onnx)
    name = onnx.name.removesuffix(".onnx")
    engine = onnx.with_name(f"{name}.{maker.EXTENSION}")
    if not description.intact:
        raise EngineError(f"{onnx} was changed since its export; make it again with `depthkit export`")
    onnx_sha256 = sha256(onnx)
    started = perf_counter()
    with atomic_write(engine) as temporary:
        layers = maker.build(onnx, temporary, options.vendor)
        found = maker.found_precision(layers, description.precision)
        engine_sha256 = sha256(temporary)
        remove(manifest_path(engine))
    manifest = Manifest(
        model=description.model,
        backend=options.backend,
        backend_version=version,
        device=maker.fingerprint(),
        precision_asked=description.precision,
        precision_found=found,
        layers=layers,
        engine_sha256=engine_sha256,
        onnx_sha256=onnx_sha256,
        weights_sha256=description.weights_sha256,
        onnx=onnx.name,
        reference=reference_path(onnx).name,
        options=options.vendor,
        build_seconds=round(perf_counter() - started, 3),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_manifest(engine, manifest)
    return engine


def describe_onnx(path: Path) -> OnnxDescription:
    """Read our metadata from an ONNX file. Raises EngineError when it is missing or none of ours; SpecError."""
    if not path.is_file():
        raise EngineError(f"there is no ONNX file {path}; make one with `depthkit export`")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise EngineError(f"{path} is no ONNX file ({error}); make it again with `depthkit export`") from error
    entries = {entry.key: entry.value for entry in model.metadata_props}
    keys = (METADATA.spec, METADATA.precision, METADATA.weights_sha256, METADATA.graph_sha256)
    missing = [key for key in keys if key not in entries]
    if missing:
        raise EngineError(f"{path} was not made by `depthkit export`: its metadata lack {', '.join(missing)}")
    if entries[METADATA.precision] not in TOLERANCES:
        raise EngineError(f"{path} has precision {entries[METADATA.precision]!r}, which this depthkit does not know")
    return OnnxDescription(
        from_json(ModelSpec, entries[METADATA.spec], source=f"{path}: {METADATA.spec}"),
        cast("Precision", entries[METADATA.precision]),
        entries[METADATA.weights_sha256],
        intact=entries[METADATA.graph_sha256] == graph_sha256(model),
    )
