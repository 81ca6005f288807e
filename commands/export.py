"""`depthkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import SizeType, runs_option

if TYPE_CHECKING:
    from ..export.checks import Check
    from ..spec import Dim


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
            return Dim("batch", low, best, high)
        except ValueError:
            self.fail(f"{value!r} is no batch; write N, or MIN,OPT,MAX with 0 < MIN <= OPT <= MAX", param, ctx)


@click.command()
@click.argument("run", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fp16", is_flag=True, help="Weights and layers in FP16; input, output and range stay as they are.")
@click.option("--size", type=SizeType(), help="Size of the engine, divisible by 16.  [default: the run's]")
@click.option("--batch", type=_BatchType(), default="1", show_default=True, help="Frames a run, or a dynamic range.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "null"]),
    default="auto",
    show_default=True,
    help="Engine to build; auto: the fastest that this machine can run.",
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

    The ONNX file reads a camera's bytes (uint8, N x H x W x 3, RGB) and answers metres (float32, N x H x W). Beside it
    lies a reference: 8 frames with torch's answers, by which any machine can tell that an engine is still this network.
    A check that fails exits 3 and leaves no file.

    \b
    Examples:
      depthkit export                               every run in runs/, FP32
      depthkit export --fp16 runs/compact           one run, FP16
      depthkit export --size 480x640 --batch 1,4,8  another size, dynamic batch
    """
    from ..train.bundle import read_bundle
    from .console import out as console
    from .targets import find_runs

    for folder in run or find_runs(runs):
        console.print(str(folder), style="bold", markup=False)
        export_run(read_bundle(folder), "fp16" if fp16 else "fp32", size, batch, None if onnx_only else backend)


def export_run(
    bundle: Any, precision: Any, size: tuple[int, int] | None, batch: int | Dim, backend: str | None
) -> Path:
    """Export one run and build its engine (none where `backend` is None); print a line for each step."""
    from rich.markup import escape

    from ..engines.build import BuildOptions, build
    from ..engines.manifest import read_manifest
    from ..export.onnx_file import ExportOptions, export_onnx
    from .console import out as console

    made = export_onnx(bundle, ExportOptions(precision, size, batch), _line)
    console.print(f"  [green]wrote[/] {escape(str(made.path))} and {made.reference.name}")
    if backend is None:
        return made.path
    chosen = "onnxruntime" if backend == "auto" else backend
    engine = build(made.path, BuildOptions(chosen))
    manifest = read_manifest(engine)
    said = " (chosen by auto)" if backend == "auto" else ""
    console.print(
        f"  [green]built[/] {escape(str(engine))}: {manifest.backend} {manifest.backend_version}{said}, "
        f"precision {manifest.precision_found}, {manifest.build_seconds:.2f} s"
    )
    if "→" in manifest.precision_found:
        console.print(
            "  [yellow]note[/]  this CPU has no FP16 arithmetic: stored as FP16, computed in FP32; not faster here"
        )
    return engine


def _line(check: Check) -> None:
    from rich.markup import escape

    from .console import out as console

    mark = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
    console.print(f"  {mark}  {check.name}: {escape(check.detail)}")
