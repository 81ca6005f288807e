"""The bench as CSV, and the cells of its tables."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO

from depthkit.bench.results import BenchResult
from depthkit.report.tables import TABLES, csv_text

from .conftest import Benched


def test_csv_has_a_line_for_each_row_and_nothing_where_nothing_was_measured(rich: BenchResult) -> None:
    lines = list(csv.DictReader(StringIO(csv_text(rich))))
    assert [line["name"] for line in lines] == [row.name for row in rich.rows]
    full, other, broken, unknown = lines
    assert float(full["p50_ms"]) == rich.rows[0].p50_ms
    assert rich.rows[0].p50_interval is not None
    assert float(full["p50_low_ms"]) == rich.rows[0].p50_interval.low
    assert float(full["preprocess_ms"]) == 1.25
    assert (full["abs_rel"], full["passed"], full["notes"]) == ("0.15", "True", "it was warm")
    assert (other["h2d_ms"], other["device_ms"], other["faults"]) == ("", "9.0", "SSIM 0.5 < 0.98")
    measured = {"p50_ms", "p50_low_ms", "cv", "fps", "device_ms", "max_abs_mm", "abs_rel", "energy_j", "load_bytes"}
    assert {broken[name] for name in measured} == {""}
    assert (broken["error"], broken["passed"]) == ("no such provider", "False")
    assert (unknown["height"], unknown["parameters"], unknown["network"]) == ("", "", "")


def test_nothing_is_less_than_zero_by_rounding(benched: Benched) -> None:
    row = benched[0].rows[0]
    assert row.parity is not None
    row = replace(row, parity=replace(row.parity, abs_rel_loss=-1e-9, delta1_loss=0.0))
    cells = [column.cell(row) for table in TABLES for column in table.columns if table.wanted(benched[0])]
    assert cells.count("+0.0000") == 2
    assert not [cell for cell in cells if cell.startswith("-0")]
