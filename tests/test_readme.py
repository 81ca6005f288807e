"""Every figure in the README and on the results page stands in a committed bench."""

from __future__ import annotations

from pathlib import Path

from depthkit.bench.results import BenchResult, Row, read_result

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "bench.json.gz"
SHOWN = (
    ("torch", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
"""Backend and precision of the five rows in the README, all of compact."""
NAMES = {"torch": "PyTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
SHORT_HEAD = (
    "| engine | precision | median | times PyTorch | largest error | AbsRel | δ1 | gate |\n"
    "|---|---|---:|---:|---:|---:|---:|---|"
)
HEAD = (
    "| model | engine | precision | p50 ms | 95 % | times torch | % of roofline | gate | AbsRel | δ1 |\n"
    "|---|---|---|---:|---:|---:|---:|---|---:|---:|"
)


def short_table(result: BenchResult) -> str:
    """The README's table."""
    rows = {(row.backend, row.precision): row for row in result.rows if row.network == "compact"}
    return "\n".join([SHORT_HEAD, *(short_line(rows[shown], result) for shown in SHOWN)])


def short_line(row: Row, result: BenchResult) -> str:
    """A row of it."""
    assert row.p50_ms is not None
    assert row.accuracy is not None
    assert row.parity is not None
    times, error, scores = result.speedups.get(row.name), row.parity.max_abs_mm, row.accuracy.scores.pooled
    cells = (
        NAMES[row.backend],
        row.precision.upper(),
        f"{row.p50_ms:.2f} ms",
        f"{1 if times is None else times.middle:.1f}",
        f"{error:.0f} mm" if error >= 1 or error == 0 else f"{error:.1g} mm",
        f"{scores.abs_rel:.3f}",
        f"{scores.delta1:.3f}",
        "PASS" if row.passed else "FAIL",
    )
    return f"| {' | '.join(cells)} |"


def table(result: BenchResult) -> str:
    """The table of every row, on the results page."""
    return "\n".join([HEAD, *(line(row, result) for row in result.rows)])


def line(row: Row, result: BenchResult) -> str:
    """A row of it."""
    assert row.p50_ms is not None
    assert row.p50_interval is not None
    assert row.accuracy is not None
    times, roof, scores = result.speedups.get(row.name), row.roofline, row.accuracy.scores.pooled
    cells = (
        row.model,
        row.backend,
        row.precision,
        f"{row.p50_ms:.2f}",
        f"±{row.p50_interval.width:.1%}",
        "" if times is None else f"{times.middle:.2f} ({times.low:.2f} to {times.high:.2f})",
        "" if roof is None else f"{roof.floor_ms / row.p50_ms:.0%}",
        ("PASS" if row.passed else "FAIL") if row.kind == "engine" else "",
        f"{scores.abs_rel:.3f}",
        f"{scores.delta1:.3f}",
    )
    return f"| {' | '.join(cells)} |"


def test_the_readmes_table_is_from_the_committed_bench() -> None:
    assert short_table(read_result(RESULT)) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_all_rows_is_from_the_committed_bench() -> None:
    result = read_result(RESULT)
    assert table(result) in (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    assert result.complete
    assert {row.network for row in result.rows} == {"compact", "unet"}
    assert result.environment.command in (ROOT / "docs" / "results" / "bench.md").read_text(encoding="utf-8")


def test_the_readmes_prose_and_picture_text_say_what_the_table_says() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {(row.backend, row.precision): row for row in read_result(RESULT).rows if row.network == "compact"}
    torch, fastest = rows["torch", "fp32"].p50_ms, rows["openvino", "int8"].p50_ms
    assert f"by PyTorch in {torch:.2f} ms, and by OpenVINO in INT8 in {fastest:.2f} ms" in text
    assert fastest == min(row.p50_ms for row in rows.values() if row.p50_ms is not None)


def test_the_readme_is_short_and_keeps_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert "$ make demo " in text
    assert "$ make test " in text


if __name__ == "__main__":
    print(short_table(read_result(RESULT)))
    print(table(read_result(RESULT)))
