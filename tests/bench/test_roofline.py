"""Bytes and work of a run, counted by hand; peaks measured with libraries in the stated precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from depthkit.bench import peaks, roofline
from depthkit.bench.peaks import copy_bandwidth, measure_peaks, product
from depthkit.bench.results import Peaks
from depthkit.bench.roofline import bytes_moved, find_roofline
from depthkit.engines.backend import Availability
from depthkit.engines.ov import capabilities
from depthkit.runtime.load import load

STEM = "compact-32x48"


def graph(nodes: list[Any], weights: dict[str, tuple[int, ...]], batch: int | str = 1) -> Any:
    """A model from a uint8 image of 8 x 8 to a float32 depth of any shape."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 8, 8, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    made = helper.make_graph(nodes, "g", [image], [depth], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def camera(*after: Any, batch: int | str = 1, **weights: tuple[int, ...]) -> Any:
    """A convolution of the camera's frames to 4 x 8 x 8, called `a`, and what comes after it."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "gain"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel", "bias"], ["raw"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["raw"], ["a"]),
    ]
    first = {"gain": (1, 3, 1, 1), "kernel": (4, 3, 3, 3), "bias": (4,)}
    return graph([*nodes, *after], first | weights, batch)


IMAGE, A, FIRST = 8 * 8 * 3, 4 * 8 * 8, 4 * 3 * 3 * 3 + 4
LAST = helper.make_node("Conv", ["a", "head"], ["depth"])
"""A 1 x 1 convolution to one channel, 8 x 8."""


@pytest.mark.parametrize("item", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_chain_is_read_and_written_once_a_layer(item: int, batch: int) -> None:
    weights = item * (FIRST + 4)
    passed = IMAGE + item * A + item * A + 4 * 64  # a is written and read again; depth is written as float32
    assert bytes_moved(camera(LAST, head=(1, 4, 1, 1)), 1, item) == passed + weights
    assert bytes_moved(camera(LAST, head=(1, 4, 1, 1), batch="n"), batch, item) == batch * passed + weights


def test_pooling_resizing_and_concatenation_are_layers_of_their_own() -> None:
    after = [
        helper.make_node("MaxPool", ["a"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["half", "", "scales"], ["whole"], mode="linear"),
        helper.make_node("Concat", ["a", "whole"], ["depth"], axis=1),
    ]
    model = camera(*after)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    first, pool, resize, concat = IMAGE + 2 * A, 2 * (A + A // 4), 2 * (A // 4 + A), 2 * 2 * A + 4 * 2 * A
    assert bytes_moved(model, 1, 2) == first + pool + resize + concat + 2 * (FIRST + 4)


def test_a_sum_reads_only_its_second_operand_from_memory() -> None:
    after = [
        helper.make_node("Conv", ["a", "second"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "a"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["depth"]),
    ]
    total = bytes_moved(camera(*after, second=(4, 4, 3, 3)), 1, 2)
    assert total == IMAGE + 2 * A + (2 * A + 4 * A) + 2 * A + 2 * (FIRST + 4 * 4 * 9)


def test_weights_that_two_layers_share_are_read_once_and_quantised_ones_are_weights() -> None:
    twice = [
        helper.make_node("Conv", ["a", "same"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "same"], ["depth"], pads=[1, 1, 1, 1]),
    ]
    plain = bytes_moved(camera(*twice, same=(4, 4, 3, 3)), 1, 1)
    assert plain == (IMAGE + A) + (A + A) + (A + 4 * A) + FIRST + 4 * 4 * 9
    quantised = [
        helper.make_node("DequantizeLinear", ["same", "step"], ["w"]),
        helper.make_node("QuantizeLinear", ["a", "step"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w"], ["depth"], pads=[1, 1, 1, 1]),
    ]
    model = camera(*quantised, step=())
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4, 3, 3), np.int8), "same"))
    assert bytes_moved(model, 1, 1) == plain


def test_shapes_that_cannot_be_inferred_are_no_bytes() -> None:
    model = camera(helper.make_node("Odd", ["a"], ["depth"], domain="elsewhere"))
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert bytes_moved(model, 1, 4) is None


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Peaks:
    """The machine's peaks are given, whatever the precision: nothing is measured."""
    given = Peaks("fp32", 100.0, 20.0, "a test")
    monkeypatch.setattr(roofline, "measure_peaks", lambda *_, **__: given)
    return given


def test_an_engine_and_its_onnx_file_have_the_same_roof(pristine_exports: Path, known: Peaks) -> None:
    onnx_file = pristine_exports / f"{STEM}.fp32.onnx"
    found = []
    for name in ("fp32.ort.onnx", "fp32.onnx"):
        with load(pristine_exports / f"{STEM}.{name}") as session:
            found.append(find_roofline(session, onnx_file))
    assert found[0] == found[1] and found[0] is not None
    with load(pristine_exports / f"{STEM}.fp32.ort.onnx") as session:
        assert found[0].macs == session.spec.macs
        assert 4 * session.spec.parameters < found[0].bytes_moved < 4 * 3 * session.spec.parameters
    assert found[0].peaks == known
    assert found[0].floor_ms == pytest.approx(max(found[0].macs / 1e11, found[0].bytes_moved / 2e10) * 1000)


