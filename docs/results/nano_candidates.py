"""The networks among which `nano` was chosen; each can be named as `nano_candidates:NAME` from this folder.

All halve the resolution in the stem and work at 1/2 to 1/16, 1/32 or 1/64 of it. They differ in widths, in the kind of
block, in where the decoder ends, and in how its depth becomes as large as the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

Kind = Literal["plain", "branched", "separable", "inverted"]


def _conv(channels: int, out: int, *, size: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


class Inverted(nn.Module):
    """An inverted bottleneck (Sandler et al., "MobileNetV2", CVPR 2018): widen, convolve each channel, narrow."""

    def __init__(self, channels: int, out: int, stride: int = 1, widen: int = 3) -> None:
        super().__init__()
        inner = widen * channels
        self.layers = nn.Sequential(
            _conv(channels, inner, size=1),
            _conv(inner, inner, stride=stride, groups=inner),
            _conv(inner, out, size=1, act=False),
        )
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Map the channels, and add the input if it has as many."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class Branched(nn.Module):
    """Branches of 3x3, 1x1 and nothing, which fold into one convolution (Ding et al., "RepVGG", CVPR 2021).

    Folding is left to the winner: it changes no answer, and the time of the plain block is that of the folded one.
    """

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.wide = _conv(channels, out, stride=stride, act=False)
        self.narrow = _conv(channels, out, size=1, stride=stride, act=False)
        self.same = nn.BatchNorm2d(out) if stride == 1 and channels == out else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches, rectified."""
        y: Tensor = self.wide(x) + self.narrow(x)
        return relu(y if self.same is None else y + self.same(x))


def _block(kind: Kind, channels: int, out: int, stride: int = 1) -> nn.Module:
    if kind == "plain":
        return _conv(channels, out, stride=stride)
    if kind == "branched":
        return Branched(channels, out, stride)
    if kind == "separable":  # Howard et al., "MobileNets", 2017
        return nn.Sequential(_conv(channels, channels, stride=stride, groups=channels), _conv(channels, out, size=1))
    return Inverted(channels, out, stride)


@dataclass(frozen=True)
class Plan:
    """A candidate.

    Attributes:
        widths: channels at 1/2, 1/4, 1/8 … of the resolution.
        encoder, decoder: kinds of block.
        depth: blocks of each encoder level after the one that halves.
        ends: the decoder's last resolution is 1/this.
        context: whether the coarsest level also sees the mean of the whole picture.
        shuffled: the head answers every pixel of the picture, as channels of the decoder's last resolution (Shi et al.,
            "Real-time single image and video super-resolution using … sub-pixel …", CVPR 2016), instead of one value
            that is enlarged bilinearly.
    """

    widths: tuple[int, ...]
    encoder: Kind = "plain"
    decoder: Kind = "plain"
    depth: int = 1
    ends: int = 2
    context: bool = False
    shuffled: bool = False


class Candidate(nn.Module):
    """N x 3 x H x W to N x 1 x H x W."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths = plan.widths
        self.stem = _conv(3, widths[0], stride=2)
        self.levels = nn.ModuleList(
            nn.Sequential(_block(plan.encoder, a, b, 2), *(_block(plan.encoder, b, b) for _ in range(plan.depth)))
            for a, b in pairwise(widths)
        )
        self.context = _conv(widths[-1], widths[-1], size=1) if plan.context else None
        up = [w for level, w in enumerate(widths[:-1]) if 2 ** (level + 1) >= plan.ends][::-1]
        self.blocks = nn.ModuleList(
            _block(plan.decoder, below + skip, skip) for below, skip in zip((widths[-1], *up), up, strict=False)
        )
        self.shuffle = nn.PixelShuffle(plan.ends) if plan.shuffled else None
        self.head = nn.Conv2d(up[-1], plan.ends**2 if plan.shuffled else 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Predict depth as a share of the depth range."""
        skips = [self.stem(image)]
        for level in self.levels:
            skips.append(level(skips[-1]))
        x = skips.pop()
        if self.context is not None:
            x = x + self.context(x.mean(dim=(2, 3), keepdim=True))
        for block in self.blocks:
            skip = skips.pop()
            x = interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = x[..., : skip.shape[-2], : skip.shape[-1]]  # of an odd size, the finer one has a row or column less
            x = block(torch.cat([skip, x], dim=1))
        share: Tensor = self.head(x)
        if self.shuffle is not None:
            shuffled: Tensor = self.shuffle(share)
            return shuffled
        scale = 2.0 ** (1 + len(skips))
        return interpolate(share, scale_factor=scale, mode="bilinear", align_corners=False)


PLANS: Final[dict[str, Plan]] = {
    "plain_wide": Plan((16, 32, 64, 96, 128)),
    "plain": Plan((12, 20, 36, 64, 96)),
    "plain_quarter": Plan((16, 32, 64, 96, 128), ends=4),
    "plain_four": Plan((16, 32, 64, 128)),
    "plain_deep": Plan((12, 24, 48, 96, 160), depth=2, ends=4),
    "plain_context": Plan((16, 32, 64, 96, 128), context=True),
    "separable_wide": Plan((24, 48, 96, 160, 256), "separable", "separable"),
    "separable": Plan((16, 32, 64, 128, 192), "separable", "separable"),
    "inverted": Plan((16, 24, 40, 80, 128), "inverted", "separable", depth=2),
    "mixed": Plan((16, 32, 64, 128, 224), "plain", "separable", ends=4),
    "mixed_deep": Plan((16, 32, 64, 128, 192), "plain", "plain", depth=2, ends=4, context=True),
    "pyramid": Plan((12, 32, 64, 96, 128, 128), depth=2, ends=4),
    "pyramid_shuffled": Plan((12, 32, 64, 96, 128, 128), depth=2, ends=4, shuffled=True),
    "deep_branched": Plan((12, 24, 48, 96, 160), "branched", depth=2, ends=4),
    "deep_shuffled": Plan((12, 24, 48, 96, 160), depth=2, ends=4, shuffled=True),
}


def _maker(name: str) -> Callable[[], Candidate]:
    return lambda: Candidate(PLANS[name])


def __getattr__(name: str) -> Callable[[], Candidate]:
    if name not in PLANS:
        raise AttributeError(name)
    return _maker(name)


def names(wanted: Sequence[str]) -> list[str]:
    """The candidates that are meant: these, or all."""
    return list(wanted or PLANS)
