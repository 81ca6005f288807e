"""The graph: camera-ready ends, batch norm folded exactly, one precision inside, and metadata that come back."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from depthkit.data.images import resize_image
from depthkit.documents import from_json
from depthkit.errors import BackendError
from depthkit.export.checks import Subject, run_checks
from depthkit.export.finish import Origin, sign
from depthkit.export.graph import build_graph, fold_batch_norm
from depthkit.files import sha256
from depthkit.onnx_graph import METADATA
from depthkit.precisions import PRECISIONS, Precision
from depthkit.reference import Reference
from depthkit.spec import Dim, ModelSpec
from depthkit.train.bundle import read_bundle
from depthkit.train.camera_ready import CameraReady
from depthkit.train.document import read_document
from depthkit.train.networks import NETWORKS, build_network, compact, describe_network

from .conftest import source_of

SIZE = (32, 48)
FLOAT, FLOAT16, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8
FLOATS = pytest.mark.parametrize("precision", ["fp32", "fp16"])


def _model(folder: Path, precision: str) -> onnx.ModelProto:
    return onnx.load(folder / f"compact-32x48.{precision}.onnx")


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor in the graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_no_batch_norm_and_changes_no_answer(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network)
    image = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = network(image), folded(image)
    assert expected.std() > 1e-3, "a network that answers a constant would prove nothing"
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the network is kept"


class _Swish(nn.BatchNorm2d):
    """A batch norm that does more than its base class, as timm's do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        return nn.functional.silu(super().forward(input))


