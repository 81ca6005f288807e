"""Networks that return depth in a container, at another resolution, in metres or without."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from depthkit.data.images import resize_depth
from depthkit.errors import SpecError
from depthkit.spec import Answers, ModelSpec, Preprocessing
from depthkit.train.answer import as_share, choose_depth, depth_in
from depthkit.train.camera_ready import CameraReady
from depthkit.train.networks import check_network, describe_network, try_network
from depthkit.train.resize import Resample

from .nets import Auxiliary, Disparity, Metres

SIZE: Final = (20, 28)
FRAMES: Final = 3


@dataclass
class _Fields:
    depth: object
    features: Tensor


_Named = namedtuple("_Named", "depth features")  # noqa: PYI024 - as networks in the wild have it

CONTAINERS: Final[dict[str, Callable[[Any, Tensor], object]]] = {
    "": lambda depth, _: depth,
    "depth": lambda depth, features: {"features": features, "depth": depth, "none": None},
    "depth.0": lambda depth, features: {("depth", 0): depth, ("features", -1): features},
    "0": lambda depth, features: (depth, features),
    "1": lambda depth, features: [features, depth],
}
NESTED: Final[dict[str, Callable[[Any, Tensor], object]]] = {
    "depth": _Fields,
    "1.depth": lambda depth, features: (features, {"depth": depth, "more": [features]}),
    "depth.0": lambda depth, features: _Named([depth], features),
    "depth.a": lambda depth, features: SimpleNamespace(depth={"a": depth}, features=features),
}
LAYOUTS: Final[list[Callable[[Tensor], Tensor]]] = [
    lambda depth: depth,
    lambda depth: depth[:, None],
    lambda depth: depth[..., None],
]


@given(
    kind=st.sampled_from([*CONTAINERS.items(), *NESTED.items()]),
    layout=st.sampled_from(LAYOUTS),
    size=st.tuples(st.integers(5, 99), st.integers(5, 99)),
    ratio=st.integers(1, 4),
    larger=st.booleans(),
)
def test_depth_is_found_in_any_container_layout_and_resolution(
    kind: tuple[str, Callable[[Any, Tensor], object]],
    layout: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    ratio: int,
    larger: bool,
) -> None:
    name, container = kind
    height, width = (n * ratio if larger else -(-n // ratio) for n in size)
    depth = torch.rand(FRAMES, height, width)
    returned = container(layout(depth), torch.rand(FRAMES, 8, height, width))
    for wanted in (None, name or None):
        found, answered = choose_depth("Net", returned, FRAMES, size, wanted)
        assert (found or "", answered) == (name, (height, width))
        assert torch.equal(depth_in(returned, found), depth)


def test_depth_is_found_in_what_transformers_return() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    returned = outputs.DepthEstimatorOutput(predicted_depth=torch.rand(2, *SIZE), hidden_states=(torch.rand(2, 9, 8),))
    assert choose_depth("Net", returned, 2, SIZE, None) == ("predicted_depth", SIZE)


MAP: Final = torch.rand(2, *SIZE)


@pytest.mark.parametrize(
    ("returned", "output", "words"),
    [
        ({"depth": MAP, "mask": MAP}, None, ["2 outputs", "depth (2 x 20 x 28), mask (2 x 20 x 28)", "--output"]),
        ({"depth": MAP, "mask": MAP}, "disparity", ["no output disparity", "depth (2 x 20 x 28), mask", "--output"]),
        ([MAP], "1", ["no output 1", "it returns 0 (2 x 20 x 28)"]),
        ([MAP], "-1", ["no output -1", "it returns 0 (2 x 20 x 28)"]),
        (MAP, "depth", ["one tensor", "leave --output out"]),
        (MAP.to(torch.int64), None, ["2 x 20 x 28 int64", "floating-point"]),
        (MAP.double(), None, ["2 x 20 x 28 float64", "floating-point"]),
        ({"depth": MAP.to(torch.int32)}, "depth", ["depth (2 x 20 x 28 int32)", "floating-point"]),
        (MAP[:, None].repeat(1, 3, 1, 1), None, ["2 x 3 x 20 x 28", "2 x 1 x 20 x 28 or 2 x 20 x 28"]),
        (MAP[:1], None, ["returns 1 x 20 x 28 for 2 x 3 x 20 x 28", "for each frame"]),
        (MAP[:, 1:], None, ["2 x 19 x 28", "whole fraction"]),
        (MAP[:, ::2], None, ["2 x 10 x 28", "whole fraction"]),
        (MAP[:, :1, :1], None, ["2 x 1 x 1"]),
        ({f"side{n}": MAP[n % 2] for n in range(14)}, None, ["side9 (20 x 28) and 4 more", "must return depth"]),
        ({"loss": 1.5, "image": np.zeros((2, *SIZE))}, None, ["a dict", "without a tensor"]),
        (None, None, ["a NoneType", "without a tensor"]),
    ],
)
def test_what_is_no_depth_is_one_sentence(returned: object, output: str | None, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        choose_depth("Net", returned, 2, SIZE, output)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "Net" in str(caught.value)


def test_the_size_decides_what_may_be_depth() -> None:
    """Tokens, N x tokens x channels, are no map, although they have its rank."""
    tokens = torch.rand(2, 35, 48)
    assert choose_depth("Net", {"tokens": tokens, "depth": MAP}, 2, SIZE, None)[0] == "depth"


def test_a_network_that_returns_something_else_in_training_is_refused_for_training_only() -> None:
    assert try_network(Auxiliary(), SIZE).output is None
    with pytest.raises(SpecError, match=r"0 \(2 x 1 x 20 x 28\), 1 \(2 x 4 x 20 x 28\).*same in training"):
        check_network(Auxiliary(), SIZE)


def _spec(network: nn.Module, answers: Answers, output: str | None = None, **changes: Any) -> ModelSpec:
    spec = describe_network("a.b:Net", network, SIZE, answers=answers, output=output, depth_range=(0.5, 8.0))
    return replace(spec, **changes)


class _Mean(nn.Module):
    """Weighted means of the channels of the pixels; no two channels have the same weight."""

    weights = (0.6, 0.3, 0.1)

    def forward(self, image: Tensor) -> Tensor:
        return sum(weight * image[:, channel] for channel, weight in enumerate(self.weights))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing("BGR", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        Preprocessing("BGR", (104.0, 117.0, 123.0), (57.0, 58.0, 59.0), scale=1.0),
        Preprocessing("RGB", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), scale=128.0),
    ],
    ids=["ImageNet", "BGR", "BGR 0..255", "scale"],
)
@pytest.mark.parametrize("answers", ["share", "metres", "inverse", "relative"])
def test_pixels_and_answers_are_read_as_the_spec_says(answers: Answers, preprocessing: Preprocessing) -> None:
    spec = _spec(_Mean(), answers, preprocessing=preprocessing)
    frames = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    pixels = frames[..., ::-1] if preprocessing.color == "BGR" else frames
    normal = (pixels / preprocessing.scale - preprocessing.mean) / preprocessing.std
    expected = normal @ _Mean.weights
    if answers == "share":
        expected = expected * 8
    if answers in {"share", "metres"}:
        expected = expected.clip(0.5, 8)
    found = CameraReady(_Mean(), spec).eval()(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.std() > 0.1


@pytest.mark.parametrize("camera", [None, (35, 40)], ids=["its size", "a camera's"])
def test_an_answer_of_another_resolution_is_resized_once(camera: tuple[int, int] | None) -> None:
    network = Disparity().eval()
    spec = _spec(network, "inverse", "maps.1").with_camera(camera)
    module = CameraReady(network, spec).eval()
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *spec.size, 3), np.uint8))
    with torch.no_grad():
        found = module(frames).numpy()
        module.enlarge = None
        answers = module(frames).numpy()
    assert answers.shape == (2, 10, 14)
    for answer, depth in zip(answers, found, strict=True):
        np.testing.assert_allclose(depth, resize_depth(answer, spec.size, smooth=True), atol=1e-5)


@given(sides=st.tuples(st.integers(2, 40), st.integers(2, 40)), goal=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_training_resizes_as_the_graph_does(sides: tuple[int, int], goal: tuple[int, int]) -> None:
    answer = torch.rand(2, *sides, generator=torch.Generator().manual_seed(0))
    share = as_share(answer, _spec(_Mean(), "share"), goal)
    torch.testing.assert_close(share[:, 0], Resample(sides, goal)(answer), atol=2e-5, rtol=0)


def test_a_network_keeps_the_names_of_its_weights() -> None:
    network = Metres()
    names = list(network.state_dict())
    spec = _spec(network, "metres")
    assert spec.network_output == "metres"
    assert list(CameraReady(network, spec).network.state_dict()) == names
