"""What `depthkit predict` shows while it writes, and says afterwards."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress

from ..data.colours import describe_span
from ..errors import DataError
from ..pipeline.clip import Plan, Written, write_source
from ..pipeline.outputs import OUTPUTS
from ..pipeline.prediction import Prediction
from ..pipeline.predictor import Predictor
from ..pipeline.shot import Shot
from ..runtime.pictures import FPS
from ..runtime.source import Source
from .console import clip_progress, err, out, progress

__all__ = ["describe_goals", "run", "terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is: files are ended and kept."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(prediction: Prediction, predictor: Predictor) -> None:
    """Write one input.

    Raises:
        DataError: it could not be read to its end; what was read is kept.
        KeyboardInterrupt: it was interrupted; what was read is kept.
        OutputError, UserError: nothing of the clip is kept.
    """
    source, plan = prediction.open()
    for sentence in prediction.corrections:
        out.print(sentence, markup=False)
    if prediction.input.kind == "pictures":
        _run_pictures(prediction, predictor, source, plan)
    else:
        _run_clip(predictor, source, plan)


def _run_pictures(prediction: Prediction, predictor: Predictor, source: Source, plan: Plan) -> None:
    pictures = prediction.input.pictures

    with progress() as bar:
        task = bar.add_task("depth", total=len(pictures))

        def watch(shot: Shot) -> None:
            bar.advance(task)
            span = describe_span(shot.span, is_metric=plan.job.spec.is_metric)
            goals = describe_goals(plan.outputs, Path(plan.job.out) / plan.name(shot.result.frame))
            out.print(f"{pictures[shot.result.frame.index]}: {span}  ->  {goals}", markup=False)

        written = write_source(source, predictor, plan, watch)
    _complain(source, written)


def _run_clip(predictor: Predictor, source: Source, plan: Plan) -> None:
    begin = perf_counter()
    with clip_progress() as bar:
        written = write_source(source, predictor, plan, _Meter(bar, source, plan.seconds))
    rate = written.frames / (perf_counter() - begin)
    frames = f"{written.frames} frames" if written.frames != 1 else "1 frame"
    if written.given != written.frames:
        frames = f"{written.frames} of {written.given} frames ({source.dropped} dropped)"
    span = "" if written.span is None else f", {describe_span(written.span, is_metric=plan.job.spec.is_metric)}"
    goals = [str(path) for path in written.files]
    if any(not OUTPUTS[name].is_clip for name in plan.outputs):
        goals.append(describe_goals(plan.outputs, Path(plan.job.out) / f"{plan.job.name}_*"))
    state = "interrupted after " if written.interrupted else ""
    length = written.seconds + 1 / (source.fps or FPS)
    out.print(
        f"{source.name}: {state}{frames}, {length:.1f} s{span}, {rate:.0f} fps  ->  {', '.join(goals)}",
        markup=False,
    )
    _complain(source, written)


class _Meter:
    """Shows how far a clip is: frames a second, and of a live source the age of its frames and how many it dropped."""

    def __init__(self, bar: Progress, source: Source, seconds: float | None) -> None:
        self._bar, self._source, self._begin, self._frames = bar, source, perf_counter(), 0
        total: float | None = source.count
        if seconds is not None and source.fps:
            total = min(seconds * source.fps, total or float("inf"))
        self._task = bar.add_task("depth", total=total, more="")

    def __call__(self, shot: Shot) -> None:
        """Count a frame that was written."""
        self._frames += 1
        more = f", {self._frames / (perf_counter() - self._begin):.1f} fps"
        if self._source.live:
            more += f", {shot.result.age * 1000:.0f} ms old, {self._source.dropped} dropped"
        self._bar.update(self._task, advance=1, more=more)


def describe_goals(outputs: Sequence[str], stem: Path) -> str:
    """The files of single frames: `depth/x_depth[.png|16.png|.npy]`."""
    endings = [OUTPUTS[name].ending for name in outputs if not OUTPUTS[name].is_clip]
    same = os.path.commonprefix(endings) if len(endings) > 1 else ""  # noqa: RUF071 - of names, by letters
    rest = "|".join(ending.removeprefix(same) for ending in endings)
    return f"{stem}{same}[{rest}]" if same else f"{stem}{rest}"


def _complain(source: Source, written: Written) -> None:
    """Say what was left out, and raise what must not pass for success."""
    for sentence in (*source.faults, *written.notes):
        if sentence != source.cut:
            err.print(f"depthkit: {source.name}: {sentence}", style="yellow", markup=False)
    if written.interrupted:
        raise KeyboardInterrupt
    kept = f"the {written.frames} frames before are kept" if written.frames != 1 else "the frame before is kept"
    if written.broken is not None:
        raise DataError(f"{written.broken}; {kept}")
    if source.cut is not None:
        raise DataError(f"{source.name}: {source.cut}; {kept}")
