"""The networks among which `nano` was chosen; each can be named as `nano_candidates:NAME` from this folder.

All halve the resolution in the stem and work at 1/2 to 1/32 or 1/64 of it. They differ in widths, in the kind of block,
in where the decoder ends, and in how its depth becomes as large as the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, relu

Kind = Literal["plain", "branched", "separable", "inverted"]


def _conv(
    channels: int, out: int, *, size: int = 3, stride: int = 1, groups: int = 1, norm: bool = True, act: bool = True
) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(out))
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


def _block(kind: Kind, channels: int, out: int, stride: int = 1, *, norm: bool = True) -> nn.Module:
    if kind == "plain":
        return _conv(channels, out, stride=stride, norm=norm)
    if kind == "branched":
        return Branched(channels, out, stride)
    if kind == "separable":  # Howard et al., "MobileNets", 2017
        return nn.Sequential(
            _conv(channels, channels, stride=stride, groups=channels, norm=norm),
            _conv(channels, out, size=1, norm=norm),
        )
    return Inverted(channels, out, stride)


@dataclass(frozen=True)
class Plan:
    """A candidate.

    Attributes:
        widths: channels of the stem and of each level, which halves the resolution.
        up: channels of the decoder's blocks, coarsest first; where they end, the head reads them.
        stem: stride of the first convolution: 2, of 3x3, or 4, of 7x7.
        encoder, decoder: kinds of block.
        twice: whether each level of the decoder has two blocks.
        norm: whether the decoder has batch norm.
        shuffled: the head answers every pixel of the picture, as channels of the decoder's last resolution (Shi et al.,
            "Real-time single image and video super-resolution using … sub-pixel …", CVPR 2016), instead of one value
            that is enlarged bilinearly.
    """

    widths: tuple[int, ...]
    up: tuple[int, ...]
    stem: Literal[2, 4] = 2
    encoder: Kind = "plain"
    decoder: Kind = "plain"
    twice: bool = False
    norm: bool = False
    shuffled: bool = True


class Candidate(nn.Module):
    """N x 3 x H x W to N x 1 x H x W."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths = plan.widths
        self.stem = _conv(3, widths[0], size=2 * plan.stem - 1, stride=plan.stem)
        self.levels = nn.ModuleList(
            nn.Sequential(_block(plan.encoder, a, b, 2), _block(plan.encoder, b, b)) for a, b in pairwise(widths)
        )
        inputs = [a + b for a, b in zip((widths[-1], *plan.up), widths[-2::-1], strict=False)]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _block(plan.decoder, a, b, norm=plan.norm),
                *(_block(plan.decoder, b, b, norm=plan.norm) for _ in range(plan.twice)),
            )
            for a, b in zip(inputs, plan.up, strict=False)
        )
        self.scale = plan.stem * 2 ** (len(widths) - 1 - len(plan.up))
        self.head = nn.Conv2d(plan.up[-1], self.scale**2 if plan.shuffled else 1, 3, padding=1)
        self.shuffled = plan.shuffled

    def forward(self, image: Tensor) -> Tensor:
        """Predict depth as a share of the depth range."""
        skips = [self.stem(image)]
        for level in self.levels:
            skips.append(level(skips[-1]))
        x = skips.pop()
        for block in self.blocks:
            skip = skips.pop()
            x = interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        share: Tensor = self.head(x)
        if self.shuffled:
            return pixel_shuffle(share, self.scale)
        return interpolate(share, scale_factor=float(self.scale), mode="bilinear", align_corners=False)


_QUARTER: Final = Plan((16, 24, 96, 128, 101, 101), (128, 64, 32, 16), twice=True)
PLANS: Final[dict[str, Plan]] = {
    # compact's widths from a quarter of the resolution on
    "quarter": _QUARTER,
    "quarter_normalised": replace(_QUARTER, norm=True),
    "quarter_bilinear": replace(_QUARTER, shuffled=False),
    "quarter_branched": replace(_QUARTER, encoder="branched"),
    "quarter_stem": Plan((24, 96, 128, 101, 101), (128, 64, 32, 16), stem=4, twice=True),
    "half": replace(_QUARTER, up=(128, 64, 32, 16, 12)),
    "five": Plan((16, 32, 96, 128, 128), (64, 32, 24), twice=True),
    "wide": Plan((16, 32, 64, 96, 128, 128), (96, 64, 48, 32)),
    "slim": Plan((12, 24, 48, 96, 128, 128), (96, 48, 24, 16)),
    "mixed": Plan((16, 32, 96, 160, 224, 224), (128, 64, 48, 32), decoder="separable", twice=True),
    "separable": Plan(
        (24, 48, 96, 160, 256, 256), (160, 96, 48, 24), encoder="separable", decoder="separable", twice=True
    ),
    "inverted": Plan((16, 32, 64, 96, 160, 160), (96, 64, 48, 32), encoder="inverted", decoder="separable", twice=True),
}


def _maker(name: str) -> Callable[[], Candidate]:
    return lambda: Candidate(PLANS[name])


def __getattr__(name: str) -> Callable[[], Candidate]:
    if name not in PLANS:
        raise AttributeError(name)
    return _maker(name)


def names(wanted: Sequence[str]) -> list[str]:
    """The candidates that are meant: these, or all, with the built-in network, which pools where `quarter` strides."""
    return list(wanted or ("nano", *PLANS))
