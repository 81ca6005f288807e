"""The contract of every backend: methods, availability, options, precision."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module

import pytest

from depthkit.engines import ort
from depthkit.engines.backend import Availability, Backend, find_origins, found_precision
from depthkit.engines.build import backend, fastest, require, runnable
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import Layer
from depthkit.errors import BackendError
from depthkit.names import BACKENDS
from depthkit.onnx_graph import Product
from depthkit.precisions import Precision
from depthkit.session import SessionBase

from ..support import Pretend

METHODS = [name for name, member in vars(Backend).items() if inspect.isfunction(member)]


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_keeps_the_protocol(name: str) -> None:
    maker, runner = backend(name), import_module(f"depthkit.runtime.{BACKENDS[name].partition(':')[0]}")
    assert isinstance(maker, Backend)
    assert (maker.name, maker) == (name, backend(name))
    assert {"availability", "build", "accepts_version"} <= set(METHODS)
    for method in METHODS:
        mine, common = (list(inspect.signature(getattr(kind, method)).parameters) for kind in (type(maker), Backend))
        assert mine == common, method
    assert "open_engine" in runner.__all__
    assert list(inspect.signature(runner.open_engine).parameters) == ["path", "manifest", "run"]
    sessions = [kind for kind in vars(runner).values() if inspect.isclass(kind) and issubclass(kind, SessionBase)]
    assert [kind for kind in sessions if kind is not SessionBase]


@pytest.mark.parametrize("name", BACKENDS)
def test_availability_of_every_backend(name: str) -> None:
    available = backend(name).availability()
    assert isinstance(available, Availability)
    assert available.reason
    assert available == backend(name).availability()
    if available.runnable:
        assert available.version
        assert isinstance(backend(name).here(), Fingerprint)
        assert require(name, to_run=True) == require(name) == available.version
    else:
        assert available.remedy, "what is not here says how to get it"
        with pytest.raises(BackendError) as caught:
            require(name, to_run=True)
        assert all(word in str(caught.value) for word in (name, available.reason, available.remedy))


@pytest.mark.parametrize("name", BACKENDS)
def test_options_of_every_backend_round_trip(name: str) -> None:
    maker = backend(name)
    defaults = maker.parse_options({})
    kept = maker.record(defaults)
    assert kept.keys() == {field.name for field in fields(maker.options)}
    assert all(type(value) in {int, bool, str} for value in kept.values())
    assert maker.parse_options(kept) == defaults
    assert maker.parse_options({key: str(value) for key, value in kept.items()}) == defaults, "as typed after -o"
    with pytest.raises(BackendError) as caught:
        maker.parse_options({"teleport": "1"})
    assert all(f"{key}={value}" in str(caught.value) for key, value in kept.items())
    assert maker.name in str(caught.value)
    assert "teleport" in str(caught.value)


def test_extensions_are_unique() -> None:
    extensions = [backend(name).extension for name in BACKENDS]
    assert len(set(extensions)) == len(extensions)


def test_fastest_backend_can_run_and_is_never_null(pretend: Pretend) -> None:
    here, builds = Availability("1", "is here"), Availability("1", "has no GPU", "use one", runs=False)
    pretend({"onnxruntime": here, "openvino": here, "onnxruntime-cuda": builds, "null": here})
    assert runnable() == ["openvino", "onnxruntime"]
    assert fastest() == "openvino"
    pretend({"onnxruntime-cuda": here, "onnxruntime": here, "null": here})
    assert fastest() == "onnxruntime-cuda"
    pretend({"null": here})
    assert runnable() == []
    with pytest.raises(BackendError, match="pip install 'depthkit"):
        fastest()


def test_backend_that_builds_and_does_not_run(pretend: Pretend) -> None:
    pretend({"onnxruntime-cuda": Availability("1.2", "has no GPU", "use one", runs=False)})
    assert require("onnxruntime-cuda") == "1.2"
    with pytest.raises(BackendError, match=r"onnxruntime-cuda cannot run here: has no GPU; use one"):
        require("onnxruntime-cuda", to_run=True)
    with pytest.raises(BackendError, match=r"openvino cannot be used here: is not here; pip install it"):
        require("openvino")


@pytest.mark.parametrize(
    ("types", "asked", "found"),
    [
        (["fp32", "fp32"], "fp32", "fp32"),
        (["fp16"], "fp16", "fp16"),
        (["fp32"], "fp16", "fp16→fp32"),
        (["fp16", "fp32"], "fp16", None),
        (["fp16"], "fp32", None),
        (["bf16"], "fp16", None),
        (["unknown"], "fp32", None),
        ([], "fp32", None),
    ],
)
def test_precision_is_that_of_the_convolutions(types: list[str], asked: Precision, found: str | None) -> None:
    layers = (*(Layer(f"c{i}", "FusedConv", kind) for i, kind in enumerate(types)), Layer("p", "MaxPool", "int8"))
    if found is None:
        with pytest.raises(BackendError, match=f"{asked} was requested"):
            ort.CPU.found_precision(layers, asked)
    else:
        assert ort.CPU.found_precision(layers, asked) == found


QUERY, SCORES, MIXED, OUT = (
    Product(name, (name, f"{name}_output_0"), precision, 1)
    for name, precision in (
        ("attn/q/MatMul", "int8"),
        ("attn/MatMul", ""),
        ("attn/MatMul_1", ""),
        ("attn/o/MatMul", "int8"),
    )
)


@pytest.mark.parametrize(
    ("names", "origins"),
    [
        (["attn/q/MatMul/Gemm", "attn/MatMul_1", "attn/MatMul", "attn/o/MatMul"], [QUERY, MIXED, SCORES, OUT]),
        (["attn/q/MatMul", "attn/o/MatMul"], [QUERY, OUT]),  # attention is fused
        (["attn/q/MatMul", "fused attention", "attn/o/MatMul"], [QUERY, None, OUT]),
        (["a", "b", "c", "d"], [QUERY, SCORES, MIXED, OUT]),
        (["a", "b"], [QUERY, OUT]),
        (["a", "b", "c"], [None, None, None]),
    ],
)
def test_layers_of_a_transformer_are_found(names: list[str], origins: list[Product | None]) -> None:
    layers = [Layer(name, "MatMul", "int8") for name in names]
    assert find_origins(layers, [QUERY, SCORES, MIXED, OUT]) == origins


def test_products_of_activations_do_not_count() -> None:
    """In INT8 files they stay in FP32."""
    weighted = Layer("q", "MatMulIntegerToFloat", "int8", macs=1, stored="int8")
    assert found_precision((weighted, Layer("scores", "MatMul", "fp32", macs=10**9)), "int8") == "int8"


def test_only_some_backends_may_compute_fp16_in_fp32() -> None:
    layers = (Layer("c", "Conv", "fp32"),)
    assert found_precision(layers, "fp16", widens=True) == "fp16→fp32"
    with pytest.raises(BackendError, match=r"fp16 was requested.*fp32"):
        found_precision(layers, "fp16")
    with pytest.raises(BackendError, match=r"bf16 was requested.*fp32"):
        found_precision(layers, "bf16", widens=True)
