"""bench.json: it fits its published schema, and is read back as what was measured, whatever its figures say."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from depthkit.bench.environment import environment
from depthkit.bench.results import PHASES, Accuracy, BenchResult, Peaks, Roofline, Row, Throughput, read_result
from depthkit.documents import to_json
from depthkit.errors import DataError, SchemaVersionError, SpecError
from depthkit.metrics import DepthScores, Scores
from depthkit.parity import Parity
from depthkit.session import LayerTime

from ..support import run_python

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = Draft202012Validator(json.loads((DOCS / "bench.schema.json").read_text(encoding="utf-8")))
NAN = float("nan")
TIMES = st.floats(1e-3, 1e4)
TIME_LISTS = st.lists(TIMES, min_size=1, max_size=3).map(tuple)
Change = Callable[[Any], object]

FLOATS, COUNTS = st.floats(-1e6, 1e6), st.integers(0, 10**13)
PEAKS = st.builds(Peaks, gmacs=FLOATS, gbytes=FLOATS)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Any row: what was measured, and NaN where a broken engine has it."""
    turns = tuple(draw(st.lists(st.integers(1, 3), max_size=6)))
    figures, losses = FLOATS | st.just(NAN), st.none() | FLOATS
    distances = dict.fromkeys(("mse", "ssim", "worst_ssim", "max_abs_mm", "max_abs_percent"), figures)
    scores = st.builds(Scores, *[figures] * 6)
    found: Row = draw(
        st.builds(
            Row,
            wall_ms=st.lists(TIMES, min_size=sum(turns), max_size=sum(turns)).map(tuple),
            turns=st.just(turns),
            phases=st.dictionaries(st.sampled_from(PHASES), TIME_LISTS),
            throughput=st.none() | st.builds(Throughput, seconds=TIMES),
            energy_j=losses,
            macs_share=losses,
            roofline=st.none() | st.builds(Roofline, COUNTS, COUNTS, PEAKS),
            layers=st.lists(st.builds(LayerTime, ms=TIMES), max_size=2).map(tuple),
            parity=st.none() | st.builds(Parity, **distances, abs_rel_loss=losses, delta1_loss=losses),
            accuracy=st.none() | st.builds(
                _accuracy, st.builds(DepthScores, mse=figures, ssim=figures, pooled=scores, per_image=scores)
            ),
            error=st.text(min_size=0 if turns else 1),
        )
    )  # fmt: skip
    return found


def _accuracy(scores: DepthScores) -> Accuracy:
    return Accuracy("nyu", 1, 2, scores)


RESULTS = st.builds(
    BenchResult,
    environment=st.just(environment("depthkit bench")),
    rows=st.lists(rows(), max_size=3).map(tuple),
    schema_version=st.just(7),
)


@pytest.fixture(scope="module")
def written(benched: tuple[BenchResult, Any]) -> str:
    """A real bench as JSON, with a row of a broken engine."""
    result, _ = benched
    scores = Scores(*[NAN] * 6)
    broken = replace(
        result.rows[0],
        parity=Parity(NAN, NAN, NAN, NAN, 0, 0, finite=False, frames=8),
        accuracy=_accuracy(DepthScores(NAN, NAN, scores, scores, 1)),
        faults=("NaN or Inf in the output",),
    )
    return to_json(replace(result, rows=(result.rows[0], broken)))


@pytest.fixture
def document(written: str) -> Any:
    """The same, for a test to change."""
    return json.loads(written)


def _write(folder: Path, document: Any) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_schema_is_up_to_date_and_a_schema() -> None:
    run_python(DOCS / "schema.py", "--check")
    Draft202012Validator.check_schema(SCHEMA.schema)
    assert SCHEMA.schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


def test_check_fails_for_an_outdated_schema(tmp_path: Path) -> None:
    """The script writes beside itself."""
    script = tmp_path / "schema.py"
    script.write_bytes((DOCS / "schema.py").read_bytes())
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, "make docs" in done.stderr) == (1, True)
    run_python(script)
    assert (tmp_path / "bench.schema.json").read_bytes() == (DOCS / "bench.schema.json").read_bytes()


def test_real_bench_fits_the_schema_and_is_read_back(document: Any, tmp_path: Path) -> None:
    SCHEMA.validate(document)
    assert document["rows"][-1]["parity"]["max_abs_mm"] is None
    assert json.loads(to_json(read_result(_write(tmp_path, document)))) == document


@given(result=RESULTS)
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_result_fits_the_schema_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, result: BenchResult
) -> None:
    text = to_json(result)
    SCHEMA.validate(json.loads(text))
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text, encoding="utf-8")
    again = read_result(path)
    assert repr(again) == repr(result), "NaN is not equal to itself; its repr is"
    assert to_json(again) == text


