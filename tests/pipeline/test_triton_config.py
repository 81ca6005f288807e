"""Triton's `config.pbtxt`: parsed by the protobuf that tritonclient publishes, and checked field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from depthkit.engines.build import backend
from depthkit.engines.manifest import Manifest
from depthkit.errors import BackendError
from depthkit.pipeline.triton_config import SERVINGS, model_config, serving, to_text
from depthkit.precisions import Precision
from depthkit.spec import Dim

from ..support import model_spec, sample_manifest

DYNAMIC = Dim("batch", 1, 4, 16)


def manifest(name: str, batch: int | Dim = 1, asked: Precision = "fp32", **options: Any) -> Manifest:
    """The manifest of an engine of a backend with these options."""
    maker = backend(name)
    return replace(
        sample_manifest(),
        backend=name,
        model=model_spec(96, 128, batch),
        precision_asked=asked,
        options=maker.record(maker.parse_options(options)),
    )


def parsed(described: Manifest, name: str = "depth", facts: dict[str, str] | None = None) -> Any:
    """The configuration as Triton reads it."""
    return text_format.Parse(to_text(model_config(name, described, facts or {})), ModelConfig())


def parameters(config: Any) -> dict[str, str]:
    """Its parameters."""
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize("name", SERVINGS)
def test_static_batch_stands_in_the_dims(name: str) -> None:
    config = parsed(manifest(name, 4))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 96, 128, 3]
    assert list(config.output[0].dims) == [4, 96, 128]
    assert not config.HasField("dynamic_batching")
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1
    assert list(warmup.inputs["image"].dims) == [4, 96, 128, 3]


@pytest.mark.parametrize("name", SERVINGS)
def test_dynamic_batch_is_batched_by_triton(name: str) -> None:
    config = parsed(manifest(name, DYNAMIC))
    assert config.max_batch_size == 16
    assert list(config.input[0].dims) == [96, 128, 3]
    assert list(config.output[0].dims) == [96, 128]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert [each.batch_size for each in config.model_warmup] == [1, 4, 16]
    assert all(list(each.inputs["image"].dims) == [96, 128, 3] for each in config.model_warmup)


@pytest.mark.parametrize(("opt", "preferred"), [(1, [8]), (8, [8]), (2, [2, 8])])
def test_batch_of_one_is_not_preferred(opt: int, preferred: list[int]) -> None:
    """Triton would run every single frame at once, and batch nothing."""
    config = parsed(manifest("onnxruntime", Dim("batch", 1, opt, 8)))
    assert list(config.dynamic_batching.preferred_batch_size) == preferred


@pytest.mark.parametrize(
    ("name", "served", "kind", "file"),
    [
        ("onnxruntime", "onnxruntime", "KIND_CPU", "model.onnx"),
        ("onnxruntime-cuda", "onnxruntime", "KIND_GPU", "model.onnx"),
        ("openvino", "openvino", "KIND_CPU", "model.onnx"),
        ("tensorrt", "tensorrt", "KIND_GPU", "model.plan"),
    ],
)
def test_backend_device_and_file(name: str, served: str, kind: str, file: str) -> None:
    config = parsed(manifest(name))
    (group,) = config.instance_group
    assert (config.backend, config.default_model_filename) == (served, file)
    assert (group.Kind.Name(group.kind), group.count) == (kind, 1)
    assert config.platform == ("tensorrt_plan" if name == "tensorrt" else "")
    assert config.version_policy.latest.num_versions == 1
    assert (config.input[0].name, config.output[0].name) == ("image", "depth")
    types = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    assert [types[each.data_type].name for each in (config.input[0], config.output[0])] == ["TYPE_UINT8", "TYPE_FP32"]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (manifest("onnxruntime"), {}),
        (manifest("onnxruntime", threads=3), {"intra_op_thread_count": "3"}),
        (manifest("onnxruntime-cuda"), {"cudnn_conv_algo_search": "0"}),
        (manifest("onnxruntime-cuda", cudnn_search="default"), {"cudnn_conv_algo_search": "2"}),
        (manifest("openvino"), {"PERFORMANCE_HINT": "LATENCY"}),
        (manifest("openvino", threads=3), {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "3"}),
        (
            manifest("openvino", DYNAMIC, hint="throughput"),
            {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_BATCH_PADDING": "YES"},
        ),
        (
            manifest("openvino", asked="bf16", inference_precision="bf16"),
            {"PERFORMANCE_HINT": "LATENCY", "HINT_BF16": "YES"},
        ),
        (manifest("tensorrt"), {}),
    ],
)
def test_options_of_the_engine_are_those_of_triton(described: Manifest, expected: dict[str, str]) -> None:
    assert parameters(parsed(described)) == expected


@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_computes_fp32_as_the_engine_does(tf32: bool) -> None:
    config = parsed(manifest("onnxruntime-cuda", tf32=tf32))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters) == {"use_tf32": str(int(tf32))}


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime-tensorrt", "null", "abacus"])
def test_backends_that_triton_lacks_are_refused(name: str) -> None:
    with pytest.raises(BackendError, match=f"cannot serve engines of {name}: .*choose one of onnxruntime"):
        serving(name, {}, 1)


def test_engine_for_batches_only_is_refused() -> None:
    with pytest.raises(BackendError, match="export it with --batch 1,4,8"):
        model_config("depth", manifest("tensorrt", Dim("batch", 2, 4, 8)), {})


def test_precision_that_triton_cannot_be_told_is_refused() -> None:
    with pytest.raises(BackendError, match="no setting for inference_precision=f16"):
        model_config("depth", manifest("openvino", inference_precision="f16"), {})


@given(st.text(), st.dictionaries(st.text(), st.text(), max_size=4))
def test_any_text_is_read_back(name: str, facts: dict[str, str]) -> None:
    config = parsed(manifest("onnxruntime"), name, facts)
    assert config.name == name
    assert parameters(config) == facts


def test_bytes_of_a_file_name_that_are_no_text_are_replaced() -> None:
    assert parsed(manifest("onnxruntime"), b"caf\xe9".decode(errors="surrogateescape")).name == "caf?"
