"""The gate: what passes, what fails, and that nothing which is not finite ever passes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.bench.replay import measure_parity
from depthkit.errors import EngineError
from depthkit.metrics import scaled_ssim
from depthkit.parity import Parity, gate_faults
from depthkit.precisions import PRECISIONS, Precision
from depthkit.reference import Reference
from depthkit.spec import Dim

ANY = st.floats(allow_nan=True, allow_infinity=True)


def _parity(max_abs_mm: float = 0.0, worst_ssim: float = 1.0, *, finite: bool = True, **losses: Any) -> Parity:
    return Parity(0.0, worst_ssim, worst_ssim, max_abs_mm, 0, 0, finite, 8, **losses)


@pytest.mark.parametrize("batch", [1, 2, 3, Dim("batch", 1, 2, 4), Dim("batch", 2, 2, 4)])
def test_session_that_answers_the_reference_is_perfect(recorded: type, reference: Reference, batch: int | Dim) -> None:
    session = recorded([], batch=batch, answer=lambda frame: reference.depths[frame[0, 0, 0]])
    parity, answers = measure_parity(session, reference)
    assert np.array_equal(answers, reference.depths)
    assert (parity.mse, parity.max_abs_mm, parity.finite, parity.frames) == (0, 0, True, 4)
    assert parity.ssim == pytest.approx(1)
    assert gate_faults(parity, "fp32") == gate_faults(parity, "fp16") == []


def test_distance_is_that_of_the_worst_pixel_and_the_mean_that_of_all(recorded: type, reference: Reference) -> None:
    depths = reference.depths + np.float32(0.02)
    depths[2, 9, 9] += np.float32(0.03)
    parity, _ = measure_parity(recorded([], answer=lambda frame: depths[frame[0, 0, 0]]), reference)
    difference = depths.astype(np.float64) - reference.depths
    assert parity.max_abs_mm == pytest.approx(50, rel=1e-4)
    assert parity.mse == pytest.approx(np.mean((difference / 10) ** 2), rel=1e-4)
    everywhere = np.ones((16, 32), bool)
    each = [scaled_ssim(d, t, everywhere) for d, t in zip(depths, reference.depths, strict=True)]
    assert parity.ssim == pytest.approx(np.mean(each))
    assert parity.worst_ssim == pytest.approx(min(each))
    assert (parity.max_abs_frame, parity.worst_ssim_frame) == (2, int(np.argmin(each)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_pixel_that_is_not_finite_fails_every_gate(recorded: type, reference: Reference, bad: float) -> None:
    depths = reference.depths.copy()
    depths[3, 0, 31] = bad
    parity, _ = measure_parity(recorded([], answer=lambda frame: depths[frame[0, 0, 0]]), reference)
    assert not parity.finite
    assert not math.isfinite(parity.max_abs_mm)
    assert (parity.max_abs_frame, parity.worst_ssim_frame) == (3, 3), "the frame that is not finite is the worst"
    for precision in PRECISIONS:
        assert gate_faults(parity, precision)


def test_reference_that_is_not_finite_passes_no_gate(recorded: type, reference: Reference) -> None:
    depths = reference.depths.copy()
    depths[0, 5, 5] = np.nan
    session = recorded([], answer=lambda frame: reference.depths[frame[0, 0, 0]])
    parity, _ = measure_parity(session, Reference(reference.images, depths, reference.truths))
    for precision in PRECISIONS:
        assert gate_faults(parity, precision)


@pytest.mark.parametrize(
    ("parity", "precision", "words"),
    [
        (_parity(max_abs_mm=1.0), "fp32", None),
        (_parity(max_abs_mm=1.01), "fp32", "1.01 mm > 1 mm"),
        (_parity(max_abs_mm=300.0), "fp16", None),
        (_parity(worst_ssim=0.995), "fp16", None),
        (_parity(worst_ssim=0.9949), "fp16", "SSIM 0.9949 < 0.995"),
        (_parity(worst_ssim=0.9949), "bf16", "SSIM 0.9949 < 0.995"),
        (_parity(worst_ssim=0.98), "int8", None),
        (_parity(worst_ssim=0.9799), "int8", "SSIM 0.9799 < 0.98"),
        (_parity(abs_rel_loss=0.002), "fp16", None),
        (_parity(abs_rel_loss=-0.5, delta1_loss=-0.5), "int8", None),
        (_parity(abs_rel_loss=0.0021), "bf16", "AbsRel is 0.0021 worse than the reference's, more than 0.002"),
        (_parity(abs_rel_loss=0.0051), "int8", "AbsRel is 0.0051 worse than the reference's, more than 0.005"),
        (_parity(delta1_loss=0.011), "int8", "δ1 is 0.0110 worse than the reference's, more than 0.01"),
        (_parity(abs_rel_loss=math.nan), "int8", "AbsRel is nan worse than the reference's, more than 0.005"),
        (_parity(worst_ssim=0.5), "fp32", None),
    ],
)
def test_gate_is_the_table_of_tolerances(parity: Parity, precision: Precision, words: str | None) -> None:
    faults = gate_faults(parity, precision)
    if words is None:
        assert faults == []
    else:
        assert len(faults) == 1
        assert words in faults[0]


@given(distance=ANY, similarity=ANY, finite=st.booleans(), precision=st.sampled_from(sorted(PRECISIONS)))
def test_gate_opens_only_for_figures_within_its_limits(
    distance: float, similarity: float, finite: bool, precision: Precision
) -> None:
    tolerance = PRECISIONS[precision].tolerance
    near = tolerance.max_abs_mm is None or (not math.isnan(distance) and distance <= tolerance.max_abs_mm)
    alike = tolerance.min_ssim is None or (not math.isnan(similarity) and similarity >= tolerance.min_ssim)
    passed = not gate_faults(_parity(distance, similarity, finite=finite), precision)
    assert passed == (finite and near and alike)


def test_every_precision_has_a_limit() -> None:
    for tolerance in (each.tolerance for each in PRECISIONS.values()):
        assert tolerance.max_abs_mm is not None or tolerance.min_ssim is not None


def test_reference_of_another_size_is_refused(recorded: type) -> None:
    other = Reference(np.zeros((4, 32, 32, 3), np.uint8), np.ones((4, 32, 32), np.float32), np.ones((4, 32, 32)))
    with pytest.raises(EngineError, match="16, 32"):
        measure_parity(recorded([]), other)
