"""Quantisation-aware training: convolutions round their inputs and weights as INT8 will.

It simulates what `export.quantize` writes: symmetric steps, 127 on each side, one scale for a convolution's input and
one for each channel of its weights. Rounding passes the gradient through (the straight-through estimator of Bengio,
Leonard and Courville 2013); clipped values get no gradient.

Export folds a batch norm into the convolution before it. That changes nothing here, because it only multiplies the
channels of the weights, and each has its own scale.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["make_aware"]

_STEPS = 127
_MEMORY = 0.95
"""Decay of the moving average of a convolution's input range, per batch."""


class _Int8Conv2d(nn.Conv2d):
    """A convolution with INT8 steps, and the same parameters and names as the `nn.Conv2d` that it was.

    Attributes:
        reach: largest magnitude of its input, a moving average over batches; not saved.
    """

    reach: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        features, weight = input.float(), self.weight.float()
        if self.training:
            with torch.no_grad():
                largest = features.abs().amax()
                known = self.reach > 0
                self.reach.copy_(torch.where(known, self.reach.lerp(largest, 1 - _MEMORY), largest))
        least = torch.finfo(torch.float32).tiny
        scale = (self.reach / _STEPS).clamp(min=least)
        scales = (weight.detach().abs().amax(dim=(1, 2, 3)) / _STEPS).clamp(min=least)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        steps = torch.fake_quantize_per_tensor_affine(features, scale, zero, -_STEPS, _STEPS)
        kernel = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -_STEPS, _STEPS)
        return cast("Tensor", self._conv_forward(steps, kernel, self.bias))


def make_aware(network: nn.Module) -> None:
    """Let every `nn.Conv2d` of `network` simulate INT8, in place; subclasses stay as they are."""
    for module in [module for module in network.modules() if type(module) is nn.Conv2d]:
        module.__class__ = _Int8Conv2d
        module.register_buffer("reach", torch.zeros((), device=module.weight.device), persistent=False)
