"""`depthkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import SizeType, runs_option

if TYPE_CHECKING:
    from ..export.checks import Check
    from ..export.onnx_file import ExportOptions
    from ..spec import Dim
    from ..train.bundle import Bundle


class _BatchType(click.ParamType["int | Dim"]):
    """`N`, or `MIN,OPT,MAX` for a dynamic batch."""

    name = "N|MIN,OPT,MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Dim:
        from ..spec import Dim

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            numbers = [int(word) for word in value.split(",")]
            if len(numbers) == 1 and numbers[0] > 0:
                return numbers[0]
            low, best, high = numbers
            return low if low == best == high and low > 0 else Dim("batch", low, best, high)
        except ValueError:
            self.fail(f"{value!r} is no batch; write N, or MIN,OPT,MAX with 0 < MIN <= OPT <= MAX", param, ctx)


@click.command()
@click.argument("run", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fp16", is_flag=True, help="Weights and layers in FP16; input, output and range stay as they are.")
@click.option(
    "--size", type=SizeType(), metavar="HxW", help="Size of the engine, divisible by 16.  [default: the run's]"
)
@click.option("--batch", type=_BatchType(), default="1", show_default=True, help="Frames a run, or a dynamic range.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "null"]),
    default="auto",
    show_default=True,
    help="Engine to build; auto: onnxruntime, so far the only one that computes.",
)
@click.option("--onnx-only", is_flag=True, help="Stop at the ONNX file.")
@runs_option
def export(
    run: tuple[Path, ...],
    fp16: bool,
    size: tuple[int, int] | None,
    batch: int | Dim,
    backend: str,
    onnx_only: bool,
    runs: Path,
) -> None:
    """Turn runs into ONNX files that passed every check, and these into engines.

    RUN is a run folder, or an ONNX file of ours, of which only the engine is built; that needs no torch.

    The ONNX file reads a camera's bytes (uint8, N x H x W x 3, RGB) and answers metres (float32, N x H x W). Beside it
    lies a reference: 8 frames with torch's answers, by which any machine can tell that an engine is still this network.
    A check that fails exits 3 and leaves no file.

    \b
    Examples:
      depthkit export                               every run in runs/, FP32
      depthkit export --fp16 runs/compact           one run, FP16
      depthkit export --size 480x640 --batch 1,4,8  another size, dynamic batch
      depthkit export compact-96x128.fp16.onnx      only the engine, on the machine that will run it
    """
    from .console import out as console
    from .targets import find_runs

    if any(target.suffix != ".onnx" for target in run or [runs]):
        from ..export.onnx_file import ExportOptions
        from ..train.bundle import read_bundle

    chosen = None if onnx_only else backend
    for target in run or find_runs(runs):
        console.print(str(target), style="bold", markup=False)
        if target.suffix == ".onnx":
            build_engine(target, backend)
        else:
            options = ExportOptions("fp16" if fp16 else "fp32", size, batch)
            export_run(read_bundle(target), options, chosen)


def export_run(bundle: Bundle, options: ExportOptions, backend: str | None) -> Path:
    """Export one run and build its engine (none where `backend` is None); print a line for each step."""
    from rich.markup import escape

    from ..engines.build import require
    from ..export.onnx_file import export_onnx
    from .console import out as console

    require("onnxruntime")  # the export's own parity check runs on it
    made = export_onnx(bundle, options, _line)
    console.print(f"  [green]wrote[/] {escape(str(made.path))} and {made.reference.name}")
    return made.path if backend is None else build_engine(made.path, backend)


def build_engine(onnx: Path, backend: str) -> Path:
    """Build the engine of an ONNX file, and print what was built; needs no torch."""
    from rich.markup import escape

    from ..engines.build import BuildOptions, build
    from ..engines.manifest import read_manifest
    from .console import out as console

    engine = build(onnx, BuildOptions("onnxruntime" if backend == "auto" else backend))
    manifest = read_manifest(engine)
    said = " (chosen by auto)" if backend == "auto" else ""
    console.print(
        f"  [green]built[/] {escape(str(engine))}: {manifest.backend} {manifest.backend_version}{said}, "
        f"precision {manifest.precision_found}, {manifest.build_seconds:.2f} s"
    )
    if "→" in manifest.precision_found:
        console.print(
            "  [yellow]note[/]  FP16 is stored in the ONNX file; this engine computes it in FP32: not faster here"
        )
    return engine


def _line(check: Check) -> None:
    from rich.markup import escape

    from .console import out as console

    mark = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
    console.print(f"  {mark}  {check.name}: {escape(check.detail)}")
