"""The loss: its formula against NumPy and scikit-image, and that what was not measured has no say in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from depthkit.train.losses import (
    DepthLoss,
    LossWeights,
    edge_weights,
    gradient_difference,
    masked_mean,
    scale_invariant,
    ssim_map,
    step_difference,
)

TERMS = {
    "l1": LossWeights(1, 0, 0),
    "ssim": LossWeights(0, 1, 0),
    "edge": LossWeights(0, 0, 1),
    "paper": LossWeights(),
    "scale": LossWeights(1, 0, 0, scale_invariant=1),
    "gradient": LossWeights(1, 0, 0, gradient=1),
}
SHAPE = (2, 1, 20, 24)


def _batch(seed: int, holes: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction, target, valid and image, of which `holes` of the pixels are not valid."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target, chance = (torch.rand(SHAPE, generator=generator) for _ in range(3))
    return prediction, target, chance >= holes, torch.rand(SHAPE[0], 3, *SHAPE[2:], generator=generator)


def _loss_and_gradient(
    weights: LossWeights, prediction: Tensor, target: Tensor, valid: Tensor, image: Tensor
) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    loss = DepthLoss(weights)(prediction, target, valid, image)
    (gradient,) = torch.autograd.grad(loss, prediction)
    return loss.detach(), gradient


def _sobel(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients along x and y by Sobel's kernels over their sum of 8, with the border repeated."""
    padded = np.pad(plane, 1, mode="edge")
    rows, columns = plane.shape
    at = {(i, j): padded[1 + i : 1 + i + rows, 1 + j : 1 + j + columns] for i in (-1, 0, 1) for j in (-1, 0, 1)}
    gx = at[-1, 1] + 2 * at[0, 1] + at[1, 1] - at[-1, -1] - 2 * at[0, -1] - at[1, -1]
    gy = at[1, -1] + 2 * at[1, 0] + at[1, 1] - at[-1, -1] - 2 * at[-1, 0] - at[-1, 1]
    return gx / 8, gy / 8


def _edge_weights(image: np.ndarray) -> np.ndarray:
    """The edge term's weight, H x W, of a 3 x H x W image."""
    weights = []
    for plane in image:
        gx, gy = _sobel(plane)
        weights.append((1 - np.exp(-np.abs(gx))) + (1 - np.exp(-np.abs(gy))))
    return np.asarray(np.mean(weights, axis=0))


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """scikit-image's map, whose window of 11 sees the picture mirrored beyond its border."""
    a, b = (np.pad(plane, 5, mode="reflect") for plane in (a, b))
    _, similarity = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return np.asarray(similarity)[5:-5, 5:-5]


@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(0.3, 2.0, 1.1)])
def test_the_formula(weights: LossWeights) -> None:
    prediction, target, _, image = (t.double() for t in _batch(1))
    p, t = prediction[:, 0].numpy(), target[:, 0].numpy()
    distance = np.abs(p - t)
    edge = np.stack([_edge_weights(picture) for picture in image.numpy()])
    ssim = np.stack([_ssim_map(a, b) for a, b in zip(p, t, strict=True)])
    total = weights.alpha * distance + weights.beta * (1 - ssim) + weights.gamma * edge * distance
    expected = total.mean() / (weights.alpha + weights.beta + weights.gamma)
    loss = DepthLoss(weights)(prediction, target, torch.ones(SHAPE, dtype=torch.bool), image)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_formula_with_holes() -> None:
    """L1 and the edge term are means over the valid pixels of the whole batch."""
    prediction, target, valid, image = _batch(2)
    distance = (prediction - target).abs()[:, 0].double().numpy()
    edge = np.stack([_edge_weights(picture) for picture in image.double().numpy()])
    expected = ((2 * distance + 5 * edge * distance) / 7)[valid[:, 0].numpy()].mean()
    loss = DepthLoss(LossWeights(2, 0, 5))(prediction, target, valid, image)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_papers_weights() -> None:
    assert DepthLoss().weights == LossWeights(alpha=2.0, beta=1.0, gamma=5.0)


