"""Build an engine from an ONNX file. Only this module knows all backends."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from ..documents import to_json
from ..errors import BackendError, EngineError, UserError
from ..files import atomic_write, remove, sha256, sha256_text
from ..names import BACKENDS
from ..onnx_graph import OnnxDescription, describe_onnx
from ..precisions import Precision
from ..reference import find_reference
from .backend import Backend, attribute
from .manifest import Manifest, manifest_path, read_manifest, write_manifest
from .store import Entry, Store

__all__ = [
    "BuildOptions",
    "BuiltEngine",
    "backend",
    "build",
    "engine_name",
    "fastest",
    "given_options",
    "is_outdated",
    "rebuild_command",
    "require",
    "require_fit",
    "runnable",
]

_SHORT: Final = re.compile(r"[\w.=,+-]{0,60}", re.ASCII)
"""Options that are short and safe enough for a file name."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        backend: one of BACKENDS.
        vendor: the backend's own options, see `Backend.options`.
        rebuild: build even if the store has the engine.
    """

    backend: str = "onnxruntime"
    vendor: Mapping[str, str | int | bool] = field(default_factory=dict)
    rebuild: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """An engine beside its ONNX file; `reused`: it came from the store."""

    path: Path
    manifest: Manifest
    reused: bool


def backend(name: str) -> Backend[Any]:
    """A backend by name. Raises BackendError for an unknown one."""
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    module, _, instance = BACKENDS[name].partition(":")
    found: Backend[Any] = getattr(import_module(f".{module}", __package__), instance)
    return found


def require(name: str, *, to_run: bool = False) -> str:
    """The version of a backend. Raises BackendError, with the remedy, if it cannot build (or run) engines here."""
    available = backend(name).availability()
    if available.version is None or (to_run and not available.runs):
        remedy = f"; {available.remedy}" if available.remedy else ""
        raise BackendError(f"{name} cannot {'run' if to_run else 'be used'} here: {available.reason}{remedy}")
    return available.version


def runnable() -> list[str]:
    """Backends whose engines this machine can build and run, fastest first; without "null"."""
    return [name for name in BACKENDS if name != "null" and backend(name).availability().runnable]


def fastest() -> str:
    """The first of `runnable`. Raises BackendError if there is none."""
    names = runnable()
    if not names:
        raise BackendError(
            "no backend is installed; pip install 'depthkit[cpu]' or 'depthkit[openvino]', or see `depthkit doctor`"
        )
    return names[0]


def build(
    onnx: Path,
    options: BuildOptions | None = None,
    on_wait: Callable[[], None] | None = None,
    prove: Callable[[Path, bool], None] | None = None,
) -> BuiltEngine:
    """Build `<stem>.<precision>.<extension>` beside `<stem>.<precision>.onnx`, and its manifest.

    A precision other than the stored one and options other than the defaults are part of the name, as in
    `<stem>.fp32-bf16.inference_precision=bf16.ov.blob`. The engine comes from the store if it is there; a new one is
    added to it.

    Args:
        onnx: an ONNX file that depthkit exported.
        options: backend and its options.
        on_wait: called before waiting for another process that is building the same engine.
        prove: checks the engine before the build counts. It gets the engine, with its manifest beside it, and whether
            it is new. If it raises, no engine is put beside `onnx`, and a new one is not added to the store.

    Raises:
        BackendError: the backend is missing, rejects the file, or does not compute in the requested precision.
        EngineError: `onnx` is missing, was changed, or was not exported by depthkit.
        OutputError: the folder or the store cannot be written.
    """
    options = options or BuildOptions()
    maker, version = backend(options.backend), require(options.backend)
    settings = maker.parse_options(options.vendor)
    description = describe_onnx(onnx)
    if not description.intact:
        raise EngineError(f"{onnx} was changed since its export; make it again with `depthkit export`")
    asked = maker.asked(description.precision, settings)
    recipe = _Recipe(maker, version, settings, asked, onnx, sha256(onnx), description, prove)
    store = Store()
    with store.locked(recipe.key, on_wait):
        found = None if options.rebuild else store.find(recipe.key)
        if found and prove:
            prove(found.engine, False)
        entry = found or store.add(recipe.key, maker.extension, recipe.make)
        engine = onnx.with_name(engine_name(onnx, description.precision, maker, settings))
        manifest = replace(entry.manifest, onnx=onnx.name, reference=recipe.reference.name).sealed()
        with store.locked(sha256_text(str(engine.resolve()))[:24]):  # an engine of another file may have this path too
            _place(entry, engine, manifest)
    return BuiltEngine(engine, manifest, reused=found is not None)


def engine_name(onnx: Path, stored: Precision, maker: Backend[Any], settings: Any) -> str:
    """The file name of an engine; different engines of an ONNX file have different names.

    Args:
        onnx: the file.
        stored: its precision.
        maker: the backend.
        settings: as `Backend.parse_options` returns them.

    Raises:
        BackendError: `maker` rejects `settings` for this precision.
    """
    asked = maker.asked(stored, settings)
    options = ",".join(_given(maker, maker.record(settings)))
    if not _SHORT.fullmatch(options):
        options = sha256_text(options)[:12]
    words = (_stem(onnx, stored), stored if asked == stored else f"{stored}-{asked}", options, maker.extension)
    return ".".join(word for word in words if word)


def require_fit(engine: Path, manifest: Manifest) -> None:
    """Raise unless an engine was built for this machine's kind of device and for the installed version.

    Raises:
        EngineError: it was built for another device, vendor version or version of depthkit.
        BackendError: its vendor library is missing.
    """
    if manifest.backend not in BACKENDS:
        raise EngineError(f"{engine} needs the unknown backend {manifest.backend!r}; upgrade depthkit")
    maker, version = backend(manifest.backend), require(manifest.backend, to_run=True)
    rebuild = f"rebuild it here with `{rebuild_command(engine, manifest)}`"
    try:
        options = maker.parse_options(manifest.options)
    except BackendError as error:
        raise EngineError(f"{engine} was built by another version of depthkit: {error}; {rebuild}") from error
    here = maker.here()
    if not here.accepts(manifest.device):
        built_for = manifest.device.describe()
        raise EngineError(f"{engine} was built for {built_for}, but this is {here.describe()}; {rebuild}")
    if not maker.accepts_version(manifest.backend_version, version, options):
        raise EngineError(
            f"{engine} was built by {manifest.backend} {manifest.backend_version}, "
            f"but {version} is installed; {rebuild}"
        )


def given_options(manifest: Manifest) -> list[str]:
    """`KEY=VALUE` of each option of an engine that is not its backend's default."""
    maker = backend(manifest.backend)
    return _given(maker, manifest.options)


