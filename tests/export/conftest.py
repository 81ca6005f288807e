"""A network that is the same function in FP32 and overflows in FP16."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from depthkit.export.torch_source import TorchSource
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.networks import DepthNetwork

GAIN = 300.0


def _rescale(norm: nn.Module, source: float, target: float) -> None:
    """Make a batch norm answer `target` times what it did, for inputs that are `source` times what they were."""
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.mul_(source)  # type: ignore[union-attr]
    norm.weight.data.mul_(target / source)
    norm.bias.data.mul_(target)


@pytest.fixture
def overflowing(run: Path) -> Bundle:
    """The test's own run, whose stem answers 90,000 times as much and whose first block takes it back.

    Every weight fits FP16, and FP32 answers stay the same; only arithmetic in real half precision leaves the range.
    """
    bundle = read_bundle(run)
    assert isinstance(bundle.network, DepthNetwork)
    stem, block = bundle.network.stem, bundle.network.encoder[0]
    assert isinstance(stem, nn.Sequential)
    assert isinstance(block, nn.Sequential)
    scale = 1.0
    for sequence, gain in ((stem, GAIN), (block, 1 / GAIN)):
        for norm in (sequence[1], sequence[4]):
            _rescale(norm, scale, scale * gain)
            scale *= gain
    return bundle


def source_of(network: nn.Module, run: Path) -> TorchSource:
    """Another network in a run's place."""
    bundle = read_bundle(run)
    bundle.network = network
    return TorchSource(bundle)
