"""INT8: quantise and dequantise nodes (QDQ) around a graph's layers with weights, calibrated on real frames.

The form is one that ONNX Runtime, OpenVINO and TensorRT's parser all read: symmetric INT8 activations, weights per
channel, FP32 biases. ONNX Runtime's quantiser places the nodes; this module makes these choices, based on measurements
(docs/results/quantise.md, docs/results/models.md):

* Matrix products with weights read INT8 and write FP32, as their bias is added afterwards. Products of activations, as
  in attention, stay in FP32.
* The output of a convolution before a ReLU gets the range after the ReLU. Its own range would waste steps on negative
  numbers, and values would be rounded twice.
* The convolution that predicts depth reads INT8 and writes FP32: an INT8 step of its output would be 1/127 of the
  largest depth.
* No calibration method is the best for every network, so all are tried. Graphs are run without ONNX Runtime's INT8
  kernels for this, so that the choice and the file are the same on every CPU. Calibration frames decide; held-out
  frames test the file.
* Rounding can shift all depths by some millimetres, which costs more δ1 than SSIM. The median depth offset on the
  calibration frames is corrected in the last layer's bias if that reduces the error (bias correction: Nagel et al.,
  "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, for the last layer
  only).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import GateError
from ..onnx_graph import CONVOLUTIONS, PRODUCTS, products, readers
from ..parity import Parity, compare, gate_faults
from ..precisions import LEAST_SHARE
from ..reference import Reference
from ..vendors import import_onnxruntime
from .ranges import METHODS, Method, Ranges, calibrate, feed

__all__ = [
    "Plan", "Sensitivity", "Trial", "find_shift", "judge", "last_layers", "layers", "place", "plan", "rank_layers",
]  # fmt: skip


@dataclass(frozen=True)
class Sensitivity:
    """The effect of quantising one layer alone.

    Attributes:
        layer: name of its node.
        parity: of the network with only this layer in INT8.
    """

    layer: str
    parity: Parity


@dataclass(frozen=True)
class Trial:
    """Result of a calibration method with or without a shift of the last bias.

    Attributes:
        parity: on the calibration frames of the reference.
        change: mean of |depth - reference| / reference on these frames; without metres, / the reference's span. SSIM is
            insensitive to a small common shift, and AbsRel and δ1 of few frames are noisy; this is neither.
        shift: see `place`.
        shift_m: change of depth by the shift, in metres.
    """

    parity: Parity
    change: float
    shift: float = 0.0
    shift_m: float = 0.0

    @property
    def rank(self) -> tuple[bool, float]:
        """Higher is better: first whether the gate passes, then the smallest change of depth."""
        return not gate_faults(self.parity, "int8"), -float(np.nan_to_num(self.change, nan=np.inf))


@dataclass(frozen=True, eq=False)
class Plan:
    """How to quantise a graph: the arguments of `place`.

    Attributes:
        method: the chosen calibration method.
        ranges: its ranges.
        tried: every method with the better of its trials.
        kept: names of the layers that stay in FP32.
    """

    method: Method
    ranges: Ranges
    tried: dict[Method, Trial]
    kept: tuple[str, ...]

    @property
    def best(self) -> Trial:
        """The trial of the chosen method."""
        return self.tried[self.method]


def place(
    model: onnx.ModelProto, ranges: Ranges, kept: Sequence[str], only: str | None = None, shift: float = 0.0
) -> onnx.ModelProto:
    """A copy of `model` with all `layers` in INT8 except `kept`; or, if given, with `only` this one in INT8.

    `shift` is added to the bias of the convolution that predicts depth.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    names = layers(model)
    limits = dict(ranges)
    for convolution, relu in _rectified(model.graph):
        limits[convolution] = ranges[relu]
    # A tensor that is zero in every frame has no scale of its own; it gets the smallest scale of the others.
    floor = min((limit for limit in limits.values() if limit > 0), default=1.0)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(
            CalibrationMethod.MinMax,
            {name: (np.float32(-(limit or floor)), np.float32(limit or floor)) for name, limit in limits.items()},
        ),
        nodes_to_quantize=[only] if only else list(names),
        nodes_to_exclude=list(kept),
        op_types_to_quantize=sorted(PRODUCTS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS - CONVOLUTIONS),
        },
    )
    quantizer.quantize_model()
    _answer_in_floats(quantizer.model, last_layers(model.graph, names))
    quantizer.model.topological_sort()
    placed: onnx.ModelProto = quantizer.model.model
    if shift:
        bias = _last_bias(placed)
        assert bias is not None, "find_shift returns 0 without one"
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    return placed


