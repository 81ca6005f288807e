"""`depthkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from ..names import PEERS
from .options import (
    DAY,
    MOST_FRAMES_A_RUN,
    CountType,
    NumberType,
    PathType,
    PercentType,
    SectionedCommand,
    command_line,
    data_option,
    depth_units_option,
    expand,
    runs_option,
)

if TYPE_CHECKING:
    from ..bench.contender import Contender, SampleSet


class _VendorsType(click.ParamType["list[str]"]):
    """Names with commas between them."""

    name = ",".join(PEERS)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = str(value).split(",")
        if unknown := [name for name in names if name not in PEERS]:
            self.fail(f"{', '.join(map(repr, unknown))}: no such peer; choose of {', '.join(PEERS)}", param, ctx)
        return list(dict.fromkeys(names))


@click.command(
    cls=SectionedCommand,
    sections={
        "What to bench": ("--engine", "--runs", "--torch", "--vs", "--trtexec", "--batch"),
        "Accuracy": ("--data", "--frames", "--depth-units", "--gate", "--bisect"),
        "Timing": ("--protocol", "--duration", "--until", "--streams"),
        "What else to measure": ("--memory", "--roofline", "--profile"),
        "Output": ("--html", "--json", "--markdown", "--csv", "--table"),
        "Comparison": ("--compare", "--fail-above", "--relative-to"),
    },
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=PathType(),
    callback=expand,
    help="Engine or ONNX file; may be repeated.  [default: every engine in the runs]",
)
@data_option("Data set whose test split fills the accuracy columns.")
@click.option(
    "--frames", type=CountType(1, 1_000_000), default=100, show_default=True, help="Frames of it, evenly spaced."
)
@click.option(
    "--protocol",
    type=click.Choice(["steady", "paper"]),
    default="steady",
    show_default=True,
    help="steady: real frames, engines in turns. paper: random, 100 warm-ups, mean of 10.",
)
@click.option(
    "--duration",
    "--seconds",
    "seconds",
    type=NumberType(0, DAY),
    default=3.0,
    show_default=True,
    help="Steady: seconds for each row, and at least 10 runs.",
)
@click.option(
    "--until",
    type=PercentType(),
    help="Go on until the 95 % interval of every median is as narrow as this, as 1%; at most a minute a row.",
)
@click.option("--streams", type=CountType(1, 256), help="Measure throughput too: so many sessions side by side.")
@click.option(
    "--batch", type=CountType(1, MOST_FRAMES_A_RUN), help="Frames a run; engines that do not take them are left out."
)
@click.option(
    "--torch/--no-torch",
    "with_torch",
    default=True,
    show_default=True,
    help="Bench torch eager beside engines whose run is there.",
)
@click.option(
    "--vs",
    "vendors",
    type=_VendorsType(),
    help="Bench these vendors' own calls in the same run, on the FP32 model, with no depthkit between.",
)
@click.option(
    "--trtexec",
    "traces",
    multiple=True,
    type=PathType(dir_okay=False),
    help="File of trtexec --exportTimes, for a row of its own.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Measure memory first, each engine in a process of its own; one that crashes there takes no other with it.",
)
@click.option(
    "--roofline/--no-roofline",
    default=True,
    show_default=True,
    help="Measure what the machine can do, and put every engine under it.",
)
@click.option("--profile", is_flag=True, help="Ask the vendors what each layer takes.")
@click.option("--bisect", is_flag=True, help="Where a gate fails, find the first layer that goes wrong.")
@click.option("--gate/--no-gate", default=True, show_default=True, help="Exit 3 when a row fails its gate.")
@click.option(
    "--json",
    "json_file",
    type=PathType(dir_okay=False),
    help="Write all samples and figures to this file.",
)
@click.option("--html", "html_file", type=PathType(dir_okay=False), help="Write a report to this file.")
@click.option(
    "--markdown",
    "markdown_file",
    type=PathType(dir_okay=False),
    help="Write the tables, or the comparison, to this file.",
)
@click.option("--csv", "csv_file", type=PathType(dir_okay=False), help="Write all figures to this file.")
@click.option(
    "--table", "paper_table", type=click.Choice(["paper"]), help="Print the shape of the paper's Table 2 too."
)
@click.option(
    "--compare",
    "files",
    nargs=2,
    type=PathType(dir_okay=False),
    metavar="OLD NEW",
    help="Bench nothing: compare two files of --json, and exit 3 on a regression that their intervals support.",
)
@click.option(
    "--fail-above",
    type=PercentType(),
    default="5%",
    show_default=True,
    help="With --compare: how much slower is a regression.",
)
@click.option(
    "--relative-to",
    metavar="BACKEND|auto|none",
    default="auto",
    show_default=True,
    help="With --compare: divide by this one's time in the same rounds first, so that a machine that is slower as a "
    "whole is no regression; auto: by torch, or a peer, where both files have it.",
)
@depth_units_option
@runs_option
def bench(
    engines: tuple[Path, ...],
    data: str | None,
    frames: int,
    protocol: str,
    seconds: float,
    until: float | None,
    streams: int | None,
    batch: int | None,
    with_torch: bool,
    vendors: list[str] | None,
    traces: tuple[Path, ...],
    memory: bool,
    roofline: bool,
    profile: bool,
    bisect: bool,
    gate: bool,
    json_file: Path | None,
    html_file: Path | None,
    markdown_file: Path | None,
    csv_file: Path | None,
    paper_table: str | None,
    files: tuple[Path, Path] | None,
    fail_above: float,
    relative_to: str,
    depth_units: float | None,
    runs: Path,
) -> None:
    """Measure latency, parity and accuracy of engines, side by side.

    Parity: every engine answers the reference frames that travel with its model, and must agree with what torch
    answered in FP32, as closely as its precision allows (docs/precision.md). With --data it must also be as accurate as
    FP32 on these frames, within the same limits. A row that is not, or an ONNX file that is not the one its engine was
    built from, fails its gate, and the command exits 3. So it does where an engine cannot be benched; the others are.
    After Ctrl-C what was measured is written. docs/bench.md says how each figure is made.

    \b
    Examples:
      depthkit bench                                        every engine in runs/, and torch
      depthkit bench --data path/to/nyu --html bench.html   accuracy too, and a report
      depthkit bench --vs torch,onnxruntime --until 1%      beside the vendors' own calls, as sure as ±1 %
      depthkit bench --compare old.json new.json            what became slower
      depthkit bench --engine e.ort.onnx                    one engine; needs no torch
    """
    from ..bench.suite import SuiteOptions
    from ..bench.timing import Steady
    from ..bench.trtexec import read_trtexec
    from ..pipeline.contenders import contenders, peers
    from ..pipeline.targets import depth_units_of, find_engines
    from .bench_output import Outputs, compare_and_show, require_any, require_gate, run_and_show
    from .console import tell

    if files:
        compare_and_show(*files, fail_above=fail_above, relative_to=relative_to, markdown_file=markdown_file)
        return
    found = list(dict.fromkeys(engines)) or find_engines(runs, tell)
    samples, notes = _samples(data, frames, depth_units_of(found, depth_units))
    rows = [read_trtexec(path) for path in traces]
    chosen = contenders(found, tell, with_torch=with_torch, batch=batch, found=not engines)
    if vendors:
        chosen = _in_groups([*chosen, *peers(chosen, vendors)])
    options = SuiteOptions(
        protocol=cast("Literal['steady', 'paper']", protocol),
        steady=Steady(duration_s=seconds, until=until),
        memory=memory,
        streams=streams,
        roofline=roofline,
        profile=profile,
        notes=notes,
        command=command_line(),
    )
    outputs = Outputs(json_file, html_file, markdown_file, csv_file, paper=paper_table == "paper")
    result = run_and_show(chosen, samples, options, outputs, others=rows, bisect=bisect)
    if not result.complete:
        raise click.Abort
    require_any(result)
    if gate:
        require_gate(result)


def _samples(data: str | None, frames: int, depth_units: float) -> tuple[SampleSet | None, tuple[str, ...]]:
    """What fills the accuracy columns; and why they stay empty, or which frames are not in them."""
    from ..data.images import find_images
    from ..errors import DataError
    from ..pipeline.samples import doubt, readable, sample_set

    if data is None:
        return None, ()
    try:
        samples = sample_set(data, frames, depth_units)
    except DataError as unknown:
        try:
            pictures = find_images(Path(data))
        except (DataError, OSError):
            raise unknown from None
        return None, (f"no accuracy: the {len(pictures)} pictures in {data} have no measured depth",)
    good, notes = readable(samples)
    return good, (*notes, *filter(None, [doubt(good)]))


def _in_groups(chosen: list[Contender]) -> list[Contender]:
    """Peers right after the engines of their model."""
    models = dict.fromkeys(contender.model for contender in chosen)
    return [contender for model in models for contender in chosen if contender.model == model]
