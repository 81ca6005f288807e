"""`depthkit demo`: the whole line on built-in scenes, in a file of its own, since it takes longest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthkit.cli import run as depthkit


def test_the_demo_ends_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything in it, but at the smallest size, by one backend, and for the shortest time."""
    # First where the name was imported to, which must not keep the patched one.
    for module in ("depthkit.commands.workshop", "depthkit.engines.build"):
        monkeypatch.setattr(f"{module}.runnable", lambda: ["onnxruntime"])
    for module in ("suite", "search"):  # a process of its own for every engine, twice
        monkeypatch.setattr(f"depthkit.bench.{module}.measure_memory", lambda _open: None)
    monkeypatch.setattr("depthkit.commands.demo.FRAMES", 8)
    monkeypatch.setattr("depthkit.commands.demo.SEARCHING_S", 1.0)
    out = tmp_path / "demo"
    assert depthkit(["demo", "--out", str(out), "--size", "32x48", "--steps", "6", "--seconds", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "report.html" in said
    rows = json.loads((out / "bench.json").read_text())["rows"]
    found = [(Path(r["target"]).parent.name, r["precision_asked"]) for r in rows if r["backend"] == "onnxruntime"]
    for run, least in (("compact-pretrained", {"fp32", "fp16"}), ("compact", {"fp32"}), ("unet", {"fp32"})):
        assert least <= {precision for name, precision in found if name == run}
    outcomes = [line for line in said.splitlines() if "passed its gate" in line or "gate failed" in line]
    assert len(outcomes) == 6, "a gate that fails on a network of a few steps is a line"
    assert (out / "compact-pretrained" / "tune.json").is_file()
    assert (out / "report.html").read_text().count("<img") > 4 * len(rows)
