"""The search for the best engine: candidates, trials, the budget, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from ..bench.environment import Environment
from ..bench.statistics import pareto_front
from ..documents import STRICT
from ..errors import GateError
from ..metrics import Alignment
from ..precisions import Precision

__all__ = ["Budget", "Candidate", "Quality", "Trial", "Tuning", "choose", "could_win", "pareto", "require_choice"]

HOPE: Final = 1.25
"""A short measurement is off by less than this factor: a trial that misses a limit or a rival by more cannot win."""

NEAREST: Final = 3
"""How many candidates are named if none is within the budget."""


@dataclass(frozen=True, config=STRICT)
class Candidate:
    """An engine to build, and how to run it.

    Attributes:
        backend: one of `names.BACKENDS`.
        precision: of the ONNX file.
        size: height and width of its frames.
        batch: frames per run.
        options: the backend's build options.
        transfer, cuda_graph: of a session on a GPU, see `runtime.load`; None: its default.
        run: name of the run that it is built from; empty: the search has only one.
    """

    backend: str
    precision: Precision
    size: tuple[int, int]
    batch: int = 1
    options: tuple[tuple[str, str], ...] = ()
    transfer: Literal["pinned", "mapped", "device"] | None = None
    cuda_graph: bool | None = None
    run: str = ""

    @property
    def name(self) -> str:
        """A unique, readable name.

        >>> Candidate("openvino", "int8", (96, 128), options=(("threads", "1"),)).name
        'openvino int8 96x128 threads=1'
        >>> Candidate("openvino", "int8", (96, 128), run="nano").name
        'nano openvino int8 96x128'
        """
        words = [self.run] if self.run else []
        words += [self.backend, self.precision, f"{self.size[0]}x{self.size[1]}"]
        words += [f"batch={self.batch}"] if self.batch > 1 else []
        words += [f"{key}={value}" for key, value in self.options]
        words += [self.transfer] if self.transfer else []
        words += ["graph" if self.cuda_graph else "no-graph"] if self.cuda_graph is not None else []
        return " ".join(words)


@dataclass(frozen=True, config=STRICT)
class Quality:
    """Quality of an engine's depth at the camera's resolution.

    Attributes:
        ssim: to its own run in FP32, at the run's size, on the scale of `Reference.scale`, mean over pictures.
        abs_rel, delta1: against measured depth, over all pixels; None: there is no measured depth.
        abs_rel_loss: its AbsRel minus that of the most accurate run in FP32, at the run's size.
        alignment: how depth was aligned to measured depth first; "none" for depth in metres.
    """

    ssim: float
    abs_rel: float | None
    delta1: float | None
    abs_rel_loss: float | None
    alignment: Alignment = "none"

    @property
    def error(self) -> float:
        """AbsRel, or 1 - SSIM if there is no measured depth; rounded, since differences below 0.0001 do not count."""
        return round(1 - self.ssim if self.abs_rel is None else self.abs_rel, 4)


@dataclass(frozen=True, config=STRICT)
class Trial:
    """The outcome of trying a candidate.

    Attributes:
        state: "measured": at length, in turns with its rivals; "short": briefly and alone, since it cannot win;
            "skipped": its backend cannot build it here, e.g. BF16 on a CPU without it; "failed": an error occurred.
        wall_ms: latencies in its longest measurement.
        quality: None: not judged, since it is too slow for the budget.
        memory_bytes: see `MemoryUse.load_bytes`.
        faults: why it fails the gate of its precision, against the reference of its own size.
        reason: why it was skipped or failed.
    """

    candidate: Candidate
    state: Literal["measured", "short", "skipped", "failed"]
    wall_ms: tuple[float, ...] = ()
    quality: Quality | None = None
    memory_bytes: int | None = None
    faults: tuple[str, ...] = ()
    reason: str = ""

    @property
    def was_run(self) -> bool:
        """Whether there is a measurement."""
        return self.state in {"measured", "short"}

    @property
    def p50_ms(self) -> float:
        """Median latency of a run."""
        return float(np.percentile(self.wall_ms, 50)) if self.wall_ms else float("inf")

    @property
    def p95_ms(self) -> float:
        """95th percentile of the latency of a run."""
        return float(np.percentile(self.wall_ms, 95)) if self.wall_ms else float("inf")

    @property
    def frame_ms(self) -> float:
        """Median latency per frame of the batch."""
        return self.p50_ms / self.candidate.batch

    @property
    def fps(self) -> float:
        """Frames per second."""
        return 1000 * self.candidate.batch * len(self.wall_ms) / sum(self.wall_ms) if self.wall_ms else 0.0


@dataclass(frozen=True, config=STRICT)
class Budget:
    """Limits of cost and quality; None: no limit.

    Attributes:
        max_latency_ms: 95th percentile of a run.
        min_fps: frames per second, one run after the other.
        min_ssim, max_abs_rel_loss: see `Quality`.
        max_memory_bytes: see `Trial`.
    """

    max_latency_ms: float | None = None
    min_fps: float | None = None
    min_ssim: float | None = None
    max_abs_rel_loss: float | None = None
    max_memory_bytes: int | None = None

    @property
    def limits_speed(self) -> bool:
        """Whether speed is limited: then the most accurate engine wins, else the fastest."""
        return self.max_latency_ms is not None or self.min_fps is not None

    def misses(self, trial: Trial, slack: float = 1.0) -> list[str]:
        """The limits that a trial misses, and by how much; `slack`: factor by which its speed may miss a limit."""
        found = []
        if self.max_latency_ms is not None and trial.p95_ms > self.max_latency_ms * slack:
            found.append(f"p95 {trial.p95_ms:.2f} ms, {trial.p95_ms - self.max_latency_ms:.2f} ms too slow")
        if self.min_fps is not None and trial.fps < self.min_fps / slack:
            found.append(f"{trial.fps:.1f} FPS, {self.min_fps - trial.fps:.1f} too few")
        quality = trial.quality
        if quality is not None and self.min_ssim is not None and not quality.ssim >= self.min_ssim:
            found.append(f"SSIM {quality.ssim:.4f}, {self.min_ssim - quality.ssim:.4f} too low")
        loss = None if quality is None else quality.abs_rel_loss
        if loss is not None and self.max_abs_rel_loss is not None and not loss <= self.max_abs_rel_loss:
            found.append(f"AbsRel {loss:.4f} worse, {loss - self.max_abs_rel_loss:.4f} too much")
        memory = trial.memory_bytes
        if memory is not None and self.max_memory_bytes is not None and memory > self.max_memory_bytes:
            found.append(f"{memory / 2**20:.0f} MiB, {(memory - self.max_memory_bytes) / 2**20:.0f} MiB too much")
        return found

    def rank(self, trial: Trial) -> tuple[float, float]:
        """Sort key of trials within the budget; lower is better.

        By the median latency: in a few seconds the tail is mostly the machine's noise. Limits apply to the tail.
        """
        assert trial.quality is not None
        error, speed = trial.quality.error, trial.frame_ms
        return (error, speed) if self.limits_speed else (speed, error)


@dataclass(frozen=True, config=STRICT)
class Tuning:
    """A search with its trials.

    Attributes:
        key: hash of everything that trials depend on: weights, device, versions, pictures.
        budget: as asked for.
        trials: in the order in which they were made.
        chosen: name of the best candidate within the budget; empty: there is none.
        untried: names of the candidates that there was no time for.
        environment: of the latest session of this search.
    """

    key: str
    budget: Budget
    environment: Environment
    trials: tuple[Trial, ...] = ()
    chosen: str = ""
    untried: tuple[str, ...] = ()
    schema_version: Literal[3] = 3


def could_win(trial: Trial, rivals: Sequence[Trial], budget: Budget) -> bool:
    """Whether a trial could still be chosen among its rivals after a long measurement."""
    if trial.quality is None or trial.faults or budget.misses(trial, HOPE):
        return False
    safe = [t for t in rivals if t.quality and not t.faults and not budget.misses(t, 1 / HOPE)]
    if budget.limits_speed:
        error = trial.quality.error
        return not any((r.quality.error, r.frame_ms * HOPE) < (error, trial.frame_ms) for r in safe if r.quality)
    return not any(rival.frame_ms * HOPE < trial.frame_ms for rival in safe)


def choose(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The best trial within the budget; None: there is none.

    If speed is limited the most accurate, else the fastest; the other figure breaks ties.
    """
    fit = [t for t in trials if t.state == "measured" and t.quality and not t.faults and not budget.misses(t)]
    return min(fit, key=budget.rank, default=None)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that pass their gate and that no other beats in both p95 latency and accuracy, fastest first."""
    judged = [(trial, trial.quality.error) for trial in trials if trial.quality and not trial.faults]
    return [trial for trial, _ in pareto_front(judged, lambda found: (found[0].p95_ms, found[1]))]


def require_choice(tuning: Tuning) -> Trial:
    """The chosen trial. Raises GateError, which names the nearest ones and what they miss, if there is none."""
    for trial in tuning.trials:
        if trial.candidate.name == tuning.chosen:
            return trial
    usable = [trial for trial in tuning.trials if trial.was_run]
    nearest = sorted(usable, key=lambda t: (len(t.faults) + len(tuning.budget.misses(t)), t.p95_ms))[:NEAREST]
    found = "; ".join(f"{t.candidate.name} ({', '.join([*t.faults, *tuning.budget.misses(t)])})" for t in nearest)
    raise GateError(f"no candidate is within the budget; the nearest: {found or 'none could be run'}")
