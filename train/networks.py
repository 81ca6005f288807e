"""The built-in networks: `nano`, `compact` and its baseline U-Net; and the checks of any network before its use.

A network maps a normalised N x 3 x H x W float tensor to depth, see `answer`. The built-in ones return N x 1 x H x W:
depth as a fraction of the depth range's upper end (depth / 10 m by default), not clamped. They need H and W that are
divisible by 16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import SpecError, UserError
from ..names import DEPTH_RANGE, is_import_path
from ..sizes import check_size
from ..spec import Answers, ModelSpec, Preprocessing, camera_ready
from .answer import choose_depth, depth_in, describe_shape
from .foreign import import_network

__all__ = [
    "NETWORKS",
    "DepthNetwork",
    "Trial",
    "answered_size",
    "build_network",
    "check_network",
    "compact",
    "count_macs",
    "count_parameters",
    "describe_network",
    "grow",
    "nano",
    "try_network",
    "unet",
    "widths_of",
]


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch norm and ReLU; with batch norm they have no bias."""

    def __init__(self, channels: int, middle: int, out: int, *, batch_norm: bool = True) -> None:
        layers: list[nn.Module] = []
        for source, target in ((channels, middle), (middle, out)):
            layers.append(nn.Conv2d(source, target, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(target))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class DepthNetwork(nn.Module):
    """An encoder that halves the resolution four times and a decoder that restores it, with skip connections.

    Args:
        stem: layers before the encoder, which may reduce the resolution; their output is the outermost skip if
            `pool_first`.
        encoder: four blocks.
        decoder: four blocks; each reads its upsampled input and the skip of that size, concatenated.
        head: maps the last block's output to one channel of the picture's resolution.
        pool_first: pool before each encoder block (U-Net) instead of after it (compact).
        align_corners: of the bilinear upsampling.
        widths: channels, for the ModelSpec.
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
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
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
            skip, larger = skips.pop(), self.upsample(features)
            if larger.shape[-2:] != skip.shape[-2:]:  # a row or column more, where an odd number was halved
                larger = larger[..., : skip.shape[-2], : skip.shape[-1]]
            features = block(torch.cat([skip, larger], dim=1))
        return cast("Tensor", self.head(features))


def unet() -> DepthNetwork:
    """The baseline, a U-Net with bilinear upsampling and 17,262,977 parameters.

    Ronneberger, Fischer, Brox, MICCAI 2015, with batch norm and the widths of milesial/Pytorch-UNet
    (`UNet(3, 1, bilinear=True)`), whose decoder blocks narrow in their first convolution to half their input.
    """
    widths = (64, 128, 256, 512, 512)
    encoder = [DoubleConv(a, b, b) for a, b in pairwise(widths)]
    decoder = [DoubleConv(2 * w, w, max(w // 2, 64)) for w in reversed(widths[:-1])]
    return DepthNetwork(
        DoubleConv(3, 64, 64), encoder, decoder, nn.Conv2d(64, 1, 1), pool_first=True, align_corners=True, widths=widths
    )


_DOWN: Final = (24, 96, 128, 101)
_UP: Final = (128, 64, 32, 16)
_CELL: Final = 4


def compact() -> DepthNetwork:
    """The proposed network: 1,218,350 parameters, 31.7 GMAC at 480x640.

    After Zhang, "Realtime Single Image Depth Estimation". The paper gives 101 channels at 1/16 and 1.22 M parameters,
    but no widths; these match both. Each skip is the block's output before pooling.
    """
    return _like_compact(DoubleConv(3, 24, 24), cell=1)


def nano() -> DepthNetwork:
    """A network for frames of 240x320 on a CPU: 1,230,245 parameters, 0.56 GMAC for such a frame.

    It is compact from a quarter of the resolution on: its first convolution sees 4x4 pixels where compact's sees one,
    and its last answers 4x4 (sub-pixel convolution, Shi et al., "Real-Time Single Image and Video Super-Resolution
    Using an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016). docs/results/nano.md has the choice.
    """
    stem = DoubleConv(3, 24, 24)
    stem[0] = nn.Conv2d(3, 24, 3 * _CELL, stride=_CELL, padding=_CELL, bias=False)
    return _like_compact(stem, cell=_CELL)


def grow(compact_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widen compact's weights to nano's, which then answers as compact does for a picture of averaged 4x4 squares.

    Widening without a change of the function is that of Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016.
    """
    grown = dict(compact_weights)
    grown["stem.0.weight"] = grown["stem.0.weight"].repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3) / _CELL**2
    for kind in ("weight", "bias"):
        grown[f"head.0.{kind}"] = grown.pop(f"head.{kind}").repeat_interleave(_CELL**2, 0)
    return grown


