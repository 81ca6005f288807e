"""Ranges of activations for INT8, found by ONNX Runtime's calibrators on real frames."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx

from ..data.images import resize_image
from ..errors import DataError
from ..onnx_graph import CONVOLUTIONS, products, tensor_types
from ..vendors import import_onnxruntime

__all__ = ["LEAST_FRAMES", "METHODS", "Method", "Ranges", "calibrate", "feed", "frames_wanted"]

Method = Literal["minmax", "percentile", "entropy"]
Ranges = Mapping[str, float]
"""For each tensor, the largest magnitude that INT8 must represent."""

METHODS: Final[dict[Method, tuple[str, dict[str, Any]]]] = {
    "minmax": ("MinMaxCalibrater", {}),
    "percentile": ("PercentileCalibrater", {"symmetric": True, "percentile": 99.99}),
    "entropy": ("EntropyCalibrater", {"symmetric": True}),
}
"""Calibration method -> ONNX Runtime's class and options."""

LEAST_FRAMES: Final = 8
MOST_FRAMES: Final = 64
PIXELS: Final = 2_500_000
"""Target for the pixels of all calibration frames, as calibration keeps statistics of every activation. The number of
frames stays between `LEAST_FRAMES` and `MOST_FRAMES`."""

HELD: Final = 512 << 20
"""Most bytes of activations that calibration by histograms holds; larger networks run several times for each frame."""


def frames_wanted(size: tuple[int, int]) -> int:
    """Number of calibration frames for this height and width.

    >>> frames_wanted((96, 128)), frames_wanted((240, 320)), frames_wanted((480, 640))
    (64, 32, 8)
    """
    return int(np.clip(PIXELS // (size[0] * size[1]), LEAST_FRAMES, MOST_FRAMES))


def calibrate(model: onnx.ModelProto, images: Sequence[np.ndarray], method: Method) -> Ranges:
    """Run frames through an FP32 graph and find the ranges that its layers with weights need.

    These are the inputs and outputs of convolutions and ReLUs, and the inputs of matrix products.

    Args:
        model: camera-ready.
        images: H x W x 3 uint8 of any size, resized to the graph's.
        method: key of `METHODS`.

    Raises:
        DataError: too few frames.
    """
    if len(images) < LEAST_FRAMES:
        raise DataError(f"INT8 calibration needs at least {LEAST_FRAMES} frames, but there are {len(images)}")
    sizes = _sizes(model)
    groups = [list(sizes)] if method == "minmax" else list(_grouped(sizes))  # min-max keeps two numbers per tensor
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="depthkit-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path)
        for group in groups:
            found |= _calibrate(path, [feed(model, image) for image in images], method, frozenset(group))
    return found


def feed(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs for a session of `model`: one frame, repeated for its whole batch."""
    (image_input,) = model.graph.input
    frames, height, width, _ = (dim.dim_value for dim in image_input.type.tensor_type.shape.dim)
    return {image_input.name: np.repeat(resize_image(image, (height, width))[None], max(frames, 1), axis=0)}


def _calibrate(
    path: Path, feeds: Sequence[dict[str, np.ndarray]], method: Method, tensors: Collection[str]
) -> dict[str, float]:
    """The ranges of some of a file's tensors."""
    onnxruntime = import_onnxruntime()
    from onnxruntime.quantization import calibrate as vendor

    class One(vendor.CalibrationDataReader):  # type: ignore[misc]
        """One frame. For several frames, ONNX Runtime would keep all their activations in memory."""

        def __init__(self, inputs: dict[str, np.ndarray]) -> None:
            self._feeds = iter([inputs])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    name, options = METHODS[method]
    calibrator = getattr(vendor, name)(path, augmented_model_path=str(path.with_name("augmented.onnx")), **options)
    select = calibrator.select_tensors_to_calibrate

    def select_some(model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
        floats, types = select(model)
        return floats.intersection(tensors), types

    calibrator.select_tensors_to_calibrate = select_some  # ONNX Runtime selects by operators alone
    calibrator.augment_graph()
    options = onnxruntime.SessionOptions()  # of `create_inference_session`, but for the order: see `half.find_large`
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    augmented, providers = calibrator.augmented_model_path, calibrator.execution_providers
    calibrator.infer_session = onnxruntime.InferenceSession(augmented, options, providers)
    with redirect_stdout(StringIO()):  # the calibrator prints progress
        for inputs in feeds:
            calibrator.collect_data(One(inputs))
        found = calibrator.compute_data()
    return {tensor: float(np.abs(data.range_value).max()) for tensor, data in found.items()}


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """The activations whose ranges are needed, each with its bytes for one frame; 0: unknown."""
    weighted = {each.name for each in products(model) if each.precision}
    wanted: list[str] = []
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS or node.op_type == "Relu":
            wanted += (*node.input, *node.output)
        elif node.name in weighted:
            wanted.append(node.input[0])
    constants = {tensor.name for tensor in model.graph.initializer}
    types = tensor_types(model, batch=1)
    return {name: 4 * prod(types[name][1] or ()) for name in wanted if name in types and name not in constants}


def _grouped(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Tensors in groups of at most `HELD` bytes; a larger one is alone."""
    group: list[str] = []
    held = 0
    for tensor, size in sizes.items():
        if group and held + size > HELD:
            yield group
            group, held = [], 0
        group.append(tensor)
        held += size
    yield group
