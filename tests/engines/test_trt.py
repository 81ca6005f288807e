"""TensorRT-RTX builds real engines of both networks without a GPU; its parser's errors are reported."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from depthkit.engines import trt
from depthkit.engines.build import BuildOptions, build
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import Gpu
from depthkit.engines.gpu import find_gpu as find_real_gpu
from depthkit.engines.manifest import Layer, read_manifest
from depthkit.engines.trt import TENSORRT, TENSORRT_RTX, TensorRT
from depthkit.errors import BackendError
from depthkit.precisions import Precision
from depthkit.spec import Dim

from ..support import L4, FindGpu, needs_rtx, seal_graph

pytestmark = pytest.mark.usefixtures("find_gpu")

SIZE = (32, 48)
DYNAMIC = Dim("batch", 1, 2, 4)
CONVOLUTIONS = {"compact": 19, "unet": 19}
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """ONNX files of both networks with random weights, each exported once. Read only."""
    folder = tmp_path_factory.mktemp("onnx")

    def exported(network: str = "compact", precision: Precision = "fp16", batch: int | Dim = 1) -> Path:
        path = folder / f"{network}-{'dynamic' if isinstance(batch, Dim) else batch}.{precision}.onnx"
        if not path.exists():
            import torch

            from depthkit.export.finish import Origin, sign
            from depthkit.export.graph import build_graph
            from depthkit.train.networks import build_network, describe_network

            torch.manual_seed(0)
            net = build_network(network).eval()
            spec = describe_network(network, net, SIZE).with_batch(batch)
            graph = build_graph(net, spec, precision)
            onnx.save(sign(graph, spec, precision, Origin("0" * 64, "random weights")), path)
        return path

    return exported


def _convolutions(layers: tuple[Layer, ...]) -> list[Layer]:
    return [layer for layer in layers if "conv" in layer.operator.lower()]


def _shapes(dim: Dim) -> dict[int, bytes]:
    """The input's shapes in an optimisation profile, as they lie in a plan."""
    return {frames: struct.pack("<4q", frames, *SIZE, 3) for frames in (dim.min, dim.opt, dim.max)}


def _plan(path: Path, tmp_path: Path, precision: Precision = "fp16", **options: str) -> bytes:
    engine = tmp_path / "engine"
    TENSORRT_RTX.build(path, engine, precision, TENSORRT_RTX.parse_options({"compute_capability": "89"} | options))
    plan = engine.read_bytes()
    engine.unlink()
    return plan


