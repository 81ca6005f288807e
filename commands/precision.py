"""What `depthkit export` may be told of precision: which one, calibrated on what, and what stays in FP32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from ..names import DEPTH_UNITS
from .options import DataType

if TYPE_CHECKING:
    from ..export.recipe import Calibration
    from ..tolerances import Precision
    from ..train.document import BundleDocument

__all__ = ["PrecisionOptions", "explain_layers", "precision_options"]

HELD_OUT: Final = 32
"""Frames that prove an INT8 file and its engines, where the source has so many."""

REMEDY: Final = "give frames of your camera by --calibrate"

_Command = TypeVar("_Command", bound=Callable[..., Any])
MOST_LAYERS: Final = 99_999


class _KeepType(click.ParamType["int | Literal['auto']"]):
    """`N` or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        text = str(value)
        if not (
            text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_LAYERS)) and int(text) <= MOST_LAYERS
        ):
            self.fail(f"{value!r} is neither a number of layers nor auto", param, ctx)
        return int(text)


def precision_options(command: _Command) -> _Command:
    """`--fp16`, `--bf16`, `--int8`, `--calibrate`, `--keep`."""
    for option in reversed(
        (
            click.option("--fp16", is_flag=True, help="Weights and layers in FP16; input and output stay as they are."),
            click.option("--bf16", is_flag=True, help="The same in BF16; ONNX Runtime has no CPU kernels for it."),
            click.option("--int8", is_flag=True, help="Convolutions in INT8 (QDQ), calibrated on real frames."),
            click.option(
                "--calibrate",
                type=DataType(),
                metavar="PATH",
                help="With --int8 (or --fp16 --keep auto): a data set, whose training split chooses and whose "
                "validation split proves, or a folder of pictures.  [default: what the run was trained on]",
            ),
            click.option(
                "--keep",
                type=_KeepType(),
                help="With --int8: so many of the most sensitive layers stay in FP32; auto: as many as the gate needs, "
                "if 95 % of the work is left in INT8. "
                "With --fp16, auto: the layers whose activations leave FP16's range.",
            ),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class PrecisionOptions:
    """The options as they were given."""

    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    calibrate: str | None = None
    keep: int | Literal["auto"] | None = None

    @property
    def precision(self) -> Precision:
        """Which one. Raises UserError for options that exclude each other or would go unheard."""
        from ..errors import UserError

        flags: dict[Precision, bool] = {"fp16": self.fp16, "bf16": self.bf16, "int8": self.int8}
        given = [name for name, flag in flags.items() if flag]
        if len(given) > 1:
            raise UserError(f"an ONNX file has one precision: choose one of {', '.join(f'--{each}' for each in given)}")
        precision: Precision = given[0] if given else "fp32"
        if self.calibrate is not None and precision != "int8" and (precision, self.keep) != ("fp16", "auto"):
            raise UserError("--calibrate has no effect without --int8, or --fp16 --keep auto")
        if self.keep is not None and not (precision == "int8" or (precision == "fp16" and self.keep == "auto")):
            raise UserError("--keep is for --int8; --keep auto also for --fp16")
        return precision

    def require_source(self, document: BundleDocument | None) -> None:
        """Raise UserError where the frames are not here; `document`: the run's, None where it is yet to be made."""
        from ..errors import UserError
        from ..train.origin import find_data

        if self.precision != "int8" and self.keep is None:
            return
        if self.calibrate is not None:
            if self.calibrate != "scenes" and not Path(self.calibrate).exists():
                raise UserError(f"--calibrate {self.calibrate}: there is no such data set or folder of pictures")
        elif document is not None:
            find_data(document, REMEDY)

    def calibration(self, document: BundleDocument, size: tuple[int, int] | None) -> Calibration | None:
        """The frames that something is chosen by, read later; None where nothing is. Raises UserError kinds."""
        from ..train.origin import find_data

        if self.precision != "int8" and self.keep is None:
            return None
        size = size or document.model.size
        if self.calibrate is not None:
            return read_calibration(self.calibrate, size)
        source = find_data(document, REMEDY)
        units = document.training.depth_units if document.training else None
        return read_calibration(source, size, units or DEPTH_UNITS)


def read_calibration(source: str, size: tuple[int, int], depth_units: float = DEPTH_UNITS) -> Calibration:
    """Frames of a data set or of a folder of pictures: as many as `size` needs to choose by, and 32 others to prove.

    Raises:
        DataError: there is nothing of this kind at `source`. What is wrong inside is raised when it is read.
    """
    from ..export.quantize import LEAST_FRAMES, frames_wanted
    from ..export.recipe import Calibration, Frames
    from .pictures import divide_pictures, identify

    def load() -> tuple[Frames, Frames]:
        wanted = frames_wanted(size)
        halves = divide_pictures(source, (LEAST_FRAMES, wanted), HELD_OUT, size=size, depth_units=depth_units)
        chosen, proof = (Frames(each.images, each.depths) for each in halves)
        return chosen, proof

    return Calibration(source, identify(source), load)


def explain_layers(folder: Path, size: tuple[int, int] | None, options: PrecisionOptions) -> None:
    """Print what each convolution costs when it alone is quantised, the most sensitive first."""
    from ..export.onnx_file import rank_run
    from ..train.bundle import read_bundle
    from .console import out as console
    from .console import table

    bundle = read_bundle(folder)
    calibration = options.calibration(bundle.document, size)
    assert calibration is not None, "--explain needs --int8"
    columns = ("convolution", "module", "of MACs", "SSIM", "worst", "AbsRel", "max |Δ| mm")
    shown = table(*columns, text={"convolution", "module"})
    for row in rank_run(bundle, size, calibration):
        parity = row.parity
        worse = "" if parity.abs_rel_loss is None else f"{parity.abs_rel_loss:+.4f}"
        figures = (f"{parity.ssim:.5f}", f"{parity.worst_ssim:.5f}", worse, f"{parity.max_abs_mm:.0f}")
        shown.add_row(row.layer, row.module, f"{row.share:.1%}", *figures)
    console.print(shown)