def _last_bias(model: onnx.ModelProto) -> onnx.TensorProto | None:
    """The bias of the only layer that predicts depth; None if there are several, or it has no bias."""
    graph = model.graph
    last = last_layers(graph, layers(model))
    (node,) = [node for node in graph.node if node.name == last[0]] if len(last) == 1 else [None]
    name = node.input[2] if node is not None and len(node.input) > 2 else ""
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def find_shift(model: onnx.ModelProto, ranges: Ranges, reference: Reference, placed: np.ndarray) -> tuple[float, float]:
    """The `shift` for `place` that removes the median depth offset from the reference, and this offset in metres.

    The median ignores depths that are clipped to a range. Both are 0 if there is no single last bias, or if depth does
    not grow with it. `placed` are the depths of the graph without a shift.
    """
    if _last_bias(model) is None:
        return 0.0, 0.0
    step = 0.01  # depth is proportional to the bias; this step measures the gain
    gain = float(np.median(_answers(place(model, ranges, (), shift=step), reference.images) - placed)) / step
    metres = float(np.median(reference.depths - placed))
    return (metres / gain, metres) if gain > 0 and np.isfinite(metres) else (0.0, 0.0)


def _answer_in_floats(model: Any, names: Sequence[str]) -> None:
    """Remove the quantisation of some layers' outputs in a quantised `ONNXModel`; their inputs stay INT8."""
    answers = {node.output[0] for node in model.nodes() if node.name in names}
    for rounding in [n for n in model.nodes() if n.op_type == "QuantizeLinear" and n.input[0] in answers]:
        (back,) = model.get_children(rounding)
        model.replace_input_of_all_nodes(back.output[0], rounding.input[0])
        model.remove_nodes([rounding, back])
    model.remove_unused_constant()


def judge(model: onnx.ModelProto, reference: Reference) -> Parity:
    """Compare the graph's depths for the reference frames with PyTorch's; the graph runs without optimisation."""
    return compare(_answers(model, reference.images), reference)


def _answers(model: onnx.ModelProto, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no INT8 kernels
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed(model, image))[0][:1] for image in images])


def plan(
    model: onnx.ModelProto,
    images: Sequence[np.ndarray],
    reference: Reference,
    keep: int | Literal["auto"] | None = None,
) -> Plan:
    """Find the best quantisation of an FP32 graph: try every method, and choose the layers that stay in FP32.

    Args:
        model: camera-ready.
        images: calibration frames, H x W x 3 uint8.
        reference: calibration frames by which methods and layers are judged.
        keep: number of the most sensitive layers that stay in FP32; "auto": as many as the gate requires.

    Raises:
        DataError: see `calibrate`.
        GateError: for "auto", passing the gate would leave less than 95 % of the work in INT8; or `keep` covers all
            layers.
    """
    count = len(layers(model))
    if isinstance(keep, int) and keep >= count:
        raise GateError(f"--keep {keep} leaves nothing in INT8: the network has {count} layers with weights")
    found: dict[Method, Ranges] = {}
    tried: dict[Method, Trial] = {}
    for method in METHODS:
        found[method] = calibrate(model, images, method)
        tried[method] = _try(model, found[method], reference)
    best = max(tried, key=lambda method: tried[method].rank)
    kept: tuple[str, ...] = ()
    if isinstance(keep, int) or (keep == "auto" and gate_faults(tried[best].parity, "int8")):
        kept = _choose_kept(model, found[best], reference, keep, tried[best].shift)
    return Plan(best, found[best], tried, kept)


