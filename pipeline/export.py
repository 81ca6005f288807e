"""From a run to its ONNX file, and from an ONNX file to engines that hold their gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.build import BuildOptions, BuiltEngine, backend, build, fastest, require, runnable
from ..errors import BackendError, GateError
from ..export.recipe import find_current
from ..onnx_graph import describe_onnx
from ..packages import EXPORTING, require_packages
from ..precisions import WIDENED, Precision
from ..train.document import read_document
from .proof import Proof

if TYPE_CHECKING:
    from ..export.checks import Check
    from ..export.recipe import ExportOptions
    from ..reference import Reference
    from .tell import Tell

__all__ = ["EngineOptions", "build_engines", "chosen_backends", "export_run", "require_engines"]


@dataclass(frozen=True)
class EngineOptions:
    """Engines to build of every ONNX file: by which backends ("auto", "all" or a name), and how."""

    backends: tuple[str, ...] = ("auto",)
    vendor: dict[str, str] = field(default_factory=dict)
    rebuild: bool = False


def export_run(folder: Path, options: ExportOptions, engines: EngineOptions, tell: Tell) -> list[Path]:
    """Export one run and build its engines; tell each step. The engines, or the ONNX file without any.

    Raises:
        GateError: a check of the ONNX file failed, or the gate of an engine; see `build_engines`.
    """
    current = None if engines.rebuild else find_current(folder, read_document(folder), options)
    if current is None:
        require_packages(*EXPORTING)
        from ..export.onnx_file import export_onnx
        from ..train.bundle import read_bundle

        def checked(check: Check) -> None:
            tell("pass" if check.passed else "FAIL", f"{check.name}: {check.detail}")

        require("onnxruntime", to_run=True)  # the export's own parity check runs on it
        made = export_onnx(read_bundle(folder), options, checked)
        tell("wrote", f"{made.path} and {made.reference.name}")
        proof = Proof(lambda: made.held_out, tell)
        current = made.path
    else:
        tell("kept", f"{current}: passed its checks, and nothing has changed since")
        proof = Proof(partial(_held_out, folder, options), tell)
    return build_engines(current, engines, tell, proof) if engines.backends else [current]


def _held_out(folder: Path, options: ExportOptions) -> Reference | None:
    """The held-out frames again, for an engine that is new while its ONNX file is not; None: without torch."""
    if options.calibration is None or find_spec("torch") is None:
        return None
    from ..export.onnx_file import held_out_reference
    from ..train.bundle import read_bundle

    bundle = read_bundle(folder)
    return held_out_reference(bundle, options.size or bundle.document.model.size, options.calibration)


def build_engines(onnx: Path, options: EngineOptions, tell: Tell, proof: Proof | None = None) -> list[Path]:
    """Build the engines of an ONNX file, prove each, and tell what was built; needs no torch.

    Args:
        onnx: with its reference beside it.
        options: which engines.
        tell: told each step.
        proof: of engines; None: on the reference alone.

    Raises:
        GateError: an engine does not run, or its gate fails. The others are built all the same.
    """
    proof = proof or Proof(tell=tell)
    built, failed = [], []
    stored = describe_onnx(onnx).precision
    for name, said in chosen_backends(options.backends):
        if reason := _refusal(name, stored, options):
            tell("skipped", f"{name}: {reason}")
            continue

        def waiting(name: str = name) -> None:
            tell("waits", f"for another process that is building this engine by {name}")

        try:
            found = build(
                onnx, BuildOptions(name, options.vendor, options.rebuild), waiting, partial(proof.prove, onnx)
            )
        except GateError as error:
            tell("FAIL", f"{name}: {error}")
            failed.append(f"{name}: {error}")
            continue
        _tell_built(found, said, tell)
        built.append(found.path)
    if failed:
        raise GateError(f"of {onnx.name} {len(failed)} engines were not built: {'; '.join(failed)}")
    return built


def require_engines(stored: Precision, options: EngineOptions) -> None:
    """Raise BackendError for engines that cannot be built, before minutes are spent on their ONNX file."""
    for name, _ in chosen_backends(options.backends):
        require(name)
        _refusal(name, stored, options)


def _refusal(name: str, stored: Precision, options: EngineOptions) -> BackendError | None:
    """Why a backend of `all` cannot compute what an ONNX file stores. Raises it for a backend that was named."""
    maker = backend(name)
    vendor = maker.parse_options(options.vendor)
    try:
        maker.asked(stored, vendor)
    except BackendError as error:
        if name in options.backends or "all" not in options.backends:
            raise
        return error
    return None


def chosen_backends(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Backends by name ("auto" and "all" resolved), each with what is to be said of the choice.

    Raises:
        BackendError: none can run here.
    """
    chosen: dict[str, str] = {}
    for name in backends:
        if name == "auto":
            chosen.setdefault(fastest(), " (chosen by auto)")
        elif name == "all":
            fastest()  # refuses where there is none
            for each in runnable():
                chosen.setdefault(each, "")
        else:
            chosen.setdefault(name, "")
    return list(chosen.items())


def _tell_built(engine: BuiltEngine, said: str, tell: Tell) -> None:
    manifest = engine.manifest
    tail = "in the store" if engine.reused else f"{manifest.build_seconds:.2f} s"
    tell(
        "found" if engine.reused else "built",
        f"{engine.path}: {manifest.backend} {manifest.backend_version}{said}, precision {manifest.precision_found}, "
        f"{tail}",
    )
    if manifest.precision_found == WIDENED:
        tell("note", "FP16 is stored in the ONNX file; this engine computes it in FP32: not faster here")
    if manifest.arithmetic == "none":
        tell("note", "this CPU has no INT8 arithmetic: INT8 is not faster than FP32 here")
    if manifest.layers_from == "network":
        tell(
            "note",
            f"built for {manifest.device.describe()}; not every layer could be read from the engine itself here: the "
            "others are those of the strongly typed network",
        )
