"""`depthkit demo` on built-in scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthkit.commands import demo

from ..support import Cli


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_demo_writes_a_report(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, *, everything: bool) -> None:
    """At the smallest size, by one backend, for the shortest time; or one network in FP32, and no search."""
    if not everything:
        monkeypatch.setattr(demo, "PRECISIONS", ("fp32",))
        monkeypatch.setattr(demo, "TRAINED", (("compact", 1, ("fp32",)),))
    # First the modules that import the name: they must not keep the patched one.
    for module in ("depthkit.pipeline.candidates", "depthkit.pipeline.export", "depthkit.engines.build"):
        monkeypatch.setattr(f"{module}.runnable", lambda: ["onnxruntime"])
    for module in ("bench.entry", "pipeline.search"):  # a process of its own for every engine, twice
        monkeypatch.setattr(f"depthkit.{module}.measure_memory", lambda _open: None)
    monkeypatch.setattr(demo, "FRAMES", 8)
    monkeypatch.setattr(demo, "SEARCHING_S", 1.0 if everything else 0.0)
    out = tmp_path / "demo"
    said = cli("demo", "--out", out, "--size", "32x48", "--steps", "6", "--seconds", "0.05").out
    assert "report.html" in said
    rows = json.loads((out / "bench.json").read_text())["rows"]
    found = [(Path(r["target"]).parent.name, r["precision_asked"]) for r in rows if r["backend"] == "onnxruntime"]
    assert {("compact-pretrained", "fp32"), ("compact", "fp32")} <= set(found)
    if everything:
        assert {("compact-pretrained", "fp16"), ("unet", "fp32")} <= set(found)
    outcomes = [line for line in said.splitlines() if "passed its gate" in line or "gate failed" in line]
    assert len(outcomes) == sum(len(each) for *_, each in demo.TRAINED) + len(demo.PRECISIONS), (
        "a gate that fails on a network of a few steps is a line"
    )
    assert (out / "compact-pretrained" / "tune.json").is_file()
    assert (out / "report.html").read_text().count("<img") > 4 * len(rows)
