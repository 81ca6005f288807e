"""`depthkit export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from ..names import BACKENDS
from ..precisions import PRECISIONS
from .options import (
    MOST_FRAMES_A_RUN,
    DataType,
    PathType,
    SectionedCommand,
    SizeType,
    expand,
    runs_option,
)

if TYPE_CHECKING:
    from ..export.recipe import ExportOptions
    from ..pipeline.calibration import PrecisionOptions
    from ..spec import Dim

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


def _precision_options(command: _Command) -> _Command:
    """`--fp16`, `--bf16`, `--int8`, `--calibrate`, `--keep`."""
    for option in reversed(
        (
            *(
                click.option(f"--{name}", is_flag=True, help=each.flag)
                for name, each in PRECISIONS.items()
                if each.flag
            ),
            click.option(
                "--calibrate",
                type=DataType(),
                metavar="PATH",
                help="With --int8 (or --fp16 --keep auto): a data set (its training split calibrates, its validation "
                "split verifies) or a folder of pictures.  [default: the run's training data]",
            ),
            click.option(
                "--keep",
                type=_KeepType(),
                help="With --int8: keep this many of the most sensitive layers in FP32; auto: as many as the gate "
                "needs, if 95 % of the work stays in INT8. "
                "With --fp16, auto: keep the layers whose activations exceed FP16's range.",
            ),
        )
    ):
        command = option(command)
    return command


class _BatchType(click.ParamType["int | Dim"]):
    """`N`, or `MIN,OPT,MAX` for a dynamic batch."""

    name = "N|MIN,OPT,MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Dim:
        from ..spec import Dim

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            numbers = [int(word) for word in value.split(",")]
            if max(numbers) > MOST_FRAMES_A_RUN:
                self.fail(f"{value!r} is too large; a run takes at most {MOST_FRAMES_A_RUN} frames", param, ctx)
            if len(numbers) == 1 and numbers[0] > 0:
                return numbers[0]
            low, best, high = numbers
            return low if low == best == high and low > 0 else Dim("batch", low, best, high)
        except ValueError:
            self.fail(f"{value!r} is not a batch; write N, or MIN,OPT,MAX with 0 < MIN <= OPT <= MAX", param, ctx)


class _SettingType(click.ParamType["tuple[str, str]"]):
    """`KEY=VALUE`."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not KEY=VALUE; write for instance threads=2", param, ctx)
        return key, text


