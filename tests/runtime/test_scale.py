"""From answers without metres to metres: the fit, its robustness, what it refuses, and the session that applies it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.documents import from_json, to_json
from depthkit.errors import DataError, EngineError, FrameError, SpecError
from depthkit.runtime.null import NullSession
from depthkit.runtime.scale import MetricScale, ScaledSession, fit_scale

from ..support import model_spec

Kind = Literal["inverse", "relative"]


def _scale(answers: Kind = "inverse", **changes: Any) -> MetricScale:
    made = MetricScale(
        answers, 0.5, -0.5, (0.1, 40.0), "0" * 64, (16, 32), 12, 0.01, "room.jpg", "2026-01-02T03:04:05+00:00"
    )
    return replace(made, **changes)


@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-5, 5),
    metres=st.lists(st.floats(0.2, 80), min_size=2, max_size=30, unique=True),
)
def test_exact_points_give_back_scale_and_shift(scale: float, shift: float, metres: list[float]) -> None:
    measured = np.array(metres)
    if measured.max() < 1.2 * measured.min():
        measured[0] *= 2
    found, offset = fit_scale((1 / measured - shift) / scale, measured, "inverse")
    np.testing.assert_allclose(1 / (found * (1 / measured - shift) / scale + offset), measured, rtol=1e-4)
    factor, nothing = fit_scale(measured / scale, measured, "relative")
    assert factor == pytest.approx(scale)
    assert nothing == 0


@pytest.mark.parametrize("answers", ["inverse", "relative"])
def test_a_mistaken_point_moves_little(answers: Kind) -> None:
    rng = np.random.default_rng(0)
    measured = rng.uniform(0.5, 6, 12)
    found = 2 / measured + 1 if answers == "inverse" else 2 * measured
    wrong = measured.copy()
    wrong[3] *= 5
    scale, shift = fit_scale(found, wrong, answers)
    assert scale == pytest.approx(0.5, rel=0.03)
    assert shift == pytest.approx(-0.5 if answers == "inverse" else 0, abs=0.03)


@pytest.mark.parametrize(
    ("found", "measured", "words"),
    [
        ([1.0], [2.0], "at least 2 measured points, and there is 1"),
        ([], [], "there are 0"),
        ([1.0, 2.0], [2.0, 2.1], "too alike"),
        ([1.0, 1.0], [2.0, 4.0], "too alike"),
        ([1.0, 2.0], [2.0, 4.0], "contradict"),
    ],
)
def test_points_that_tell_no_scale_are_refused(found: list[float], measured: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_scale(np.array(found), np.array(measured), "inverse")


@pytest.mark.parametrize("found", [[-1.0, -2.0], [0.0, 0.0]])
def test_relative_depth_that_is_not_above_zero_is_refused(found: list[float]) -> None:
    with pytest.raises(DataError, match="contradict"):
        fit_scale(np.array(found), np.array([1.0, 2.0]), "relative")


def test_results_end_where_the_points_are_far_away() -> None:
    """An inverse depth of zero or less is beyond everything, not negative; NaN is not hidden."""
    answers = np.array([[1.0, 0.0, -9.0, 3.0, 1e6, np.nan]], np.float32)
    metres = _scale().apply(answers)
    np.testing.assert_allclose(metres, [[40, 40, 40, 1, 0.1, np.nan]], rtol=1e-6)
    near = _scale("relative", shift=0.0).apply(np.array([[4.0, -1.0, 1e6, np.nan]], np.float32))
    np.testing.assert_allclose(near, [[2, 0.1, 40, np.nan]], rtol=1e-6)
    assert answers[0, 3] == 3, "the answers are kept, unless they are `out`"
    assert _scale().apply(answers, out=answers) is answers


def test_a_session_answers_metres_on_bound_memory_in_calls_and_in_streams() -> None:
    spec = replace(model_spec(16, 32, 2), answers="inverse", focal=0.8)
    image, depth = np.zeros((2, 16, 32, 3), np.uint8), np.empty((2, 16, 32), np.float32)
    inner = NullSession(spec, 3.0)
    with ScaledSession(inner, _scale()) as session:
        assert (session.spec.answers, session.spec.is_metric, session.spec.depth_range) == ("metres", True, (0.1, 40))
        assert session.spec.focal is None, "the scale is of the camera in use"
        assert (session.provider, session.precision, session.device) == ("null", "fp32", "cpu")
        session.bind(image=image, depth=depth)
        for _ in range(2):
            session.run()
            np.testing.assert_allclose(depth, 1, rtol=1e-6)
        np.testing.assert_allclose(session(image), 1, rtol=1e-6)
        np.testing.assert_allclose(next(iter(session.stream([image]))), 1, rtol=1e-6)
        with pytest.raises(FrameError):
            session.bind(image=image, depth=depth[:, :8])
    with pytest.raises(EngineError, match="closed"):
        inner(image)


def test_a_scale_of_other_answers_is_refused() -> None:
    for answers in ("relative", "metres", "share"):
        with pytest.raises(EngineError, match=f"for inverse depth, and the engine answers {answers}"):
            ScaledSession(NullSession(replace(model_spec(16, 32), answers=answers), 1.0), _scale())


def test_the_document_is_read_back_and_strict() -> None:
    text = to_json(_scale())
    assert from_json(MetricScale, text, source="scale.json") == _scale()
    for wrong in ({"scale": 0}, {"scale": None}, {"depth_range": [0, 1]}, {"answers": "metres"}, {"more": 1}):
        with pytest.raises(SpecError, match=r"scale\.json does not fit"):
            from_json(MetricScale, json.dumps(json.loads(text) | wrong), source="scale.json")
