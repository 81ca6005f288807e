"""Two benches: what is a regression, what is none, and what is undecided. All clocks are simulated."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.bench.compare import Change, Comparison, compare, markdown
from depthkit.bench.contender import Contender
from depthkit.bench.environment import environment
from depthkit.bench.results import Accuracy, BenchResult, MemoryUse, Row, speedup
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.errors import UserError
from depthkit.metrics import DepthScores, Scores
from depthkit.parity import Parity
from depthkit.reference import Reference

if TYPE_CHECKING:
    from .conftest import Clock

HERE = environment("depthkit bench")
ELSEWHERE = replace(HERE, cpu=replace(HERE.cpu, name="Imaginary 9000"))
PLAIN = Row(
    network="compact", backend="openvino", target="e.blob", kind="engine", provider="CPU", precision_asked="fp32",
    precision="fp32", size=(96, 128), batch=1, parameters=1, macs=1, file_bytes=1, wall_ms=(1.0,), turns=(1,),
    phases={}, throughput=None, memory=None, energy_j=None, macs_share=None, roofline=None, layers=(), parity=None,
    diverges="", accuracy=None, faults=(), notes=(), error="",
)  # fmt: skip
BASES = {"torch": 18.0, "onnxruntime": 14.0, "openvino": 12.0}
DRIFT = 0.007
"""How much one process's median differs from another's of the same engine (standard deviation)."""


def timed(row: Row, samples: np.ndarray, runs: int) -> Row:
    return replace(row, wall_ms=tuple(samples.tolist()), turns=(runs,) * (len(samples) // runs))


def bench(
    seed: int, *, slower: dict[str, float] | None = None, turns: int = 30, runs: int = 7, drift: float = DRIFT
) -> BenchResult:
    """Three seconds of three backends: noise of the process, of every turn (shared), of every run, and outliers."""
    random = np.random.default_rng(seed)
    shared = random.normal(0, 0.02, turns)
    rows = []
    for backend, base in BASES.items():
        own = shared + random.normal(0, 0.01, turns) + random.normal(0, drift)
        times = base * np.exp(own[:, None] + random.normal(0, 0.03, (turns, runs)))
        times[random.random(times.shape) < 0.03] *= 1.8
        rows.append(timed(replace(PLAIN, backend=backend), (slower or {}).get(backend, 1.0) * times.ravel(), runs))
    return BenchResult(HERE, "steady", tuple(rows))


def result(*rows: Row, **changed: Any) -> BenchResult:
    return replace(BenchResult(HERE, "steady", rows), **changed)


def steady(p50: float = 10.0, spread: float = 0.0, turns: int = 15, **changed: Any) -> Row:
    """Turns whose medians are evenly spread around `p50`, by so much to either side."""
    medians = p50 * (1 + spread * np.linspace(-1, 1, turns))
    return timed(replace(PLAIN, **changed), np.repeat(medians, 4), 4)


def only(comparison: Comparison) -> Change:
    (change,) = comparison.changes
    return change


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("relative_to", [None, "torch"])
def test_planted_slowdown_of_a_tenth_is_a_regression_of_that_row_only(seed: int, relative_to: str | None) -> None:
    found = compare(bench(1000 + seed), bench(seed, slower={"openvino": 1.1}), relative_to=relative_to)
    assert [change.new.backend for change in found.regressed] == ["openvino"]
    assert [change.verdict for change in found.regressed] == ["slower"]
    (sentence,) = found.regressions
    assert sentence.startswith("compact 96x128, openvino, fp32: slower: +")
    assert found.headline.startswith("1 of 3 rows regressed")


@pytest.mark.parametrize("relative_to", [None, "torch", "onnxruntime"])
def test_ten_unchanged_repeats_give_no_false_alarm(relative_to: str | None) -> None:
    repeats = [bench(seed) for seed in range(11)]
    found = [compare(old, new, relative_to=relative_to) for old, new in pairwise(repeats)]
    assert not any(each.regressions for each in found)
    verdicts = [change.verdict for each in found for change in each.changes]
    assert set(verdicts) <= {"same", "unsure"}
    assert verdicts.count("same") > 0.9 * len(verdicts)


@pytest.mark.parametrize("seed", range(10))
def test_what_became_faster_is_no_regression(seed: int) -> None:
    found = compare(bench(1000 + seed), bench(seed, slower={"openvino": 0.85}))
    assert not found.regressions
    assert {change.new.backend: change.verdict for change in found.changes}["openvino"] == "faster"


def test_two_benches_of_the_same_give_overlapping_intervals_for_every_ratio() -> None:
    """Of rows of one file, turns are paired, and what is left is noise of the process."""
    misses = total = 0
    for seed in range(10):
        one, two = bench(seed, drift=0.002), bench(1000 + seed, drift=0.002)
        for a, b in combinations(range(len(BASES)), 2):
            first, second = (speedup(each.rows[a], each.rows[b]) for each in (one, two))
            assert first is not None
            assert second is not None
            misses += not (first.low <= second.high and second.low <= first.high)
            total += 1
    assert misses <= 0.05 * total


def test_slowdown_of_a_session_is_found_by_the_whole_bench(reference: Reference, recorded: type, clock: Clock) -> None:
    """From the session's `run` to the verdict, on a clock that only sessions and rests move."""

    def benched(base: float, seed: int) -> BenchResult:
        random = np.random.default_rng(seed)

        class Busy(recorded):  # type: ignore[misc]
            def run(self) -> None:
                super().run()
                clock.sleep(base * random.lognormal(0, 0.05))

        contender = Contender("e", "recorded", lambda: Busy([]), "fp32", reference, 1)
        options = SuiteOptions(steady=Steady(duration_s=2.0), phases=False, memory=False, roofline=False)
        return run_suite([contender], None, options)[0]

    old = benched(0.010, 0)
    assert only(compare(old, benched(0.011, 1))).verdict == "slower"
    assert all(only(compare(old, benched(0.010, seed))).verdict == "same" for seed in range(2, 12))