@click.command(
    cls=SectionedCommand,
    sections={
        "Precision": (
            *(f"--{name}" for name, each in PRECISIONS.items() if each.flag),
            "--calibrate",
            "--keep",
            "--explain",
        ),
        "ONNX file": ("--size", "--camera", "--batch", "--onnx-only", "--runs"),
        "Engine": ("--backend", "--option", "--rebuild", "--triton"),
    },
)
@click.argument("run", nargs=-1, type=PathType(), callback=expand)
@_precision_options
@click.option(
    "--explain", is_flag=True, help="With --int8: rank the layers by their loss when only they are INT8, and stop."
)
@click.option(
    "--size",
    type=SizeType(),
    metavar="HxW",
    help="Size of the network's input.  [default: the run's]",
)
@click.option(
    "--camera",
    type=SizeType(),
    metavar="HxW",
    help="Size of frames and depth; the engine resizes frames to --size, and depth back. Cheapest if --size divides "
    "it.  [default: --size, without resizing]",
)
@click.option("--batch", type=_BatchType(), default="1", show_default=True, help="Frames per run, or a dynamic range.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["auto", "all", *BACKENDS]),
    default=["auto"],
    show_default=True,
    help="Backend to build for; may be repeated. auto: the fastest that this machine can run; all: all that it can.",
)
@click.option(
    "--option",
    "-o",
    "settings",
    multiple=True,
    type=_SettingType(),
    help="Option of the backend, see docs/engines.md; may be repeated.",
)
@click.option("--rebuild", is_flag=True, help="Make the ONNX file and engine again even if nothing has changed.")
@click.option(
    "--triton",
    type=PathType(file_okay=False),
    metavar="DIR",
    help="Add the engines to this model repository of Triton Inference Server.",
)
@click.option("--onnx-only", is_flag=True, help="Stop at the ONNX file.")
@runs_option
def export(
    run: tuple[Path, ...],
    calibrate: str | None,
    keep: int | Literal["auto"] | None,
    explain: bool,
    size: tuple[int, int] | None,
    camera: tuple[int, int] | None,
    batch: int | Dim,
    backends: tuple[str, ...],
    settings: tuple[tuple[str, str], ...],
    rebuild: bool,
    triton: Path | None,
    onnx_only: bool,
    runs: Path,
    **flags: bool,
) -> None:
    """Export runs to checked ONNX files, and build engines from these.

    RUN is a run folder, the name of built-in weights, your own network (package.module:Network, whose run is
    RUNS/Network), or an ONNX file that depthkit exported; of that only the engine is built, without torch.

    The ONNX file takes a camera's bytes (uint8, N x H x W x 3, RGB) and returns depth (float32, N x H x W), in metres
    unless the model answers otherwise (adopt --answers). Beside it is a reference file: 8 frames and the model's own
    FP32 depth for them, against which every engine is checked. If a check fails, no file is written and the command
    exits 3. Files are only made again if something has changed.

    \b
    Examples:
      depthkit export                               every run in runs/, FP32
      depthkit export --fp16 runs/compact           one run, FP16
      depthkit export --int8 --keep auto            INT8, calibrated on each run's training data
      depthkit export --int8 --explain runs/compact which layers lose most in INT8
      depthkit export --size 480x640 --batch 1,4,8  another size, dynamic batch
      depthkit export --camera 480x640 compact      resize in the engine: frames and depth of 480x640
      depthkit export --backend openvino -o inference_precision=bf16
      depthkit export compact-96x128.fp16.onnx      only the engine, on the target machine
      depthkit export compact --triton models       and a model that Triton serves
    """
    from ..export.recipe import ExportOptions
    from ..pipeline.calibration import PrecisionOptions
    from ..pipeline.export import EngineOptions, build_engines, export_run, require_engines
    from ..pipeline.runs import require_exportable, run_folder
    from ..pipeline.targets import find_runs
    from ..pipeline.triton import add_engines, require_repository
    from .console import out as console
    from .console import tell

    precision = PrecisionOptions(tuple(name for name in PRECISIONS if flags.get(name)), calibrate, keep)
    asked = precision.precision
    if explain and asked != "int8":
        raise click.UsageError("--explain is for --int8")
    engines = EngineOptions(() if onnx_only or explain else backends, dict(settings), rebuild)
    if triton is not None and not engines.backends:
        raise click.UsageError("--triton needs an engine; leave out --onnx-only and --explain")
    require_engines(asked, engines)
    targets = run or find_runs(runs)
    for target in targets:  # refuse before the first is changed
        if target.suffix == ".onnx":
            _require_exported_so(
                target, precision, explain, ExportOptions(asked, size, batch, camera=camera), onnx_only
            )
        else:
            require_exportable(target, runs, ExportOptions(asked, size, batch, keep=keep, camera=camera), precision)
    if triton is not None:
        require_repository(triton, targets, engines, batch)
    for target in targets:
        console.print(str(target), style="bold", markup=False)
        if target.suffix == ".onnx":
            built = build_engines(target, engines, tell)
        else:
            from ..train.document import read_document

            folder = run_folder(target, runs, tell)
            if explain:
                _explain_layers(folder, size, camera, precision)
                continue
            calibration = precision.calibration(read_document(folder), size, camera)
            options = ExportOptions(asked, size, batch, calibration, keep, camera=camera)
            built = export_run(folder, options, engines, tell)
        if triton is not None:
            add_engines(built, triton, tell)


def _require_exported_so(
    onnx: Path,
    precision: PrecisionOptions,
    explain: bool,
    wanted: ExportOptions,
    onnx_only: bool,
) -> None:
    """Raise UserError if the options, which are for runs, ask for something else than an ONNX file is."""
    from ..errors import UserError
    from ..onnx_graph import describe_onnx

    found = describe_onnx(onnx)
    asked = {
        f"--{precision.precision}": precision.precision not in {"fp32", found.precision},
        "--calibrate": precision.calibrate is not None,
        "--keep": precision.keep is not None,
        "--explain": explain,
        "--size": wanted.size not in {None, found.model.network_size},
        "--camera": wanted.camera not in {None, found.model.size},
        "--batch": wanted.batch not in (1, found.model.batch),
        "--onnx-only": onnx_only,
    }
    if wrong := [option for option, is_wrong in asked.items() if is_wrong]:
        raise UserError(
            f"{onnx} is already exported ({found.precision}, {found.model.input.describe()}), so {', '.join(wrong)} "
            f"cannot change it; name its run instead: `depthkit export {onnx.parent}`"
        )


def _explain_layers(
    folder: Path, size: tuple[int, int] | None, camera: tuple[int, int] | None, options: PrecisionOptions
) -> None:
    """Print the loss of each layer when only it is quantised, the most sensitive first."""
    from ..metrics import number
    from ..pipeline.runs import open_source
    from .console import out as console
    from .console import table

    source = open_source(folder)
    from ..export.onnx_file import rank_run

    calibration = options.calibration(source.document, size, camera)
    assert calibration is not None, "--explain needs --int8"
    columns = ("layer", "module", "of MACs", "SSIM", "worst", "AbsRel", "max |Δ|")
    shown = table(*columns, text={"layer", "module"})
    for row in rank_run(source, source.spec_at(size, camera), calibration):
        parity = row.parity
        worse = "" if parity.abs_rel_loss is None else number(parity.abs_rel_loss, "+.4f")
        figures = (f"{parity.ssim:.5f}", f"{parity.worst_ssim:.5f}", worse, parity.difference)
        shown.add_row(row.layer, row.module, f"{row.share:.1%}", *figures)
    console.print(shown)
