"""Types are read from the engine inspector of TensorRT 10 and 11, or from the network where no GPU opens engines."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depthkit.engines.backend import Built
from depthkit.engines.manifest import Layer
from depthkit.engines.trt import TENSORRT_RTX
from depthkit.engines.trt_inspect import inspect_engine, network_layers, read_layers
from depthkit.errors import BackendError

from ..support import needs_rtx

NETWORK = (
    Layer("node__to_copy", "CAST", "fp16"),
    Layer("node_conv2d", "CONVOLUTION", "fp16"),
    Layer("node_relu", "ACTIVATION", "fp16"),
    Layer("node_conv2d_1", "CONVOLUTION", "fp16"),
    Layer("val_8", "CONSTANT", "int64"),
    Layer("node__to_copy_1", "CAST", "fp32"),
)
CONVOLVED = [1, 24, 32, 48]


def _tensor(words: str, dimensions: list[int] | None = None, *, key: str) -> dict[str, Any]:
    return {
        "Name": "t",
        "Location": "Device",
        "Dimensions": CONVOLVED if dimensions is None else dimensions,
        key: words,
    }


def _row10(name: str, kind: str, read: str, made: str, nodes: str = "", **more: Any) -> dict[str, Any]:
    """A layer in TensorRT 10's format."""
    tensors = {"Inputs": [_tensor(read, key="Format/Datatype")], "Outputs": [_tensor(made, key="Format/Datatype")]}
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    return {"Name": name, "LayerType": kind, **tensors, "StreamId": 0, "Metadata": metadata, **more}


def _row11(name: str, kind: str, read: str, made: str, nodes: str = "", **more: Any) -> dict[str, Any]:
    """A layer in TensorRT 11's format; its constants are the kernel and scales."""
    layout = {"Format": "(NHWC) Channel major format", "Strides": [1], "StrideOrder": [0]}
    tensors = {
        "Inputs": [_tensor(read, key="Datatype") | layout],
        "Constants": [
            _tensor(read, [24, 3, 3, 3], key="Datatype") | layout,
            _tensor("Float", [1], key="Datatype") | layout,
        ],
        "Outputs": [_tensor(made, key="Datatype") | layout],
    }
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    return {"Name": name, "LayerType": kind, **tensors, "TacticName": f"{kind}_kernel", "Metadata": metadata, **more}


def _read(*rows: Any) -> Built:
    return read_layers(json.dumps({"Layers": rows, "Bindings": ["image", "depth"]}), NETWORK)


def _convolutions(built: Built) -> list[tuple[str, str, str]]:
    convolve = [layer for layer in built.layers if "conv" in layer.operator.lower()]
    return [(layer.name, layer.operator, layer.precision) for layer in convolve]


CHANNELS_LAST = "Channel major FP16 format where channel % 8 == 0"
MOVES = _row10(
    "Reformatting CopyNode for Input Tensor 0 to node_conv2d + node_relu", "Reformat", "UInt8", CHANNELS_LAST
)
FIRST = _row10(
    "node_conv2d + node_relu", "CaskConvolution", CHANNELS_LAST, CHANNELS_LAST, "node_conv2d node_relu",
    Weights={"Type": "Half", "Count": 648}, Bias={"Type": "Half", "Count": 24},
    TacticName="sm80_xmma_fprop", TacticValue="0x7005d10718f6c22d",
)  # fmt: skip
SECOND = _row10("node_conv2d_1", "CaskGemmConvolution", "Row major linear FP16 format", "Half", "node_conv2d_1")


def test_tensorrt_10_engine() -> None:
    built = _read(MOVES, FIRST, SECOND | {"TacticValue": "0x0000000000020318"})
    assert built.layers_from == "engine"
    assert _convolutions(built) == [
        ("node_conv2d + node_relu", "CaskConvolution", "fp16"),
        ("node_conv2d_1", "CaskGemmConvolution", "fp16"),
    ]
    assert [layer.tactic for layer in built.layers] == ["", "sm80_xmma_fprop", "0x0000000000020318"]
    assert TENSORRT_RTX.found_precision(built.layers, "fp16") == "fp16"