@needs_rtx
@pytest.mark.parametrize("batch", [1, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("network", "targets"),
    [("compact", ["75", "86", "89", "120"]), pytest.param("unet", ["75,86,89,120"], marks=pytest.mark.slow)],
    ids=["compact", "unet"],
)
def test_engines_of_both_networks(
    export: Export, tmp_path: Path, network: str, targets: list[str], precision: Precision, batch: int | Dim
) -> None:
    path, engine, plans = export(network, precision, batch), tmp_path / "engine", set()
    for target in targets:
        options = TENSORRT_RTX.parse_options({"compute_capability": target})
        built = TENSORRT_RTX.build(path, engine, precision, options)
        assert built.layers_from == "network"
        assert [each.precision for each in _convolutions(built.layers)] == [precision] * CONVOLUTIONS[network]
        assert {each.precision for each in built.layers if each.operator in {"RESIZE", "POOLING"}} == {precision}
        assert TENSORRT_RTX.found_precision(built.layers, precision) == precision
        assert TENSORRT_RTX.target(options).architecture == " ".join(f"sm_{each}" for each in target.split(","))
        plan = engine.read_bytes()
        found = [frames for frames, shape in _shapes(DYNAMIC).items() if shape in plan]
        assert found == ([1, 2, 4] if isinstance(batch, Dim) else [1])
        plans.add(plan)
        engine.unlink()
    assert len(plans) == len(targets)  # all differ


@needs_rtx
def test_layers_match_the_onnx_file(export: Export, tmp_path: Path) -> None:
    path = export("compact", "fp16")
    built = TENSORRT_RTX.build(path, tmp_path / "engine", "fp16", TENSORRT_RTX.parse_options({}))
    nodes = {node.name: node.op_type for node in onnx.load(path).graph.node}
    found = {layer.name: layer for layer in built.layers}
    assert [each.name for each in _convolutions(built.layers)] == [n for n, op in nodes.items() if op == "Conv"]
    casts = [layer.precision for name, layer in found.items() if nodes.get(name) == "Cast"]
    assert casts == ["fp16", "fp32"]  # what the graph's two ends are cast to


def _plant(path: Path, to: Path, change: Callable[[onnx.GraphProto], str]) -> str:
    """A changed copy of an ONNX file that looks like an exported one; the name of the node that is wrong now."""
    model = onnx.load(path)
    node = change(model.graph)
    seal_graph(model)
    onnx.save(model, to)
    return node


def _retyped(graph: onnx.GraphProto, node: onnx.NodeProto, operand: int, dtype: Any) -> str:
    tensor = next(each for each in graph.initializer if each.name == node.input[operand])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return str(node.name)


def _float_kernel(graph: onnx.GraphProto) -> str:
    return _retyped(graph, [each for each in graph.node if each.op_type == "Conv"][3], 1, np.float32)


def _float_bias(graph: onnx.GraphProto) -> str:
    return _retyped(
        graph, [each for each in graph.node if len(each.input) == 3 and each.op_type == "Conv"][3], 2, np.float32
    )


def _transpose_before_cast(graph: onnx.GraphProto) -> str:
    cast, transpose = graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    transpose.input[0], cast.input[0] = cast.input[0], "permuted"
    cast.output[0], transpose.output[0] = transpose.output[0], "permuted"
    nodes = [transpose, cast, *graph.node[2:]]
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return str(nodes[0].name)


def _unknown_operator(graph: onnx.GraphProto) -> str:
    graph.node[5].op_type = "Frobnicate"
    return str(graph.node[5].name)


@needs_rtx
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_float_kernel, "`input` type is Half but `kernel` is of type Float"),
        (_float_bias, "`input` is of type Half but `bias` is of type Float"),
        (_transpose_before_cast, "first input has type UInt8"),
        (_unknown_operator, "Frobnicate"),
    ],
)
def test_parser_errors_name_the_node(
    export: Export, tmp_path: Path, change: Any, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compact-32x48.fp16.onnx"
    node = _plant(export(), path, change)
    with pytest.raises(BackendError) as refused:
        build(path, BuildOptions("tensorrt-rtx", {"compute_capability": "89"}))
    assert node in str(refused.value)
    assert says in str(refused.value)
    assert "CUDA driver" not in str(refused.value)  # which is missing here, and not what is wrong
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_manifest_describes_the_engine(export: Export, tmp_path: Path) -> None:
    path = tmp_path / "compact-32x48.fp16.onnx"
    path.write_bytes(export().read_bytes())
    made = build(path, BuildOptions("tensorrt-rtx", {"compute_capability": "86,89"}))
    manifest = read_manifest(made.path)
    assert made.path.name == "compact-32x48.fp16.compute_capability=86,89.rtx"
    assert (manifest.precision_found, manifest.layers_from) == ("fp16", "network")
    assert manifest.device == Fingerprint("gpu", "", "sm_86 sm_89")
    assert manifest.options == {"tf32": False, "workspace_mib": 0, "compute_capability": "86,89"}
    assert manifest.backend_version == TENSORRT_RTX.availability().version


@needs_rtx
def test_precision_other_than_the_files_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"fp16 was requested, but only 0% of the layers with weights.*\(fp32\)"):
        _plan(export("compact", "fp32"), tmp_path, "fp16")
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_options_reach_the_builder(export: Export, tmp_path: Path) -> None:
    path = export("compact", "fp32")
    plain = _plan(path, tmp_path, "fp32")
    assert _plan(path, tmp_path, "fp32", tf32="false") == plain
    assert _plan(path, tmp_path, "fp32", tf32="true") != plain
    with pytest.raises(BackendError, match=r"cannot build .*workspace"):
        _plan(path, tmp_path, "fp32", workspace_mib="1")


@needs_rtx
def test_dynamic_batch_needs_a_profile(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "_add_profile", lambda *_: None)
    with pytest.raises(BackendError, match="no optimization profile"):
        _plan(export(batch=DYNAMIC), tmp_path)


@needs_rtx
def test_unreadable_engine_is_removed(export: Export, tmp_path: Path, find_gpu: FindGpu) -> None:
    if isinstance(find_real_gpu(), Gpu):
        pytest.skip("there is a GPU here, which can read it")
    find_gpu(L4)
    engine = tmp_path / "engine"
    with pytest.raises(BackendError, match=r"cannot read the engine: .*driver"):
        TENSORRT_RTX.build(export(), engine, "fp16", TENSORRT_RTX.parse_options({}))
    assert not engine.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("maker", [TENSORRT, TENSORRT_RTX], ids=lambda maker: maker.name)
def test_types_are_read_back_from_the_engine(
    export: Export, tmp_path: Path, maker: TensorRT[Any], precision: Precision, batch: int | Dim
) -> None:
    here = maker.availability()
    if not here.runnable:
        pytest.skip(f"{maker.name}: {here.reason}")
    built = maker.build(export("compact", precision, batch), tmp_path / "engine", precision, maker.parse_options({}))
    assert maker.found_precision(built.layers, precision) == precision
    # TensorRT may fuse some convolutions with other types, whose own it does not tell then, yet hardly all.
    assert any(each.operator != "CONVOLUTION" and each.tactic for each in _convolutions(built.layers))