@given(factor=st.floats(0.5, 2), limit=st.floats(0.01, 0.3), spread=st.floats(0, 0.2))
@settings(deadline=None, max_examples=30)
def test_verdict_is_where_the_whole_interval_lies(factor: float, limit: float, spread: float) -> None:
    change = only(compare(result(steady(10, spread)), result(steady(10 * factor, spread)), fail_above=limit))
    assert change.ratio is not None
    assert change.ratio.low <= change.ratio.middle <= change.ratio.high
    assert change.ratio.middle == pytest.approx(factor)
    assert (change.verdict == "slower") == (change.ratio.low > 1 + limit) == bool(change.faults)
    assert (change.verdict == "faster") == (change.ratio.high < 1 - limit)
    assert (change.verdict == "same") == (1 - limit <= change.ratio.low and change.ratio.high <= 1 + limit)


def test_draws_of_two_files_are_not_paired() -> None:
    """Turns that happen to be alike in order must not make the interval narrower."""
    row = steady(spread=0.1)
    change = only(compare(result(row), result(row)))
    assert change.ratio is not None
    assert row.p50_interval is not None
    assert change.ratio.width == pytest.approx(2**0.5 * row.p50_interval.width, rel=0.25)


def test_unsure_says_how_many_turns_would_decide_and_they_do() -> None:
    def pair(times: float) -> Change:
        rows = (steady(p50, 0.12, turns=round(15 * times)) for p50 in (10.0, 10.9))
        return only(compare(*map(result, rows)))

    before = pair(1)
    assert before.verdict == "unsure"
    (note,) = before.notes
    found = re.search(r"about ([\d.]+) times as many turns", note)
    assert found
    assert 1 < float(found[1]) < 30
    assert pair(1.5 * float(found[1])).verdict == "slower"
    (note,) = only(compare(result(steady(10, 0.1)), result(steady(10.5, 0.1)))).notes
    assert "too near the limit" in note


@pytest.mark.parametrize("turns", [(10,), (3, 3, 3, 3)])
def test_too_few_turns_are_never_a_regression(turns: tuple[int, ...]) -> None:
    few = replace(PLAIN, wall_ms=(30.0,) * sum(turns), turns=turns)
    for old, new in ((steady(), few), (few, steady(90.0))):
        change = only(compare(result(old), result(new)))
        assert (change.verdict, change.faults, change.ratio) == ("unsure", (), None)
        assert f"{len(turns)} turns" in change.notes[0]
    paper = [result(replace(few, wall_ms=(ms,) * sum(turns)), protocol="paper") for ms in (1.0, 2.0)]
    assert not compare(*paper).regressions