def test_half_the_bytes_move_where_half_the_precision_computes_and_only_there(
    pristine_exports: Path, known: Peaks
) -> None:
    moved = {}
    for stored in ("fp32", "fp16"):
        file = pristine_exports / f"{STEM}.{stored}.onnx"
        with load(pristine_exports / f"{STEM}.fp32.ort.onnx") as session:
            for precision in ("fp32", "fp16→fp32", "fp16", "bf16", "int8"):
                session.precision = precision
                found = find_roofline(session, file)
                assert found is not None
                moved[stored, precision] = found.bytes_moved
            session.precision = "unknown"
            assert find_roofline(session, file) is None
    ends = 32 * 48 * (3 + 4)  # uint8 in and float32 out, whatever is between
    for stored in ("fp32", "fp16"):
        whole = moved[stored, "fp32"] - ends
        assert [moved[stored, each] - ends for each in ("fp16→fp32", "fp16", "bf16", "int8")] == [
            whole, whole // 2, whole // 2, whole // 4
        ]  # fmt: skip


def test_a_batch_multiplies_work_but_not_weights(recorded: Any, tmp_path: Path, known: Peaks) -> None:
    onnx.save(camera(LAST, head=(1, 4, 1, 1), batch="n"), tmp_path / "n.onnx")
    one, four = (find_roofline(recorded([], batch=batch), tmp_path / "n.onnx") for batch in (1, 4))
    assert one is not None and four is not None
    assert (one.macs, four.macs) == (456, 4 * 456)
    weights = 4 * (FIRST + 4)
    assert four.bytes_moved - weights == 4 * (one.bytes_moved - weights)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peaks are measured for a moment, on little."""
    for name, value in {"CHANNELS": 64, "SIDE": 16, "_SECONDS": 0.0, "_LEAST_COPY": 1 << 20}.items():
        monkeypatch.setattr(peaks, name, value)
    monkeypatch.setattr(peaks, "_largest_cache", lambda: 0)
    measure_peaks.cache_clear()
    copy_bandwidth.cache_clear()
    yield
    measure_peaks.cache_clear()
    copy_bandwidth.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_openvino_is_the_peak_in_what_this_processor_has(precision: Any, small: None) -> None:
    found = measure_peaks(precision)
    if precision == "int8" or precision.upper() in capabilities():
        assert found is not None and found.precision == precision
        assert found.by.startswith("openvino ")
        assert found.gmacs > 0.1 and found.gbytes > 0.1
        assert measure_peaks(precision) is found, "measured once"
    else:
        assert found is None


@pytest.mark.parametrize(("precision", "there"), [("fp32", True), ("int8", True), ("fp16", False), ("bf16", False)])
def test_without_openvino_onnx_runtime_is_the_peak_in_what_it_really_computes(
    precision: Any, there: bool, small: None, pretend: Any
) -> None:
    pretend({"onnxruntime": Availability("1.2.3", "here")})
    found = measure_peaks(precision)
    assert (found is not None) == there
    if found is not None:
        assert found.by.startswith("onnxruntime 1.2.3")


def test_without_both_there_is_no_peak(small: None, pretend: Any) -> None:
    pretend({})
    assert measure_peaks("fp32") is None


def test_the_work_of_the_product_is_what_it_multiplies(small: None) -> None:
    model, macs = product("fp32", 2)
    onnx.checker.check_model(product("int8", 2)[0], full_check=True)
    onnx.checker.check_model(model, full_check=True)
    assert macs == 4 * 2 * 16 * 16 * 64 * 64 * 9
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 4


def test_the_product_is_large() -> None:
    assert product("fp32", 1)[1] >= 1024**3


class Cupy(ModuleType):
    """NumPy in place of CuPy: what is called, and in which precision."""

    __version__ = "14.0"

    def __init__(self) -> None:
        super().__init__("cupy")
        self.waited = 0
        self.multiplied: list[tuple[Any, ...]] = []
        self.cuda = self
        self.empty_like = np.empty_like

    def ones(self, shape: Any, dtype: str) -> np.ndarray:
        return np.ones(8, dtype)

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        self.multiplied.append((a.dtype, b.dtype, out.dtype))

    def copyto(self, target: np.ndarray, source: np.ndarray) -> None:
        np.copyto(target, source)

    def Device(self) -> Cupy:  # noqa: N802
        return self

    def synchronize(self) -> None:
        self.waited += 1


def test_a_gpu_has_a_peak_by_cupy_only(
    small: None, monkeypatch: pytest.MonkeyPatch, recorded: Any, tmp_path: Path
) -> None:
    onnx.save(camera(LAST, head=(1, 4, 1, 1)), tmp_path / "1.onnx")
    session = recorded([])
    session.device = "gpu"
    monkeypatch.setattr(peaks, "find_spec", lambda _: None)
    assert find_roofline(session, tmp_path / "1.onnx") is None
    measure_peaks.cache_clear()
    cupy = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(peaks, "find_spec", lambda _: cupy)
    found = find_roofline(session, tmp_path / "1.onnx")
    assert found is not None and found.peaks.by == "cupy 14.0, matrix product"
    assert cupy.waited >= 2 * len(cupy.multiplied), "the clock is read when the device is done"
    assert set(cupy.multiplied) == {(np.dtype("float32"),) * 3}
    assert measure_peaks("int8", on_gpu=True) is None
