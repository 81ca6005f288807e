"""Find the best engine within a budget: a short measurement of every candidate, a long one of those that could win.

Each candidate is built and tried in a separate process, so that a crashing backend does not end the search. Results are
written after every candidate, so that a stopped search can be resumed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

import numpy as np

from ..bench.contender import Contender
from ..bench.environment import environment
from ..bench.memory import CRASHED, measure_memory
from ..bench.replay import measure_parity
from ..bench.timing import Steady, Times, time_steady
from ..documents import from_json, to_json
from ..errors import BackendError, DepthkitError
from ..files import write_text
from ..frames import predict_frames
from ..metrics import PixelSums, align, choose_alignment, pixel_sums, valid_pixels
from ..parity import compare, gate_faults
from ..reference import Reference
from ..session import Session
from .budget import HOPE, Budget, Candidate, Quality, Trial, Tuning, choose, could_win

if TYPE_CHECKING:
    from ..spec import Answers

__all__ = ["Make", "Panel", "Search"]

SHORT: Final = Steady(warm_up_s=0.1, duration_s=0.3, min_runs=5)
LONG: Final = Steady(warm_up_s=0.2, duration_s=2.0, min_runs=20)

Make = Callable[[], Contender]
"""Builds a candidate's engine, unless the store has it; can be pickled."""


class Panel:
    """The pictures that judge every candidate, in a file that processes share.

    Args:
        path: an `.npz` with `images` (N x H x W x 3 uint8), `runs` (R names), `depths` (R x N x H x W float32, each
            run's own FP32 depth) and `truths` (N x H x W metres, 0: not measured), all at the camera's resolution.
            All runs answer the same, or all answer metres.
        crop: rows and columns that count against measured depth.
    """

    def __init__(self, path: Path, crop: tuple[slice, slice] | None) -> None:
        self._path, self._crop = path, crop

    def judge(self, session: Session, run: str) -> Quality:
        """Measure the quality of a session's depth; `run`: the name of its run."""
        with np.load(self._path, allow_pickle=False) as panel:
            images, truths = panel["images"], panel["truths"]
            trained = dict(zip(panel["runs"].tolist(), panel["depths"], strict=True))
        answers = np.stack(list(predict_frames(session, images)))
        own = Reference(images, trained[run], np.zeros_like(truths), is_metric=session.spec.is_metric)
        ssim = compare(answers, own).ssim
        found = self._sums(answers, truths, session.spec.answers)
        if not found.count:
            return Quality(ssim, None, None, None)
        best = min(self._sums(depths, truths, session.spec.answers).scores().abs_rel for depths in trained.values())
        scores, how = found.scores(), choose_alignment("auto", session.spec.answers)
        return Quality(ssim, scores.abs_rel, scores.delta1, scores.abs_rel - best, how)

    def _sums(self, depths: np.ndarray, truths: np.ndarray, answers: Answers) -> PixelSums:
        how, found = choose_alignment("auto", answers), PixelSums(0, *[0.0] * 6)
        for depth, truth in zip(depths, truths, strict=True):
            valid = valid_pixels(truth, self._crop)
            found += pixel_sums(align(depth, truth, valid, how, inverse=answers == "inverse"), truth, valid)
        return found


