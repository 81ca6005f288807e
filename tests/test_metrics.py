"""Depth metrics, against torchmetrics and an independent implementation of the papers' formulas."""

from __future__ import annotations

import csv
import math
from dataclasses import astuple, fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics import MeanSquaredError
from torchmetrics.functional.image import structural_similarity_index_measure

from depthkit.data.images import read_depth
from depthkit.metrics import (
    DEPTH_SCALE,
    EIGEN_CROP,
    METRICS,
    VALID_DEPTH,
    Alignment,
    DepthScores,
    FrameScore,
    PixelSums,
    Scores,
    aggregate,
    align,
    pixel_sums,
    scaled_mse,
    scaled_ssim,
    score_frame,
    valid_pixels,
)

Depth = NDArray[np.float32]
SHAPE = (40, 56)

ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)


def _pair(seed: int, shape: tuple[int, int] = SHAPE) -> tuple[Depth, Depth]:
    """A smooth room and a prediction that is off by waves and noise: float32 metres."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = 2 + 4 * x / shape[1] + np.sin(y / 7 + seed) + rng.uniform(0, 0.2, shape)
    prediction = truth * rng.uniform(0.7, 1.5) + np.cos(x / 5) / 3 + rng.normal(0, 0.3, shape)
    return prediction.astype(np.float32).clip(0.05), truth.astype(np.float32).clip(0.05, 10)


def _holes(seed: int, truth: Depth) -> Depth:
    """The same truth with a tenth of it not measured."""
    return np.where(np.random.default_rng(seed).random(truth.shape) < 0.1, 0, truth).astype(np.float32)


def _plainly(p: NDArray[np.float64], t: NDArray[np.float64]) -> list[float]:
    """Eigen et al. 2014 and Saxena et al. 2009, pixel by pixel as they are printed."""
    n = len(p)
    ratio = [max(a / b, b / a) for a, b in zip(p, t, strict=True)]
    return [
        math.fsum(abs(a - b) / b for a, b in zip(p, t, strict=True)) / n,
        math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / n),
        math.fsum(abs(math.log10(a) - math.log10(b)) for a, b in zip(p, t, strict=True)) / n,
        *(sum(r < 1.25**k for r in ratio) / n for k in (1, 2, 3)),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_mse_is_torchmetrics_mse_on_depth_over_ten_metres(seed: int) -> None:
    prediction, truth = _pair(seed)
    truth = _holes(seed, truth)
    valid = truth > 0
    judge = MeanSquaredError()
    judge.update(torch.from_numpy(prediction[valid]).double() / 10, torch.from_numpy(truth[valid]).double() / 10)
    assert scaled_mse(prediction, truth, valid) == pytest.approx(judge.compute().item(), rel=1e-6)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ssim_is_torchmetrics_map_where_the_prediction_stands_in_for_holes(seed: int, holes: bool) -> None:
    """Torchmetrics' own mean also counts windows that hang over the edge; the interior of its map is ours."""
    prediction, truth = _pair(seed)
    truth = _holes(seed, truth) if holes else truth
    valid = truth > 0
    filled = np.where(valid, truth, prediction)
    _, image = structural_similarity_index_measure(
        torch.from_numpy(prediction)[None, None].double() / 10,
        torch.from_numpy(filled)[None, None].double() / 10,
        sigma=1.5,
        kernel_size=11,
        data_range=1.0,
        return_full_image=True,
    )
    expected = image[0, 0, 5:-5, 5:-5].numpy()[valid[5:-5, 5:-5]].mean()
    assert scaled_ssim(prediction, truth, valid) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_eigens_metrics_are_their_formulas(seed: int) -> None:
    prediction, truth = _pair(seed)
    truth = _holes(seed, truth)
    valid = valid_pixels(truth)
    scores = pixel_sums(prediction, truth, valid).scores()
    expected = _plainly(prediction[valid].astype(np.float64), truth[valid].astype(np.float64))
    assert list(astuple(scores)) == pytest.approx(expected, rel=1e-12)


@given(factor=st.sampled_from([1.0, 1.2, 1.25, 1.5, 1.5625, 1.9, 1.953125, 2.0]), above=st.booleans())
def test_thresholds_are_strict_and_symmetric(factor: float, above: bool) -> None:
    truth = np.full((3, 3), 2.0)
    prediction = truth * factor if above else truth / factor
    scores = pixel_sums(prediction, truth, np.ones((3, 3), bool)).scores()
    ratio = max(prediction[0, 0] / 2.0, 2.0 / prediction[0, 0])
    assert [scores.delta1, scores.delta2, scores.delta3] == [float(ratio < 1.25**k) for k in (1, 2, 3)]


