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
from depthkit.bench.contender import Contender, SampleSet
from depthkit.bench.entry import doubts
from depthkit.bench.environment import environment, moved
from depthkit.bench.memory import measure_memory
from depthkit.bench.phases import measure_phases
from depthkit.bench.results import BenchResult, MemoryUse, Row
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.throughput import measure_throughput
from depthkit.bench.timing import Steady
from depthkit.documents import to_json
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.engines.gpu import find_gpu
from depthkit.errors import EngineError, UserError
from depthkit.reference import Reference
from depthkit.report.tables import TABLES, markdown, verdict
from depthkit.session import LayerTime, Session
from depthkit.spec import Dim

QUICK = SuiteOptions(steady=Steady(0.0, 0.0, 2, rest_s=0.0), phases=False, memory=False, roofline=False)
Benched = tuple[BenchResult, list[np.ndarray | None]]


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
    assert half or [row.precision for row in result.rows] == ["fp32", "fp16→fp32", "fp32", "fp32"]
    for row, depths, contender in zip(result.rows, answers, contenders, strict=True):
        assert (row.network, row.size, row.batch, row.parameters) == ("compact", (32, 48), 1, 1_218_350)
        assert row.file_bytes == contender.file_bytes
        assert depths is not None
        assert depths.shape == (8, 32, 48)
        assert len(row.wall_ms) >= 5


def test_engines_pass_and_the_null_engine_fails(benched: Benched) -> None:
    result, _ = benched
    assert [row.passed for row in result.rows] == [True, True, True, False]
    assert [row.backend for row in result.failed] == ["null"]
    assert "mm > 1 mm" in result.failed[0].faults[0]
    assert verdict(result.rows[0]) == "PASS"
    assert verdict(result.failed[0]).startswith("FAIL: max")


def test_json_has_raw_samples_and_the_figures_that_follow_from_them(benched: Benched) -> None:
    document = _document(benched[0])
    assert document["schema_version"] == 7
    assert document["protocol"] == "steady"
    assert document["environment"]["command"] == "depthkit bench <all>"
    for row in document["rows"]:
        samples = row["wall_ms"]
        assert len(samples) >= 5
        for percent in (50, 90, 95, 99):
            assert row[f"p{percent}_ms"] == pytest.approx(np.percentile(samples, percent))
        assert row["mean_ms"] == pytest.approx(np.mean(samples))
        assert row["fps"] == pytest.approx(1000 / np.mean(samples))
        assert row["passed"] == (not row["faults"])
        figures = {"mse", "ssim", "worst_ssim", "max_abs_mm", "worst_ssim_frame", "max_abs_frame", "finite", "frames"}
        assert row["parity"].keys() == figures | {"abs_rel_loss", "delta1_loss", "is_metric", "max_abs_percent"}


def test_frames_a_second_counts_the_batch(benched: Benched) -> None:
    row = replace(benched[0].rows[0], batch=4, wall_ms=(10.0, 30.0), turns=(2,))
    assert row.fps == pytest.approx(2 * 4 / 0.040)


def test_a_row_has_samples_or_says_why_not(benched: Benched) -> None:
    row = benched[0].rows[0]
    with pytest.raises(ValueError, match="wall_ms is empty"):
        replace(row, wall_ms=(), turns=())
    with pytest.raises(ValueError, match="turns"):
        replace(row, turns=(1,))
    crashed = replace(row, wall_ms=(), turns=(), error="it crashed")
    assert not crashed.passed
    assert (crashed.p50_ms, crashed.fps, crashed.cv, crashed.p50_interval) == (None,) * 4
    assert verdict(crashed) == "ERROR: it crashed"


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


def test_row_that_is_not_finite_fails_and_still_becomes_json(
    recorded: type, reference: Reference, measured: SampleSet
) -> None:
    depths = reference.depths.copy()
    depths[1, 3, 3] = np.nan
    session = recorded([], answer=lambda frame: depths[frame[0, 0, 0]])
    result, _ = run_suite([_contender(session, reference)], measured, QUICK)
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


def test_rows_that_cannot_be_opened_or_run_have_an_error_and_the_others_finish(
    recorded: type, reference: Reference
) -> None:
    good, odd = recorded([]), recorded([])

    def refuse() -> None:
        raise UserError("cannot be opened")

    calls: list[int] = []

    def fail_later(_: np.ndarray) -> np.float32:
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("illegal memory access")
        return np.float32(1)

    bad = recorded([], answer=fail_later)
    unopened = _contender(odd, reference, open=refuse, network="compact")
    result, answers = run_suite([_contender(bad, reference), _contender(good, reference), unopened], None, QUICK)
    errors = [row.error for row in result.rows]
    assert errors == ["RuntimeError: illegal memory access", "", "cannot be opened"]
    assert [bool(row.wall_ms) for row in result.rows][1:] == [True, False]
    assert result.rows[2].network == "compact"
    assert answers[2] is None
    assert result.failed == list(result.rows), "the good one answers one depth everywhere"
    assert "ERROR: cannot be opened" in markdown(result)
    assert good._closed
    assert bad._closed


def test_a_library_that_crashes_takes_only_its_own_row(contenders: list[Contender]) -> None:
    dies = replace(contenders[0], open=partial(os._exit, 11))
    result, _ = run_suite([dies, contenders[0]], None, replace(QUICK, memory=True))
    assert "its process died" in result.rows[0].error
    assert result.rows[1].passed
    memory = result.rows[1].memory
    assert memory is not None
    assert memory.load_bytes > 8 * 2**20