def test_tensorrt_11_engine() -> None:
    built = _read(
        _row11("__myl_CastMulAddTran_myl0_1", "kgen", "UInt8", "Half", "node__to_copy"),
        _row11("__myl_Move_myl0_2", "kgen", "Half", "Half", "node_conv2d"),
        _row11("node_conv2d_myl0_3", "correlation", "Half", "Half", "node_conv2d node_relu"),
        _row11("node_conv2d_1_myl0_4", "correlation", "Half", "Float", "node_conv2d_1"),
        _row11("__mye1085_myl0_5", "custom_layer", "UInt8", "UInt64"),
    )
    assert built.layers_from == "engine"
    assert _convolutions(built) == [
        ("node_conv2d_myl0_3", "correlation (conv)", "fp16"),
        ("node_conv2d_1_myl0_4", "correlation (conv)", "fp16"),
    ]
    assert [layer.precision for layer in built.layers] == ["fp16", "fp16", "fp16", "fp16", "uint8"]
    assert built.layers[2].tactic == "correlation_kernel"


def test_convolution_in_a_layer_of_another_type() -> None:
    built = _read(FIRST, _row11("node_conv2d_1_myl0_4", "gemm", "Half", "Half", "node_conv2d_1"))
    assert built.layers_from == "engine"
    assert _convolutions(built)[1] == ("node_conv2d_1_myl0_4", "gemm (conv)", "fp16")


def test_matrix_products_in_layers_of_several_types() -> None:
    network = (Layer("q/MatMul", "MATRIX_MULTIPLY", "int8"), Layer("attn/MatMul", "MATRIX_MULTIPLY", "fp16"))
    rows = (
        _row11("__myl_MoveQuant_myl0_1", "kgen", "Half", "Int8", "q/MatMul"),
        _row11("q/MatMul_myl0_2", "gemm", "Int8", "Half", "q/MatMul q/Add"),
        _row11("_gemm_mha_v2_myl0_3", "mha", "Half", "Half", "attn/MatMul attn/Softmax"),
    )
    built = read_layers(json.dumps({"Layers": rows}), network)
    assert built.layers_from == "engine"
    assert [(layer.operator, layer.precision) for layer in built.layers if layer.multiplies] == [
        ("gemm", "int8"),
        ("mha (matmul)", "fp16"),
    ]


def test_type_of_scalars_is_ignored() -> None:
    scaled = _row11("scaled", "correlation", "Half", "Half", "node_conv2d_1 val_8")
    scaled["Inputs"] = [_tensor("Float", [1], key="Datatype"), _tensor("Float", [], key="Datatype"), *scaled["Inputs"]]
    built = _read(FIRST, scaled)
    assert (built.layers_from, _convolutions(built)[1]) == ("engine", ("scaled", "correlation (conv)", "fp16"))


@pytest.mark.parametrize(
    "rows",
    [
        [_row11("{ForeignNode[node__to_copy...node__to_copy_1]}", "Myelin", "UInt8", "Float",
                "node__to_copy node_conv2d node_relu node_conv2d_1 val_8 node__to_copy_1")],
        [_row10("node_conv2d", "CaskConvolution", "UInt8", "Float", "node_conv2d", Weights={"Type": "Half"}), SECOND],
        [_row10("fused", "CaskConvolution", "Row major linear FP32 format", "Half", "node__to_copy_1 node_conv2d",
                Weights={"Type": "Half"}), SECOND],
        [FIRST, _row11("head", "correlation", "Float", "Float", "node_conv2d_1 node__to_copy_1")],
    ],
    ids=["whole network", "bytes", "another type before", "another type after"],
)  # fmt: skip
def test_layer_of_several_types_falls_back_to_the_network(rows: list[Any]) -> None:
    built = _read(*rows)
    assert built.layers_from == "network"
    assert [precision for _, _, precision in _convolutions(built)] == ["fp16", "fp16"]
    assert TENSORRT_RTX.found_precision(built.layers, "fp16") == "fp16"


@pytest.mark.parametrize("absent", ["Name", "LayerType", "Inputs", "Outputs", "Metadata", "Dimensions", "Type"])
def test_keys_may_be_absent(absent: str) -> None:
    def without(told: Any) -> Any:
        if isinstance(told, dict):
            return {key: without(value) for key, value in told.items() if key != absent}
        return [without(each) for each in told] if isinstance(told, list) else told

    assert TENSORRT_RTX.found_precision(_read(without(FIRST), without(SECOND)).layers, "fp16") == "fp16"


def test_empty_inspection_falls_back_to_the_network() -> None:
    assert read_layers("{}", NETWORK).layers_from == "network"