def test_pooled_weighs_pixels_and_per_image_weighs_pictures() -> None:
    sums = [PixelSums(1, 1.0, 4.0, 0.5, 0, 0, 1), PixelSums(3, 0.0, 0.0, 0.0, 3, 3, 3)]
    frames = [FrameScore(s, mse, ssim) for s, mse, ssim in zip(sums, (0.1, 0.3), (0.2, 0.4), strict=True)]
    result = aggregate(frames)
    assert result.frames == 2
    assert astuple(result.pooled) == pytest.approx((0.25, 1.0, 0.125, 0.75, 0.75, 1.0))
    assert astuple(result.per_image) == pytest.approx((0.5, 1.0, 0.25, 0.5, 0.5, 1.0))
    assert (result.mse, result.ssim) == pytest.approx((0.2, 0.3))


def test_pooled_over_pictures_is_one_large_picture() -> None:
    pairs = [_pair(seed) for seed in range(3)]
    truths = [_holes(seed, truth) for seed, (_, truth) in enumerate(pairs)]
    scores = aggregate(score_frame(p, t) for (p, _), t in zip(pairs, truths, strict=True))
    tall_p, tall_t = np.concatenate([p for p, _ in pairs]), np.concatenate(truths)
    one = pixel_sums(tall_p, tall_t, valid_pixels(tall_t)).scores()
    assert astuple(scores.pooled) == pytest.approx(astuple(one))


def test_picture_without_a_valid_pixel_is_left_out_and_not_counted() -> None:
    prediction, truth = _pair(0)
    scored = score_frame(prediction, truth)
    nothing = score_frame(prediction, np.zeros_like(truth))
    assert aggregate([scored, nothing]) == aggregate([scored])
    assert aggregate([scored, nothing]).frames == 1


def test_nothing_to_score_is_nan_and_no_perfect_score() -> None:
    result = aggregate([])
    assert result.frames == 0
    assert math.isnan(result.mse)
    assert math.isnan(result.ssim)
    assert all(math.isnan(value) for value in (*astuple(result.pooled), *astuple(result.per_image)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("row", "column"),
    [
        pytest.param(15, 15, id="measured, in the crop"),
        pytest.param(2, 2, id="measured, outside the crop"),
        pytest.param(20, 30, id="not measured"),
    ],
)
def test_prediction_that_is_not_finite_makes_every_figure_nan(bad: float, row: int, column: int) -> None:
    """The module's promise: it is never skipped, wherever it stands, and one picture spoils the whole set."""
    prediction, truth = _pair(0)
    truth[20, 30] = 0
    prediction[row, column] = bad
    scored = score_frame(prediction, truth, (slice(10, 30), slice(10, 40)))
    figures = [scored.mse, scored.ssim, *astuple(scored.sums.scores())]
    assert all(math.isnan(value) for value in figures), figures
    total = aggregate([scored, score_frame(truth, truth)])
    assert math.isnan(total.mse)
    assert math.isnan(total.pooled.rmse)
    assert math.isnan(total.per_image.delta1)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, -7.5])
def test_prediction_of_zero_or_less_is_within_no_factor(value: float) -> None:
    truth = np.full((2, 2), 5.0, np.float32)
    scores = pixel_sums(np.full_like(truth, value), truth, np.ones((2, 2), bool)).scores()
    assert (scores.delta1, scores.delta2, scores.delta3) == (0, 0, 0)
    assert scores.log10 == math.inf
    assert scores.abs_rel == pytest.approx((5 - value) / 5)
    assert scores.rmse == pytest.approx(5 - value)


