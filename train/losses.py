"""The training loss, masked: pixels without a measured depth take no part in any term."""

from __future__ import annotations

from dataclasses import dataclass

import kornia
import torch
from torch import Tensor

__all__ = ["DepthLoss", "LossWeights", "edge_weights", "masked_mean", "masked_ssim"]

_WINDOW = 11  # Wang et al. 2004


@dataclass(frozen=True)
class LossWeights:
    """Weights of L1, 1 - SSIM and the edge term.

    The paper prints alpha = 2 and gamma = 5; beta = 1 is ours.
    """

    alpha: float = 2.0
    beta: float = 1.0
    gamma: float = 5.0


class DepthLoss:
    """`(alpha L1 + beta (1 - SSIM) + gamma L_edge) / (alpha + beta + gamma)`, after Zhang."""

    def __init__(self, weights: LossWeights | None = None) -> None:
        self.weights = weights or LossWeights()

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor, image: Tensor) -> Tensor:
        """The scalar loss of a batch.

        Args:
            prediction: N x 1 x H x W, depth as a share of the depth range.
            target: the same of the truth; any finite value where it is not valid.
            valid: N x 1 x H x W bool.
            image: N x 3 x H x W, RGB in 0..1, before normalisation.
        """
        w = self.weights
        distance = (prediction - target).abs()
        l1 = masked_mean(distance, valid)
        edge = masked_mean(edge_weights(image) * distance, valid)
        dissimilarity = 1.0 - masked_ssim(prediction, target, valid)
        return (w.alpha * l1 + w.beta * dissimilarity + w.gamma * edge) / (w.alpha + w.beta + w.gamma)


def edge_weights(image: Tensor) -> Tensor:
    """`(1 - e^-|gx|) + (1 - e^-|gy|)`, averaged over the colours: N x 3 x H x W in 0..1 to N x 1 x H x W.

    gx and gy are normalised Sobel gradients: flat surfaces weigh 0, strong edges up to 2.
    """
    gradients: Tensor = kornia.filters.spatial_gradient(image, mode="sobel", normalized=True)
    return (1.0 - torch.exp(-gradients.abs())).sum(dim=2).mean(dim=1, keepdim=True)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid entries; 0, with gradients, when there is none."""
    mask = valid.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def masked_ssim(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean SSIM over valid pixels (data range 1, Gaussian window of 11, sigma 1.5).

    Where the target is not valid the prediction stands in for it, without gradient, so that a hole adds no
    error to its neighbours.
    """
    filled = torch.where(valid, target, prediction.detach())
    similarity: Tensor = kornia.metrics.ssim(prediction, filled, window_size=_WINDOW, max_val=1.0)
    return masked_mean(similarity, valid)
