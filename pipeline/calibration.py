"""Precision options of the command line, and the frames that calibrate and verify a precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ..errors import UserError
from ..export.recipe import Calibration, Frames
from ..names import DEPTH_UNITS
from ..train.origin import find_data
from .pictures import divide_pictures, identify

if TYPE_CHECKING:
    from ..precisions import Precision
    from ..train.document import BundleDocument

__all__ = ["PrecisionOptions", "read_calibration"]

HELD_OUT: Final = 32
"""Number of frames that verify an INT8 file and its engines, if the source has so many."""

REMEDY: Final = "give frames of your camera with --calibrate"


@dataclass(frozen=True)
class PrecisionOptions:
    """The options as given; `flags`: the requested precisions, at most one."""

    flags: tuple[Precision, ...] = ()
    calibrate: str | None = None
    keep: int | Literal["auto"] | None = None

    @property
    def precision(self) -> Precision:
        """The requested precision. Raises UserError for options that exclude each other or have no effect."""
        if len(self.flags) > 1:
            named = ", ".join(f"--{each}" for each in self.flags)
            raise UserError(f"an ONNX file has one precision: choose one of {named}")
        precision: Precision = self.flags[0] if self.flags else "fp32"
        if self.calibrate is not None and precision != "int8" and (precision, self.keep) != ("fp16", "auto"):
            raise UserError("--calibrate has no effect without --int8, or --fp16 --keep auto")
        if self.keep is not None and not (precision == "int8" or (precision == "fp16" and self.keep == "auto")):
            raise UserError("--keep is for --int8; --keep auto also for --fp16")
        return precision

    @property
    def needs_frames(self) -> bool:
        """Whether calibration frames choose anything."""
        return self.precision == "int8" or self.keep is not None

    def require_source(self, document: BundleDocument) -> None:
        """Raise UserError if the frames are missing; `document`: the run's."""
        if not self.needs_frames:
            return
        if self.calibrate is not None:
            if self.calibrate != "scenes" and not Path(self.calibrate).exists():
                raise UserError(f"--calibrate {self.calibrate}: no such data set or folder of pictures")
        else:
            find_data(document, REMEDY)

    def calibration(
        self, document: BundleDocument, size: tuple[int, int] | None, camera: tuple[int, int] | None = None
    ) -> Calibration | None:
        """The frames for an export of these sizes, which are read later; None: not needed. Raises UserError, DataError.

        See `ExportOptions` for `size` and `camera`.
        """
        if not self.needs_frames:
            return None
        size = size or document.model.size
        if self.calibrate is not None:
            return read_calibration(self.calibrate, size, camera=camera)
        source = find_data(document, REMEDY)
        units = document.training.depth_units if document.training else None
        return read_calibration(source, size, units or DEPTH_UNITS, camera)


def read_calibration(
    source: str,
    size: tuple[int, int],
    depth_units: float = DEPTH_UNITS,
    camera: tuple[int, int] | None = None,
) -> Calibration:
    """Frames of a data set or folder of pictures: as many as `size` needs for calibration, and 32 others to verify.

    Args:
        source, depth_units: see `read_pictures`.
        size: of the network's input.
        camera: of the frames; None: `size`.

    Raises:
        DataError: there is nothing at `source`. Faults of its content are raised when it is read.
    """
    from ..export.ranges import LEAST_FRAMES, frames_wanted

    def load() -> tuple[Frames, Frames]:
        wanted = frames_wanted(size)
        frames = camera or size
        halves = divide_pictures(source, (LEAST_FRAMES, wanted), HELD_OUT, size=frames, depth_units=depth_units)
        chosen, proof = (Frames(each.images, each.depths) for each in halves)
        return chosen, proof

    return Calibration(source, identify(source), load)
