"""docs/results/nano.md: its tables are those of nano.json and of the evaluations; every candidate can be trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from depthkit.train.networks import check_network, count_macs
from depthkit.train.shipped import EVALUATION, shipped_run

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE = (RESULTS / "nano.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """choose_nano.py, found as it finds its own module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RESULTS))
        yield import_module("choose_nano")
    for name in [name for name in sys.modules if "nano" in name and "depthkit" not in name]:
        del sys.modules[name]


def test_the_candidates_table_is_that_of_the_measurement(script: ModuleType) -> None:
    rows = json.loads((RESULTS / "nano.json").read_text(encoding="utf-8"))["rows"]
    assert script.render(rows) in PAGE
    assert sum("delta1" in row for row in rows) >= 8


def test_the_published_figures_are_those_of_the_evaluation() -> None:
    for name in ("nano", "compact"):
        pooled = json.loads((shipped_run(name) / EVALUATION).read_text())[name]["pooled"]
        assert f"| {pooled['delta1']:.3f} | {pooled['abs_rel']:.3f} | {pooled['rmse']:.3f} |" in PAGE


def test_every_candidate_is_a_network_of_at_most_nanos_budget(script: ModuleType) -> None:
    candidates = script.nano_candidates
    for plan in candidates.PLANS.values():
        network = candidates.Candidate(plan)
        check_network(network, (240, 320))
        assert count_macs(network, (240, 320)) <= 0.7e9
        with torch.no_grad():
            assert network.eval()(torch.zeros(1, 3, 48, 64)).shape == (1, 1, 48, 64)
