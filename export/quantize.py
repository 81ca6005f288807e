"""INT8: quantise and dequantise nodes (QDQ) around a graph's convolutions, calibrated on real frames.

The form is one that ONNX Runtime, OpenVINO and TensorRT's parser all read: symmetric INT8 activations, weights per
channel, FP32 biases. ONNX Runtime's quantiser places the nodes; this module makes four choices, based on measurements
(docs/results/quantise.md):

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

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from ..data.images import resize_image
from ..errors import DataError, GateError
from ..onnx_graph import CONVOLUTIONS, convolutions, readers
from ..parity import Parity, compare, gate_faults
from ..precisions import LEAST_SHARE
from ..reference import Reference
from ..vendors import import_onnxruntime

__all__ = [
    "METHODS",
    "Method",
    "Plan",
    "Sensitivity",
    "Trial",
    "calibrate",
    "find_shift",
    "frames_wanted",
    "judge",
    "last_convolutions",
    "place",
    "plan",
    "rank_layers",
]

Method = Literal["minmax", "percentile", "entropy"]
Ranges = Mapping[str, float]
"""For each tensor, the largest magnitude that INT8 must represent."""

METHODS: Final[dict[Method, tuple[str, dict[str, Any]]]] = {
    "minmax": ("MinMax", {}),
    "percentile": ("Percentile", {"symmetric": True, "percentile": 99.99}),
    "entropy": ("Entropy", {"symmetric": True}),
}
"""Calibration method -> ONNX Runtime's name and options."""

LEAST_FRAMES: Final = 8
MOST_FRAMES: Final = 64
PIXELS: Final = 2_500_000
"""Target for the pixels of all calibration frames, as calibration keeps statistics of every activation. The number of
frames stays between `LEAST_FRAMES` and `MOST_FRAMES`."""


@dataclass(frozen=True)
class Sensitivity:
    """The effect of quantising one convolution alone.

    Attributes:
        layer: name of its node.
        parity: of the network with only this convolution in INT8.
    """

    layer: str
    parity: Parity


@dataclass(frozen=True)
class Trial:
    """Result of a calibration method with or without a shift of the last bias.

    Attributes:
        parity: on the calibration frames of the reference.
        change: mean of |depth - PyTorch's depth| / PyTorch's depth on these frames. SSIM is insensitive to a small
            common shift, and AbsRel and δ1 of few frames are noisy; this is neither.
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
        kept: names of the convolutions that stay in FP32.
    """

    method: Method
    ranges: Ranges
    tried: dict[Method, Trial]
    kept: tuple[str, ...]

    @property
    def best(self) -> Trial:
        """The trial of the chosen method."""
        return self.tried[self.method]