class _Foreign(nn.Module):
    """Batch norm as other people's networks have it: as attributes, before convolutions, shared, in subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.before, self.plain = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.conv2, self.swish = nn.Conv2d(8, 8, 3, padding=1), _Swish(8)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.group, self.up, self.bn2 = nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)
        self.twin = self.bn2
        self.head = nn.Conv2d(8, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.05, 0.2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.swish(self.conv2(self.before(x))) + self.plain(self.down(x))
        x = self.twin(self.bn2(self.up(nn.functional.silu(self.group(x)))))
        x = nn.functional.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(x))


@pytest.fixture(scope="module")
def foreign() -> nn.Module:
    torch.manual_seed(0)
    return _Foreign().eval()


def test_batch_norm_anywhere_is_folded_or_applied_and_changes_no_answer(foreign: nn.Module) -> None:
    network = copy.deepcopy(foreign).double()
    folded = fold_batch_norm(network)
    image = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), network(image), rtol=1e-9, atol=1e-9)
    assert [type(module) for module in folded.modules() if isinstance(module, nn.BatchNorm2d)] == [_Swish]


@pytest.mark.parametrize(("precision", "batch"), [("fp16", 1), ("fp32", Dim("batch", 1, 2, 4))])
def test_foreign_network_passes_every_check(
    foreign: nn.Module, precision: Precision, batch: int | Dim, pristine_run: Path, tmp_path: Path
) -> None:
    spec = describe_network("a.b:Foreign", foreign, (33, 47)).with_batch(batch)
    images = np.stack([resize_image(image, spec.size) for image in read_bundle(pristine_run).frames.images])
    camera = CameraReady(copy.deepcopy(foreign), spec).eval()
    with torch.inference_mode():
        depths = camera(torch.from_numpy(images)).numpy()
    assert depths.std() > 0.1, "a network that answers a constant would prove nothing"
    path = tmp_path / "foreign.onnx"
    onnx.save(sign(build_graph(foreign, spec, precision), spec, precision, Origin("0" * 64, "{}")), path)
    checks = list(
        run_checks(Subject(path, source_of(foreign, pristine_run), spec, precision, Reference(images, depths, depths)))
    )
    assert all(check.passed for check in checks), checks


class _ByValues(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1] if float(image.sum()) > 0 else image[:, 1:2]


def test_network_that_torch_cannot_write_is_one_sentence() -> None:
    network = _ByValues()
    with pytest.raises(BackendError, match=r"a\.b:ByValues.*control flow that depends on values") as caught:
        build_graph(network, describe_network("a.b:ByValues", network, SIZE), "fp32")
    assert "\n" not in str(caught.value)


@FLOATS
def test_ends_are_the_cameras_bytes_and_metres(pristine_exports: Path, precision: str) -> None:
    graph = _model(pristine_exports, precision).graph
    (image,), (depth,) = graph.input, graph.output
    assert (image.name, image.type.tensor_type.elem_type, _shape(image)) == ("image", UINT8, [1, *SIZE, 3])
    assert (depth.name, depth.type.tensor_type.elem_type, _shape(depth)) == ("depth", FLOAT, [1, *SIZE])


@FLOATS
def test_operator_set_is_one_that_every_runtime_reads(pristine_exports: Path, precision: Precision) -> None:
    model = _model(pristine_exports, precision)
    (opset,) = model.opset_import
    assert (opset.domain, opset.version) == ("", PRECISIONS[precision].opset)
    assert 18 <= opset.version <= 20
    onnx.checker.check_model(model, full_check=True)


@FLOATS
def test_metadata_come_back_as_the_models_spec(pristine_exports: Path, precision: str) -> None:
    entries = {entry.key: entry.value for entry in _model(pristine_exports, precision).metadata_props}
    found = from_json(ModelSpec, entries[METADATA.spec], source="it")
    assert found == read_document(pristine_exports).model
    assert found == describe_network("compact", compact(), SIZE, focal=found.focal)
    assert entries[METADATA.precision] == precision
    assert entries[METADATA.weights_sha256] == sha256(pristine_exports / "model.safetensors")


@FLOATS
def test_no_batch_norm_and_nothing_left_to_fold(pristine_exports: Path, precision: str) -> None:
    operators = Counter(node.op_type for node in _model(pristine_exports, precision).graph.node)
    assert operators["Conv"] == 19, "two in the stem, eight in the encoder, eight in the decoder, one head"
    assert not operators.keys() & {"BatchNormalization", "Constant", "Identity", "Dropout"}


def test_file_is_whole_on_its_own(pristine_exports: Path) -> None:
    graph = _model(pristine_exports, "fp32").graph
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)


@FLOATS
def test_every_convolution_computes_in_the_precision_that_was_asked_for(pristine_exports: Path, precision: str) -> None:
    model = _model(pristine_exports, precision)
    types, wanted = _types(model), {"fp32": FLOAT, "fp16": FLOAT16}[precision]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {types[name] for node in convolutions for name in (*node.input, *node.output)} == {wanted}


@FLOATS
def test_pixels_are_cast_before_their_layout_changes(pristine_exports: Path, precision: str) -> None:
    """TensorRT's parser refuses to transpose uint8."""
    model = _model(pristine_exports, precision)
    types = _types(model)
    transposed = [node.input[0] for node in model.graph.node if node.op_type == "Transpose"]
    assert transposed
    assert all(types[name] in {FLOAT, FLOAT16} for name in transposed)
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_metres_are_clamped_in_full_precision(pristine_exports: Path) -> None:
    """Half precision has steps of 8 mm at 10 m: the last operators of the FP16 graph must be FP32."""
    model = _model(pristine_exports, "fp16")
    types = _types(model)
    last = next(node for node in reversed(model.graph.node) if "depth" in node.output)
    assert types[last.input[0]] == FLOAT
    widening = [n for n in model.graph.node if n.op_type == "Cast" and types[n.output[0]] == FLOAT]
    assert len(widening) == 1


def test_half_graph_is_half_as_large(pristine_exports: Path) -> None:
    full, half = (
        sum(tensor.ByteSize() for tensor in _model(pristine_exports, p).graph.initializer) for p in ("fp32", "fp16")
    )
    assert half < 0.55 * full


def test_dynamic_batch_is_named_in_the_ends_and_in_the_metadata(pristine_run: Path) -> None:
    """What it answers: tests/parity."""
    bundle = read_bundle(pristine_run)
    spec = bundle.spec.with_batch(Dim("batch", 1, 2, 4))
    model = sign(build_graph(bundle.network, spec, "fp32"), spec, "fp32", Origin(bundle.weights_sha256, "{}"))
    assert _shape(model.graph.input[0]) == ["batch", *SIZE, 3]
    assert _shape(model.graph.output[0]) == ["batch", *SIZE]
    assert from_json(ModelSpec, model.metadata_props[0].value, source="it").batch == Dim("batch", 1, 2, 4)


def test_building_a_half_graph_leaves_the_network_in_full_precision(pristine_run: Path) -> None:
    bundle = read_bundle(pristine_run)
    before = {key: value.clone() for key, value in bundle.network.state_dict().items()}
    build_graph(bundle.network, bundle.spec_at((16, 16)), "fp16")
    after = bundle.network.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())