def test_the_terms_on_log_depth_are_added_to_the_papers() -> None:
    """Above 0.03 the logarithm is NumPy's; holes are left out picture by picture, and edge by edge."""
    prediction, target, valid, image = _batch(3)
    prediction, target = (0.05 + 0.9 * t.double() for t in (prediction, target))
    scale, gradient = [], []
    for p, t, ok in zip(prediction[:, 0].numpy(), target[:, 0].numpy(), valid[:, 0].numpy(), strict=True):
        residual = np.log(p / t)
        scale.append(np.sqrt(np.mean(residual[ok] ** 2) - 0.85 * np.mean(residual[ok]) ** 2))
        gradient.append((residual, ok))
    steps: list[list[float]] = []
    for stride in (1, 2, 4, 8):
        for axis in (0, 1):
            steps.append([])
            for residual, ok in gradient:
                r, v = residual[::stride, ::stride], ok[::stride, ::stride]
                both = v & np.roll(v, -1, axis)
                both = both[:-1] if axis == 0 else both[:, :-1]
                steps[-1] += np.abs(np.diff(r, axis=axis))[both].tolist()
    expected = 0.1 * (np.mean(scale) - 1e-3) + 0.2 * sum(map(np.mean, steps)) / 4
    paper = DepthLoss()(prediction, target, valid, image)
    both_terms = DepthLoss(LossWeights(scale_invariant=0.1, gradient=0.2))(prediction, target, valid, image)
    assert (both_terms - paper).item() == pytest.approx(float(expected), rel=1e-5)


def test_a_prediction_at_the_wrong_scale_costs_little() -> None:
    """All residuals alike: the scale-invariant term keeps sqrt(0.15) of it, the gradient term nothing."""
    valid = torch.ones(SHAPE, dtype=torch.bool)
    residual = torch.full(SHAPE, 0.3)
    assert scale_invariant(residual, valid).item() == pytest.approx(0.3 * np.sqrt(0.15) - 1e-3, rel=1e-4)
    assert gradient_difference(residual, valid) == 0


@pytest.mark.parametrize("value", [-1e4, -1.0, 0.0, 1e-9])
def test_predictions_at_and_below_zero_are_pulled_up(value: float) -> None:
    _, target, valid, image = _batch(8)
    prediction = torch.full(SHAPE, value)
    loss, gradient = _loss_and_gradient(TERMS["scale"], prediction, target, valid, image)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient.sum() < 0


def test_ssim_is_that_of_scikit_image() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    prediction, valid = 0.8 * target + 0.2 * noise, torch.ones(SHAPE, dtype=torch.bool)
    maps = [_ssim_map(a, b) for a, b in zip(prediction[:, 0].numpy(), target[:, 0].numpy(), strict=True)]
    assert ssim_map(prediction, target, valid).mean().item() == pytest.approx(np.mean(maps), abs=1e-6)


def test_equal_maps_cost_nothing() -> None:
    _, target, valid, image = _batch(4)
    for name, weights in TERMS.items():
        assert DepthLoss(weights)(target, target, valid, image).item() == pytest.approx(0, abs=1e-6), name


def test_edge_weights_of_a_flat_picture_are_zero() -> None:
    flat = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    assert torch.equal(edge_weights(flat), torch.zeros(2, 1, 16, 16))


def test_edge_weights_stand_at_the_edge() -> None:
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    weights = edge_weights(step)[0, 0]
    expected = 1 - np.exp(-0.5)  # half the step in each of the two columns beside it, nothing along y
    torch.testing.assert_close(weights[:, 7:9], torch.full((16, 2), float(expected)))
    assert weights[:, :7].abs().max() == 0
    assert weights[:, 9:].abs().max() == 0