def frames_wanted(size: tuple[int, int]) -> int:
    """Number of calibration frames for this height and width.

    >>> frames_wanted((96, 128)), frames_wanted((240, 320)), frames_wanted((480, 640))
    (64, 32, 8)
    """
    return int(np.clip(PIXELS // (size[0] * size[1]), LEAST_FRAMES, MOST_FRAMES))


def calibrate(model: onnx.ModelProto, images: Sequence[np.ndarray], method: Method) -> Ranges:
    """Run frames through an FP32 graph and find the ranges of all inputs and outputs of convolutions and ReLUs.

    Args:
        model: camera-ready.
        images: H x W x 3 uint8 of any size, resized to the graph's.
        method: key of `METHODS`.

    Raises:
        DataError: too few frames.
    """
    if len(images) < LEAST_FRAMES:
        raise DataError(f"INT8 calibration needs at least {LEAST_FRAMES} frames, but there are {len(images)}")
    import_onnxruntime()
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class One(CalibrationDataReader):  # type: ignore[misc]
        """One frame. For several frames, ONNX Runtime would keep all their activations in memory."""

        def __init__(self, image: np.ndarray) -> None:
            self._feeds = iter([_feed(model, image)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    vendor_name, options = METHODS[method]
    with tempfile.TemporaryDirectory(prefix="depthkit-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            [*CONVOLUTIONS, "Relu"],
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, vendor_name),
            extra_options=options,
        )
        with redirect_stdout(StringIO()):  # the calibrator prints progress
            for image in images:
                calibrator.collect_data(One(image))
            found = calibrator.compute_data()
    return {tensor: float(np.abs(data.range_value).max()) for tensor, data in found.items()}


def place(
    model: onnx.ModelProto, ranges: Ranges, kept: Sequence[str], only: str | None = None, shift: float = 0.0
) -> onnx.ModelProto:
    """A copy of `model` with all convolutions in INT8 except `kept`; or, if given, with `only` this one in INT8.

    `shift` is added to the bias of the convolution that predicts depth.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

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
        nodes_to_quantize=[only] if only else [],
        nodes_to_exclude=list(kept),
        op_types_to_quantize=sorted(CONVOLUTIONS),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    quantizer.quantize_model()
    _answer_in_floats(quantizer.model, last_convolutions(model.graph))
    quantizer.model.topological_sort()
    placed: onnx.ModelProto = quantizer.model.model
    if shift:
        bias = _last_bias(placed.graph)
        assert bias is not None, "find_shift returns 0 without one"
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    return placed


def _last_bias(graph: onnx.GraphProto) -> onnx.TensorProto | None:
    """The bias of the only convolution that predicts depth; None if there are several, or it has no bias."""
    last = last_convolutions(graph)
    (node,) = [node for node in graph.node if node.name == last[0]] if len(last) == 1 else [None]
    name = node.input[2] if node is not None and len(node.input) > 2 else ""
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def find_shift(model: onnx.ModelProto, ranges: Ranges, reference: Reference, placed: np.ndarray) -> tuple[float, float]:
    """The `shift` for `place` that removes the median depth offset from the reference, and this offset in metres.

    The median ignores depths that are clipped to a range. Both are 0 if there is no single last bias, or if depth does
    not grow with it. `placed` are the depths of the graph without a shift.
    """
    if _last_bias(model.graph) is None:
        return 0.0, 0.0
    step = 0.01  # depth is proportional to the bias; this step measures the gain
    gain = float(np.median(_answers(place(model, ranges, (), shift=step), reference.images) - placed)) / step
    metres = float(np.median(reference.depths - placed))
    return (metres / gain, metres) if gain > 0 and np.isfinite(metres) else (0.0, 0.0)


def _answer_in_floats(model: Any, convolutions: Sequence[str]) -> None:
    """Remove the quantisation of some convolutions' outputs in a quantised `ONNXModel`; their inputs stay INT8."""
    answers = {node.output[0] for node in model.nodes() if node.name in convolutions}
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
    return np.concatenate([session.run(None, _feed(model, image))[0][:1] for image in images])


def _feed(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs for a session of `model`: one frame, repeated for its whole batch."""
    (image_input,) = model.graph.input
    frames, height, width, _ = (dim.dim_value for dim in image_input.type.tensor_type.shape.dim)
    return {image_input.name: np.repeat(resize_image(image, (height, width))[None], max(frames, 1), axis=0)}


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
        keep: number of the most sensitive convolutions that stay in FP32; "auto": as many as the gate requires.

    Raises:
        DataError: see `calibrate`.
        GateError: for "auto", passing the gate would leave less than 95 % of the work in INT8; or `keep` covers all
            convolutions.
    """
    layers = sum(node.op_type in CONVOLUTIONS for node in model.graph.node)
    if isinstance(keep, int) and keep >= layers:
        raise GateError(f"--keep {keep} leaves nothing in INT8: the network has {layers} convolutions")
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

    def judged(answers: np.ndarray) -> Trial:
        change = np.abs(answers - reference.depths) / np.maximum(reference.depths, np.float32(1e-3))
        return Trial(compare(answers, reference), float(change.mean()))

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
    macs = {each.name: each.macs for each in convolutions(model)}

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
    raise AssertionError("the last convolution leaves no work in INT8")


def rank_layers(model: onnx.ModelProto, ranges: Ranges, reference: Reference) -> list[Sensitivity]:
    """The effect of quantising each convolution alone, most sensitive first by SSIM."""
    names = [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]
    found = [Sensitivity(name, judge(place(model, ranges, (), only=name), reference)) for name in names]
    return sorted(found, key=lambda each: each.parity.ssim)


def last_convolutions(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the convolutions that no other convolution depends on."""
    reaches: set[str] = set()  # tensors that a convolution depends on
    last = []
    for node in reversed(graph.node):  # in topological order, as ONNX requires
        convolves = node.op_type in CONVOLUTIONS
        if convolves and not reaches.intersection(node.output):
            last.append(node.name)
        if convolves or reaches.intersection(node.output):
            reaches.update(node.input)
    return tuple(last)


def _rectified(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Outputs of convolutions that only a ReLU reads, each with the output of the ReLU."""
    read_by = readers(graph)
    for node in graph.node:
        after = read_by.get(node.output[0], []) if node.op_type in CONVOLUTIONS else []
        if [each.op_type for each in after] == ["Relu"]:
            yield node.output[0], after[0].output[0]
