"""The search: every candidate in a process of its own, nothing measured twice, nothing lost when one of them dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.bench.contender import Contender
from depthkit.bench.timing import Steady
from depthkit.documents import from_json
from depthkit.engines.build import backend, build
from depthkit.errors import BackendError
from depthkit.pipeline import search as search_module
from depthkit.pipeline.budget import Budget, Candidate, Quality, Trial, Tuning
from depthkit.pipeline.search import Make, Panel, Search
from depthkit.runtime.null import NullSession
from depthkit.spec import Answers

from ..support import Recorded, model_spec

Makes = dict[Candidate, Make]
Start = Callable[..., Search]
FP32, FP16, FILE, NULL = (Candidate(name, "fp32", (32, 48)) for name in ("fp32", "fp16", "file", "null"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "LONG", Steady(0.0, 0.05, 5))


@pytest.fixture
def makes(contenders: list[Contender]) -> Makes:
    """What builds each candidate, in another process."""
    candidates = (FP32, FP16, FILE, NULL)
    return {candidate: partial(copy, each) for candidate, each in zip(candidates, contenders, strict=True)}


@pytest.fixture
def start(contenders: list[Contender], tmp_path: Path) -> Start:
    """Begins a search, judged by the reference's own frames."""
    reference = contenders[0].reference
    path = tmp_path / "panel.npz"
    np.savez(path, images=reference.images, runs=[""], depths=[reference.depths], truths=reference.truths)

    def begin(makes: Mapping[Candidate, Make], budget: Budget | None = None, key: str = "key") -> Search:
        panel = Panel(path, None)
        return Search(tmp_path / "tune.json", key, budget or Budget(), makes.__getitem__, panel, "depthkit tune")

    return begin


def _states(tuning: Tuning) -> dict[str, str]:
    return {trial.candidate.backend: trial.state for trial in tuning.trials}


def test_what_holds_its_gate_is_measured_and_the_best_chosen(makes: Makes, start: Start, tmp_path: Path) -> None:
    said: list[Trial] = []
    tuning = start(makes).run(list(makes), tell=said.append)
    assert [trial.candidate for trial in said] == list(makes)
    by_name = {trial.candidate.backend: trial for trial in tuning.trials}
    assert by_name["null"].faults, "it knows nothing, and must not win however fast it is"
    assert by_name["null"].state == "short"
    exact = by_name["fp32"].quality
    assert exact is not None
    assert exact.ssim == pytest.approx(1, abs=1e-4)
    assert exact.abs_rel_loss == pytest.approx(0, abs=1e-4)
    assert all(trial.memory_bytes for trial in said if trial.quality)
    assert tuning.chosen.split()[0] in {"fp32", "fp16", "file"}
    assert by_name[tuning.chosen.split()[0]].state == "measured"
    text = (tmp_path / "tune.json").read_text()
    assert from_json(Tuning, text, source="tune.json") == tuning
    assert tuning.environment.command == "depthkit tune"


def test_loss_is_that_to_the_best_run_and_ssim_that_to_its_own(tmp_path: Path) -> None:
    images, truth = np.zeros((2, 16, 32, 3), np.uint8), np.full((2, 16, 32), 2.0, np.float32)
    depths = [1.2 * truth, 1.5 * truth, 1.1 * truth]
    np.savez(tmp_path / "panel.npz", images=images, runs=["near", "far", "best"], depths=depths, truths=truth)
    panel = Panel(tmp_path / "panel.npz", None)
    far = Recorded([], answer=lambda _frame: depths[1][0])
    own, foreign = (panel.judge(far, run) for run in ("far", "near"))
    assert own.ssim == pytest.approx(1) != foreign.ssim
    assert own.abs_rel == pytest.approx(0.5)
    assert own.abs_rel_loss == pytest.approx(0.4)


def test_a_candidate_that_dies_or_fails_is_recorded_and_the_search_goes_on(makes: Makes, start: Start) -> None:
    cases: dict[str, tuple[object, str, str]] = {
        "dies": (partial(os._exit, 11), "failed", "its process died"),
        "lacks": (partial(build, Path("there/is.no.onnx")), "failed", "no ONNX file"),
        "refuses": (partial(backend, "no such backend"), "skipped", "there is no backend"),
        "breaks": (partial(int, "one"), "failed", "ValueError: invalid literal"),
    }
    bad: Any = {Candidate(name, "fp32", (32, 48)): make for name, (make, _, _) in cases.items()}
    tuning = start({**bad, FP32: makes[FP32]}).run([*bad, FP32])
    assert _states(tuning) == {**{name: state for name, (_, state, _) in cases.items()}, "fp32": "measured"}
    for trial, (_, _, reason) in zip(tuning.trials, cases.values(), strict=False):
        assert reason in trial.reason
    assert tuning.chosen == FP32.name


