"""The network from a camera's bytes to depth: the module that is exported, and that torch's sessions run."""

from __future__ import annotations

from typing import Final, Literal, cast

import torch
from torch import Tensor, nn

from ..precisions import PRECISIONS, Precision
from ..spec import ModelSpec, Preprocessing
from .answer import as_depth, depth_in
from .networks import answered_size
from .resize import Resample, shrinking

__all__ = ["DTYPES", "CameraReady", "in_order", "normalisation"]

DTYPES: Final[dict[Precision, torch.dtype]] = {
    name: getattr(torch, facts.float_type) for name, facts in PRECISIONS.items()
}
"""torch's type for each precision; FP32 for INT8, which is quantised later."""


def normalisation(preprocessing: Preprocessing, white: int = 255) -> tuple[Tensor, Tensor]:
    """Gain and offset, each 1 x 3 x 1 x 1: `x * gain + offset` is `(pixel / scale - mean) / std`.

    torch sessions and exported graphs both use it. One multiplication and one addition are faster than a division, and
    round once less in half precision.

    Args:
        preprocessing: scale, mean and std; see also `in_order`.
        white: `x` of a white pixel, whose value is 255; 1 for pictures that are already divided by 255.
    """
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return 1 / (white * (preprocessing.scale / 255) * std), -mean / std


def in_order(planes: Tensor, color: Literal["RGB", "BGR"]) -> Tensor:
    """RGB planes, N x 3 x H x W, in the order that the network takes."""
    return planes if color == "RGB" else planes.flip(1)


class CameraReady(nn.Module):
    """From uint8 N x H x W x 3 to `ModelSpec.output`; the network computes in its own precision.

    The pixels are cast before their layout changes, because TensorRT's parser cannot transpose uint8. The range is
    applied in FP32, because half precision has steps of 8 mm at 10 m. If the spec says so, frames are resized to the
    network's size. Depth is resized to that of the frames. Both are done in FP32.

    Args:
        network: maps normalised N x 3 x H x W to depth, see `answer`.
        spec: sizes, preprocessing, depth range, and what the network answers.
        dtype: type that the network computes in.

    Raises:
        SpecError: the network does not accept the size, or does not return depth.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        answered = answered_size(network, spec.network_size, spec.network_output)
        self.network = network.to(dtype)
        self.spec = spec
        self.dtype = dtype
        gain, offset = normalisation(spec.preprocessing)
        self.register_buffer("gain", gain.to(dtype), persistent=False)
        self.register_buffer("offset", offset.to(dtype), persistent=False)
        self.shrink = None if spec.resized_to is None else shrinking(spec.size, spec.resized_to)
        self.enlarge = None if answered == spec.size else Resample(answered, spec.size)

    def forward(self, image: Tensor) -> Tensor:
        """Predict depth of camera frames."""
        pixels = image.to(self.dtype).permute(0, 3, 1, 2) if self.shrink is None else self.shrink(image).to(self.dtype)
        planes = in_order(pixels, self.spec.preprocessing.color)
        returned = self.network(planes * self.gain + self.offset)
        depth = as_depth(depth_in(returned, self.spec.network_output), self.spec)
        return depth if self.enlarge is None else cast("Tensor", self.enlarge(depth))
