"""The masked training loss: every term ignores pixels without measured depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "DepthLoss",
    "LossWeights",
    "edge_weights",
    "follow",
    "gradient_difference",
    "masked_mean",
    "scale_invariant",
    "ssim_map",
    "step_difference",
]

# Wang et al. 2004, for a data range of 1.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss's terms.

    The paper's terms are L1, 1 - SSIM and the edge term; it gives alpha = 2 and gamma = 5, and beta = 1 is depthkit's
    choice. The scale-invariant, the gradient and the step term on log depth are not the paper's; they are added to its
    loss.
    """

    alpha: float = 2.0
    beta: float = 1.0
    gamma: float = 5.0
    scale_invariant: float = 0.0
    gradient: float = 0.0
    step: float = 0.0


class DepthLoss:
    """`(alpha L1 + beta (1 - SSIM) + gamma L_edge) / (alpha + beta + gamma)`, after Zhang, and terms on log depth."""

    def __init__(self, weights: LossWeights | None = None) -> None:
        self.weights = weights or LossWeights()

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor, image: Tensor) -> Tensor:
        """The scalar loss of a batch.

        Args:
            prediction: N x 1 x H x W, depth as a fraction of the depth range.
            target: ground truth in the same form; any value, including NaN, where not valid.
            valid: N x 1 x H x W bool.
            image: N x 3 x H x W, RGB in 0..1, before normalisation.
        """
        with torch.autocast(prediction.device.type, enabled=False):  # sums over a picture need FP32
            loss = self._paper(prediction, target, valid, image)
            w = self.weights
            if w.scale_invariant or w.gradient or w.step:
                truth = _log(torch.where(valid, target, 1.0))
                residual = torch.where(valid, _log(prediction) - truth, 0.0)
                if w.scale_invariant:
                    loss = loss + w.scale_invariant * scale_invariant(residual, valid)
                if w.gradient:
                    loss = loss + w.gradient * gradient_difference(residual, valid)
                if w.step:
                    loss = loss + w.step * step_difference(residual, truth, valid)
        return loss

    def _paper(self, prediction: Tensor, target: Tensor, valid: Tensor, image: Tensor) -> Tensor:
        w = self.weights
        distance = torch.where(valid, prediction - target, 0.0).abs()
        l1 = masked_mean(distance, valid)
        edge = masked_mean(edge_weights(image) * distance, valid)
        dissimilarity = masked_mean(1.0 - ssim_map(prediction, target, valid), valid)
        return (w.alpha * l1 + w.beta * dissimilarity + w.gamma * edge) / (w.alpha + w.beta + w.gamma)


def follow(prediction: Tensor, taught: Tensor) -> Tensor:
    """Mean absolute difference of log depth to a teacher's, and of its gradients, where the teacher has an answer.

    Args:
        prediction, taught: N x 1 x H x W, depth as a fraction of the depth range; `taught` is 0 without an answer.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        valid = taught > 0
        residual = _log(prediction) - _log(taught)
        return masked_mean(residual.abs(), valid) + gradient_difference(residual, valid)


def scale_invariant(residual: Tensor, valid: Tensor, share: float = 0.85) -> Tensor:
    """`sqrt(mean(r^2) - share mean(r)^2)` of each picture's log-depth residuals, averaged over the pictures.

    Eigen, Puhrsch, Fergus, NIPS 2014, with the root and the share of Bhat et al. (AdaBins, CVPR 2021): an error of
    scale alone costs little. The loss is flat below 0.001, because the slope of the root is infinite at 0.

    Args:
        residual: N x 1 x H x W, 0 where not valid.
        valid: N x 1 x H x W bool.
    """
    count = valid.sum((1, 2, 3)).clamp(min=1)
    mean, square = residual.sum((1, 2, 3)) / count, (residual * residual).sum((1, 2, 3)) / count
    return (square - share * mean * mean).clamp(min=1e-6).sqrt().mean() - 1e-3


def gradient_difference(residual: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute gradient of the log-depth residuals in x and y, averaged over successively halved resolutions.

    Li and Snavely, "MegaDepth", CVPR 2018: edges of prediction and ground truth should coincide.
    """
    total = residual.new_zeros(())
    for _ in range(scales):
        for dim in (-1, -2):
            last = valid.shape[dim] - 1
            both = valid.narrow(dim, 1, last) & valid.narrow(dim, 0, last)
            total = total + masked_mean(residual.diff(dim=dim).abs(), both)
        residual, valid = residual[..., ::2, ::2], valid[..., ::2, ::2]
    return total / scales


