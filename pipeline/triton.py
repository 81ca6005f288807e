"""A Triton model repository: engines that passed their gate, as folders that Triton Inference Server loads.

    <repository>/<model>/config.pbtxt               see `triton_config`; sealed by a hash, so that edits are noticed
    <repository>/<model>/<version>/model.onnx       or model.plan: what Triton runs
    <repository>/<model>/<version>/manifest.json    the engine's manifest
    <repository>/<model>/warmup/reference_frame     bytes of the input of a warm-up run

For ONNX Runtime and OpenVINO, Triton gets the ONNX file that the engine was built from: it has releases of its own of
both libraries, and their engines only open in the release that built them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..bench.replay import measure_parity
from ..documents import from_json, to_json
from ..engines.build import backend, fastest, rebuild_command
from ..engines.cpu_int8 import read_for_cpu
from ..engines.manifest import Manifest
from ..engines.store import Store
from ..errors import BackendError, EngineError, GateError, OutputError
from ..files import atomic_folder, atomic_write, require_writable, sha256, sha256_text, write_text
from ..onnx_graph import describe_onnx
from ..parity import describe_gate, describe_parity, gate_faults
from ..reference import Reference, find_reference, read_reference
from ..runtime.load import load, verified
from ..spec import Dim
from .triton_config import FRAME_FILE, model_config, serving, to_text

if TYPE_CHECKING:
    from .export import EngineOptions
    from .tell import Tell

__all__ = ["add_engine", "add_engines", "model_name", "require_repository"]

CONFIG: Final = "config.pbtxt"
MANIFEST: Final = "manifest.json"

_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)
_SEAL: Final = "# Written by depthkit. SHA-256 of the lines below: "


def require_repository(folder: Path, targets: Iterable[Path], engines: EngineOptions, batch: int | Dim) -> None:
    """Raise UserError, before anything is built, if the engines cannot be added to a model repository.

    Args:
        folder: the repository; missing or empty, or the models that lie in it have a configuration.
        targets: runs and ONNX files that are exported.
        engines: what is built of each. Of "all", engines that Triton cannot run are left out later.
        batch: of the runs; an ONNX file has its own.

    Raises:
        OutputError: `folder` is something else, or cannot be written.
        BackendError: Triton cannot run an engine, see `serving`.
    """
    require_writable(folder / "x")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    strange = [path.name for path in entries if not path.name.startswith(".") and not (path / CONFIG).is_file()]
    if strange:
        raise OutputError(
            f"--triton {folder} is no model repository: {strange[0]} in it has no {CONFIG}; name another folder, or an "
            "empty one"
        )
    batches = [describe_onnx(path).model.batch if path.suffix == ".onnx" else batch for path in targets]
    for word in engines.backends:
        if word != "all":
            name = fastest() if word == "auto" else word
            options = backend(name).record(backend(name).parse_options(engines.vendor))
            for each in batches:
                serving(name, options, each)


def add_engines(engines: Iterable[Path], folder: Path, tell: Tell) -> None:
    """Add engines to a model repository, see `add_engine`; those of backends that Triton lacks are skipped."""
    for engine in engines:
        try:
            add_engine(engine, folder, tell)
        except BackendError as error:
            tell("skipped", f"{engine}: {error}")


def add_engine(engine: Path, folder: Path, tell: Tell) -> Path:
    """Add an engine to a model repository as a new model, or as the next version of its model, and report that.

    Nothing is changed if the model's last version is the same file.

    Args:
        engine: an engine that runs on this machine, with its manifest, ONNX file and reference beside it.
        folder: the repository, see `require_repository`.
        tell: called with what was done.

    Returns:
        The model's folder.

    Raises:
        BackendError: Triton cannot run such an engine.
        EngineError: the ONNX file beside the engine is missing or is another; see also `load`.
        GateError: the engine fails its gate.
        OutputError: the model has another interface, was changed by somebody, or cannot be written.
    """
    manifest = verified(engine)
    how = serving(manifest.backend, manifest.options, manifest.model.batch)
    name = model_name(engine, manifest)
    content = _content(engine, manifest, plan=how.file.endswith(".plan"))
    digest = hashlib.sha256(content).hexdigest()
    model = folder.resolve() / name
    with Store().locked(sha256_text(str(model))[:24]):
        last = max(_versions(model), default=0)
        same = _is_file_of(model / str(last) / how.file, digest)
        if same and digest in _read_config(model):
            tell("kept", f"{folder / name}: version {last} is this model, unchanged")
            return folder / name
        _require_ours(model, manifest, last)
        onnx = engine.with_name(manifest.onnx)
        reference = read_reference(find_reference(onnx, manifest.weights_sha256, manifest.model))
        facts = {"depthkit.model_sha256": digest, **_facts(engine, manifest, reference)}
        text = _sealed(to_text(model_config(name, manifest, facts)))
        version = last if same else last + 1
        with nullcontext(model) if last else atomic_folder(model) as goal:
            if not same:
                with atomic_folder(goal / str(version)) as fresh:
                    _write_bytes(fresh / how.file, content)
                    write_text(fresh / MANIFEST, to_json(manifest))
            _write_bytes(goal / "warmup" / FRAME_FILE, _frames(reference, manifest).tobytes())
            write_text(goal / CONFIG, text)  # last; where this was interrupted, its digest is missing the next time
    tell("wrote", f"{folder / name}: version {version}, for Triton's backend {how.backend}")
    if note := how.notes.get(manifest.precision_asked):
        tell("note", note)
    return folder / name


def model_name(engine: Path, manifest: Manifest) -> str:
    """The name of an engine's model: that of its file, with the backend in place of the ending."""
    stem = engine.name.removesuffix(f".{backend(manifest.backend).extension}")
    return _UNSAFE.sub("_", f"{stem}.{manifest.backend}")