def test_backend_without_a_profiler_passes_with_a_note(recorded: type, reference: Reference) -> None:
    def refuse(_: np.ndarray) -> list[LayerTime]:
        raise EngineError("this vendor has no profiler")

    session = recorded([], answer=lambda frame: reference.depths[frame[0, 0, 0]])
    result, _ = run_suite([_contender(session, reference, profile=refuse)], None, replace(QUICK, profile=True))
    assert result.rows[0].passed
    assert "no layers: this vendor has no profiler" in result.rows[0].notes


def test_what_was_measured_before_ctrl_c_is_kept(recorded: type, reference: Reference) -> None:
    runs: list[int] = []

    def interrupt(frame: np.ndarray) -> Any:
        runs.append(1)
        if len(runs) == 20:
            raise KeyboardInterrupt
        return reference.depths[frame[0, 0, 0]]

    session, late = recorded([], answer=interrupt), recorded([])
    many = replace(QUICK, steady=Steady(0.0, 0.0, 1000, rest_s=0.0))
    result, _ = run_suite([_contender(session, reference), _contender(late, reference)], None, many)
    assert not result.complete
    assert 0 < len(result.rows[0].wall_ms) < 20
    assert result.rows[0].passed
    assert session._closed
    assert late._closed


def test_noisy_and_host_bound_rows_have_a_note(benched: Benched) -> None:
    row = benched[0].rows[0]
    steady = replace(row, wall_ms=(10.0,) * 10, turns=(10,), phases={"device": (9.0,), "enqueue": (1.0,)})
    assert doubts(steady) == ()
    found = doubts(replace(steady, wall_ms=(10.0, 12.0) * 5, phases={"device": (1.0,), "enqueue": (0.9,)}))
    assert "CV 9.1%" in found[0]
    assert "host-bound" in found[1]
    assert "90%" in found[1]


def test_changes_of_load_governor_and_clock_are_notes() -> None:
    before = replace(environment(""), load=0.0, governor="performance", clock_mhz=3000.0)
    assert moved(before, before) == ()
    busy = moved(replace(before, load=9.0, cores=2), replace(before, governor="powersave", clock_mhz=2000.0))
    assert len(busy) == 3
    assert "load 9.0 on 2 cores" in busy[0]
    assert "performance to powersave" in busy[1]
    assert "3000 to 2000 MHz" in busy[2]


def test_phases_by_the_hosts_clock(contenders: list[Contender]) -> None:
    with contenders[0].open() as session:
        pictures = [np.zeros((48, 64, 3), np.uint8)]
        phases = measure_phases(session, pictures, seconds=0, min_runs=4)
    assert phases.keys() == {"preprocess", "device", "postprocess"}, "there are no copies, and nothing is enqueued"
    assert all(len(times) == 4 and min(times) > 0 for times in phases.values())


def test_streams_run_side_by_side(contenders: list[Contender]) -> None:
    found = measure_throughput(contenders[0].open, contenders[0].reference.images, 2, seconds=0.05, warm_up_s=0)
    assert (found.streams, found.batch) == (2, 1)
    assert found.frames >= 2
    assert found.seconds >= 0.05
    assert found.fps == pytest.approx(found.frames / found.seconds)


def test_a_stream_that_fails_ends_the_others(contenders: list[Contender]) -> None:
    opened: list[int] = []

    def open_second_not() -> Session:
        opened.append(1)
        if len(opened) == 2:
            raise UserError("no memory left")
        return contenders[0].open()

    with pytest.raises(UserError, match="no memory left"):
        measure_throughput(open_second_not, contenders[0].reference.images, 3, seconds=30)


def test_groups_are_of_one_model(benched: Benched) -> None:
    first, *others = benched[0].rows
    other = replace(first, network="unet", backend="torch")
    result = replace(benched[0], rows=(first, *others, other))
    assert [len(group) for group in result.groups] == [4, 1]
    assert result.baseline(others[0]) is first
    assert result.baseline(other) is other
    assert other.name not in result.speedups


def test_progress_names_what_goes_on(recorded: type, reference: Reference, measured: SampleSet) -> None:
    told: list[tuple[str, float]] = []
    contender = _contender(recorded([]), reference)
    run_suite([contender], measured, QUICK, lambda what, share: told.append((what, share)))
    assert all(0 <= share <= 1 for _, share in told)
    assert all(any(word in what for what, _ in told) for word in ("parity", "timing", "accuracy"))


def test_nothing_to_bench_is_a_user_error() -> None:
    with pytest.raises(UserError, match="depthkit export"):
        run_suite([], None, QUICK)


def test_dynamic_batch_is_shown_at_its_optimum(recorded: type, reference: Reference) -> None:
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


def test_memory_is_larger_with_a_vendor_library(contenders: list[Contender]) -> None:
    engine, nothing = measure_memory(contenders[0].open), measure_memory(contenders[3].open)
    assert engine is not None
    assert nothing is not None
    assert engine.load_bytes > nothing.load_bytes > 0
    assert engine.load_bytes > 8 * 2**20, "the weights alone are 4.6 MiB, and ONNX Runtime is in it"
    assert engine.device_bytes is None or not isinstance(find_gpu(), str)


def test_memory_of_a_process_that_dies_is_not_known() -> None:
    with pytest.raises(EngineError, match="its process died"):
        measure_memory(partial(os._exit, 3))


def test_every_column_can_be_written_for_every_row(benched: Benched) -> None:
    rows: list[Row] = [*benched[0].rows, replace(benched[0].rows[0], memory=MemoryUse(3, 2, 1))]
    for table in TABLES:
        for column in table.columns:
            assert all(isinstance(column.cell(row), str) for row in rows)