def rebuild_command(engine: Path, manifest: Manifest) -> str:
    """The command that rebuilds `engine` from the ONNX file beside it."""
    options = [word for each in given_options(manifest) for word in ("-o", each)]
    onnx = str(engine.with_name(manifest.onnx))
    return shlex.join(["depthkit", "export", onnx, "--backend", manifest.backend, *options])


def is_outdated(manifest: Manifest) -> bool:
    """Whether the installed version of the backend or of depthkit no longer accepts the engine."""
    if manifest.backend not in BACKENDS:
        return False  # built by a newer depthkit
    maker = backend(manifest.backend)
    here = maker.availability().version
    try:
        options = maker.parse_options(manifest.options)
    except BackendError:
        return True  # this depthkit does not have its options
    return here is not None and not maker.accepts_version(manifest.backend_version, here, options)


@dataclass(frozen=True)
class _Recipe:
    """Everything that an engine is built from."""

    maker: Backend[Any]
    version: str
    settings: Any
    asked: Precision
    onnx: Path
    onnx_sha256: str
    description: OnnxDescription
    prove: Callable[[Path, bool], None] | None = None

    @property
    def key(self) -> str:
        """The engine's key in the store: 24 hexadecimal digits."""
        device = to_json(self.maker.target(self.settings))
        options = sorted(self.maker.record(self.settings).items())
        return sha256_text(repr((self.onnx_sha256, self.maker.name, self.version, device, options)))[:24]

    @property
    def reference(self) -> Path:
        """The reference beside the ONNX file."""
        return find_reference(self.onnx, self.description.weights_sha256, self.description.model)

    def make(self, engine: Path) -> None:
        """Write the engine and its manifest."""
        started = perf_counter()
        built = self.maker.build(self.onnx, engine, self.asked, self.settings)
        layers = attribute(built.layers, self.description.products)
        manifest = Manifest(
            model=self.description.model,
            backend=self.maker.name,
            backend_version=self.version,
            device=self.maker.target(self.settings),
            precision_asked=self.asked,
            precision_found=self.maker.found_precision(layers, self.asked),
            layers=layers,
            layers_from=built.layers_from,
            engine_sha256=sha256(engine),
            onnx_sha256=self.onnx_sha256,
            weights_sha256=self.description.weights_sha256,
            onnx=self.onnx.name,
            reference=self.reference.name,
            options=self.maker.record(self.settings),
            build_seconds=round(perf_counter() - started, 3),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            arithmetic=self.maker.target(self.settings).int8 if self.asked == "int8" else None,
        )
        write_manifest(engine, manifest)
        if self.prove:
            self.prove(engine, True)


def _given(maker: Backend[Any], options: Mapping[str, str | int | bool]) -> list[str]:
    """Options that differ from the backend's defaults, as arguments of `-o`."""
    defaults = maker.record(maker.options())
    return [f"{key}={value}" for key, value in options.items() if defaults.get(key) != value]


def _stem(onnx: Path, stored: Precision) -> str:
    return onnx.name.removesuffix(".onnx").removesuffix(f".{stored}")


def _place(entry: Entry, engine: Path, manifest: Manifest) -> None:
    """Copy an engine out of the store, unless it is there already. It is no link, so edits cannot reach the store."""
    with suppress(UserError):  # missing, edited, or of another schema: copy it again
        if read_manifest(engine) == manifest and sha256(engine) == manifest.engine_sha256:
            return
    for left in engine.parent.glob(f".tmp-*-{engine.name[-90:]}*"):
        remove(left)  # from a process that was killed: nobody else writes here while we hold the lock
    # Both files are complete before either is renamed, so a full disk leaves the old pair.
    with atomic_write(manifest_path(engine)) as sidecar, atomic_write(engine) as copy:
        shutil.copyfile(entry.engine, copy)
        sidecar.write_text(to_json(manifest), encoding="utf-8")
