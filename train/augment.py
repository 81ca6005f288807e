"""Augmentation of a batch on its device, with kornia. The caller's seed determines every draw."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    ImageSequential,
    RandomAffine,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomHorizontalFlip,
)
from kornia.constants import DataKey, Resample
from torch import Tensor

__all__ = ["Augmentation", "Augmented", "Strength"]

Strength = Literal["paper", "strong"]

_NEAREST: Final = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}}
_WHOLE: Final = 0.999
"""Above it, a pixel is interpolated from pixels with answers only; the rest is rounding."""


class Augmented(NamedTuple):
    """An augmented batch.

    Attributes:
        image: N x 3 x H x W in 0..1.
        depth: N x 1 x H x W metres, 0 where not measured.
        clean: `image` before its colours, sharpness and noise changed, for a teacher.
        taught: N x 1 x H x W metres, a teacher's stored answers moved like `depth`, 0 where there is none.
    """

    image: Tensor
    depth: Tensor
    clean: Tensor
    taught: Tensor | None = None


class Augmentation:
    """Flip, rotate and recolour a batch; `strong` also zooms, blurs and adds noise.

    Depth is resampled with nearest neighbour, which makes no false depth between two surfaces; pixels that a rotation
    uncovers become 0 (not measured). A zoom by z looks like a focal length z times as long, or a room z times nearer.
    The network should keep its focal length, so depth is divided by z. Zooms lie on both sides of 1: they are hard to
    see in a picture, and zooming in only would teach depths that are too small.

    Args:
        strength: `paper` flips and rotates up to 15 degrees, as the paper does, and jitters colours by a fifth.
            `strong` rotates up to 8 degrees, zooms by 0.85 to 1.15, jitters brightness, contrast and saturation twice
            as much, and gives some pictures blur or noise. It does not jitter hue, which is slower than all the rest.
    """

    def __init__(self, strength: Strength) -> None:
        strong = strength == "strong"
        degrees, zoom = (8.0, (0.85, 1.15)) if strong else (15.0, (1.0, 1.0))
        self._affine: Any = RandomAffine(degrees=degrees, scale=zoom, p=1.0)
        self._geometry = AugmentationSequential(
            RandomHorizontalFlip(p=0.5), self._affine, data_keys=["image", "mask"], extra_args=_NEAREST
        )
        if strong:
            self._look = ImageSequential(
                ColorJitter(0.4, 0.4, 0.4, p=0.8),
                RandomGaussianBlur((3, 3), (0.3, 1.2), p=0.15),
                RandomGaussianNoise(std=0.03, p=0.15),
            )
        else:
            self._look = ImageSequential(ColorJitter(0.2, 0.2, 0.2, 0.02, p=0.8))

    def __call__(self, image: Tensor, depth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `augment`: picture and depth only."""
        return self.augment(image, depth, seed)[:2]

    def augment(self, image: Tensor, depth: Tensor, seed: int, taught: Tensor | None = None) -> Augmented:
        """Augment N x 3 x H x W in 0..1 and N x 1 x H x W metres; the same seed gives the same result.

        The global random state does not change.

        Args:
            image, depth: the batch.
            seed: of all draws.
            taught: N x 1 x H x W metres, 0 where there is no answer. It is interpolated like a picture; a pixel that
                a rotation uncovers, or that mixes in one without an answer, has none.
        """
        gpus = [image.device] if image.is_cuda else []
        # In FP32, because half precision would round coordinates to a pixel and colours to three digits.
        with torch.random.fork_rng(devices=gpus), torch.autocast(image.device.type, enabled=False):
            torch.manual_seed(seed)
            # As further channels of the picture the answers move exactly as it does.
            channels = image if taught is None else torch.cat([image, taught, (taught > 0).to(taught)], dim=1)
            channels, depth = self._geometry(channels, depth)
            zoom = self._affine._params["scale"][:, :1, None, None].to(depth)
            image = channels[:, :3]
            changed = self._look(image).clamp(0, 1)
        if taught is not None:
            taught = torch.where(channels[:, 4:] > _WHOLE, channels[:, 3:4] / zoom, 0.0)
        return Augmented(changed, depth / zoom, image, taught)
