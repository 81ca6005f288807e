"""What trtexec wrote, as a row: both layouts, and every way in which a file can be none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from depthkit.bench.environment import environment
from depthkit.bench.results import BenchResult, Row, read_result
from depthkit.bench.trtexec import read_trtexec
from depthkit.documents import to_json
from depthkit.errors import DataError

OLD_NAMES = {"startH2dMs": "startInMs", "endH2dMs": "endInMs", "h2dMs": "inMs", "startD2hMs": "startOutMs",
             "endD2hMs": "endOutMs", "d2hMs": "outMs"}  # fmt: skip


def query(start: float = 10.0, compute: float = 2.0) -> dict[str, Any]:
    """A run that begins at `start` by the device's clock; that of the host began two seconds earlier."""
    return {
        "startEnqMs": 2000 + start, "endEnqMs": 2000.25 + start,
        "startH2dMs": start, "endH2dMs": start + 0.5,
        "startComputeMs": start + 0.5, "endComputeMs": start + 0.5 + compute,
        "startD2hMs": start + 0.5 + compute, "endD2hMs": start + 0.75 + compute,
        "h2dMs": 0.5, "computeMs": compute, "d2hMs": 0.25, "latencyMs": 0.75 + compute,
    }  # fmt: skip


def older(new: dict[str, Any]) -> dict[str, Any]:
    """The same as TensorRT before 8.5 wrote it."""
    return {OLD_NAMES.get(key, key): value for key, value in new.items()} | {"endToEndMs": 9.0}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Write a document or bytes, and return the path."""

    def write(content: object) -> Path:
        path = tmp_path / "times.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.mark.parametrize("layout", [dict, older], ids=["new", "old"])
def test_a_row_has_what_is_in_the_file_and_nothing_else(written: Any, layout: Any) -> None:
    row = read_trtexec(written([layout(query(10.0)), layout(query(12.0, 3.0))]))
    assert row.wall_ms == (2.75, 3.75) and row.turns == (2,)
    assert row.phases == {"h2d": (0.5, 0.5), "device": (2.0, 3.0), "d2h": (0.25, 0.25), "enqueue": (0.25, 0.25)}
    assert row.throughput is not None
    assert (row.throughput.streams, row.throughput.frames) == (1, 2)
    assert row.throughput.seconds == pytest.approx(0.00575), "from 10 to 15.75 ms: the runs overlap"
    assert (row.kind, row.backend, row.target, row.batch) == ("trtexec", "trtexec", "times.json", 1)
    assert (row.network, row.precision, row.precision_asked, row.provider, row.model) == ("", "", "", "", "")
    assert (row.size, row.macs, row.parameters, row.file_bytes) == (None,) * 4
    assert row.passed


def test_such_a_row_is_written_and_read_with_a_result(written: Any, tmp_path: Path) -> None:
    result = BenchResult(environment("depthkit bench"), "steady", (read_trtexec(written([query()])),))
    (tmp_path / "bench.json").write_text(to_json(result))
    assert read_result(tmp_path / "bench.json") == result


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file.*trtexec --exportTimes=none\.json"):
        read_trtexec(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "EOF"),
        (json.dumps([query()]).encode()[:-40], "EOF"),
        (b"[" + json.dumps(query()).encode() + b",]", "trailing comma"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 5000, "recursion"),
        ([], "at least 1 item"),
        ({}, "valid array"),
        ([1], "0: Input should be an object"),
        ([{}], "startEnqMs: Field required"),
        ([query(), query() | {"computeMs": -1.0}], "1.computeMs: Input should be greater than or equal to 0"),
        ([query() | {"latencyMs": float("nan")}], "latencyMs: Input should be a finite number"),
        ([query() | {"latencyMs": float("inf")}], "latencyMs: Input should be a finite number"),
        ([query() | {"latencyMs": 0}], "latencyMs: Input should be greater than or equal to 0.000001"),
        ([query() | {"latencyMs": 10**400}], "latencyMs"),
        ([query() | {"latencyMs": True}], "latencyMs: Input should be a valid number"),
        ([query() | {"latencyMs": "2.75"}], "latencyMs: Input should be a valid number"),
        ([query() | {"endEnqMs": 1.0}], "it ends before it begins"),
        ([query() | {"endD2hMs": 1.0}], "it ends before it begins"),
        ([{}] * 1000, "and 7997 more"),
    ],
)
def test_what_is_no_such_file_is_refused_in_a_sentence(written: Any, content: object, says: str) -> None:
    path = written(content)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read_trtexec(path)
    assert str(caught.value).startswith(f"{path} is not a complete file")
    assert "trtexec --exportTimes=times.json" in str(caught.value)
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(query())), inner),
    max_leaves=20,
)
NEARLY = st.lists(
    st.fixed_dictionaries(dict.fromkeys(query(), st.floats() | st.integers() | st.floats(0, 100))) | st.just(query()),
    min_size=1,
    max_size=4,
)

WHOLE = json.dumps([query()] * 2).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING | NEARLY)
@example([query() | {"startH2dMs": 0, "endD2hMs": 5e-324, "latencyMs": 5e-324}])
@example([query() | {"endD2hMs": 1e10, "latencyMs": 1e10}] * 2)
def test_any_json_is_a_row_or_a_data_error(written: Any, document: object) -> None:
    path = written(document)
    try:
        row = read_trtexec(path)
    except DataError:
        return
    assert isinstance(row, Row)
    to_json(row)  # with all that is computed from it


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64) | st.integers(0, len(WHOLE) - 1).map(lambda end: WHOLE[:end]))
def test_any_bytes_that_are_cut_off_are_a_data_error(written: Any, content: bytes) -> None:
    with pytest.raises(DataError):
        read_trtexec(written(content))
