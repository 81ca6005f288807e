"""A whole bench of real engines: rows, gates, raw samples, and tables."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from depthkit import __version__
from depthkit.bench.environment import environment
from depthkit.bench.memory import peak_memory
from depthkit.bench.results import BenchResult, Row
from depthkit.bench.suite import Contender, SampleSet, SuiteOptions, run_suite
from depthkit.bench.table import TABLES, markdown, verdict
from depthkit.bench.timing import Steady
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.engines.gpu import find_gpu
from depthkit.errors import UserError
from depthkit.reference import Reference
from depthkit.spec import to_json

QUICK = SuiteOptions(steady=Steady(0.0, 0.0, 2, rest_s=0.0), memory=False)
Benched = tuple[BenchResult, list[np.ndarray]]


def _document(result: BenchResult) -> Any:
    """The JSON as a strict reader sees it: `NaN` is no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(to_json(result), parse_constant=refuse)


def test_rows_say_what_really_ran(benched: Benched, contenders: list[Contender]) -> None:
    result, answers = benched
    half = cpu_fingerprint().computes_half
    assert [row.target for row in result.rows] == [contender.target for contender in contenders]
    assert [row.provider for row in result.rows] == ["CPUExecutionProvider"] * 3 + ["null"]
    assert [row.precision_asked for row in result.rows] == ["fp32", "fp16", "fp32", "fp32"]
    assert [row.precision for row in result.rows if not half] == ["fp32", "fp16→fp32", "fp32", "fp32"][
        : 0 if half else 4
    ]
    for row, depths, contender in zip(result.rows, answers, contenders, strict=True):
        assert (row.network, row.size, row.batch, row.parameters) == ("compact", (32, 48), 1, 1_218_350)
        assert row.file_bytes == contender.file_bytes
        assert depths.shape == (8, 32, 48)
        assert len(row.wall_ms) >= 5


def test_engines_pass_and_an_engine_that_knows_nothing_fails(benched: Benched) -> None:
    result, _ = benched
    assert [row.passed for row in result.rows] == [True, True, True, False]
    assert [row.backend for row in result.failed] == ["null"]
    assert "mm > 1 mm" in result.failed[0].faults[0]
    assert verdict(result.rows[0]) == "PASS"
    assert verdict(result.failed[0]).startswith("FAIL: max")


def test_json_has_raw_samples_and_the_figures_that_follow_from_them(benched: Benched) -> None:
    document = _document(benched[0])
    assert document["schema_version"] == 3
    assert document["protocol"] == "steady"
    assert document["environment"]["command"] == "depthkit bench <all>"
    for row in document["rows"]:
        samples = row["wall_ms"]
        assert len(samples) >= 5
        for percent in (50, 95, 99):
            assert row[f"p{percent}_ms"] == pytest.approx(np.percentile(samples, percent))
        assert row["mean_ms"] == pytest.approx(np.mean(samples))
        assert row["fps"] == pytest.approx(1000 / np.mean(samples))
        assert row["passed"] == (not row["faults"])
        figures = {"mse", "ssim", "worst_ssim", "max_abs_mm", "worst_ssim_frame", "max_abs_frame", "finite", "frames"}
        assert row["parity"].keys() == figures | {"abs_rel_loss", "delta1_loss"}


def test_frames_a_second_counts_the_batch(benched: Benched) -> None:
    row = replace(benched[0].rows[0], batch=4, wall_ms=(10.0, 30.0))
    assert row.fps == pytest.approx(2 * 4 / 0.040)
    with pytest.raises(ValueError, match="wall_ms"):
        replace(row, wall_ms=())