@pytest.mark.parametrize(
    "wrong",
    [
        SECOND | {"Inputs": [_tensor("Row major linear FP32", key="Format/Datatype")]},
        FIRST | {"Weights": {"Type": "Float", "Count": 648}},
        _row11("node_conv2d_1_myl0_4", "correlation", "Float", "Float", "node_conv2d_1"),
        _row11("node_conv2d_1_myl0_4", "gemm", "BFloat16", "Half", "node_conv2d_1"),
    ],
    ids=["TensorRT 10", "kernel", "TensorRT 11", "gemm"],
)
def test_wrong_type_in_the_engine_is_found(wrong: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="fp16 was requested"):
        TENSORRT_RTX.found_precision(_read(FIRST, wrong).layers, "fp16")


def test_kernel_gives_the_type_where_dynamic_shapes_hide_the_tensors() -> None:
    hidden = "N/A due to dynamic shapes"
    first = _row10("node_conv2d", "CaskConvolution", hidden, hidden, "node_conv2d", Weights={"Type": "Half"})
    built = _read(first, SECOND)
    assert (built.layers_from, _convolutions(built)[0][2]) == ("engine", "fp16")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [SECOND],
        [SECOND, _row10("node_conv2d", "CaskConvolution", "N/A due to dynamic shapes", "", "node_conv2d")],
        [SECOND, "node_conv2d + node_relu"],
    ],
    ids=["nothing", "convolution missing", "type hidden", "name only"],
)
def test_missing_information_falls_back_to_the_network(rows: list[Any]) -> None:
    built = _read(*rows)
    assert built.layers_from == "network"
    assert ("node_conv2d", "CONVOLUTION", "fp16") in _convolutions(built)
    assert [precision for _, _, precision in _convolutions(built)] == ["fp16", "fp16"]


class Engine:
    """A stand-in for an `ICudaEngine`, its inspector and its execution context."""

    def __init__(self, batch: int) -> None:
        self.shapes = {"image": (batch, 32, 48, 3), "depth": (batch, 32, 48)}
        self.num_io_tensors = 2
        self.set: dict[str, tuple[int, ...]] = {}
        self.execution_context: Engine | None = None

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"image": "in", "depth": "out"}[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(frames, *self.shapes[name][1:]) for frames in (1, 2, 4)]

    def create_engine_inspector(self) -> Engine:
        return self

    def create_execution_context(self, strategy: str) -> Engine | None:
        assert strategy == "no memory"
        return self if self.shapes["image"][1] else None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.set[name] = shape
        return True

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        assert self.execution_context is (self if self.set else None)
        return "{}"


TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="no memory"),
    LayerInformationFormat=SimpleNamespace(JSON="json"),
)


@pytest.mark.parametrize(("batch", "sizes"), [(1, {}), (-1, {"image": (2, 32, 48, 3)})], ids=["static", "dynamic"])
def test_a_dynamic_engine_is_inspected_at_its_optimum(batch: int, sizes: dict[str, tuple[int, ...]]) -> None:
    engine = Engine(batch)
    assert inspect_engine(TRT, engine) == "{}"
    assert engine.set == sizes


def test_an_engine_without_a_context_is_not_inspected() -> None:
    engine = Engine(-1)
    engine.shapes["image"] = (-1, 0, 0, 3)
    with pytest.raises(RuntimeError, match="context"):
        inspect_engine(TRT, engine)


@needs_rtx
def test_wrong_type_in_a_hand_made_network_is_found() -> None:
    """TensorRT checks types when it infers shapes, which is later."""
    vendor = TENSORRT_RTX.vendor()
    with TENSORRT_RTX.listening("cannot"):
        builder = vendor.Builder(TENSORRT_RTX.logger())
        network = builder.create_network(1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        image = network.add_input("image", vendor.DataType.HALF, (1, 3, 8, 8))
        for name, dtype in (("right", np.float16), ("wrong", np.float32)):
            network.add_convolution_nd(image, 4, (3, 3), np.zeros((4, 3, 3, 3), dtype)).name = name
        layers = network_layers(vendor, network)
    assert [(each.name, each.precision) for each in layers] == [("right", "fp16"), ("wrong", "fp16+fp32")]
    with pytest.raises(BackendError, match=r"fp16 was requested.*fp16\+fp32"):
        TENSORRT_RTX.found_precision(layers, "fp16")
