"""What the README claims stands in a committed bench."""

from __future__ import annotations

from pathlib import Path

from depthkit.bench.results import BenchResult, Row, read_result

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| model | engine | precision | p50 ms | 95 % | times torch | share of the limit | gate | AbsRel | δ1 |"


def table(result: BenchResult) -> list[str]:
    """The README's table."""
    lines = [HEAD, "|---|---|---|---:|---:|---:|---:|---|---:|---:|"]
    return lines + [line(row, result) for row in result.rows]


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


def test_the_readmes_table_is_that_of_the_committed_bench() -> None:
    result = read_result(ROOT / "docs" / "results" / "bench.json")
    assert "\n".join(table(result)) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert result.complete
    assert {row.network for row in result.rows} == {"compact", "unet"}
    assert result.environment.command in (ROOT / "docs" / "results" / "bench.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print("\n".join(table(read_result(ROOT / "docs" / "results" / "bench.json"))))