def _content(engine: Path, manifest: Manifest, *, plan: bool) -> bytes:
    """The model file's bytes: the plan, or the ONNX file in the form from which the engine was built."""
    if plan:
        return engine.read_bytes()
    onnx = engine.with_name(manifest.onnx)
    if not onnx.is_file() or sha256(onnx) != manifest.onnx_sha256:
        raise EngineError(
            f"{onnx} is not the ONNX file that {engine.name} was built from; build it again with "
            f"`{rebuild_command(engine, manifest)}`"
        )
    adapted = manifest.precision_asked == "int8" and manifest.device.kind == "cpu"
    return read_for_cpu(onnx, manifest.arithmetic) if adapted else onnx.read_bytes()


def _facts(engine: Path, manifest: Manifest, reference: Reference) -> dict[str, str]:
    """What the configuration says about the engine: hashes, precision, and its gate on the reference.

    Raises GateError if it fails its gate.
    """
    asked = manifest.precision_asked
    with load(engine) as session:
        parity, _ = measure_parity(session, reference)
    allowed = describe_gate(asked, is_metric=parity.is_metric)
    if faults := gate_faults(parity, asked):
        raise GateError(f"{engine}: {', '.join(faults)} ({allowed} allowed)")
    facts = {
        "weights_sha256": manifest.weights_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "engine_sha256": manifest.engine_sha256,
        "backend": f"{manifest.backend} {manifest.backend_version}",
        "device": manifest.device.describe(),
        "precision_asked": asked,
        "precision_found": manifest.precision_found,
        **({"int8_arithmetic": manifest.arithmetic} if manifest.arithmetic else {}),
        "model_spec": json.dumps(json.loads(to_json(manifest.model))),  # in one line
        "gate": f"PASS: {describe_parity(parity, asked)}; limits: {allowed}",
        **{f"gate.{key}": str(value) for key, value in asdict(parity).items()},
    }
    return {f"depthkit.{key}": text for key, text in facts.items()}


def _frames(reference: Reference, manifest: Manifest) -> np.ndarray:
    """As many frames of the reference as a static batch has, or one for a dynamic batch, which Triton repeats."""
    count = manifest.model.batch if isinstance(manifest.model.batch, int) else 1
    return reference.images[np.arange(count) % len(reference.images)]


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _versions(model: Path) -> list[int]:
    """The numbers of a model's versions."""
    entries: Iterable[Path] = model.iterdir() if model.is_dir() else ()
    return [int(path.name) for path in entries if path.name.isascii() and path.name.isdecimal() and path.is_dir()]


def _is_file_of(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _read_config(model: Path) -> str:
    """The text of a model's configuration; empty if there is none."""
    path = model / CONFIG
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _require_ours(model: Path, manifest: Manifest, last: int) -> None:
    """Raise OutputError if a model's folder is not as depthkit wrote it, or takes other tensors."""
    if (config := _read_config(model)) and not _is_sealed(config):
        raise OutputError(
            f"{model / CONFIG} was not written by depthkit, or was changed since; move it away, export again, and make "
            "your changes to the new one"
        )
    if not last:
        return
    path = model / str(last) / MANIFEST
    before = from_json(Manifest, path.read_text(encoding="utf-8"), source=str(path)).model
    if (before.input, before.output) != (manifest.model.input, manifest.model.output):
        raise OutputError(
            f"{model} takes images of {before.input.describe()}, and this engine {manifest.model.input.describe()}, "
            "but all versions of a model share one configuration; name another folder with --triton"
        )


def _sealed(text: str) -> str:
    return f"{_SEAL}{sha256_text(text)}\n{text}"


def _is_sealed(text: str) -> bool:
    seal, _, rest = text.partition("\n")
    return seal == f"{_SEAL}{sha256_text(rest)}"