def test_markdown_is_every_table_with_command_and_machine(benched: Benched) -> None:
    result, _ = benched
    text = markdown(result)
    for table in TABLES:
        assert (f"**{table.title}**" in text) == table.wanted(result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    wanted = [table for table in TABLES if table.wanted(result)]
    assert len(lines) == sum(2 + len(result.rows) for _ in wanted)
    widths = {line.replace("\\|", "").count("|") - 1 for line in lines}
    assert widths == {len(table.columns) for table in wanted}
    assert "depthkit bench <all>" in text
    assert result.environment.cpu.name in text
    assert text.count("PASS") == 3
    assert text.count("FAIL") == 1
    on_gpu = replace(result, environment=replace(result.environment, gpu="Imaginary 9000"))
    assert "Imaginary 9000, " in markdown(on_gpu)


def test_accuracy_fills_its_columns_and_its_table(contenders: list[Contender]) -> None:
    reference = contenders[0].reference
    pairs = list(zip(reference.images, reference.truths, strict=True))
    samples = SampleSet("some/where/nyu", 8, 654, None, pairs)
    result, _ = run_suite(contenders[:1], samples, QUICK)
    accuracy = result.rows[0].accuracy
    assert accuracy is not None
    assert (accuracy.frames, accuracy.available, accuracy.scores.frames) == (8, 654, 8)
    assert 0 < accuracy.scores.pooled.abs_rel < 10
    text = markdown(result)
    assert "Accuracy against measured depth" in text
    assert "8 of 654" in text
    assert _document(result)["rows"][0]["accuracy"]["scores"]["pooled"]["delta1"] == accuracy.scores.pooled.delta1


def _contender(session: object, reference: Reference, **changed: Any) -> Contender:
    return replace(Contender("t", "recorded", lambda: session, "fp32", reference, 1), **changed)  # type: ignore[arg-type,return-value]


def test_row_that_is_not_finite_fails_and_still_becomes_json(recorded: type, reference: Reference) -> None:
    depths = reference.depths.copy()
    depths[1, 3, 3] = np.nan
    session = recorded([], answer=lambda frame: depths[frame[0, 0, 0]])
    pairs = list(zip(reference.images, reference.truths, strict=True))
    samples = SampleSet("d", 4, 4, None, pairs)
    result, _ = run_suite([_contender(session, reference)], samples, QUICK)
    assert result.failed
    assert any("NaN" in fault for fault in result.rows[0].faults)
    assert any("accuracy" in fault for fault in result.rows[0].faults)
    assert _document(result)["rows"][0]["parity"]["max_abs_mm"] is None


def test_fault_that_was_known_before_stays(recorded: type, reference: Reference) -> None:
    session = recorded([], answer=lambda frame: reference.depths[frame[0, 0, 0]])
    result, _ = run_suite([_contender(session, reference, faults=("another ONNX file",))], None, QUICK)
    assert result.rows[0].faults == ("another ONNX file",)
    assert not result.rows[0].passed


def test_paper_protocol_gives_ten_samples(recorded: type, reference: Reference) -> None:
    result, _ = run_suite([_contender(recorded([]), reference)], None, replace(QUICK, protocol="paper"))
    assert result.protocol == "paper"
    assert len(result.rows[0].wall_ms) == 10


def test_sessions_are_closed_also_when_the_bench_fails(recorded: type, reference: Reference) -> None:
    good, bad = recorded([]), recorded([])
    run_suite([_contender(good, reference)], None, QUICK)
    assert good._closed

    def fail() -> None:
        raise UserError("cannot be opened")

    with pytest.raises(UserError, match="cannot be opened"):
        run_suite([_contender(bad, reference), _contender(bad, reference, open=fail)], None, QUICK)
    assert bad._closed


def test_progress_names_what_goes_on(recorded: type, reference: Reference) -> None:
    told: list[tuple[str, float]] = []
    pairs = list(zip(reference.images, reference.truths, strict=True))
    samples = SampleSet("d", 4, 4, None, pairs)
    run_suite([_contender(recorded([]), reference)], samples, QUICK, lambda what, share: told.append((what, share)))
    assert all(0 <= share <= 1 for _, share in told)
    assert [word for word in ("parity", "timing", "accuracy") if any(word in what for what, _ in told)] == [
        "parity",
        "timing",
        "accuracy",
    ]


def test_nothing_to_bench_is_a_user_error() -> None:
    with pytest.raises(UserError, match="depthkit export"):
        run_suite([], None, QUICK)


def test_dynamic_batch_is_shown_at_its_optimum(recorded: type, reference: Reference) -> None:
    from depthkit.spec import Dim

    result, _ = run_suite([_contender(recorded([], batch=Dim("batch", 1, 2, 4)), reference)], None, QUICK)
    assert result.rows[0].batch == 2
    assert "x2" in markdown(result)


def test_environment_is_this_one() -> None:
    found = environment("depthkit bench --json x")
    assert found.command == "depthkit bench --json x"
    assert found.depthkit == __version__
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_gib > 0
    assert found.packages["numpy"] == np.__version__
    assert found.cpu == cpu_fingerprint()
    gpu = find_gpu()
    assert found.gpu == ("" if isinstance(gpu, str) else gpu.describe())
    assert json.loads(to_json(found))["cpu"]["isa"] == list(found.cpu.isa)


def test_peak_memory_is_positive_and_larger_with_a_vendor_library(contenders: list[Contender]) -> None:
    engine, nothing = peak_memory(contenders[0].open), peak_memory(contenders[3].open)
    assert engine is not None
    assert nothing is not None
    assert engine > nothing > 0
    assert engine > 8 * 2**20, "the weights alone are 4.6 MiB, and ONNX Runtime is in it"


def test_memory_of_a_process_that_dies_is_not_known() -> None:
    assert peak_memory(partial(os._exit, 3)) is None


def test_every_column_can_be_written_for_every_row(benched: Benched) -> None:
    rows: list[Row] = [*benched[0].rows, replace(benched[0].rows[0], peak_memory_bytes=3 * 2**20)]
    for table in TABLES:
        for column in table.columns:
            assert all(isinstance(column.cell(row), str) for row in rows)
