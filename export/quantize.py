"""INT8: quantise and dequantise nodes (QDQ) around a graph's convolutions, calibrated on real frames.

What ONNX Runtime, OpenVINO and TensorRT's parser all read: symmetric INT8 activations, weights by channel, biases left
in FP32. ONNX Runtime's quantiser places the nodes; four things are decided here, by measurement
(docs/results/quantise.md):

* A convolution's output that goes to a ReLU gets the range that the ReLU leaves. Its own range would spend steps on
  negative numbers that nobody reads, and be rounded twice.
* The convolution that answers depth reads INT8 and answers FP32: a step of its answer would be a 127th of the largest
  depth.
* How ranges are found, since no method is the best for every network: all are tried, and the best is kept.
  Graphs are judged as they are written, without ONNX Runtime's INT8 kernels, so that the choice and the file are the
  same on every CPU. What chooses are the calibration frames; those that prove the file are others.
* Rounding can shift all depth by some millimetres, which costs δ1 more than SSIM. The median depth offset on the frames
  that choose is corrected in the last layer's bias where that changes depth less (bias correction: Nagel et al.,
  "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, of the last layer
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
"""By tensor: the largest magnitude that INT8 has to hold."""

METHODS: Final[dict[Method, tuple[str, dict[str, Any]]]] = {
    "minmax": ("MinMax", {}),
    "percentile": ("Percentile", {"symmetric": True, "percentile": 99.99}),
    "entropy": ("Entropy", {"symmetric": True}),
}
"""How ranges are found -> ONNX Runtime's name of it, and what it is told."""

LEAST_FRAMES: Final = 8
MOST_FRAMES: Final = 64
PIXELS: Final = 2_500_000
"""Calibration keeps statistics of every activation: of so many pixels in all, within the two numbers of frames."""


@dataclass(frozen=True)
class Sensitivity:
    """What quantising one convolution alone costs.

    Attributes:
        layer: its node's name.
        parity: of the network with only it in INT8.
    """

    layer: str
    parity: Parity


@dataclass(frozen=True)
class Trial:
    """What came of a method with one last bias.

    Attributes:
        parity: on the frames that choose.
        change: mean of |answer - torch's answer| / torch's answer there. SSIM hardly sees that all depths moved a
            little, and AbsRel and δ1 of few frames are noisy; this is neither.
        shift: see `place`.
        shift_m: by how many metres it moves depth.
    """

    parity: Parity
    change: float
    shift: float = 0.0
    shift_m: float = 0.0

    @property
    def rank(self) -> tuple[bool, float]:
        """The higher, the better: first what holds the gate, then what changes depth least."""
        return not gate_faults(self.parity, "int8"), -float(np.nan_to_num(self.change, nan=np.inf))


@dataclass(frozen=True, eq=False)
class Plan:
    """How to quantise a graph: what `place` needs to be told.

    Attributes:
        method: how its ranges were found.
        ranges: what it found.
        tried: every method with the better of its trials.
        kept: names of the convolutions that were left in FP32.
    """

    method: Method
    ranges: Ranges
    tried: dict[Method, Trial]
    kept: tuple[str, ...]

    @property
    def best(self) -> Trial:
        """Of the method that was chosen."""
        return self.tried[self.method]


