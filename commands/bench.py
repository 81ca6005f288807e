"""`depthkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click
from click.core import ParameterSource

from ..names import PEERS
from .options import (
    DAY,
    MOST_FRAMES_A_RUN,
    ClientsType,
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
    """Names separated by commas."""

    name = ",".join(PEERS)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = str(value).split(",")
        if unknown := [name for name in names if name not in PEERS]:
            self.fail(f"{', '.join(map(repr, unknown))}: no such peer; choose from {', '.join(PEERS)}", param, ctx)
        return list(dict.fromkeys(names))


@click.command(
    cls=SectionedCommand,
    sections={
        "What to bench": ("--engine", "--runs", "--torch", "--vs", "--trtexec", "--batch", "--source"),
        "A server": ("--server", "--model", "--concurrency", "--token"),
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
@data_option("Data set for accuracy, on its test split.")
@click.option(
    "--frames", type=CountType(1, 1_000_000), default=100, show_default=True, help="Frames of --data, evenly spaced."
)
@click.option(
    "--protocol",
    type=click.Choice(["steady", "paper"]),
    default="steady",
    show_default=True,
    help="steady: real frames, engines in turns. paper: random frames, 100 warm-ups, mean of 10 runs.",
)
@click.option(
    "--duration",
    "--seconds",
    "seconds",
    type=NumberType(0, DAY),
    default=3.0,
    show_default=True,
    help="With steady: seconds per row (at least 10 runs).",
)
@click.option(
    "--until",
    type=PercentType(),
    help="Continue until every median's 95 % interval is this narrow, e.g. 1%; at most a minute per row.",
)
@click.option("--streams", type=CountType(1, 256), help="Also measure throughput, with this many sessions at a time.")
@click.option(
    "--batch", type=CountType(1, MOST_FRAMES_A_RUN), help="Frames per run; engines that do not take it are skipped."
)
@click.option(
    "--torch/--no-torch",
    "with_torch",
    default=True,
    show_default=True,
    help="Also bench torch eager, if the engine's run is there.",
)
@click.option(
    "--vs",
    "vendors",
    type=_VendorsType(),
    help="Also bench these raw vendor APIs, on the FP32 model, without depthkit.",
)
@click.option(
    "--trtexec",
    "traces",
    multiple=True,
    type=PathType(dir_okay=False),
    help="Add a row from a file of trtexec --exportTimes.",
)
@click.option(
    "--source",
    metavar="CLIP",
    help="Instead, bench from a video file to a video of depth: each stage, and how old frames of a camera would be.",
)
@click.option("--server", metavar="URL", help="Instead, bench a model at a server of KServe's protocol v2.")
@click.option("--model", "model_name", metavar="NAME", help="With --server: its name.  [default: the only one]")
@click.option(
    "--concurrency",
    "clients",
    type=ClientsType(),
    default="1:16",
    show_default=True,
    help="With --server: clients at a time; 1:16 doubles them from 1 to 16.",
)
@click.option("--token", "token_file", type=PathType(dir_okay=False), metavar="FILE", help="With --server: its token.")
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Measure memory first, each engine in a separate process, so that a crash ends only that engine.",
)
@click.option(
    "--roofline/--no-roofline",
    default=True,
    show_default=True,
    help="Measure the machine's peaks, and each engine's % of roofline.",
)
@click.option("--profile", is_flag=True, help="Time each layer with the vendor's profiler.")
@click.option("--bisect", is_flag=True, help="If a gate fails, find the first layer that diverges.")
@click.option("--gate/--no-gate", default=True, show_default=True, help="Exit 3 if a row fails its gate.")
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
    "--table", "paper_table", type=click.Choice(["paper"]), help="Also print a table like the paper's Table 2."
)
@click.option(
    "--compare",
    "files",
    nargs=2,
    type=PathType(dir_okay=False),
    metavar="OLD NEW",
    help="Compare two --json files instead; exit 3 on a regression beyond their intervals.",
)
@click.option(
    "--fail-above",
    type=PercentType(),
    default="5%",
    show_default=True,
    help="With --compare: a larger slowdown is a regression.",
)
@click.option(
    "--relative-to",
    metavar="BACKEND|auto|none",
    default="auto",
    show_default=True,
    help="With --compare: divide all times by this backend's in the same rounds, so that an overall slower machine is "
    "no regression; auto: torch or a peer, if both files have it.",
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
    source: str | None,
    server: str | None,
    model_name: str | None,
    clients: tuple[int, ...],
    token_file: Path | None,
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

    Gates: every engine must agree with the reference beside it, which is what the model itself computes in FP32, within
    the tolerances of its precision (docs/precision.md); with --data, it must also be as accurate as FP32 within the
    same tolerances. Its ONNX file must be the one it was built from. If a gate fails or an engine cannot be benched,
    the others go on and the command exits 3. Ctrl-C writes what was measured so far. docs/bench.md explains each
    figure.

    \b
    Examples:
      depthkit bench                                        every engine in runs/, and torch
      depthkit bench --data path/to/nyu --html bench.html   accuracy too, and a report
      depthkit bench --vs torch,onnxruntime --until 1%      beside raw vendor APIs, to ±1 %
      depthkit bench --compare old.json new.json            what became slower
      depthkit bench --engine e.ort.onnx                    one engine; needs no torch
      depthkit bench --source clip.mp4 --duration 8         from file to video, stage by stage
      depthkit bench --server http://localhost:8000         a server under load, and its answers
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
    if server is not None:
        from ..pipeline.served import ServerOptions
        from .bench_server import OPTIONS, bench_server
        from .options import read_token

        _require_only(OPTIONS, "--server")
        engine = _only_one(engines)
        samples, _ = _samples(data, frames, depth_units_of([engine] if engine else [], depth_units))
        bench_server(
            server,
            model_name,
            "" if token_file is None else read_token(token_file),
            engine,
            ServerOptions(clients, window_s=max(seconds / 3, 0.02)),
            samples,
            runs=runs,
            gate=gate,
            json_file=json_file,
            markdown_file=markdown_file,
        )
        return
    found = list(dict.fromkeys(engines)) or find_engines(runs, tell)
    if source is not None:
        from .bench_source import OPTIONS, bench_source

        _require_only(OPTIONS, "--source")
        bench_source(source, found, seconds, json_file=json_file, markdown_file=markdown_file)
        return
    samples, notes = _samples(data, frames, depth_units_of(found, depth_units))
    rows = [read_trtexec(path) for path in traces]
    chosen = contenders(found, tell, with_torch=with_torch, batch=batch, found=not engines)
    if vendors:
        chosen = _in_groups([*chosen, *peers(chosen, vendors, tell)])
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


def _require_only(names: frozenset[str], option: str) -> None:
    """Raise UserError if an option was given that is not one of `names`."""
    from ..errors import UserError

    context = click.get_current_context()
    given = ParameterSource.COMMANDLINE
    others = [
        param.opts[0]
        for param in context.command.params
        if param.name is not None and param.name not in names and context.get_parameter_source(param.name) is given
    ]
    if others:
        raise UserError(f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} no effect with {option}")


def _only_one(engines: tuple[Path, ...]) -> Path | None:
    """The engine that is compared with a server's, if one is named. Raises UserError: several are."""
    from ..errors import UserError

    if len(engines) > 1:
        raise UserError(f"{len(engines)} engines are named; with --server name the one that it serves")
    return engines[0] if engines else None


def _samples(data: str | None, frames: int, depth_units: float) -> tuple[SampleSet | None, tuple[str, ...]]:
    """The samples for accuracy, None without; and notes: why there are none, or which frames are left out."""
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
    """Put peers right after the engines of their model."""
    models = dict.fromkeys(contender.model for contender in chosen)
    return [contender for model in models for contender in chosen if contender.model == model]
