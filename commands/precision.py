"""What `depthkit export` may be told of precision: which one, calibrated on what, and what stays in FP32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

if TYPE_CHECKING:
    from ..export.recipe import Calibration
    from ..tolerances import Precision
    from ..train.document import BundleDocument

__all__ = ["PrecisionOptions", "explain_layers", "precision_options"]

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
                metavar="PATH",
                help="With --int8: a data set, of which the training split is used, or a folder of pictures.  "
                "[default: what the run was trained on]",
            ),
            click.option(
                "--keep",
                type=_KeepType(),
                help="With --int8: so many of the most sensitive layers stay in FP32; auto: as many as the gate needs. "
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
        if self.calibrate is not None and precision != "int8":
            raise UserError("--calibrate means nothing without --int8")
        if self.keep is not None and not (precision == "int8" or (precision == "fp16" and self.keep == "auto")):
            raise UserError("--keep is for --int8; --keep auto also for --fp16")
        return precision

    def calibration(self, document: BundleDocument, size: tuple[int, int] | None) -> Calibration | None:
        """The frames for INT8; None for any other precision. Raises UserError kinds."""
        from ..errors import UserError

        if self.precision != "int8":
            return None
        source = self.calibrate
        if source is None:
            training = document.training
            if training is None or not (training.data == "scenes" or Path(training.data).exists()):
                where = "is not known" if training is None else f"({training.data}) is not here"
                raise UserError(f"what this run was trained on {where}; give frames of your camera by --calibrate")
            source = training.data
        return read_calibration(source, size or document.model.size)


def read_calibration(source: str, size: tuple[int, int]) -> Calibration:
    """As many frames as `size` needs, of a data set's training split or of a folder of pictures. Raises DataError."""
    from ..export.quantize import frames_wanted
    from ..export.recipe import Calibration
    from .pictures import read_pictures

    return Calibration(source, read_pictures(source, "train", frames_wanted(size), size=size).images)


def explain_layers(folder: Path, size: tuple[int, int] | None, options: PrecisionOptions) -> None:
    """Print what each convolution costs when it alone is quantised, the most sensitive first."""
    from rich.table import Table

    from ..export.onnx_file import rank_run
    from ..train.bundle import read_bundle
    from .console import out as console

    bundle = read_bundle(folder)
    calibration = options.calibration(bundle.document, size)
    assert calibration is not None, "--explain needs --int8"
    table = Table("convolution", "module", "share of MACs", "SSIM", "worst frame", "AbsRel", "max |Δ| mm")
    for row in rank_run(bundle, size, calibration):
        parity = row.parity
        worse = "" if parity.abs_rel_loss is None else f"{parity.abs_rel_loss:+.4f}"
        figures = (f"{parity.ssim:.5f}", f"{parity.worst_ssim:.5f}", worse, f"{parity.max_abs_mm:.0f}")
        table.add_row(row.layer, row.module, f"{row.share:.1%}", *figures)
    console.print(table)
