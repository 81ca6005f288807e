"""`depthkit tune`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..names import BACKENDS
from ..precisions import PRECISIONS
from .options import (
    DAY,
    MOST_FRAMES_A_RUN,
    CountType,
    DataType,
    NumberType,
    PathType,
    SizeType,
    command_line,
    data_option,
    depth_units_option,
    expand,
    runs_option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from ..export.recipe import Calibration
    from ..export.source import Source
    from ..pipeline.budget import Budget, Quality, Trial, Tuning
    from ..pipeline.candidates import Scope
    from ..pipeline.pictures import Pictures
    from ..precisions import Precision


class _QuantityType(click.ParamType[float]):
    """A number above 0 with an optional unit; at most `most` after conversion."""

    def __init__(self, name: str, units: dict[str, float], most: float) -> None:
        self.name = name
        self._units = units
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)", str(value).strip())
        unit = match and self._units.get(match[2].lower())
        if not (match and unit and 0 < float(match[1]) * unit <= self._most):
            units = ", ".join(filter(None, self._units))
            self.fail(
                f"{value!r} is not a valid quantity; write a number above 0, optionally with a unit ({units})",
                param,
                ctx,
            )
        return float(match[1]) * unit


@click.command()
@click.argument("run", nargs=-1, required=True, type=PathType(), callback=expand)
@click.option(
    "--max-latency",
    type=_QuantityType("TIME", {"": 1, "ms": 1, "s": 1000}, 1000 * DAY),
    help="p95 of a run, e.g. 33ms.",
)
@click.option("--min-fps", type=NumberType(0, 1_000_000, above=True), help="Frames per second.")
@click.option(
    "--min-ssim",
    type=NumberType(0, 1, below=True),
    help="SSIM to the engine's own run in FP32, at the run's size, mean over the pictures.",
)
@click.option(
    "--max-absrel-loss",
    type=NumberType(0, 100),
    help="Allowed increase of AbsRel over the most accurate run in FP32; needs measured depth.",
)
@click.option(
    "--max-memory",
    type=_QuantityType("SIZE", {"": 2**20, "mib": 2**20, "mb": 10**6, "gib": 2**30, "gb": 10**9}, 2**50),
    help="Peak memory to load and run the engine in a fresh process; in MiB.",
)
@data_option(
    "Pictures to judge on: a data set's validation split, or a folder of pictures.  [default: the first run's]"
)
@depth_units_option
@click.option(
    "--frames", type=CountType(1, 1_000_000), default=16, show_default=True, help="Frames of --data, evenly spaced."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    help="Backend to try.  [default: all that run here]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(tuple(PRECISIONS)),
    help="Precision to try.  [default: all]",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=SizeType(),
    metavar="HxW",
    help="Size to try.  [default: each run's, and 3/4 and 1/2 of it]",
)
@click.option(
    "--batch", "batches", multiple=True, type=CountType(1, MOST_FRAMES_A_RUN), help="Batch to try.  [default: 1]"
)
@click.option(
    "--calibrate", type=DataType(), metavar="PATH", help="Frames for INT8.  [default: each run's training data]"
)
@click.option(
    "--minutes",
    type=NumberType(0, 7 * DAY // 60, above=True),
    default=10.0,
    show_default=True,
    help="Time limit for trying candidates.",
)
@runs_option
def tune(
    run: tuple[Path, ...],
    max_latency: float | None,
    min_fps: float | None,
    min_ssim: float | None,
    max_absrel_loss: float | None,
    max_memory: float | None,
    data: str | None,
    depth_units: float | None,
    frames: int,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    calibrate: str | None,
    minutes: float,
    runs: Path,
) -> None:
    """Find the best engine of one or more runs for this machine and a budget.

    Tries backend x precision x size x batch x threads (on a GPU: transfer modes) in short measurements, and measures
    those that could win in longer ones, in turns. Depth is judged at the pictures' resolution, so a smaller size is
    penalised for its blur. With a limit of latency or FPS, the most accurate engine within the budget wins; otherwise
    the fastest. Without any limit, INT8's gate limits the accuracy.

    The engines of several runs compete, whatever their networks. The pictures then need measured depth, because only
    AbsRel compares networks: its increase counts from the most accurate run in FP32. Depth without metres is aligned
    to measured depth first, and such runs only compete with runs that answer alike.

    The winner, its ONNX file and reference go to best/ in the folder of its run, all trials to tune.json and tune.png
    in that of the first RUN. A stopped search continues with the same command. If nothing is within the budget, it
    names the nearest and exits 3.

    \b
    Examples:
      depthkit tune runs/compact                                  the fastest within INT8's gate
      depthkit tune runs/compact --max-latency 5ms --data nyu     the most accurate within 5 ms
      depthkit tune compact runs/nano --min-fps 60 --data nyu     of two runs
      depthkit tune compact --min-fps 30 --size 240x320 --size 480x640 --minutes 5
    """
    from ..pipeline.budget import Budget
    from ..pipeline.calibration import PrecisionOptions
    from ..pipeline.candidates import Scope, candidates, read_panel, read_runs
    from ..pipeline.runs import open_source
    from ..pipeline.targets import depth_units_of, locate, resolve_run
    from .console import tell

    memory = None if max_memory is None else int(max_memory)
    found = [locate(each) for each in run]
    sources = read_runs(found)
    _require_alike(sources)
    scope = Scope(backends, cast("Sequence[Precision]", precisions), sizes, batches)
    candidates(sources, scope)  # raises for an impossible scope before weights are copied
    if calibrate is not None:
        for source in sources.values():
            PrecisionOptions(("int8",), calibrate=calibrate).require_source(source.document)
    units = depth_units_of(found if data else found[:1], depth_units)
    pictures = read_panel(sources, data, frames, units)
    budget = _with_default_limit(
        Budget(max_latency, min_fps, min_ssim, max_absrel_loss, memory), pictures, several=len(sources) > 1
    )
    for name, target, here in zip(sources, run, found, strict=True):
        if here != target:
            sources[name] = open_source(resolve_run(target, runs, tell))
    tune_runs(
        sources,
        budget,
        scope,
        pictures,
        calibrate=calibrate,
        seconds=60 * minutes,
    )


def _require_alike(sources: Mapping[str, Source]) -> None:
    """Raise UserError for runs that AbsRel cannot compare: aligned figures are lower than metric ones."""
    from ..errors import UserError
    from ..metrics import choose_alignment

    how = {name: choose_alignment("auto", source.document.model.answers) for name, source in sources.items()}
    if len(set(how.values())) > 1:
        answers = ", ".join(f"{name} answers {source.document.model.answers}" for name, source in sources.items())
        raise UserError(f"runs whose depth is aligned differently cannot compete ({answers}); tune each by itself")


def tune_runs(
    sources: Mapping[str, Source],
    budget: Budget,
    scope: Scope,
    pictures: Pictures,
    *,
    calibrate: str | Calibration | None = None,
    seconds: float,
) -> Path:
    """Search, print the results, put the winner into its run's `best`; return its path.

    Raises:
        GateError: no candidate is within the budget.
    """
    from rich.markup import escape

    from ..pipeline.budget import require_choice
    from ..pipeline.candidates import candidates, workshop
    from ..pipeline.search import Panel, Search
    from .console import err, out, progress

    budget = _with_default_limit(budget, pictures, several=len(sources) > 1)
    grid = candidates(sources, scope)
    results = next(iter(sources.values())).folder / "tune.json"
    with workshop(sources, calibrate) as shop:
        panel = Panel(shop.panel(pictures), pictures.crop)
        search = Search(results, shop.key(pictures, grid), budget, shop.prepare, panel, command_line())
        left = search.left(grid)
        out.print(
            f"{len(grid)} candidates, {len(grid) - len(left)} of them known from {escape(str(results))}; judged on "
            f"{len(pictures.images)} pictures: {escape(pictures.source)}"
        )
        with progress() as bar:
            task = bar.add_task("engines", total=len(left))

            def tell(trial: Trial) -> None:
                bar.advance(task)
                err.print(f"  {_line(trial, budget)}", markup=False)

            tuning = search.run(grid, seconds, tell)
        _draw(results.with_suffix(".png"), tuning)
        _show(tuning)
        chosen = require_choice(tuning)
        goal = shop.deliver(chosen.candidate)
    out.print(f"[bold green]best[/]  {escape(str(goal))}: {escape(_line(chosen, budget))}")
    out.print(f"[green]wrote[/] {escape(str(results))} and {results.stem}.png")
    return goal


def _draw(path: Path, tuning: Tuning) -> None:
    """Write the Pareto plot of the trials that pass their gate and were judged. Raises OutputError."""
    from ..report import charts

    judged = [(trial, trial.quality) for trial in tuning.trials if trial.quality is not None and not trial.faults]
    points = []
    for trial, quality in judged:
        engine = trial.candidate
        series = f"{engine.run or engine.backend} {engine.size[0]}x{engine.size[1]}"
        point = charts.Point(trial.p95_ms, quality.error, engine.name, series, engine.precision, rivals="all")
        note = "chosen" if engine.name == tuning.chosen else ""
        points.append(replace(point, filled=trial.state == "measured", note=note))
    by_truth = any(quality.abs_rel is not None for _, quality in judged)
    truth = f"AbsRel{_aligned(judged[0][1])} against measured depth" if by_truth else "1 − SSIM to the run in FP32"

    def draw(axes: Axes) -> str:
        return charts.pareto(
            axes, points, x="p95 latency of a run, ms", y=f"{truth}, at the pictures' resolution",
            hollow="measured for a short time", limit=tuning.budget.max_latency_ms,
        )  # fmt: skip

    charts.png(path, draw)


def _with_default_limit(budget: Budget, pictures: Pictures, *, several: bool) -> Budget:
    """Add a default limit of accuracy to a budget without limits. Raises UserError if a limit cannot be measured.

    Of `several` runs, --min-ssim is no such limit: it compares each engine with its own run.
    """
    from ..errors import UserError
    from .console import out

    if several and not pictures.measured:
        raise UserError(
            f"only measured depth can compare several runs, but {pictures.source} has none; give a data set with "
            "--data, or name one run"
        )
    if budget.max_abs_rel_loss is not None and not pictures.measured:
        raise UserError(
            f"--max-absrel-loss needs measured depth, but {pictures.source} has none; give a data set with --data, or "
            "limit the difference from the run in FP32 with --min-ssim"
        )
    if budget.limits_speed or budget.max_abs_rel_loss is not None or (budget.min_ssim is not None and not several):
        return budget
    gate = PRECISIONS["int8"].tolerance
    if pictures.measured:
        limit, than = ("AbsRel", " than the most accurate run in FP32") if several else ("accuracy", "")
        out.print(f"no {limit} limit given: AbsRel may be {gate.max_abs_rel_loss} worse{than}, as in INT8's gate")
        return replace(budget, max_abs_rel_loss=gate.max_abs_rel_loss)
    out.print(f"no accuracy limit given: SSIM must be at least {gate.min_ssim}, as in INT8's gate")
    return replace(budget, min_ssim=gate.min_ssim)


def _aligned(quality: Quality) -> str:
    """The label of figures that depth was aligned for."""
    return "" if quality.alignment == "none" else f" aligned ({quality.alignment})"


def _line(trial: Trial, budget: Budget) -> str:
    if not trial.was_run:
        outcome = "cannot be built here" if trial.state == "skipped" else "failed"
        return f"{trial.candidate.name}: {outcome}: {trial.reason}"
    figures = [f"p50 {trial.p50_ms:.2f} ms", f"p95 {trial.p95_ms:.2f} ms"]
    if trial.quality is not None:
        figures.append(f"SSIM {trial.quality.ssim:.4f}")
        if trial.quality.abs_rel is not None:
            figures.append(f"AbsRel{_aligned(trial.quality)} {trial.quality.abs_rel:.4f}")
    missed = [f"misses: {word}" for word in (*trial.faults, *budget.misses(trial))]
    return f"{trial.candidate.name}: {', '.join([*figures, *missed])}"


def _show(tuning: Tuning) -> None:
    """Print the table of long measurements, and count the others."""
    from rich import box
    from rich.table import Table

    from ..pipeline.budget import pareto
    from .console import out

    front = {trial.candidate.name for trial in pareto(tuning.trials)}
    look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    measured = sorted((t for t in tuning.trials if t.state == "measured"), key=lambda t: t.p50_ms)
    how = {_aligned(t.quality) for t in measured if t.quality is not None and t.quality.abs_rel is not None}
    title = "measured side by side" + "".join(f"; AbsRel and δ1{label}" for label in how if label)
    shown = Table(title=title, title_justify="left", title_style="bold", **look)  # type: ignore[arg-type]
    for heading in ("engine", "p50 ms", "p95 ms", "FPS", "SSIM", "AbsRel", "δ1", "MiB", ""):
        shown.add_column(heading, justify="left" if heading in {"engine", ""} else "right", overflow="fold")
    for trial in measured:
        quality = trial.quality
        assert quality is not None, "only judged trials are measured at length"
        name = trial.candidate.name
        shown.add_row(
            name,
            *(f"{value:.2f}" for value in (trial.p50_ms, trial.p95_ms)),
            f"{trial.fps:.1f}",
            *("" if v is None else f"{v:.4f}" for v in (quality.ssim, quality.abs_rel, quality.delta1)),
            "" if trial.memory_bytes is None else f"{trial.memory_bytes / 2**20:.0f}",
            "chosen" if name == tuning.chosen else "Pareto" if name in front else "",
        )
    out.print(shown)
    short, skipped, failed = (sum(t.state == each for t in tuning.trials) for each in ("short", "skipped", "failed"))
    out.print(f"{short} others were only measured briefly, {skipped} cannot be built here, {failed} failed")
    if tuning.untried:
        out.print(f"[yellow]note[/]  no time for {len(tuning.untried)} more; run the same command again to continue")