def _try(model: onnx.ModelProto, ranges: Ranges, reference: Reference) -> Trial:
    """Judge the graph with and without correction of the depth offset, and return the better trial."""
    low, high = reference.scale
    base = np.maximum(reference.depths, np.float32(1e-3)) if reference.is_metric else np.float32(high - low)

    def judged(answers: np.ndarray) -> Trial:
        return Trial(compare(answers, reference), float((np.abs(answers - reference.depths) / base).mean()))

    placed = _answers(place(model, ranges, ()), reference.images)
    shift, metres = find_shift(model, ranges, reference, placed)
    if not shift:
        return judged(placed)
    shifted = judged(_answers(place(model, ranges, (), shift=shift), reference.images))
    return max(judged(placed), replace(shifted, shift=shift, shift_m=metres), key=lambda trial: trial.rank)


def _choose_kept(
    model: onnx.ModelProto, ranges: Ranges, reference: Reference, keep: int | Literal["auto"], shift: float
) -> tuple[str, ...]:
    order = [each.layer for each in rank_layers(model, ranges, reference)]
    macs = {each.name: each.macs for each in products(model) if each.precision}

    def left(kept: Sequence[str]) -> float:
        """The fraction of the work that would remain in INT8."""
        return 1 - sum(macs[name] for name in kept) / sum(macs.values())

    if isinstance(keep, int):
        return tuple(order[:keep])
    for count in range(1, len(order) + 1):
        kept = tuple(order[:count])
        if left(kept) < LEAST_SHARE:
            raise GateError(
                f"INT8 fails its gate with {LEAST_SHARE:.0%} of the work in INT8: with {', '.join(kept)} in FP32, only "
                f"{left(kept):.0%} would remain; train for INT8 (`depthkit train --quantize RUN`), calibrate on frames "
                "of your camera (--calibrate), or choose --fp16 or --bf16"
            )
        if not gate_faults(judge(place(model, ranges, kept, shift=shift), reference), "int8"):
            return kept
    raise AssertionError("the last layer leaves no work in INT8")


def rank_layers(model: onnx.ModelProto, ranges: Ranges, reference: Reference) -> list[Sensitivity]:
    """The effect of quantising each layer alone, most sensitive first by SSIM."""
    found = [Sensitivity(name, judge(place(model, ranges, (), only=name), reference)) for name in layers(model)]
    return sorted(found, key=lambda each: each.parity.ssim)


def layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that can be quantised: convolutions and matrix products with weights."""
    # Vendors have no INT8 product with a stack of matrices.
    stacked = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    matrices = {node.name for node in model.graph.node if node.op_type == "MatMul" and stacked.intersection(node.input)}
    return tuple(each.name for each in products(model) if each.precision and each.name not in matrices)


def last_layers(graph: onnx.GraphProto, names: Collection[str]) -> tuple[str, ...]:
    """The nodes among `names` that no other of them depends on."""
    reaches: set[str] = set()  # tensors that such a node depends on
    last = []
    for node in reversed(graph.node):  # in topological order, as ONNX requires
        named = node.name in names
        if named and not reaches.intersection(node.output):
            last.append(node.name)
        if named or reaches.intersection(node.output):
            reaches.update(node.input)
    return tuple(last)


def _rectified(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Outputs of convolutions that only a ReLU reads, each with the output of the ReLU."""
    read_by = readers(graph)
    for node in graph.node:
        after = read_by.get(node.output[0], []) if node.op_type in CONVOLUTIONS else []
        if [each.op_type for each in after] == ["Relu"]:
            yield node.output[0], after[0].output[0]
