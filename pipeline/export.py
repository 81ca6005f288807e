"""Export a run to its ONNX file, and build engines that pass their gate."""

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
from ..precisions import WIDENED, Precision
from ..train.document import read_document
from .proof import Proof
from .runs import exporting, open_source

if TYPE_CHECKING:
    from ..export.checks import Check
    from ..export.recipe import ExportOptions
    from ..reference import Reference
    from .tell import Tell

__all__ = ["EngineOptions", "build_engines", "export_run", "require_engines"]


@dataclass(frozen=True)
class EngineOptions:
    """Which engines to build: `backends` are names, "auto" or "all"; `vendor` holds the backends' options."""

    backends: tuple[str, ...] = ("auto",)
    vendor: dict[str, str] = field(default_factory=dict)
    rebuild: bool = False


def export_run(folder: Path, options: ExportOptions, engines: EngineOptions, tell: Tell) -> list[Path]:
    """Export a run, build its engines and report each step. Returns the engines, or the ONNX file if there are none.

    Raises:
        GateError: a check of the ONNX file failed, or the gate of an engine; see `build_engines`.
    """
    current = None if engines.rebuild else find_current(folder, read_document(folder), options)
    if current is None:
        source = open_source(folder)
        from ..export.onnx_file import export_onnx

        def checked(check: Check) -> None:
            tell("pass" if check.passed else "FAIL", f"{check.name}: {check.detail}")

        require("onnxruntime", to_run=True)  # for the export's parity check
        made = export_onnx(source, options, checked)
        tell("wrote", f"{made.path} and {made.reference.name}")
        proof = Proof(lambda: made.held_out, tell)
        current = made.path
    else:
        tell("kept", f"{current}: passed its checks, unchanged since")
        proof = Proof(partial(_held_out, folder, options), tell)
    return build_engines(current, engines, tell, proof) if engines.backends else [current]


def _held_out(folder: Path, options: ExportOptions) -> Reference | None:
    """Recreate the held-out frames, for a new engine of an existing ONNX file.

    None: not calibrated, or the packages that compute their depth are missing.
    """
    document = read_document(folder)
    if options.calibration is None or any(find_spec(name) is None for name in exporting(document)):
        return None
    source = open_source(folder)
    from ..export.onnx_file import held_out_reference

    return held_out_reference(source, options.spec_of(document.model), options.calibration)


def build_engines(onnx: Path, options: EngineOptions, tell: Tell, proof: Proof | None = None) -> list[Path]:
    """Build the engines of an ONNX file, check the gate of each, and report what was built; needs no torch.

    Args:
        onnx: an ONNX file with its reference beside it.
        options: which engines.
        tell: called for each step.
        proof: checks the gates; None: on the reference alone.

    Raises:
        GateError: an engine does not run, or its gate fails. The other engines are built nevertheless.
    """
    proof = proof or Proof(tell=tell)
    built, failed = [], []
    stored = describe_onnx(onnx).precision
    for name, remark in _chosen_backends(options.backends):
        if reason := _refusal(name, stored, options):
            tell("skipped", f"{name}: {reason}")
            continue

        def waiting(name: str = name) -> None:
            tell("waits", f"for another process that is building this {name} engine")

        try:
            found = build(
                onnx, BuildOptions(name, options.vendor, options.rebuild), waiting, partial(proof.prove, onnx)
            )
        except GateError as error:
            tell("FAIL", f"{name}: {error}")
            failed.append(f"{name}: {error}")
            continue
        _tell_built(found, remark, tell)
        built.append(found.path)
    if failed:
        raise GateError(f"{len(failed)} engines of {onnx.name} were not built: {'; '.join(failed)}")
    return built


def require_engines(stored: Precision, options: EngineOptions) -> None:
    """Raise BackendError for engines that cannot be built, before minutes are spent on the ONNX file."""
    for name, _ in _chosen_backends(options.backends):
        require(name)
        _refusal(name, stored, options)


def _refusal(name: str, stored: Precision, options: EngineOptions) -> BackendError | None:
    """Why a backend cannot compute an ONNX file's precision; raised unless the backend comes from "all"; else None."""
    maker = backend(name)
    try:
        maker.asked(stored, maker.parse_options(options.vendor))
    except BackendError as error:
        if name in options.backends or "all" not in options.backends:
            raise
        return error
    return None


def _chosen_backends(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Resolve "auto" and "all"; returns names of backends, each with a remark on the choice.

    Raises:
        BackendError: no backend can run here.
    """
    chosen: dict[str, str] = {}
    for name in backends:
        if name == "auto":
            chosen.setdefault(fastest(), " (chosen by auto)")
        elif name == "all":
            fastest()  # raises if no backend can run here
            for each in runnable():
                chosen.setdefault(each, "")
        else:
            chosen.setdefault(name, "")
    return list(chosen.items())


def _tell_built(engine: BuiltEngine, remark: str, tell: Tell) -> None:
    manifest = engine.manifest
    tail = "in the store" if engine.reused else f"{manifest.build_seconds:.2f} s"
    tell(
        "found" if engine.reused else "built",
        f"{engine.path}: {manifest.backend} {manifest.backend_version}{remark}, precision {manifest.precision_found}, "
        f"{tail}",
    )
    if manifest.precision_found == WIDENED:
        tell("note", "the ONNX file stores FP16, but this engine computes in FP32: not faster here")
    if manifest.arithmetic == "none":
        tell("note", "this CPU has no INT8 arithmetic: INT8 is not faster than FP32 here")
    if manifest.layers_from == "network":
        tell(
            "note",
            f"built for {manifest.device.describe()}; not all layers could be read from the engine here, so the others "
            "are those of the strongly typed network",
        )
