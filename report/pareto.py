"""A search as a picture: latency against truth."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..files import atomic_write
from ..pipeline.budget import Trial, Tuning, pareto

__all__ = ["draw_pareto"]

_MARKS: Final = {"fp32": "o", "fp16": "s", "bf16": "D", "int8": "^"}


def draw_pareto(path: Path, tuning: Tuning) -> None:
    """Write a PNG of every trial that holds its gate and whose depth was judged. Raises OutputError.

    Filled marks were measured for long, hollow ones for a short time only.
    """
    from matplotlib.figure import Figure

    judged = [trial for trial in tuning.trials if trial.quality is not None and not trial.faults]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, (backend, size) in enumerate(dict.fromkeys((t.candidate.backend, t.candidate.size) for t in judged)):
        for precision, mark in _MARKS.items():
            some = [t for t in judged if _kind(t) == (backend, size, precision)]
            if some:
                colours = [f"C{index}" if trial.state == "measured" else "none" for trial in some]
                label = f"{backend} {precision} {size[0]}x{size[1]}"
                axes.scatter(*_points(some), c=colours, edgecolors=f"C{index}", marker=mark, label=label)
    axes.step(*_points(pareto(tuning.trials)), "k:", linewidth=1, where="post", label="Pareto front")
    for trial in judged:
        if trial.candidate.name == tuning.chosen:
            (x,), (y,) = _points([trial])
            axes.annotate(
                "chosen", (x, y), xytext=(-12, 16), textcoords="offset points", arrowprops={"arrowstyle": "-"}
            )
    if tuning.budget.max_latency_ms is not None:
        axes.axvline(tuning.budget.max_latency_ms, color="red", linewidth=1, label="latency allowed")
    by_truth = any(trial.quality is not None and trial.quality.abs_rel is not None for trial in judged)
    truth = "AbsRel against measured depth" if by_truth else "1 - SSIM to torch FP32"
    axes.set(xlabel="p95 latency of a run, ms", ylabel=f"{truth}, at the pictures' resolution", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=7)
    axes.grid(visible=True, which="both", alpha=0.3)
    if judged:
        figure.legend(fontsize=8, loc="outside right upper")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _kind(trial: Trial) -> tuple[str, tuple[int, int], str]:
    return trial.candidate.backend, trial.candidate.size, trial.candidate.precision


def _points(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [t.p95_ms for t in trials], [t.quality.error for t in trials if t.quality is not None]