class Search:
    """A search that can be stopped and resumed.

    Args:
        path: of `tune.json`; its trials with the same `key` are not repeated.
        key: see `Tuning`.
        budget: as asked for.
        prepare: makes a candidate's ONNX file and returns a function that builds its engine; raises DepthkitError.
        panel: judges depth.
        command: the command line.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        budget: Budget,
        prepare: Callable[[Candidate], Make],
        panel: Panel,
        command: str,
    ) -> None:
        self._path, self._prepare, self._panel = path, prepare, panel
        self._tuning = Tuning(key, budget, environment(command), self._known(key, budget))

    def left(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that have not been tried yet."""
        known = {trial.candidate.name for trial in self._tuning.trials}
        return [candidate for candidate in candidates if candidate.name not in known]

    def run(
        self,
        candidates: Sequence[Candidate],
        seconds: float = float("inf"),
        tell: Callable[[Trial], None] = lambda _trial: None,
    ) -> Tuning:
        """Try the candidates until the time is over, measure those that could win in turns, and choose.

        Args:
            candidates: all candidates; earlier trials of them count.
            seconds: time limit for trying; the long measurement comes after it.
            tell: called with every new trial.

        Raises:
            OutputError: the result cannot be written.
        """
        end = monotonic() + seconds
        wanted = {candidate.name for candidate in candidates}
        left = self.left(candidates)
        while left and monotonic() < end:
            trial = self._try(left.pop(0))
            self._keep(trial)
            tell(trial)
        finalists = self._finalists(wanted)
        while any(trial.state == "short" for trial in finalists):
            for trial in self._measure(finalists):
                self._keep(trial)
            finalists = self._finalists(wanted)  # more, if one that ruled others out proves slower
        best = choose(self._among(wanted), self._tuning.budget)
        chosen = "" if best is None else best.candidate.name
        self._write(replace(self._tuning, chosen=chosen, untried=tuple(each.name for each in left)))
        return self._tuning

    def _among(self, wanted: AbstractSet[str]) -> list[Trial]:
        return [trial for trial in self._tuning.trials if trial.candidate.name in wanted]

    def _finalists(self, wanted: AbstractSet[str]) -> list[Trial]:
        among = self._among(wanted)
        return [trial for trial in among if could_win(trial, among, self._tuning.budget)]

    def _try(self, candidate: Candidate) -> Trial:
        try:
            try:
                make = self._prepare(candidate)
            except BackendError as error:
                return Trial(candidate, "skipped", reason=str(error))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(_try_here, candidate, make, self._panel, self._tuning.budget)
                trial, open_session = job.result()
            memory = None if trial.quality is None or open_session is None else measure_memory(open_session)
            return trial if memory is None else replace(trial, memory_bytes=memory.load_bytes)
        except BrokenProcessPool:
            return Trial(candidate, "failed", reason=CRASHED)
        except Exception as error:  # noqa: BLE001 - may be a vendor's own
            return _failed(candidate, error)

    def _measure(self, trials: Sequence[Trial]) -> list[Trial]:
        """Time trials in turns, so that noise affects all alike; a failure does not stop the others."""
        found: dict[str, Trial] = {}
        opened: list[tuple[Trial, Session, np.ndarray]] = []
        with ExitStack() as stack:
            for trial in trials:
                try:
                    contender = self._prepare(trial.candidate)()
                    opened.append((trial, stack.enter_context(contender.open()), contender.reference.images))
                except Exception as error:  # noqa: BLE001 - as above
                    found[trial.candidate.name] = _failed(trial.candidate, error)
            walls = [Times() for _ in opened]
            time_steady([session for _, session, _ in opened], [frames for *_, frames in opened], LONG, into=walls)
        for (trial, *_), wall in zip(opened, walls, strict=True):
            measured = replace(trial, state="measured", wall_ms=tuple(wall))
            found[trial.candidate.name] = measured if wall.error is None else _failed(trial.candidate, wall.error)
        return [found[trial.candidate.name] for trial in trials]

    def _keep(self, trial: Trial) -> None:
        others = [each for each in self._tuning.trials if each.candidate.name != trial.candidate.name]
        self._write(replace(self._tuning, trials=(*others, trial)))

    def _write(self, tuning: Tuning) -> None:
        self._tuning = tuning
        write_text(self._path, to_json(tuning))

    def _known(self, key: str, budget: Budget) -> tuple[Trial, ...]:
        """Earlier trials with the same key that are valid for this budget.

        Tried again are failures, which may have been the machine's fault; skipped candidates, which take no time; and
        those that were too slow for an earlier budget, so were not judged, but are not for this one.
        """
        try:
            found = from_json(Tuning, self._path.read_bytes(), source=str(self._path))
        except (OSError, DepthkitError):
            return ()
        if found.key != key:
            return ()
        return tuple(t for t in found.trials if t.was_run and (t.quality or budget.misses(t, HOPE)))


def _failed(candidate: Candidate, error: Exception) -> Trial:
    """A trial without quality, so that it rules out no other."""
    reason = str(error) if isinstance(error, DepthkitError) else f"{type(error).__name__}: {error}"
    return Trial(candidate, "failed", reason=reason)


def _try_here(
    candidate: Candidate, make: Make, panel: Panel, budget: Budget
) -> tuple[Trial, Callable[[], Session] | None]:
    """Build and briefly measure a candidate in this process; return the trial, and a function to open its session."""
    try:
        contender = make()
    except BackendError as error:
        return Trial(candidate, "skipped", reason=str(error)), None
    with contender.open() as session:
        (wall,) = time_steady([session], [contender.reference.images], SHORT)
        trial = Trial(candidate, "short", tuple(wall), faults=contender.faults)
        if not budget.misses(trial, HOPE):
            parity, _ = measure_parity(session, contender.reference)
            faults = (*contender.faults, *gate_faults(parity, contender.precision))
            trial = replace(trial, faults=faults, quality=panel.judge(session, candidate.run))
    return trial, contender.open
