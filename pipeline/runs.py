"""Find and open the run for `depthkit export`; refuse one that cannot be exported before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..export.recipe import find_current
from ..names import NETWORKS, file_name, is_import_path
from ..packages import ADOPTING, EXPORTING, require_packages
from ..sizes import check_size
from ..train.document import read_document
from ..train.shipped import SHIPPED
from .targets import copied_run, locate, resolve_run

if TYPE_CHECKING:
    from ..export.recipe import ExportOptions
    from ..export.source import Source
    from ..train.document import BundleDocument
    from .calibration import PrecisionOptions
    from .tell import Tell

__all__ = ["exporting", "open_source", "require_exportable", "run_folder"]


def _known_run(target: Path, runs: Path) -> Path:
    """The run that the user named, by path, shipped weights or import path. Raises UserError."""
    name = str(target)
    if target.exists() or not is_import_path(name):
        return locate(target)
    folder = runs / file_name(name)
    if not folder.is_dir() or (found := read_document(folder).model.network) != name:
        there = f"there is no run {folder}" if not folder.is_dir() else f"{folder} is a run of {found}"
        raise UserError(
            f"{there}; make one from weights with `depthkit adopt {name} --weights FILE`, or "
            f"`depthkit train --network {name}`"
        )
    return folder


def exporting(document: BundleDocument) -> tuple[str, ...]:
    """The packages that export a run."""
    return EXPORTING if document.adopted is None else ADOPTING


def open_source(folder: Path) -> Source:
    """Open a run for export: its network in torch, or the ONNX file that was adopted.

    Raises:
        UserError: a package is missing.
        BundleError, SpecError: see `read_document` and `read_bundle`.
    """
    document = read_document(folder)
    require_packages(*exporting(document))
    if document.adopted is not None:
        from ..export.onnx_source import OnnxSource

        return OnnxSource(folder, document)
    from ..export.torch_source import TorchSource
    from ..train.bundle import read_bundle

    return TorchSource(read_bundle(folder))


def require_exportable(target: Path, runs: Path, wanted: ExportOptions, precision: PrecisionOptions) -> None:
    """Raise UserError or SpecError for anything that would stop an export after its run was copied."""
    known = _known_run(target, runs)
    document = read_document(known)
    wanted.spec_of(document.model)  # checks the camera
    shipped = known.parent == SHIPPED and copied_run(target, runs) is None
    if shipped and find_current(known, document, wanted) is None:  # a shipped FP32 file is only copied
        require_packages(*EXPORTING)
    if wanted.size is not None and document.model.network in NETWORKS:
        check_size(*wanted.size)
    precision.require_source(document)


def run_folder(target: Path, runs: Path, tell: Tell) -> Path:
    """A writable folder of the run that the user named; shipped weights are copied."""
    name = str(target)
    if target.exists() or not is_import_path(name):
        return resolve_run(target, runs, tell)
    return runs / file_name(name)
