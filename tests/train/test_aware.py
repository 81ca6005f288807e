"""Quantisation-aware training: what is simulated, what of it is kept, and what it is worth."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from depthkit.cli import run as depthkit
from depthkit.train.aware import make_aware
from depthkit.train.bundle import read_bundle
from depthkit.train.document import read_document
from depthkit.train.shipped import shipped_run

from .runs import record_of

Captured = pytest.CaptureFixture[str]


def _pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


def test_what_is_read_and_multiplied_has_127_steps_a_side() -> None:
    plain = _pair()
    aware = copy.deepcopy(plain)
    make_aware(aware)
    picture = torch.linspace(-2, 3, 3 * 8 * 8).view(1, 3, 8, 8)
    aware.train()(picture)
    aware.eval()
    first, plain_first = aware[0], plain[0]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(plain_first, nn.Conv2d)
    assert float(first.get_buffer("reach")) == 3
    scale = 3 / 127
    scales = plain_first.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    steps = (picture / scale).round().clamp(-127, 127) * scale
    kernel = (plain_first.weight / scales).round() * scales
    expected = torch.conv2d(steps, kernel, plain_first.bias, padding=1)
    torch.testing.assert_close(first(picture), expected)
    assert type(aware[2]) is type(first), "what answers depth reads INT8 as well"


def test_state_dict_is_that_of_the_network_and_gradients_pass() -> None:
    plain, aware = _pair(), _pair()
    make_aware(aware)
    aware(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aware.parameters())
    assert aware.state_dict().keys() == plain.state_dict().keys()


def test_range_follows_what_was_read_and_rests_in_evaluation() -> None:
    aware = _pair()
    make_aware(aware)
    for largest in (1.0, 2.0):
        aware.train()(torch.full((1, 3, 8, 8), largest))
    assert float(aware[0].get_buffer("reach")) == pytest.approx(1.05)
    aware.eval()(torch.full((1, 3, 8, 8), 100.0))
    assert float(aware[0].get_buffer("reach")) == pytest.approx(1.05)


def test_weights_of_zero_and_a_black_picture_stay_finite() -> None:
    aware = _pair()
    make_aware(aware)
    with torch.no_grad():
        aware[0].weight.zero_()  # type: ignore[operator]
    assert torch.isfinite(aware(torch.zeros(1, 3, 8, 8))).all()


def test_what_is_no_convolution_is_left_alone() -> None:
    network = nn.Linear(2, 2)
    make_aware(network)
    assert type(network) is nn.Linear


def test_a_run_goes_on_with_its_own_network_size_and_data(tmp_path: Path, capsys: Captured) -> None:
    arguments = ["train", "--quantize", "compact", "--data", "scenes", "--size", "32x48", "--epochs", "1"]
    assert depthkit([*arguments, "--steps", "2", "--batch", "2", "--out", str(tmp_path)]) == 0
    record = record_of(tmp_path / "compact")
    assert (record.preset, record.data, record.size) == ("int8", "scenes", (32, 48))
    assert record.init == read_document(shipped_run("compact")).weights_sha256
    trained, first = (
        read_bundle(folder).network.state_dict() for folder in (tmp_path / "compact", shipped_run("compact"))
    )
    name = "stem.0.weight"
    assert not torch.equal(trained[name], first[name])
    assert torch.allclose(trained[name], first[name], atol=0.05), "it goes on, and does not begin anew"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "unet"], "--network has no effect with --quantize"),
        (["--preset", "best", "--init", "compact"], "--preset, --init has no effect with --quantize"),
        (["--quantize", "nowhere"], "no run, ONNX file or engine nowhere"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], words: str, capsys: Captured) -> None:
    assert depthkit(["train", "--quantize", "compact", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_run_itself_is_not_replaced(run: Path, capsys: Captured) -> None:
    assert depthkit(["train", "--quantize", str(run), "--out", str(run.parent)]) == 2
    assert "another folder with --out" in capsys.readouterr().err