def test_rows_are_paired_by_name_and_kind_and_several_by_order() -> None:
    old = result(steady(10), steady(20), steady(30, kind="peer"), steady(5, backend="torch"))
    new = result(steady(30, kind="peer"), steady(5, precision="bf16"), steady(10), steady(20))
    found = compare(old, new)
    assert [change.verdict for change in found.changes] == ["same"] * 3
    assert [change.new.kind for change in found.changes] == ["peer", "engine", "engine"]
    assert found.gone == ("compact 96x128, torch, fp32",)
    assert found.added == ("compact 96x128, openvino, bf16",)
    text = markdown(found)
    assert f"Only before:\n\n- {found.gone[0]}" in text
    assert f"Only after:\n\n- {found.added[0]}" in text


def test_a_row_is_its_run_and_weights() -> None:
    """A folder that changed its name is found by the weights; one that was trained anew, by its name."""
    a, b, c = (steady(ms, run=run, weights=8 * run) for ms, run in ((10, "a"), (20, "b"), (30, "c")))
    found = compare(result(a, b, c), result(replace(b, run="x/b"), a, replace(c, weights="other")))
    assert [(change.old.run, change.verdict) for change in found.changes] == [(run, "same") for run in "bac"]
    assert [change.notes for change in found.changes] == [(), (), ("weights changed",)]
    assert (found.gone, found.added) == ((), ())
    swapped = compare(result(replace(a, run="b"), replace(b, run="a")), result(a, b))
    assert [change.old.weights for change in swapped.changes] == [a.weights, b.weights]


def test_nothing_in_common_is_a_users_error_that_names_both() -> None:
    with pytest.raises(UserError, match=r"torch.*before.*openvino.*after"):
        compare(result(steady(backend="torch")), result(steady()))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"cpu": replace(HERE.cpu, name="Imaginary 9000")}, "CPU"),
        ({"cpu": replace(HERE.cpu, isa=("avx",))}, "instruction sets"),
        ({"gpu": "Imaginary 9000"}, "GPU"),
    ],
)
def test_another_machine_is_refused_unless_times_are_relative(changed: dict[str, Any], word: str) -> None:
    rows = steady(18, backend="torch"), steady(12)
    old, new = result(*rows), result(*rows, environment=replace(HERE, **changed))
    with pytest.raises(UserError, match=rf"{word}.*--relative-to"):
        compare(old, new)
    found = compare(old, new, relative_to="torch")
    assert any(warning.startswith(word) or word in warning for warning in found.warnings)
    assert not found.regressions


def test_another_environment_is_a_warning() -> None:
    new = replace(
        HERE, cores=HERE.cores + 6, omp_num_threads="77", governor="imaginary", python="4.0", depthkit="9.9",
        packages={**HERE.packages, "openvino": "1999.1"}, load=99.0, time="later", command="other", commit="other",
    )  # fmt: skip
    warnings = compare(result(steady()), result(steady(), environment=new)).warnings
    assert [warning.partition(":")[0] for warning in warnings] == [
        "cores", "OMP_NUM_THREADS", "CPU governor", "Python", "depthkit", "openvino",
    ]  # fmt: skip
    assert warnings[-1].endswith("→ 1999.1")
    assert compare(result(steady()), result(steady())).warnings == ()


def test_interrupted_and_noisy_benches_are_warnings() -> None:
    found = compare(result(steady(), complete=False), result(steady(), notes=("the machine was busy",)))
    assert found.warnings == ("the old bench was interrupted", "new: the machine was busy")


def test_relative_times_do_not_see_a_machine_that_is_slower_as_a_whole() -> None:
    old = bench(0)
    new = replace(bench(1, slower=dict.fromkeys(BASES, 1.5)), environment=ELSEWHERE)
    found = compare(old, new, relative_to="torch")
    assert not found.regressions
    assert compare(old, replace(new, environment=HERE)).regressions
    measure = next(change for change in found.changes if change.new.backend == "torch")
    assert measure.ratio is not None
    assert (measure.ratio.low, measure.ratio.high, measure.verdict) == (1.0, 1.0, "same")
    assert measure.notes == ("the others are relative to this row",)
    assert "relative to torch" in markdown(found)