@pytest.mark.parametrize("where", ["open", "run"])
def test_a_session_that_fails_beside_its_rivals_ends_no_search(
    makes: Makes, start: Start, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """FP32 was much the faster alone, and breaks in the long measurement; what it had ruled out is measured then."""
    search = start(makes)
    for candidate, ms in ((FP32, 1.0), (FILE, 9.0)):
        search._keep(Trial(candidate, "short", (ms,) * 5, Quality(1.0, None, None, None)))

    def broken() -> Contender:
        contender = makes[FP32]()
        session = contender.open()
        if where == "open":
            session.close()
            raise RuntimeError("the vendor is out of memory")

        def run() -> None:
            raise RuntimeError("the vendor is out of memory")

        monkeypatch.setattr(session, "run", run)
        return replace(contender, open=lambda: session)

    search._prepare = {**makes, FP32: broken}.__getitem__
    tuning = search.run([FP32, FILE])
    assert _states(tuning) == {"fp32": "failed", "file": "measured"}
    assert next(trial.reason for trial in tuning.trials if trial.reason) == "RuntimeError: the vendor is out of memory"
    assert tuning.chosen == FILE.name


def test_a_candidate_that_cannot_be_made_is_recorded(makes: Makes, start: Start) -> None:
    def refuse(candidate: Candidate) -> Make:
        raise BackendError("no such kernel")

    search = start(makes)
    search._prepare = refuse
    (trial,) = search.run([FP32]).trials
    assert (trial.state, trial.reason) == ("skipped", "no such kernel")


def test_a_search_goes_on_where_it_was_stopped(makes: Makes, start: Start) -> None:
    class Stop(BaseException):
        """As Ctrl-C does."""

    def stop(trial: Trial) -> None:
        if trial.candidate == FILE:
            raise Stop

    with pytest.raises(Stop):
        start(makes).run([NULL, FILE, FP32], tell=stop)
    again: list[Trial] = []
    search = start(makes)
    assert search.left([NULL, FILE, FP32]) == [FP32]
    tuning = search.run([NULL, FILE, FP32], tell=again.append)
    assert [trial.candidate for trial in again] == [FP32]
    assert len(tuning.trials) == 3
    assert tuning.chosen
    before = tuning.trials
    assert start(makes).run([NULL, FILE, FP32]).trials == before, "nothing is measured twice"


def test_another_key_starts_a_new_search(makes: Makes, start: Start) -> None:
    start(makes).run([NULL])
    assert start(makes).left([NULL]) == []
    assert start(makes, key="other weights").left([NULL]) == [NULL]


def test_what_was_too_slow_is_looked_at_again_for_a_larger_budget(makes: Makes, start: Start) -> None:
    tuning = start(makes, Budget(max_latency_ms=1e-6)).run([FP32])
    assert tuning.trials[0].quality is None
    assert not tuning.chosen
    assert start(makes, Budget(max_latency_ms=1e-7)).left([FP32]) == []
    assert start(makes, Budget(max_latency_ms=1e6)).run([FP32]).chosen == FP32.name


def test_a_failure_is_tried_again(makes: Makes, start: Start) -> None:
    assert not start({FP32: partial(os._exit, 1)}).run([FP32]).chosen
    assert start(makes).run([FP32]).chosen == FP32.name


def test_time_that_is_over_leaves_candidates_untried(makes: Makes, start: Start) -> None:
    tuning = start(makes).run(list(makes), seconds=0)
    assert tuning.trials == ()
    assert tuning.untried == tuple(candidate.name for candidate in makes)


def test_what_an_earlier_search_tried_beside_these_is_not_chosen(makes: Makes, start: Start) -> None:
    start(makes).run([FP32, FILE])
    assert start(makes).run([FILE]).chosen == FILE.name


def test_a_damaged_record_starts_a_new_search(makes: Makes, start: Start, tmp_path: Path) -> None:
    (tmp_path / "tune.json").write_text('{"key": ')
    assert start(makes).left([FP32]) == [FP32]


@pytest.mark.parametrize(("answers", "how"), [("inverse", "affine"), ("relative", "median"), ("metres", "none")])
def test_depth_without_metres_is_judged_on_its_own_span_and_aligned(
    tmp_path: Path, contenders: list[Contender], answers: Answers, how: str
) -> None:
    reference = contenders[0].reference
    depths = {"inverse": 900 / reference.depths - 40, "relative": 30 * reference.depths, "metres": reference.depths}
    own = depths[answers]
    np.savez(tmp_path / "panel.npz", images=reference.images, runs=[""], depths=[own], truths=reference.depths)
    panel = Panel(tmp_path / "panel.npz", None)

    class Engine(NullSession):
        def __init__(self, error: float) -> None:
            super().__init__(replace(model_spec(32, 48), answers=answers), 0.0)
            self.error, self.frame = error, 0

        def run(self) -> None:
            _, depth = self._buffers()
            y = np.linspace(0, 1, 32, dtype=np.float32)[:, None] * self.error * np.ptp(own)
            depth[0] = own[self.frame % len(own)] + y
            self.frame += 1

    exact, tilted = (panel.judge(Engine(error), "") for error in (0.0, 0.2))
    assert exact.alignment == how
    assert exact.ssim == pytest.approx(1)
    assert tilted.ssim < exact.ssim - 0.001
    assert exact.abs_rel == pytest.approx(0, abs=1e-5)
    assert exact.abs_rel_loss == pytest.approx(0, abs=1e-6)
    assert tilted.abs_rel_loss is not None
    assert tilted.abs_rel_loss > 0.001