@given(truth=st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_only_measured_depth_within_range_counts(truth: float) -> None:
    low, high = VALID_DEPTH
    array = np.full((2, 2), truth, np.float32)
    assert valid_pixels(array).all() == bool(low < np.float32(truth) <= high)
    assert valid_pixels(array).all() == valid_pixels(array).any()


def test_unmeasured_truth_never_reaches_a_figure() -> None:
    prediction, truth = _pair(1)
    clean = np.where(np.arange(SHAPE[1]) < 20, truth, 0).astype(np.float32)
    for hole in (math.nan, math.inf, -1.0, 10.5):
        dirty = np.where(clean > 0, clean, hole).astype(np.float32)
        assert score_frame(prediction, dirty) == score_frame(prediction, clean)


def test_eigen_crop_is_426_rows_by_560_columns() -> None:
    truth = np.full((480, 640), 3.0, np.float32)
    inside = valid_pixels(truth, EIGEN_CROP)
    assert inside.sum() == (471 - 45) * (601 - 41)
    assert inside[45, 41]
    assert inside[470, 600]
    assert not (inside[44].any() or inside[471].any() or inside[:, 40].any() or inside[:, 601].any())


def test_crop_rules_eigens_metrics_and_not_the_papers() -> None:
    prediction, truth = _pair(2)
    crop = (slice(8, 20), slice(8, 20))
    cropped, whole = score_frame(prediction, truth, crop), score_frame(prediction, truth)
    assert cropped.sums.count == 144
    assert cropped.sums == score_frame(prediction[crop], truth[crop]).sums
    assert (cropped.mse, cropped.ssim) == (whole.mse, whole.ssim)


@pytest.mark.parametrize("shape", [(1, 1), (10, 40), (40, 10), (4, 4)])
def test_picture_smaller_than_the_window_has_no_ssim(shape: tuple[int, int]) -> None:
    truth = np.full(shape, 2.0, np.float32)
    assert math.isnan(scaled_ssim(truth, truth, np.ones(shape, bool)))


@given(scale=st.floats(0.2, 5), seed=st.integers(0, 99))
def test_alignment_takes_the_scale_away_and_nothing_else(scale: float, seed: int) -> None:
    prediction, truth = _pair(seed)
    truth = _holes(seed, truth)
    valid = valid_pixels(truth)
    for how in ALIGNMENTS[1:]:
        once, scaled = (align(each, truth, valid, how) for each in (prediction, prediction * scale))
        np.testing.assert_allclose(scaled, once, rtol=1e-4)
    assert align(prediction, truth, valid, "none") is prediction


def test_affine_alignment_is_the_best_of_inverse_depth() -> None:
    prediction, truth = _pair(3)
    valid = valid_pixels(truth)
    best = np.square(1 / align(prediction, truth, valid, "affine") - 1 / truth).mean()
    for scale, shift in ((1.0, 0.0), (1.1, 0.0), (0.9, 0.02), (0.8, 0.05)):
        assert best <= np.square(scale / prediction + shift - 1 / truth).mean() + 1e-9


@pytest.mark.parametrize("how", ALIGNMENTS)
def test_what_cannot_be_aligned_stays_as_it_is(how: Alignment) -> None:
    truth, nowhere = np.full((16, 16), 2.0), np.zeros((16, 16), bool)
    broken = np.full((16, 16), np.nan)
    assert align(truth * 2, truth, nowhere, how).tolist() == (truth * 2).tolist()
    assert np.isnan(align(broken, truth, ~nowhere, how)).all()
    assert (align(np.zeros((16, 16)), truth, ~nowhere, how) >= 0).all(), "no division by zero"


def test_constants_are_the_papers() -> None:
    assert DEPTH_SCALE == 10
    assert VALID_DEPTH == (1e-3, 10.0)
    assert (slice(45, 471), slice(41, 601)) == EIGEN_CROP


def test_every_figure_is_described_as_a_metric() -> None:
    pooled = [metric.name for metric in METRICS if metric.pooled]
    assert pooled == [field.name for field in fields(Scores)]
    whole = {metric.name for metric in METRICS if not metric.pooled}
    assert whole == {field.name for field in fields(DepthScores)} - {"pooled", "per_image", "frames"}


def test_constant_median_of_nyu_scores_what_the_documents_say(nyu: Path) -> None:
    """Knowing nothing but the training set's median depth: the floor that every trained network has to beat.

    All 795 training maps and all 654 test maps; the expectation comes from the test set's histogram in whole
    millimetres, without `metrics`. A test map has 256 levels, so δ1 moves in steps of 0.01 as the constant passes one.
    """
    levels = np.zeros(256, np.int64)
    for _, depth in csv.reader((nyu / "data" / "nyu2_train.csv").read_text().splitlines()):
        levels += np.bincount(read_depth(nyu / depth).ravel(), minlength=256)
    constant = (float(np.searchsorted(levels.cumsum(), levels.sum() / 2)) + 0.5) * DEPTH_SCALE / 255
    assert levels.sum() == 795 * 480 * 640
    assert constant == pytest.approx(2.529, abs=1e-3)

    total, histogram = PixelSums(0, *[0.0] * 6), np.zeros(10_001, np.int64)
    for _, depth in csv.reader((nyu / "data" / "nyu2_test.csv").read_text().splitlines()):
        millimetres = read_depth(nyu / depth)
        truth = (millimetres / 1000).astype(np.float32)
        total += pixel_sums(np.full_like(truth, constant), truth, valid_pixels(truth, EIGEN_CROP))
        histogram += np.bincount(millimetres[EIGEN_CROP].ravel(), minlength=10_001)
    metres, weight = np.arange(2, 10_001) / 1000, histogram[2:] / histogram[2:].sum()
    factor = np.maximum(constant / metres, metres / constant)
    expected = Scores(
        abs_rel=float(weight @ (np.abs(constant - metres) / metres)),
        rmse=float(weight @ (constant - metres) ** 2) ** 0.5,
        log10=float(weight @ np.abs(np.log10(constant / metres))),
        delta1=float(weight @ (factor < 1.25)),
        delta2=float(weight @ (factor < 1.25**2)),
        delta3=float(weight @ (factor < 1.25**3)),
    )
    assert total.count == 654 * 426 * 560
    found = total.scores()
    assert astuple(found) == pytest.approx(astuple(expected), rel=1e-5)
    assert (found.delta1, found.abs_rel, found.rmse) == pytest.approx((0.380, 0.407, 1.368), abs=5e-4)