def _like_compact(stem: nn.Module, *, cell: int) -> DepthNetwork:
    encoder = [DoubleConv(a, b, b) for a, b in zip((24, *_DOWN), _DOWN, strict=False)]
    inputs = [a + b for a, b in zip((_DOWN[-1], *_UP), reversed(_DOWN), strict=False)]
    decoder = [DoubleConv(a, b, b, batch_norm=False) for a, b in zip(inputs, _UP, strict=True)]
    head: nn.Module = nn.Conv2d(_UP[-1], cell**2, 3, padding=1)
    if cell > 1:
        head = nn.Sequential(head, nn.PixelShuffle(cell))
    widths = (24, *_DOWN, *_UP)
    return DepthNetwork(stem, encoder, decoder, head, pool_first=False, align_corners=False, widths=widths)


NETWORKS: Final[dict[str, Callable[[], DepthNetwork]]] = {"nano": nano, "compact": compact, "unet": unet}


def build_network(name: str) -> nn.Module:
    """A freshly initialised network: a built-in one, or `package.module:Network` by import.

    Raises:
        UserError: the name is unknown, or cannot be imported or built; see `foreign.import_network`.
    """
    if is_import_path(name):
        return import_network(name)
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UserError(
            f"there is no network {name!r}; choose one of {known}, or give your own as package.module:Network"
        )
    return NETWORKS[name]()


def describe_network(
    name: str,
    network: nn.Module,
    size: tuple[int, int],
    *,
    preprocessing: Preprocessing | None = None,
    depth_range: tuple[float, float] = DEPTH_RANGE,
    focal: float | None = None,
    answers: Answers = "share",
    output: str | None = None,
) -> ModelSpec:
    """The ModelSpec of a network at a size, batch 1. Raises SpecError as `try_network` does."""
    trial = try_network(network, size, output)
    image, depth = camera_ready(*size)
    return ModelSpec(
        network=name,
        widths=widths_of(network),
        input=image,
        output=depth,
        preprocessing=preprocessing or Preprocessing(),
        depth_range=depth_range,
        parameters=count_parameters(network),
        macs=trial.macs,
        focal=focal,
        answers=answers,
        network_output=trial.output,
    )


def widths_of(network: nn.Module) -> tuple[int, ...]:
    """Channels of a built-in network's blocks, outermost first; empty for other networks."""
    return network.widths if isinstance(network, DepthNetwork) else ()


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Trial:
    """What a network returns for frames of a size.

    Attributes:
        output: see `ModelSpec.network_output`.
        size: height and width of depth.
        macs: multiply-accumulates of the convolutions and matrix products for one frame, as torch counts them.
    """

    output: str | None
    size: tuple[int, int]
    macs: int


def try_network(network: nn.Module, size: tuple[int, int], output: str | None = None) -> Trial:
    """Run a copy of `network` on two frames of that height and width, in evaluation mode.

    Args:
        network: not changed.
        size: height and width.
        output: see `answer.choose_depth`.

    Raises:
        SpecError: the network does not accept this size, or does not return depth, see `answer.choose_depth`.
    """
    returned, flops = _run_copy(network, size, training=False)
    name, answered = choose_depth(type(network).__name__, returned, _FRAMES, size, output)
    return Trial(name, answered, flops // (2 * _FRAMES))


def answered_size(network: nn.Module, size: tuple[int, int], output: str | None) -> tuple[int, int]:
    """Height and width of the network's depth for frames of `size`. Raises SpecError as `try_network` does."""
    return size if isinstance(network, DepthNetwork) else try_network(network, size, output).size


def check_network(network: nn.Module, size: tuple[int, int], output: str | None = None) -> None:
    """Raise SpecError as `try_network` does, and if the network returns something else in training mode."""
    trial = try_network(network, size, output)
    depth_in(_run_copy(network, size, training=True)[0], trial.output)


def count_macs(network: nn.Module, size: tuple[int, int], output: str | None = None) -> int:
    """Multiply-accumulates for one frame, see `Trial`. Raises SpecError as `try_network` does."""
    return try_network(network, size, output).macs


_FRAMES: Final = 2
"""Frames that a network is tested on; with one, a lost batch dimension would not show."""


def _run_copy(network: nn.Module, size: tuple[int, int], *, training: bool, device: str = "meta") -> tuple[object, int]:
    """What a copy of `network` returns for frames of that size, and its number of floating-point operations.

    On the meta device nothing is computed and no memory is used. A network that cannot run there, for example because
    its control flow depends on values, runs on the CPU, with the same shapes and operations.
    """
    frames = (_FRAMES, 3, *size)
    try:
        twin = copy.deepcopy(network).to(device).train(training)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            return twin(torch.zeros(frames, device=device)), counter.get_total_flops()
    except SpecError:
        raise  # from a built-in network, with the sizes that it supports
    except Exception as error:
        if device == "meta":
            return _run_copy(network, size, training=training, device="cpu")
        mode = " in training mode" if training else ""
        raise SpecError(
            f"{type(network).__name__} does not accept {describe_shape(frames)}{mode} "
            f"({type(error).__name__}: {str(error).strip()}); choose another size, or fix its forward"
        ) from error
