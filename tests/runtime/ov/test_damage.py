"""Damaged and foreign OpenVINO engines are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from depthkit.engines.ov import OPENVINO
from depthkit.errors import EngineError
from depthkit.runtime.ov import open_engine
from depthkit.runtime.run_options import RunOptions

from ...support import STEM, run_code
from .engines import Engine


@given(share=st.floats(0, 0.999))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_engine_is_refused(share: float, engine: Engine, tmp_path: Path) -> None:
    content = engine[0].read_bytes()
    (tmp_path / "cut.ov.blob").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EngineError, match=r"cut\.ov\.blob.*depthkit export.*OpenVINO says"):
        open_engine(tmp_path / "cut.ov.blob", engine[1], RunOptions())


@given(content=st.binary(max_size=4096))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_refused(content: bytes, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "noise.ov.blob").write_bytes(content)
    with pytest.raises(EngineError, match=r"noise\.ov\.blob.*OpenVINO says"):
        open_engine(tmp_path / "noise.ov.blob", engine[1], RunOptions())


@pytest.fixture
def header(engine: Engine) -> bytes:
    """The version and instruction set that newer releases write into a blob."""
    found = engine[0].read_bytes()[:300]
    if b";isa=" not in found:
        pytest.skip("this release of OpenVINO keeps no instruction set in its blobs")
    return found


def test_damaged_header_is_reported(engine: Engine, header: bytes, tmp_path: Path) -> None:
    """OpenVINO quotes it, although it is not valid text."""
    content = bytearray(engine[0].read_bytes())
    content[header.index(b";isa=")] ^= 0xFF
    (tmp_path / "engine").write_bytes(content)
    with pytest.raises(EngineError, match="OpenVINO says"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())


def test_engine_of_another_size_is_refused(engine: Engine, batched: Callable[..., Path]) -> None:
    other = batched(1, size=(16, 16), backend="openvino")
    with pytest.raises(EngineError, match=r"16, 16, 3.*32, 48, 3.*build it again"):
        open_engine(other, engine[1], RunOptions())


def test_engine_without_convolutions_is_refused(engine: Engine, tmp_path: Path) -> None:
    """It has the right inputs and outputs, and no precision."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 32, 48, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 32, 48])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [3])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["depth"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", [image], [depth], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "mean.onnx")
    OPENVINO.build(tmp_path / "mean.onnx", tmp_path / "engine", "fp32", OPENVINO.parse_options({}))
    with pytest.raises(EngineError, match=r"cannot open .*engine: fp32 was requested, but only 0%"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())


@pytest.mark.usefixtures("header")
@pytest.mark.skipif("avx512f" not in OPENVINO.here().isa, reason="this CPU has no AVX-512 to leave out")
def test_engine_of_another_cpu_is_refused(pristine_exports: Path, engine: Engine, tmp_path: Path) -> None:
    """Built as if this CPU had no more than AVX2."""
    code = (
        "import sys; from pathlib import Path; from depthkit.engines.ov import OPENVINO\n"
        "OPENVINO.build(Path(sys.argv[1]), Path(sys.argv[2]), 'fp32', OPENVINO.parse_options({}))"
    )
    run_code(code, pristine_exports / f"{STEM}.fp32.onnx", tmp_path / "engine", ONEDNN_MAX_CPU_ISA="AVX2")
    with pytest.raises(EngineError, match=r"OpenVINO says: .*isa mismatch.*AVX2"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())
