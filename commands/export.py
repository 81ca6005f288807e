"""`depthkit export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .export_runs import ForeignWeights, require_exportable, run_folder
from .options import (
    MOST_FRAMES_A_RUN,
    NumbersType,
    PathType,
    SizeType,
    data_option,
    depth_units_option,
    expand,
    runs_option,
)
from .packages import EXPORTING, require_packages
from .precision import PrecisionOptions, explain_layers, precision_options
from .proof import Proof

if TYPE_CHECKING:
    from ..engines.build import BuiltEngine
    from ..export.checks import Check
    from ..export.recipe import ExportOptions
    from ..reference import Reference
    from ..spec import Dim

BACKENDS = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-tensorrt",
    "onnxruntime-cuda",
    "openvino",
    "onnxruntime",
    "null",
)
"""The names of `engines.build.BACKENDS`, which `depthkit --help` must not import; a test compares them."""


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
            self.fail(f"{value!r} is no batch; write N, or MIN,OPT,MAX with 0 < MIN <= OPT <= MAX", param, ctx)


class _SettingType(click.ParamType["tuple[str, str]"]):
    """`KEY=VALUE`."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is no option of a backend; write KEY=VALUE, for instance threads=2", param, ctx)
        return key, text


@dataclass(frozen=True)
class EngineOptions:
    """Engines to build of every ONNX file: by which backends ("auto", "all" or a name), and how."""

    backends: tuple[str, ...] = ("auto",)
    vendor: dict[str, str] = field(default_factory=dict)
    rebuild: bool = False


