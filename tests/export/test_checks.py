"""The checks between a graph and its name: all pass on a good export, and each fails on what it is there for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from depthkit.export.checks import (
    Check,
    Subject,
    check_folding,
    check_graph,
    check_lint,
    check_onnx,
    check_parity,
    run_checks,
)
from depthkit.export.onnx_file import make_reference
from depthkit.export.torch_source import TorchSource
from depthkit.precisions import Precision
from depthkit.reference import read_reference
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.networks import compact, describe_network

from .conftest import source_of

SIZE = (32, 48)
Make = Callable[[Precision], Subject]
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def subject(pristine_exports: Path, tmp_path: Path) -> Make:
    """A good export as the checks get it."""

    def make(precision: Precision) -> Subject:
        path = tmp_path / f"good.{precision}.onnx"  # a copy: lint writes its report beside it
        shutil.copyfile(pristine_exports / f"compact-32x48.{precision}.onnx", path)
        reference = read_reference(pristine_exports / "compact-32x48.reference.npz")
        source, spec = TorchSource(read_bundle(pristine_exports)), describe_network("compact", compact(), SIZE)
        return Subject(path, source, spec, precision, reference)

    return make


@pytest.fixture
def altered(subject: Make, tmp_path: Path) -> Callable[[Change], Subject]:
    """The FP32 export after `change` was done to its graph."""

    def make(change: Change) -> Subject:
        good = subject("fp32")
        model = onnx.load(good.path)
        change(model)
        path = tmp_path / "altered.fp32.onnx"
        path.write_bytes(model.SerializeToString())
        return replace(good, path=path)

    return make


def _last_weights(model: onnx.ModelProto) -> onnx.TensorProto:
    node = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return found


def _set_weight(model: onnx.ModelProto, value: float) -> None:
    """Change one number among a million."""
    tensor = _last_weights(model)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _halve_weights(model: onnx.ModelProto) -> None:
    tensor = _last_weights(model)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def _drop_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.pop()


def _take_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _add_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["idle"], value_float=1.0))


def _add_unknown_operator(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "depth" in node.output)
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Teleport", ["before"], ["depth"], name="late"))


def test_every_check_passes_on_a_good_export_and_says_what_it_saw(subject: Make) -> None:
    checks = list(run_checks(subject("fp16")))
    assert all(check.passed for check in checks), checks
    assert [check.name for check in checks] == [
        "ONNX checker",
        "camera-ready graph",
        "Polygraphy constant folding",
        "Polygraphy lint",
        "ONNX Runtime vs torch",
        "torch FP16 vs FP32",
    ]
    assert all(check.detail for check in checks)


def test_full_precision_is_held_to_a_millimetre_and_not_to_fp16s_range(subject: Make) -> None:
    names = {check.name: check for check in run_checks(subject("fp32"))}
    assert all(check.passed for check in names.values())
    assert "torch FP16 vs FP32" not in names
    assert "1 mm" in names["ONNX Runtime vs torch"].detail
    assert "8 frames" in names["ONNX Runtime vs torch"].detail


@pytest.mark.parametrize(
    ("check", "change", "words"),
    [
        (check_onnx, _drop_weights, ""),
        (check_onnx, _halve_weights, ""),
        (check_onnx, _add_unknown_operator, "Teleport"),  # Polygraphy's lint misses it where the input is uint8
        (check_lint, _drop_weights, ""),
        (check_folding, _add_constant, "1 node"),
        (check_graph, _take_floats, "UINT8"),
        *[(check_parity, partial(_set_weight, value=value), "mm") for value in (0.5, float("nan"), float("inf"))],
    ],
)
def test_each_check_fails_on_what_it_is_there_for(
    altered: Callable[[Change], Subject], check: Callable[[Subject], Check], change: Change, words: str
) -> None:
    found = check(altered(change))
    assert not found.passed
    assert found.detail
    assert words in found.detail


def test_nan_reference_fails_parity(subject: Make) -> None:
    good = subject("fp32")
    depths = good.reference.depths.copy()
    depths[3, 2, 1] = np.nan
    assert not check_parity(replace(good, reference=replace(good.reference, depths=depths))).passed


def test_half_range_names_the_layer_that_overflows(overflowing: Bundle, tmp_path: Path) -> None:
    """Torch in real half precision, not an emulation: the weights all fit, and only what they make does not."""
    spec = describe_network("compact", compact(), SIZE)
    source = TorchSource(overflowing)
    reference = make_reference(source, overflowing.spec_at(SIZE))
    found = source.check_half(Subject(tmp_path / "unused", source, spec, "fp16", reference))
    assert not found.passed
    assert "stem.3" in found.detail
    assert "65504" in found.detail


class _Constant(nn.Module):
    """Holds a tensor that no conversion of the network reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.ones(1, 3, 3, 3) / 27

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(image, self.kernel.to(image.device), padding=1)


def test_half_range_says_what_torch_does_not_compute(pristine_exports: Path, tmp_path: Path) -> None:
    network, reference = _Constant(), read_reference(pristine_exports / "compact-32x48.reference.npz")
    spec = describe_network("a.b:Constant", network, SIZE)
    source = source_of(network, pristine_exports)
    found = source.check_half(Subject(tmp_path / "unused", source, spec, "fp16", reference))
    assert not found.passed
    assert "export it in FP32" in found.detail


def test_overflowing_network_is_the_same_in_full_precision(overflowing: Bundle, pristine_exports: Path) -> None:
    """The twin of the test above: it fails for its range, and for nothing else."""
    expected = read_reference(pristine_exports / "compact-32x48.reference.npz").depths
    assert np.abs(make_reference(TorchSource(overflowing), overflowing.spec_at(SIZE)).depths - expected).max() < 1e-3