def frames_wanted(size: tuple[int, int]) -> int:
    """How many frames to calibrate on, at this height and width.

    >>> frames_wanted((96, 128)), frames_wanted((240, 320)), frames_wanted((480, 640))
    (64, 32, 8)
    """
    return int(np.clip(PIXELS // (size[0] * size[1]), LEAST_FRAMES, MOST_FRAMES))


def calibrate(model: onnx.ModelProto, images: Sequence[np.ndarray], method: Method) -> Ranges:
    """Run frames through an FP32 graph and find the range of everything that a convolution reads or answers.

    Args:
        model: camera-ready.
        images: H x W x 3 uint8 of any size, resized to the graph's.
        method: how.

    Raises:
        DataError: too few frames.
    """
    if len(images) < LEAST_FRAMES:
        raise DataError(f"INT8 is calibrated on at least {LEAST_FRAMES} frames, and there are {len(images)}")
    import_onnxruntime()
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class One(CalibrationDataReader):  # type: ignore[misc]
        """One frame. Given all at once, ONNX Runtime would keep every activation of all of them in memory."""

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
        with redirect_stdout(StringIO()):  # it prints what it does
            for image in images:
                calibrator.collect_data(One(image))
            found = calibrator.compute_data()
    return {tensor: float(np.abs(data.range_value).max()) for tensor, data in found.items()}


def place(
    model: onnx.ModelProto, ranges: Ranges, kept: Sequence[str], only: str | None = None, shift: float = 0.0
) -> onnx.ModelProto:
    """A copy of `model` with its convolutions in INT8 but for the `kept` ones; or with `only` one of them.

    `shift` is added to the bias of the convolution that answers depth.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    limits = dict(ranges)
    for convolution, relu in _rectified(model.graph):
        limits[convolution] = ranges[relu]
    # A range of nothing has no scale. Such a tensor is zero in every frame; it gets the smallest scale of the others.
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
        assert bias is not None, "find_shift finds none without it"
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    return placed


def _last_bias(graph: onnx.GraphProto) -> onnx.TensorProto | None:
    """The bias of the one convolution that answers depth; None: there are several, or it has none."""
    last = last_convolutions(graph)
    (node,) = [node for node in graph.node if node.name == last[0]] if len(last) == 1 else [None]
    name = node.input[2] if node is not None and len(node.input) > 2 else ""
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def find_shift(model: onnx.ModelProto, ranges: Ranges, reference: Reference, placed: np.ndarray) -> tuple[float, float]:
    """What `place` has to add so that half of the depths are nearer than the reference's, and half farther; and metres.

    The median, since what is beyond a range is cut off and tells nothing of the rest. Zeros where there is no single
    last bias, or depth does not follow it. `placed` is what the graph answers without a shift.
    """
    if _last_bias(model.graph) is None:
        return 0.0, 0.0
    step = 0.01  # depth follows the bias in proportion; by how much, it tells itself
    gain = float(np.median(_answers(place(model, ranges, (), shift=step), reference.images) - placed)) / step
    metres = float(np.median(reference.depths - placed))
    return (metres / gain, metres) if gain > 0 and np.isfinite(metres) else (0.0, 0.0)


def _answer_in_floats(model: Any, convolutions: Sequence[str]) -> None:
    """Take away what rounds the answers of some convolutions in a quantised `ONNXModel`; what they read stays INT8."""
    answers = {node.output[0] for node in model.nodes() if node.name in convolutions}
    for rounding in [n for n in model.nodes() if n.op_type == "QuantizeLinear" and n.input[0] in answers]:
        (back,) = model.get_children(rounding)
        model.replace_input_of_all_nodes(back.output[0], rounding.input[0])
        model.remove_nodes([rounding, back])
    model.remove_unused_constant()


def judge(model: onnx.ModelProto, reference: Reference) -> Parity:
    """The graph's answers to the reference frames, computed as it is written, against torch's."""
    return compare(_answers(model, reference.images), reference)


def _answers(model: onnx.ModelProto, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no INT8 kernels
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, _feed(model, image))[0][:1] for image in images])


def _feed(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    """What a session of `model` is given to see one frame: the same one throughout its batch."""
    (image_input,) = model.graph.input
    frames, height, width, _ = (dim.dim_value for dim in image_input.type.tensor_type.shape.dim)
    return {image_input.name: np.repeat(resize_image(image, (height, width))[None], max(frames, 1), axis=0)}


def plan(
    model: onnx.ModelProto,
    images: Sequence[np.ndarray],
    reference: Reference,
    keep: int | Literal["auto"] | None = None,
) -> Plan:
    """Find out how an FP32 graph is quantised best: try every method, and choose what stays in FP32.

    Args:
        model: camera-ready.
        images: to calibrate on: H x W x 3 uint8.
        reference: by which methods and layers are judged; frames that prove nothing later.
        keep: so many of the most sensitive convolutions stay in FP32; "auto": as many as it takes to hold the gate.

    Raises:
        DataError: see `calibrate`.
        GateError: "auto", and the gate holds only with less than 95 % of the work in INT8; or nothing is left in INT8.
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
    """With the shift of all depths taken back, or without, whichever is better."""

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
        """The share of the work that INT8 would do."""
        return 1 - sum(macs[name] for name in kept) / sum(macs.values())

    if isinstance(keep, int):
        return tuple(order[:keep])
    for count in range(1, len(order) + 1):
        kept = tuple(order[:count])
        if left(kept) < LEAST_SHARE:
            raise GateError(
                f"INT8 does not hold its gate with {LEAST_SHARE:.0%} of the work in INT8: with {', '.join(kept)} in "
                f"FP32, {left(kept):.0%} would be left; train for it with `depthkit train --quantize RUN`, calibrate "
                "on frames of the camera by --calibrate, or choose --fp16 or --bf16"
            )
        if not gate_faults(judge(place(model, ranges, kept, shift=shift), reference), "int8"):
            return kept
    raise AssertionError("the last convolution leaves no work in INT8")


def rank_layers(model: onnx.ModelProto, ranges: Ranges, reference: Reference) -> list[Sensitivity]:
    """What each convolution costs when it alone is quantised: the most sensitive first, by SSIM."""
    names = [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]
    found = [Sensitivity(name, judge(place(model, ranges, (), only=name), reference)) for name in names]
    return sorted(found, key=lambda each: each.parity.ssim)


def last_convolutions(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the convolutions that no other one reads from."""
    reaches: set[str] = set()  # tensors that a convolution depends on
    last = []
    for node in reversed(graph.node):  # in topological order, as the standard wants them
        convolves = node.op_type in CONVOLUTIONS
        if convolves and not reaches.intersection(node.output):
            last.append(node.name)
        if convolves or reaches.intersection(node.output):
            reaches.update(node.input)
    return tuple(last)


def _rectified(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Outputs of convolutions that only a ReLU reads, with the ReLU's own."""
    read_by = readers(graph)
    for node in graph.node:
        after = read_by.get(node.output[0], []) if node.op_type in CONVOLUTIONS else []
        if [each.op_type for each in after] == ["Relu"]:
            yield node.output[0], after[0].output[0]
