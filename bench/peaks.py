"""Peaks of this machine: multiply-accumulates per second in one precision, and bytes per second.

Each is measured once per process, in about a second. Other work on the machine lowers the peaks; an engine that ran at
a quieter moment may then be faster than its roofline.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import psutil

from ..engines.build import backend
from ..engines.fingerprint import usable_cores
from ..engines.manifest import computes
from ..errors import BackendError
from ..precisions import PRECISIONS, Precision
from ..runtime.runner import GRAPH_RUNNERS, open_graph
from .results import Peaks

__all__ = ["copy_bandwidth", "measure_peaks", "product"]

CHANNELS: Final = 128
SIDE: Final = 64
"""Height and width of the feature maps: a 3 x 3 convolution is a product of 4096 x 1152 by 1152 x 128. With OpenVINO,
none of six shapes was faster in FP32, BF16 and FP16."""
DEPTH: Final = 4
"""Convolutions per measurement (2.4 GMAC), so that one-off work such as rounding the input weighs little."""

_SECONDS: Final = 1.0
_LEAST_RUNS: Final = 3
_LEAST_COPY: Final = 256 << 20
_CUPY: Final[frozenset[Precision]] = frozenset({"fp32", "fp16"})
"""The precisions in which CuPy multiplies matrices with the vendor's library."""


@cache
def measure_peaks(precision: Precision, *, on_gpu: bool = False) -> Peaks | None:
    """Measure the machine's peaks; None: no installed library really computes in `precision`.

    On a CPU by a 3 x 3 convolution with OpenVINO, else ONNX Runtime, on all cores: OpenVINO's plain matrix products are
    slower (half as fast in INT8), so engines would exceed that peak. On a GPU by CuPy's matrix product.
    """
    found = _peak_of_gpu(precision) if on_gpu else _peak_of_cpu(precision)
    if found is None:
        return None
    speed, by = found
    return Peaks(precision, speed / 1e9, (_bandwidth_of_gpu() if on_gpu else copy_bandwidth()) / 1e9, by)


@cache
def copy_bandwidth() -> float:
    """Bytes per second of copying memory larger than the caches, on all cores, counting reads and writes.

    A processor may also read a cache line before writing it; that is not counted.
    """
    size = int(min(max(_LEAST_COPY, 2 * _largest_cache()), psutil.virtual_memory().available / 8)) // 8
    cores = usable_cores()
    sources, targets = (np.array_split(np.ones(size), cores) for _ in range(2))
    with ThreadPoolExecutor(cores) as pool:
        return 2 * 8 * size / _best(lambda: list(pool.map(np.copyto, targets, sources)))


def product(precision: Precision, batch: int) -> tuple[Any, int]:
    """An ONNX model (`onnx.ModelProto`) of convolutions, and its multiply-accumulates.

    For INT8, each convolution is between DequantizeLinear and QuantizeLinear, as in exports; for the other precisions,
    the library that builds the model chooses the type.
    """
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).normal(0, (9 * CHANNELS) ** -0.5, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    constants: dict[str, Any] = {"kernel": kernel}
    nodes = list[Any]()
    x, weight = "x", "kernel"

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    if precision == "int8":
        constants = {
            "kernel": np.clip(np.round(kernel * 1000), -127, 127).astype(np.int8),
            "kernel_step": np.float32(1 / 1000), "kernel_zero": np.int8(0),
            "step": np.float32(1 / 32), "zero": np.uint8(0),
        }  # fmt: skip
        weight = add("DequantizeLinear", "kernel", "kernel_step", "kernel_zero")
    for last in [False] * DEPTH + [True]:
        if precision == "int8":
            x = add("DequantizeLinear", add("QuantizeLinear", x, "step", "zero"), "step", "zero")
        if not last:
            x = add("Relu", add("Conv", x, weight, pads=[1, 1, 1, 1]))
    shape = [batch, CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model, DEPTH * batch * SIDE**2 * kernel.size


def _peak_of_cpu(precision: Precision) -> tuple[float, str] | None:
    """Multiply-accumulates per second, and what computed them."""
    batch = max(usable_cores() // 2, 1)
    model, macs = product(precision, batch)
    frames = np.random.default_rng(0).standard_normal((batch, CHANNELS, SIDE, SIDE)).astype(np.float32)
    for name in GRAPH_RUNNERS:
        try:
            graph = open_graph(name, model.SerializeToString(), precision, {})
        except BackendError:
            continue  # not installed, or this precision is not available on this processor
        found = [layer for layer in graph.layers if layer.multiplies]
        if found and all(computes(layer, precision) for layer in found):
            seconds = _best(partial(graph.run, frames))
            return macs / seconds, f"{name} {backend(name).availability().version}, convolution"
    return None


def _peak_of_gpu(precision: Precision) -> tuple[float, str] | None:
    """Multiply-accumulates per second of CuPy's matrix product; None: not installed, or not in this precision."""
    if find_spec("cupy") is None or precision not in _CUPY:
        return None
    cupy, side = import_module("cupy"), 8192
    factors = [cupy.ones((side, side), PRECISIONS[precision].float_type) for _ in range(2)]
    result = cupy.empty_like(factors[0])
    seconds = _best(lambda: (cupy.matmul(*factors, out=result), cupy.cuda.Device().synchronize()))
    return side**3 / seconds, f"cupy {cupy.__version__}, matrix product"


def _bandwidth_of_gpu() -> float:
    cupy = import_module("cupy")
    source = cupy.ones(1 << 30, "uint8")
    target = cupy.empty_like(source)
    seconds = _best(lambda: (cupy.copyto(target, source), cupy.cuda.Device().synchronize()))
    return float(2 * source.nbytes / seconds)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run, after one warm-up."""
    run()
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < _SECONDS:
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


def _largest_cache() -> int:
    """Bytes of the first core's largest cache, from Linux; 0: unknown."""
    found = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.removesuffix("K")) << 10 for size in found if size.endswith("K")), default=0)
