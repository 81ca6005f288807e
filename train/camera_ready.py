"""The network from a camera's bytes to metres: the module that is exported, and that torch's sessions run."""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor, nn

from ..precisions import PRECISIONS, Precision
from ..spec import ModelSpec, Preprocessing
from .resize import Enlarge, shrinking

__all__ = ["DTYPES", "CameraReady", "normalisation"]

DTYPES: Final[dict[Precision, torch.dtype]] = {
    name: getattr(torch, facts.float_type) for name, facts in PRECISIONS.items()
}
"""torch's type for each precision; FP32 for INT8, which is quantised later."""


def normalisation(preprocessing: Preprocessing, white: int = 255) -> tuple[Tensor, Tensor]:
    """Gain and offset, each 1 x 3 x 1 x 1: `x * gain + offset` is `(x / white - mean) / std`.

    torch sessions and exported graphs both use it. One multiplication and one addition are faster than a division, and
    round once less in half precision.

    Args:
        preprocessing: mean and std of each channel, for pixels from 0 to 1.
        white: the largest pixel value; 1 for pictures that are already divided by 255.
    """
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return 1 / (white * std), -mean / std


class CameraReady(nn.Module):
    """From uint8 N x H x W x 3 to float32 N x H x W metres; the network computes in its own precision.

    The pixels are cast before their layout changes, because TensorRT's parser cannot transpose uint8. The range is
    applied in FP32, because half precision has steps of 8 mm at 10 m. If the spec says so, frames are resized to the
    network's size, and the depth back, both in FP32.

    Args:
        network: maps normalised N x 3 x H x W to N x 1 x H x W, depth as a fraction of the depth range's upper end.
        spec: sizes, preprocessing and depth range.
        dtype: type that the network computes in.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.low, self.high = spec.depth_range
        self.dtype = dtype
        gain, offset = normalisation(spec.preprocessing)
        self.register_buffer("gain", gain.to(dtype), persistent=False)
        self.register_buffer("offset", offset.to(dtype), persistent=False)
        self.shrink = self.enlarge = None
        if spec.resized_to is not None:
            self.shrink = shrinking(spec.size, spec.resized_to)
            self.enlarge = Enlarge(spec.resized_to, spec.size)

    def forward(self, image: Tensor) -> Tensor:
        """Predict depth in metres for camera frames."""
        pixels = image.to(self.dtype).permute(0, 3, 1, 2) if self.shrink is None else self.shrink(image).to(self.dtype)
        share = self.network(pixels * self.gain + self.offset)
        metres = cast("Tensor", (share.squeeze(1).float() * self.high).clamp(self.low, self.high))
        return metres if self.enlarge is None else cast("Tensor", self.enlarge(metres))