def test_relative_times_are_those_of_the_same_model() -> None:
    torch = steady(18, backend="torch")
    large: dict[str, Any] = {"size": (480, 640)}
    old = result(torch, steady(12), steady(300, backend="torch", **large), steady(200, **large))
    new = result(torch, steady(12), steady(300, backend="torch", **large), steady(230, **large))
    assert [change.name for change in compare(old, new, relative_to="torch").regressed] == [old.rows[3].name]
    unsure = compare(result(torch, steady(200, **large)), result(torch, steady(230, **large)), relative_to="torch")
    assert unsure.changes[1].verdict == "unsure"
    assert "no torch row of compact 480x640" in unsure.changes[1].notes[0]


def test_nothing_to_be_relative_to_is_a_users_error_that_says_what_there_is() -> None:
    old, new = result(steady(), steady(backend="torch")), result(steady())
    with pytest.raises(UserError, match=r"'torch'.*openvino$"):
        compare(old, new, relative_to="torch")


def test_gate_that_failed_is_a_regression_whatever_the_time() -> None:
    passed, failed = steady(20), steady(10, faults=("SSIM 0.9 < 0.98",))
    change = only(compare(result(passed), result(failed)))
    assert change.verdict == "faster"
    assert change.faults == ("fails its gate, which it passed before: SSIM 0.9 < 0.98",)
    assert not only(compare(result(failed), result(failed))).faults
    mended = only(compare(result(failed), result(passed)))
    assert "passes its gate, which it failed before" in mended.notes


def test_row_that_no_longer_runs_is_a_regression() -> None:
    broken = replace(PLAIN, wall_ms=(), turns=(), error="it crashed")
    change = only(compare(result(steady()), result(broken)))
    assert (change.verdict, change.faults) == ("unsure", ("no longer runs: it crashed",))
    assert "it crashed" in markdown(compare(result(steady()), result(broken)))
    back = only(compare(result(broken), result(steady())))
    assert not back.faults
    assert "runs, which it did not before" in back.notes


def _accuracy(abs_rel: float, data: str = "some/nyu", frames: int = 100) -> Accuracy:
    scores = Scores(abs_rel, 0.7, 0.1, 0.6, 0.8, 0.9)
    return Accuracy(data, frames, 654, DepthScores(0.01, 0.9, scores, scores, frames))


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 0.002), ("fp16", 0.002), ("bf16", 0.002), ("int8", 0.005), ("best", 0.002)]
)
def test_accuracy_may_be_worse_by_what_the_precision_allows(precision: str, limit: float) -> None:
    def regressed(before: float, after: float) -> bool:
        rows = (steady(precision_asked=precision, accuracy=_accuracy(each)) for each in (before, after))
        return bool(compare(*map(result, rows)).regressions)

    assert not regressed(0.2, 0.2 + 0.9 * limit)
    assert not regressed(0.2, 0.1)
    assert regressed(0.2, 0.2 + 1.1 * limit)
    assert regressed(0.2, float("nan"))
    assert not regressed(float("nan"), 0.2)


def test_accuracy_on_other_frames_is_not_compared() -> None:
    old, worse = result(steady(accuracy=_accuracy(0.2))), _accuracy(0.9, frames=50)
    found = compare(old, result(steady(accuracy=worse)))
    assert not found.regressions
    assert any("test frames" in warning for warning in found.warnings)
    elsewhere = compare(old, result(steady(accuracy=_accuracy(0.9, "another/checkout/nyu"))))
    assert elsewhere.regressions


def test_more_memory_is_noted_and_is_no_regression() -> None:
    old, new = MemoryUse(100 * 2**20, 50 * 2**20, None), MemoryUse(104 * 2**20, 60 * 2**20, 10 * 2**20)
    change = only(compare(result(steady(memory=old)), result(steady(memory=new))))
    assert (change.faults, change.notes) == ((), ("steady memory 50.0 → 60.0 MiB",))


def test_markdown_is_one_table_with_a_headline() -> None:
    parity = Parity(0.0, 1.0, 1.0, 0.0, 0, 0, True, 8)
    old = result(steady(10, network="a|b", parity=parity), steady(10, backend="torch"))
    new = result(steady(12, network="a|b", parity=parity), steady(10, backend="torch", faults=("x | y\nz",)))
    text = markdown(compare(old, new))
    first, *rest = text.splitlines()
    assert re.fullmatch(r"\*\*. depthkit bench: 2 of 2 rows regressed; limit 5 %\*\*", first)
    table = [line for line in rest if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "| 10.00 | 12.00 | +20.0 % |" in text
    assert markdown(compare(old, old)).startswith("**✅")
