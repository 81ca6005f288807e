"""Models whose answers have no metres, through every command: nothing calls them metres, and every figure says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..support import Cli

ENGINE = "compact-32x48.fp32.ort.onnx"


def _scores(cli: Cli, *arguments: object) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(cli("evaluate", *arguments, "--json").out)
    return found


def test_evaluate_aligns_what_has_no_metres_and_says_so(
    cli: Cli, inverse: Path, relative: Path, pristine_exports: Path, pairs: Path
) -> None:
    metric = pristine_exports / ENGINE
    targets = (metric, inverse, relative)
    found = _scores(cli, *targets, "--data", pairs)
    assert [found[str(path)].get("aligned") for path in targets] == [None, "affine", "median"]
    # The three answer the same depth, so that aligned figures are those of the metric engine when it is aligned.
    for path, how in ((inverse, "affine"), (relative, "median")):
        asked = _scores(cli, metric, "--data", pairs, "--align", how)[str(metric)]
        assert asked["pooled"] == pytest.approx(found[str(path)]["pooled"], rel=1e-3)
    shown = " ".join(cli("evaluate", *targets, "--data", pairs).out.split())
    assert (shown.count("aligned (affine)"), shown.count("aligned (median)")) == (1, 1)


@pytest.mark.parametrize(
    ("answers", "how", "sentence"),
    [
        ("inverse", "none", "inverse depth has no metres"),
        ("relative", "none", "relative depth has no metres"),
        ("inverse", "median", "also needs a shift"),
    ],
)
def test_evaluate_refuses_an_alignment_that_is_too_little(
    cli: Cli, request: pytest.FixtureRequest, pairs: Path, answers: str, how: str, sentence: str
) -> None:
    engine = request.getfixturevalue(answers)
    assert sentence in cli("evaluate", engine, "--data", pairs, "--align", how, code=2).message