def _set(*path: Any) -> Change:
    """Sets what stands at a path; the last of it is the value."""
    *way, key, value = path

    def change(document: Any) -> None:
        for step in way:
            document = document[step]
        document[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("unknown", 1),
        _set("rows", 0, "unknown", 1),
        _set("rows", 0, "parity", "unknown", 1),
        _set("environment", "unknown", 1),
        _set("protocol", "quick"),
        _set("rows", 0, "kind", "other"),
        _set("rows", 0, "batch", "1"),
        _set("rows", 0, "wall_ms", None),
        lambda document: document.pop("complete"),
        lambda document: document["rows"][0].pop("turns"),
        lambda document: document["environment"]["cpu"].pop("isa"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_schema_and_reader(document: Any, tmp_path: Path, change: Change) -> None:
    change(document)
    assert not SCHEMA.is_valid(document)
    with pytest.raises(SpecError, match="does not fit its schema"):
        read_result(_write(tmp_path, document))


@pytest.mark.parametrize("version", [3, 8, "7", None, True])
def test_another_schema_version_is_refused(document: Any, tmp_path: Path, version: object) -> None:
    changed = {**document, "schema_version": version}
    assert not SCHEMA.is_valid(changed)
    with pytest.raises(SchemaVersionError, match=f"version {version}.*version 7"):
        read_result(_write(tmp_path, changed))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": [1]}', "null"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=str(path)):
        read_result(path)


def test_a_compressed_file_is_read(document: Any, tmp_path: Path) -> None:
    text = _write(tmp_path, document).read_bytes()
    path = tmp_path / "bench.json.gz"
    path.write_bytes(gzip.compress(text))
    assert json.loads(to_json(read_result(path))) == document
    path.write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match=r"bench\.json\.gz"):
        read_result(path)


def test_file_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.json.*--json"):
        read_result(tmp_path / "missing.json")


def test_turns_that_do_not_make_the_samples_are_refused(document: Any, tmp_path: Path) -> None:
    document["rows"][0]["turns"].append(1)
    with pytest.raises(SpecError, match="turns"):
        read_result(_write(tmp_path, document))


@pytest.mark.parametrize(
    "figure", ["name", "passed", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "cv", "fps", "p50_interval"]
)
def test_edited_figures_of_a_row_change_nothing(document: Any, tmp_path: Path, figure: str) -> None:
    assert figure in document["rows"][0]
    changed = copy.deepcopy(document)
    changed["rows"][0][figure] = 0.001
    assert json.loads(to_json(read_result(_write(tmp_path, changed)))) == document
    del changed["rows"][0][figure]
    assert json.loads(to_json(read_result(_write(tmp_path, changed)))) == document


def test_edited_figures_of_the_whole_change_nothing(document: Any, tmp_path: Path) -> None:
    document["rows"][0]["throughput"] = {"streams": 2, "batch": 1, "frames": 100, "seconds": 2.0, "fps": 50.0}
    changed = copy.deepcopy(document)
    changed["speedups"] = {"ours": {"low": 99.0, "middle": 100.0, "high": 101.0}}
    changed["rows"][0]["throughput"]["fps"] = 1e6
    assert json.loads(to_json(read_result(_write(tmp_path, changed)))) == document


def _before_relative_depth(document: Any) -> None:
    """Remove what schema version 7 added."""
    for row in document["rows"]:
        del row["answers"]
        if row["parity"] is not None:
            del row["parity"]["is_metric"], row["parity"]["max_abs_percent"]
        if row["accuracy"] is not None:
            del row["accuracy"]["alignment"]


def test_rows_of_schema_version_6_are_in_metres(document: Any, tmp_path: Path) -> None:
    now = read_result(_write(tmp_path, document)).rows
    document["schema_version"] = 6
    _before_relative_depth(document)
    before = read_result(_write(tmp_path, document)).rows
    assert repr([row.parity for row in before]) == repr([row.parity for row in now]), "NaN is not equal to itself"
    assert {row.answers for row in before} == {None}
    assert any(row.parity is not None and row.parity.is_metric for row in now)


def test_rows_of_schema_version_4_take_the_run_from_their_target(document: Any, tmp_path: Path) -> None:
    document["schema_version"] = 4
    _before_relative_depth(document)
    for row in document["rows"]:
        del row["run"], row["weights"], row["resized_to"]
    document["rows"][0].update(target="runs/mine/compact-32x48.fp32.ort.onnx")
    document["rows"][1].update(target="runs/mine", backend="torch")
    rows = read_result(_write(tmp_path, document)).rows
    assert [(row.run, row.weights) for row in rows] == [("mine", "")] * 2
    assert rows[0].model == "compact 32x48 of mine"


def test_rows_of_schema_version_5_resize_nothing(document: Any, tmp_path: Path) -> None:
    document["schema_version"] = 5
    _before_relative_depth(document)
    for row in document["rows"]:
        del row["resized_to"]
    rows = read_result(_write(tmp_path, document)).rows
    assert {row.resized_to for row in rows} == {None}
    assert replace(rows[0], resized_to=(16, 24)).model == "compact 16x24 from 32x48"
