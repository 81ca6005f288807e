"""The run that `depthkit export` is given: found, and refused before anything is written if it cannot be exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..names import DEPTH_UNITS, NETWORKS, file_name, is_import_path
from ..packages import EXPORTING, require_packages
from ..sizes import check_size
from .targets import copied_run, locate, resolve_run

if TYPE_CHECKING:
    from ..export.recipe import ExportOptions
    from .calibration import PrecisionOptions
    from .tell import Tell

__all__ = ["ForeignWeights", "require_exportable", "run_folder"]


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of a network that is not ours, and what is to be known of them; None: the default."""

    weights: Path | None
    data: str | None
    depth_units: float | None
    depth_range: tuple[float, float] | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    def check(self, targets: Sequence[Path]) -> None:
        """Raise UserError for options that would go unheard."""
        if self.weights is None:
            options = {"--data": self.data, "--depth-range": self.depth_range, "--mean": self.mean, "--std": self.std}
            given = [option for option, value in options.items() if value is not None]
            if given:
                raise UserError(f"{', '.join(given)} means nothing without --weights; what was trained here knows it")
        elif len(targets) != 1 or not is_import_path(str(targets[0])):
            raise UserError("--weights needs the one network that they are of, as RUN: package.module:Network")

    def make_run(self, folder: Path, network: str, size: tuple[int, int], tell: Tell) -> None:
        """Make the run folder of these weights, and tell so."""
        from ..data.sources import open_dataset
        from ..spec import Preprocessing
        from ..train.bundle import import_weights
        from ..train.networks import DEPTH_RANGE

        assert self.weights is not None
        default = Preprocessing()
        import_weights(
            folder,
            network,
            self.weights,
            size,
            open_dataset(self.data or "scenes", "val", depth_units=self.depth_units or DEPTH_UNITS),
            preprocessing=Preprocessing("RGB", self.mean or default.mean, self.std or default.std),
            depth_range=self.depth_range or DEPTH_RANGE,
        )
        tell("wrote", f"{folder}: {network} with {self.weights}")


def _known_run(target: Path, runs: Path, foreign: ForeignWeights) -> Path | None:
    """The run that a user's word means, wherever it lies; None: `--weights` make it. Raises UserError."""
    from ..train.document import read_document

    name = str(target)
    if target.exists() or not is_import_path(name):
        return locate(target)
    if foreign.weights is not None:
        return None
    folder = runs / file_name(name)
    if not folder.is_dir() or (found := read_document(folder).model.network) != name:
        there = f"there is no run {folder}" if not folder.is_dir() else f"{folder} is a run of {found}"
        raise UserError(f"{there}; give the weights of {name} by --weights, or `depthkit train --network {name}`")
    return folder


def require_exportable(
    target: Path, runs: Path, wanted: ExportOptions, foreign: ForeignWeights, precision: PrecisionOptions
) -> None:
    """Raise UserError kinds for what would stop an export after a run was copied or made for it."""
    from ..export.recipe import find_current
    from ..train.document import read_document
    from ..train.shipped import SHIPPED

    known = _known_run(target, runs, foreign)
    document = None if known is None else read_document(known)
    if known is None or document is None:
        require_packages(*EXPORTING)
    elif known.parent == SHIPPED and copied_run(target, runs) is None and find_current(known, document, wanted) is None:
        require_packages(*EXPORTING)  # the shipped FP32 file needs none of them
    if wanted.size is not None and document is not None and document.model.network in NETWORKS:
        check_size(*wanted.size)
    precision.require_source(document)


def run_folder(target: Path, runs: Path, size: tuple[int, int] | None, foreign: ForeignWeights, tell: Tell) -> Path:
    """The run that a user's word means, where it may be written to: copied or made, if need be."""
    name = str(target)
    if target.exists() or not is_import_path(name):
        return resolve_run(target, runs, tell)
    folder = runs / file_name(name)
    if foreign.weights is not None:
        foreign.make_run(folder, name, size or (240, 320), tell)
    return folder
