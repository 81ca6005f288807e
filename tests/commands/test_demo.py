"""`depthkit demo`: the whole line on built-in scenes, in a file of its own, since it takes longest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthkit.cli import run as depthkit


def test_the_demo_ends_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each backend takes half a minute. First where the name was imported to, which must not keep the patched one.
    for module in ("depthkit.commands.workshop", "depthkit.engines.build"):
        monkeypatch.setattr(f"{module}.runnable", lambda: ["openvino"])
    for module in ("suite", "search"):  # a process of its own for every engine, twice
        monkeypatch.setattr(f"depthkit.bench.{module}.measure_memory", lambda _open: None)
    out = tmp_path / "demo"
    assert depthkit(["demo", "--out", str(out), "--size", "32x48", "--steps", "8", "--seconds", "0.05"]) == 0
    assert "report.html" in capsys.readouterr().out
    rows = json.loads((out / "bench.json").read_text())["rows"]
    of_each = ["torch", "openvino", "openvino", "openvino"]  # in FP32, FP16, INT8
    assert [row["backend"] for row in rows] == of_each * 2
    assert (out / "compact" / "best").is_dir()
    assert (out / "report.html").read_text().count("<img") > 4 * len(rows)
