"""Small networks that return depth in different ways. Their import paths begin with `MODULE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu

from ..zoo import ZOO

MODULE: Final = __name__


class Share(nn.Module):
    """A share of a range, N x 1 x H x W; the same random weights every time."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.first = nn.Conv2d(3, 16, 3, stride=self.stride, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Conv2d(16, 1, 3, padding=1)
            self.other = nn.Conv2d(16, 4, 1)
        nn.init.uniform_(self.head.weight, 0, 0.1, torch.Generator().manual_seed(1))  # depth follows brightness

    def features(self, image: Tensor) -> Tensor:
        """N x 16 x h x w."""
        return relu(self.second(relu(self.norm(self.first(image)))))

    def forward(self, image: Tensor) -> object:
        """Depth, as the network's name says."""
        return self.head(self.features(image)) + 0.3


class Metres(Share):
    """Metres, N x H x W, in a dict with features."""

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        features = self.features(image)
        return {"metres": 10 * (self.head(features) + 0.3).squeeze(1), "features": self.other(features), "none": None}


@dataclass
class Answer:
    """What `Disparity` returns."""

    maps: list[Tensor]
    features: Tensor


class Disparity(Share):
    """Inverse depth, N x h x w x 1, at a half and at a quarter of the resolution."""

    stride = 2

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        features = self.features(image)
        large = 5 * self.head(features) + 3
        maps = [each.permute(0, 2, 3, 1) for each in (avg_pool2d(large, 2), large)]
        return Answer(maps, self.other(features))


class Fine(Share):
    """A share of a range at twice the resolution."""

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        return interpolate(self.head(self.features(image)) + 0.3, scale_factor=2.0)


class Auxiliary(Share):
    """A tensor, but a tuple in training."""

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        features = self.features(image)
        return (self.head(features), self.other(features)) if self.training else self.head(features)


class Broken(Share):
    """NaN where the picture is darker than on average."""

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        share = self.head(self.features(image))
        return (share - share.mean()).log()


class Constant(Share):
    """The same everywhere."""

    def forward(self, image: Tensor) -> object:
        """See `Share`."""
        return 0 * self.head(self.features(image)) + 0.3


def dav2s() -> nn.Module:
    """A small Depth Anything V2 of transformers, which returns a `DepthEstimatorOutput`."""
    return ZOO["dav2s-small"].make().get_submodule("network")


def dpt() -> nn.Module:
    """A small DPT of transformers."""
    return ZOO["dpt-small"].make().get_submodule("network")


def glpn() -> nn.Module:
    """A small GLPN of transformers."""
    return ZOO["glpn-small"].make().get_submodule("network")