def step_difference(
    residual: Tensor, truth: Tensor, valid: Tensor, reaches: tuple[int, ...] = (2, 6), least: float = 0.15
) -> Tensor:
    """How much of the steps of true log depth the prediction lacks: a soft edge costs here, and a soft wall does not.

    A network that is unsure where an edge is draws it soft, because that costs least in the mean over all pixels. This
    mean is over the pixels at edges only: pairs, `reaches` pixels apart in x or y, between which true depth changes by
    more than `least`, as a share. It is the absolute difference of the two changes.

    Args:
        residual: N x 1 x H x W, predicted minus true log depth; 0 where not valid.
        truth: true log depth in the same form.
        valid: N x 1 x H x W bool.
        reaches: distances in pixels.
        least: smallest change of true log depth that counts as a step.
    """
    total = residual.new_zeros(())
    for reach in reaches:
        for dim in (-1, -2):
            count = valid.shape[dim] - reach

            def change(values: Tensor, dim: int = dim, count: int = count, reach: int = reach) -> Tensor:
                return values.narrow(dim, reach, count) - values.narrow(dim, 0, count)

            steps = valid.narrow(dim, reach, count) & valid.narrow(dim, 0, count) & (change(truth).abs() > least)
            total = total + masked_mean(change(residual).abs(), steps)
    return total / (2 * len(reaches))


def _log(share: Tensor, floor: float = 0.03) -> Tensor:
    """The logarithm; below `floor` (0.3 m of 10 m) its tangent, because predictions may be zero or negative."""
    return torch.where(share > floor, share.clamp(min=floor).log(), share / floor - 1 + math.log(floor))


def edge_weights(image: Tensor) -> Tensor:
    """`(1 - e^-|gx|) + (1 - e^-|gy|)`, averaged over the colours: N x 3 x H x W in 0..1 to N x 1 x H x W.

    gx and gy are normalised Sobel gradients. The weight is 0 on flat surfaces and up to 2 on strong edges.
    """
    # By slices, in a third of the time that convolutions of one channel take on a CPU.
    padded = pad(image, (1, 1, 1, 1), mode="replicate")
    left, right, across = padded[..., :-2], padded[..., 2:], padded[..., 1:-1]
    step, mean = right - left, left + 2 * across + right
    gx = (step[..., :-2, :] + 2 * step[..., 1:-1, :] + step[..., 2:, :]) / 8
    gy = (mean[..., 2:, :] - mean[..., :-2, :]) / 8
    return (2.0 - torch.exp(-gx.abs()) - torch.exp(-gy.abs())).mean(dim=1, keepdim=True)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid entries; 0, still differentiable, if there is none."""
    mask = valid.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def ssim_map(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """SSIM at each pixel (data range 1, Gaussian window of 11, sigma 1.5), N x 1 x H x W; meaningless where not valid.

    A window uses its valid pixels only: every local mean is divided by the valid fraction of the window's weight
    (normalised convolution, Knutsson and Westin 1993), so that holes do not affect the pixels around them.
    """
    mask = valid.to(prediction.dtype)
    share = _blur(mask).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        return _blur(values) / share

    a, b = torch.where(valid, prediction, 0.0), torch.where(valid, target, 0.0)
    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a * mean_a + mean(b * b) - mean_b * mean_b
    covariance = mean(a * b) - mean_a * mean_b
    likeness = (2.0 * mean_a * mean_b + _C1) * (2.0 * covariance + _C2)
    return likeness / ((mean_a * mean_a + mean_b * mean_b + _C1) * (variances + _C2))


def _blur(values: Tensor) -> Tensor:
    """A Gaussian blur of the rows and columns, reflected at the borders.

    As two matrix products: torch's gradient of a convolution of one channel takes 18 times as long on a CPU.
    """
    rows, columns = (_blurring(length).to(values) for length in values.shape[-2:])
    return rows @ values @ columns.T


@cache
def _blurring(length: int) -> Tensor:
    """The matrix that blurs a vector: line i has the window around i, and reflects what is beyond an end."""
    radius = _WINDOW // 2
    window = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * _SIGMA**2))
    padded = pad(torch.eye(length, dtype=torch.float64)[None], (radius, radius), mode="reflect")[0]
    lines = padded.unfold(1, length, 1).transpose(0, 1)  # window position x length x length
    return torch.einsum("k,kij->ji", window / window.sum(), lines).float()
