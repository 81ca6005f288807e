"""The built-in networks: their exact size and cost, and every size of picture that they take or refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from depthkit import names
from depthkit.errors import SpecError, UserError
from depthkit.train.networks import (
    NETWORKS,
    DepthNetwork,
    build_network,
    check_network,
    compact,
    count_macs,
    count_parameters,
    describe_network,
    grow,
    nano,
    unet,
    widths_of,
)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> DepthNetwork:
    return NETWORKS[request.param]().eval()


@pytest.mark.parametrize(
    ("name", "parameters", "gmac", "widths"),
    [
        ("nano", 1_230_245, 2.21, (24, 24, 96, 128, 101, 128, 64, 32, 16)),
        ("compact", 1_218_350, 31.73, (24, 24, 96, 128, 101, 128, 64, 32, 16)),
        ("unet", 17_262_977, 187.41, (64, 128, 256, 512, 512)),
    ],
)
def test_parameters_macs_and_widths(name: str, parameters: int, gmac: float, widths: tuple[int, ...]) -> None:
    network = build_network(name)
    assert count_parameters(network) == parameters
    assert round(count_macs(network, (480, 640)) / 1e9, 2) == gmac
    assert widths_of(network) == widths


def test_parameters_are_those_that_train() -> None:
    network = compact()
    for parameter in network.head.parameters():
        parameter.requires_grad_(False)
    assert count_parameters(network) == 1_218_350 - (16 * 9 + 1)


def test_macs_agree_with_a_count_by_hand(network: DepthNetwork) -> None:
    """Kernel area x input channels x output elements, of every convolution that runs."""
    counted = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += module.kernel_size[0] * module.kernel_size[1] * module.in_channels * output.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 128))
    for hook in hooks:
        hook.remove()
    assert count_macs(network, (64, 128)) == counted
    assert count_macs(network, (640, 1280)) == counted * 100


def test_counting_leaves_the_network_alone(network: DepthNetwork) -> None:
    copied = copy.deepcopy(network).train()
    count_macs(copied, (32, 48))
    assert copied.training
    assert all(parameter.device.type == "cpu" for parameter in copied.parameters())


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_every_multiple_of_16_keeps_its_size(network: DepthNetwork, n: int, rows: int, columns: int) -> None:
    with torch.no_grad():
        depth = network(torch.rand(n, 3, 16 * rows, 16 * columns))
    assert depth.shape == (n, 1, 16 * rows, 16 * columns)
    assert bool(torch.isfinite(depth).all())


@settings(max_examples=200, deadline=None)
@given(height=st.integers(0, 200), width=st.integers(0, 200))
def test_every_other_size_is_refused_with_the_nearest(network: DepthNetwork, height: int, width: int) -> None:
    good = range(16, 1000, 16)
    assume(height not in good or width not in good)
    with pytest.raises(SpecError) as caught:
        network(torch.zeros(1, 3, height, width))
    below = [max((g for g in good if g <= length), default=16) for length in (height, width)]
    above = [min(g for g in good if g >= length) for length in (height, width)]
    for nearest in (below, above):
        assert f"{nearest[0]}x{nearest[1]}" in str(caught.value)


def test_a_sample_does_not_depend_on_its_batch(network: DepthNetwork) -> None:
    images = torch.rand(3, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


def test_widths_are_those_of_the_blocks(network: DepthNetwork) -> None:
    def width(block: nn.Module) -> int:
        return [m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d)][-1]

    blocks = [network.stem, *network.encoder, *network.decoder]
    assert tuple(map(width, blocks))[: len(network.widths)] == network.widths


@pytest.mark.parametrize("make", [compact, nano])
def test_compact_and_nano_are_built_as_designed(make: Callable[[], DepthNetwork]) -> None:
    """Batch norm in the encoder only; no bias before it, a bias everywhere else; corners not aligned."""
    network = make()
    parts = {network.stem: True, network.encoder: True, network.decoder: False, network.head: False}
    for part, normed in parts.items():
        convolutions = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == (len(convolutions) if normed else 0)
        assert all((m.bias is None) == normed for m in convolutions)
        assert all(m.kernel_size == (3, 3) for m in convolutions if m.stride == (1, 1))
    assert not network.upsample.align_corners
    assert unet().upsample.align_corners


def test_nano_answers_every_pixel_from_a_quarter_of_the_resolution() -> None:
    """A change of one value before the sub-pixel head moves a square of 4x4 pixels, and its neighbours'."""
    network = nano().eval()
    features = torch.zeros(1, 16, 12, 16)
    features[..., 5, 7] = 1.0
    with torch.no_grad():
        moved = network.head(features) != network.head(torch.zeros_like(features))
    rows, columns = moved[0, 0].nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (16, 27, 24, 35)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"resnet.*compact.*unet.*package\.module:Network"):
        build_network("resnet")
    assert tuple(NETWORKS) == names.NETWORKS


def test_a_size_is_refused_before_anything_is_computed(network: DepthNetwork) -> None:
    for refuse in (check_network, count_macs):
        with pytest.raises(SpecError, match=r"40x48.*32x48 and 48x48"):
            refuse(network, (40, 48))
    with pytest.raises(SpecError, match="40x48"):
        describe_network("it", network, (40, 48))
    check_network(network, (4800, 6400))  # on the meta device, where that costs nothing


def test_grown_weights_answer_as_compact_does_for_averaged_squares() -> None:
    small, large = compact().eval(), nano().eval()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    large.load_state_dict(grow(small.state_dict()))
    image = torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        expected = nn.functional.interpolate(small(nn.functional.avg_pool2d(image, 4)), scale_factor=4.0)
        torch.testing.assert_close(large(image), expected, rtol=0, atol=1e-6)
        assert expected.std() > 1e-3, "a network that answers a constant would prove nothing"