@pytest.mark.parametrize("term", TERMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), holes=st.floats(0.05, 0.95), junk=st.floats(-1e4, 1e4))
def test_the_truth_at_masked_pixels_has_no_influence(term: str, seed: int, holes: float, junk: float) -> None:
    prediction, target, valid, image = _batch(seed, holes)
    loss, gradient = _loss_and_gradient(TERMS[term], prediction, target, valid, image)
    other = torch.where(valid, target, torch.full_like(target, junk))
    other_loss, other_gradient = _loss_and_gradient(TERMS[term], prediction, other, valid, image)
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("term", TERMS)
def test_the_prediction_at_masked_pixels_gets_no_gradient(term: str) -> None:
    """Nothing is known there, so nothing may be learned there."""
    prediction, target, valid, image = _batch(5)
    _, gradient = _loss_and_gradient(TERMS[term], prediction, target, valid, image)
    assert gradient[valid].abs().max() > 0
    assert gradient[~valid].abs().max() == 0


@pytest.mark.parametrize("term", TERMS)
def test_the_prediction_at_masked_pixels_has_no_influence(term: str) -> None:
    prediction, target, valid, image = _batch(6)
    loss, _ = _loss_and_gradient(TERMS[term], prediction, target, valid, image)
    other = torch.where(valid, prediction, 1 - prediction)
    other_loss, _ = _loss_and_gradient(TERMS[term], other, target, valid, image)
    torch.testing.assert_close(other_loss, loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_a_batch_without_a_valid_pixel_costs_nothing_and_teaches_nothing(term: str) -> None:
    prediction, target, valid, image = _batch(7)
    loss, gradient = _loss_and_gradient(TERMS[term], prediction, target, torch.zeros_like(valid), image)
    assert gradient.abs().max() == 0
    assert loss == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), holes=st.floats(0, 1))
def test_masked_mean_is_numpys(seed: int, holes: float) -> None:
    values, _, valid, _ = _batch(seed, holes)
    chosen = values.double().numpy()[valid.numpy()]
    expected = chosen.mean() if chosen.size else 0.0
    assert masked_mean(values.double(), valid).item() == pytest.approx(expected, rel=1e-9)


def test_a_soft_edge_costs_in_the_step_term_and_a_soft_wall_does_not() -> None:
    """By NumPy for one reach; and only pairs across a step count, with both pixels valid."""
    truth = np.full((12, 16), 2.0)
    truth[:, 8:] = 3.0
    soft = np.where(np.abs(np.arange(16) - 7.5) < 3, np.linspace(2, 3, 16), truth[0])[None].repeat(12, axis=0)
    valid = np.ones_like(truth, bool)
    valid[3, 8] = False
    change_truth, change_soft = (np.log(d[:, 2:]) - np.log(d[:, :-2]) for d in (truth, soft))
    across = (np.abs(change_truth) > 0.15) & valid[:, 2:] & valid[:, :-2]
    expected = np.abs(change_soft - change_truth)[across].mean() / 2  # no step in y
    t, p, v = (torch.from_numpy(array)[None, None] for array in (np.log(truth), np.log(soft), valid))
    found = step_difference(torch.where(v, p - t, 0.0), t, v, reaches=(2,))
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert expected > 0.05

    wavy = torch.where(v, 0.1 * torch.sin(torch.arange(16.0, dtype=torch.float64)), 0.0)
    smooth = step_difference(wavy.expand_as(t), torch.zeros_like(t), v)
    assert smooth == 0, "without a step in the truth there is nothing to miss"


def test_the_step_term_is_added() -> None:
    prediction, target, valid, image = _batch(4)
    prediction, target = 0.1 + 0.8 * prediction, 0.1 + 0.8 * target
    truth = torch.where(valid, target, 1.0).log()
    residual = torch.where(valid, prediction.log() - truth, 0.0)
    expected = DepthLoss()(prediction, target, valid, image) + 0.3 * step_difference(residual, truth, valid)
    torch.testing.assert_close(DepthLoss(LossWeights(step=0.3))(prediction, target, valid, image), expected)