@click.command()
@click.argument("run", nargs=-1, type=PathType(), callback=expand)
@precision_options
@click.option("--explain", is_flag=True, help="With --int8: rank the layers by what each costs alone, and stop.")
@click.option(
    "--size",
    type=SizeType(),
    metavar="HxW",
    help="Size of the engine.  [default: the run's; with --weights 240x320]",
)
@click.option("--batch", type=_BatchType(), default="1", show_default=True, help="Frames a run, or a dynamic range.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["auto", "all", *BACKENDS]),
    default=["auto"],
    show_default=True,
    help="Engine to build; may be repeated. auto: the fastest that this machine can run; all: each that it can run.",
)
@click.option(
    "--option",
    "-o",
    "settings",
    multiple=True,
    type=_SettingType(),
    help="An option of the backend, see docs/engines.md; may be repeated.",
)
@click.option("--rebuild", is_flag=True, help="Make ONNX file and engine anew, also where nothing has changed.")
@click.option("--onnx-only", is_flag=True, help="Stop at the ONNX file.")
@runs_option
@click.option(
    "--weights",
    type=PathType(exists=True, dir_okay=False),
    help="Safetensors file of a network of your own, which RUN names.",
)
@data_option("With --weights: where the frames that travel with the run come from.  [default: scenes]")
@depth_units_option
@click.option(
    "--depth-range",
    type=NumbersType("LOW,HIGH", 0, 1e4),
    help="With --weights: metres; the network answers shares of HIGH.  [default: 0.1,10]",
)
@click.option(
    "--mean", type=NumbersType("R,G,B", -1e3, 1e3), help="With --weights: of pixels from 0 to 1.  [default: ImageNet's]"
)
@click.option(
    "--std", type=NumbersType("R,G,B", 1e-6, 1e3), help="With --weights: of pixels from 0 to 1.  [default: ImageNet's]"
)
def export(
    run: tuple[Path, ...],
    fp16: bool,
    bf16: bool,
    int8: bool,
    calibrate: str | None,
    keep: int | Literal["auto"] | None,
    explain: bool,
    size: tuple[int, int] | None,
    batch: int | Dim,
    backends: tuple[str, ...],
    settings: tuple[tuple[str, str], ...],
    rebuild: bool,
    onnx_only: bool,
    runs: Path,
    weights: Path | None,
    data: str | None,
    depth_units: float | None,
    depth_range: tuple[float, float] | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> None:
    """Turn runs into ONNX files that passed every check, and these into engines.

    RUN is a run folder, the name of weights that come with depthkit, or an ONNX file of ours, of which only the engine
    is built; that needs no torch. It may be a network of your own, package.module:Network: its run, or with --weights a
    run that is made of these first, in RUNS/Network.

    The ONNX file reads a camera's bytes (uint8, N x H x W x 3, RGB) and answers metres (float32, N x H x W). Beside it
    lies a reference: 8 frames with torch's answers, by which any machine can tell that an engine is still this network.
    A check that fails exits 3 and writes no file. What has not changed since it was made is not made again.

    \b
    Examples:
      depthkit export                               every run in runs/, FP32
      depthkit export --fp16 runs/compact           one run, FP16
      depthkit export --int8 --keep auto            INT8, calibrated on what each run was trained on
      depthkit export --int8 --explain runs/compact which layers suffer from INT8
      depthkit export --size 480x640 --batch 1,4,8  another size, dynamic batch
      depthkit export --backend openvino -o inference_precision=bf16
      depthkit export compact-96x128.fp16.onnx      only the engine, on the machine that will run it
      depthkit export mypackage.module:MyNet --weights w.safetensors --size 96x128
    """
    from ..engines.build import backend, require
    from ..export.recipe import ExportOptions
    from .console import out as console
    from .targets import find_runs

    precision = PrecisionOptions(fp16, bf16, int8, calibrate, keep)
    asked = precision.precision
    if explain and asked != "int8":
        raise click.UsageError("--explain is for --int8")
    engines = EngineOptions(() if onnx_only or explain else backends, dict(settings), rebuild)
    foreign = ForeignWeights(weights, data, depth_units, depth_range, mean, std)
    foreign.check(run)
    for name, _ in _chosen(engines.backends):  # before minutes are spent on the ONNX file
        require(name)
        backend(name).parse_options(engines.vendor)
    targets = run or find_runs(runs)
    for target in targets:  # before the first of them is changed
        if target.suffix == ".onnx":
            _require_exported_so(target, precision, explain, size, batch, onnx_only)
        else:
            require_exportable(target, runs, ExportOptions(asked, size, batch, keep=keep), foreign, precision)
    for target in targets:
        console.print(str(target), style="bold", markup=False)
        if target.suffix == ".onnx":
            build_engines(target, engines)
        else:
            from ..train.document import read_document

            folder = run_folder(target, runs, size, foreign)
            if explain:
                explain_layers(folder, size, precision)
                continue
            calibration = precision.calibration(read_document(folder), size)
            export_run(folder, ExportOptions(asked, size, batch, calibration, keep), engines)


def _require_exported_so(
    onnx: Path,
    precision: PrecisionOptions,
    explain: bool,
    size: tuple[int, int] | None,
    batch: int | Dim,
    onnx_only: bool,
) -> None:
    """Raise UserError where an ONNX file is not what the options ask for: they are for runs."""
    from ..description import describe_onnx
    from ..errors import UserError

    found = describe_onnx(onnx)
    asked = {
        f"--{precision.precision}": precision.precision not in {"fp32", found.precision},
        "--calibrate": precision.calibrate is not None,
        "--keep": precision.keep is not None,
        "--explain": explain,
        "--size": size not in {None, found.model.size},
        "--batch": batch not in (1, found.model.batch),
        "--onnx-only": onnx_only,
    }
    if wrong := [option for option, is_wrong in asked.items() if is_wrong]:
        raise UserError(
            f"{onnx} is exported already ({found.precision}, {found.model.input.describe()}), and {', '.join(wrong)} "
            f"asks for something else; name its run instead: `depthkit export {onnx.parent}`"
        )


def export_run(folder: Path, options: ExportOptions, engines: EngineOptions) -> list[Path]:
    """Export one run and build its engines; print a line for each step. The engines, or the ONNX file without any.

    Raises:
        GateError: a check of the ONNX file failed, or the gate of an engine; see `build_engines`.
    """
    from rich.markup import escape

    from ..engines.build import require
    from ..export.recipe import find_current
    from ..train.document import read_document
    from .console import out as console

    current = None if engines.rebuild else find_current(folder, read_document(folder), options)
    if current is None:
        require_packages(*EXPORTING)
        from ..export.onnx_file import export_onnx
        from ..train.bundle import read_bundle

        require("onnxruntime", to_run=True)  # the export's own parity check runs on it
        made = export_onnx(read_bundle(folder), options, _line)
        console.print(f"  [green]wrote[/] {escape(str(made.path))} and {made.reference.name}")
        proof = Proof(lambda: made.held_out)
        current = made.path
    else:
        console.print(f"  [green]kept[/]  {escape(str(current))}: passed its checks, and nothing has changed since")
        proof = Proof(partial(_held_out, folder, options))
    return build_engines(current, engines, proof) if engines.backends else [current]


def _held_out(folder: Path, options: ExportOptions) -> Reference | None:
    """The held-out frames again, for an engine that is new while its ONNX file is not; None: without torch."""
    from importlib.util import find_spec

    if options.calibration is None or find_spec("torch") is None:
        return None
    from ..export.onnx_file import held_out_reference
    from ..train.bundle import read_bundle

    bundle = read_bundle(folder)
    return held_out_reference(bundle, options.size or bundle.document.model.size, options.calibration)


def build_engines(onnx: Path, options: EngineOptions, proof: Proof | None = None) -> list[Path]:
    """Build the engines of an ONNX file, prove each, and print what was built; needs no torch.

    Raises:
        GateError: an engine does not run, or its gate fails. The others are built all the same.
    """
    from rich.markup import escape

    from ..description import describe_onnx
    from ..engines.build import BuildOptions, backend, build
    from ..errors import BackendError, GateError
    from .console import out as console

    proof = proof or Proof()
    built, failed = [], []
    stored = describe_onnx(onnx).precision
    for name, said in _chosen(options.backends):
        maker = backend(name)
        try:
            settings = maker.parse_options(options.vendor)
            maker.asked(stored, settings)
        except BackendError as error:
            if name in options.backends or "all" not in options.backends:
                raise
            console.print(f"  [yellow]skipped[/] {name}: {escape(str(error))}")
            continue

        def waiting(name: str = name) -> None:
            console.print(f"  [yellow]waits[/] for another process that is building this engine by {name}")

        try:
            found = build(
                onnx, BuildOptions(name, options.vendor, options.rebuild), waiting, partial(proof.prove, onnx)
            )
        except GateError as error:
            console.print(f"  [red]FAIL[/]  {name}: {escape(str(error))}")
            failed.append(f"{name}: {error}")
            continue
        _report(found, said)
        built.append(found.path)
    if failed:
        raise GateError(f"of {onnx.name} {len(failed)} engines were not built: {'; '.join(failed)}")
    return built


def _chosen(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Backends by name, each with what is to be said of the choice."""
    from ..engines.build import fastest, runnable

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


def _report(engine: BuiltEngine, said: str) -> None:
    from rich.markup import escape

    from .console import out as console

    manifest = engine.manifest
    head = "[green]found[/]" if engine.reused else "[green]built[/]"
    tail = "in the store" if engine.reused else f"{manifest.build_seconds:.2f} s"
    console.print(
        f"  {head} {escape(str(engine.path))}: {manifest.backend} {manifest.backend_version}{said}, "
        f"precision {manifest.precision_found}, {tail}"
    )
    if "→" in manifest.precision_found:
        console.print(
            "  [yellow]note[/]  FP16 is stored in the ONNX file; this engine computes it in FP32: not faster here"
        )
    if manifest.arithmetic == "none":
        console.print("  [yellow]note[/]  this CPU has no INT8 arithmetic: INT8 is not faster than FP32 here")
    if manifest.layers_from == "network":
        console.print(
            f"  [yellow]note[/]  built for {escape(manifest.device.describe())}; not every layer could be read "
            "from the engine itself here: the others are those of the strongly typed network"
        )


def _line(check: Check) -> None:
    from rich.markup import escape

    from .console import out as console

    mark = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
    console.print(f"  {mark}  {check.name}: {escape(check.detail)}")
