"""The two networks: `compact`, and the U-Net that it is measured against.

Both read a normalised N x 3 x H x W float tensor, H and W divisible by 16, and answer N x 1 x H x W: depth as a
share of the depth range's upper end (depth / 10 m by default), not clamped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..spec import check_size

__all__ = ["NETWORKS", "DepthNetwork", "build_network", "compact", "count_macs", "count_parameters", "unet"]


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch norm (then without a bias of its own) and ReLU."""

    def __init__(self, channels: int, middle: int, out: int, *, batch_norm: bool = True) -> None:
        layers: list[nn.Module] = []
        for source, target in ((channels, middle), (middle, out)):
            layers.append(nn.Conv2d(source, target, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(target))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class DepthNetwork(nn.Module):
    """An encoder that halves the picture four times and a decoder that doubles it back, joined by skips.

    Args:
        stem: full-resolution layers; their output is the last skip where `stem_skip` is set.
        encoder: four blocks.
        decoder: four blocks; each reads its doubled input and the skip of that size, concatenated.
        head: maps the last block's output to one channel.
        pool_first: pool before each encoder block (U-Net) instead of after it (compact).
        align_corners: how the bilinear doubling treats the corners.
        widths: channels, as the ModelSpec reports them.
    """

    def __init__(
        self,
        stem: nn.Module,
        encoder: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        head: nn.Module,
        *,
        pool_first: bool,
        align_corners: bool,
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)
        self.head = head
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
        self.pool_first = pool_first
        self.widths = widths

    def forward(self, image: Tensor) -> Tensor:
        """Map N x 3 x H x W to N x 1 x H x W. Raises SpecError unless H and W are divisible by 16."""
        check_size(int(image.shape[-2]), int(image.shape[-1]))
        features = self.stem(image)
        skips: list[Tensor] = []
        for block in self.encoder:
            if self.pool_first:
                skips.append(features)
                features = block(self.pool(features))
            else:
                skips.append(block(features))
                features = self.pool(skips[-1])
        for block in self.decoder:
            features = block(torch.cat([skips.pop(), self.upsample(features)], dim=1))
        return cast("Tensor", self.head(features))


def unet() -> DepthNetwork:
    """The baseline: U-Net with bilinear upsampling, 17,262,977 parameters.

    Ronneberger, Fischer, Brox, MICCAI 2015, with batch norm and the widths of milesial/Pytorch-UNet
    (`UNet(3, 1, bilinear=True)`), whose decoder blocks narrow in their first convolution to half their input.
    """
    widths = (64, 128, 256, 512, 512)
    encoder = [DoubleConv(a, b, b) for a, b in pairwise(widths)]
    decoder = [DoubleConv(2 * w, w, max(w // 2, 64)) for w in reversed(widths[:-1])]
    return DepthNetwork(
        DoubleConv(3, 64, 64), encoder, decoder, nn.Conv2d(64, 1, 1), pool_first=True, align_corners=True, widths=widths
    )


def compact() -> DepthNetwork:
    """The proposed network: 1,218,350 parameters, 31.7 GMAC at 480x640.

    After Zhang, "Realtime Single Image Depth Estimation". The paper prints 101 channels at 1/16 and 1.22 M parameters
    but not the widths; these meet both. Each skip is the block's output before pooling.
    """
    down, up = (24, 96, 128, 101), (128, 64, 32, 16)
    encoder = [DoubleConv(a, b, b) for a, b in zip((24, *down), down, strict=False)]
    inputs = [a + b for a, b in zip((down[-1], *up), reversed(down), strict=False)]
    decoder = [DoubleConv(a, b, b, batch_norm=False) for a, b in zip(inputs, up, strict=True)]
    return DepthNetwork(
        DoubleConv(3, 24, 24),
        encoder,
        decoder,
        nn.Conv2d(16, 1, 3, padding=1),
        pool_first=False,
        align_corners=False,
        widths=(24, *down, *up),
    )


NETWORKS: Final[dict[str, Callable[[], DepthNetwork]]] = {"compact": compact, "unet": unet}


def build_network(name: str) -> DepthNetwork:
    """A freshly initialised network. Raises UserError for an unknown name."""
    if name not in NETWORKS:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_macs(network: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulate operations of the convolutions for one H x W frame, as torch counts them.

    Computed on the meta device: nothing is run and no memory is taken.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops()) // 2
