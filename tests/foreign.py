"""Small ONNX files as other programs write them, made without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from depthkit.data.images import write_image

Side = int | str | None

__all__ = ["depth_file", "write_photos"]


def depth_file(
    path: Path,
    *,
    size: tuple[Side, Side] = (32, 48),
    batch: Side = "batch",
    layout: str = "NCHW",
    shrink: int = 1,
    rank: int = 4,
    opset: int = 17,
    gain: float = 3.0,
    outputs: Sequence[str] = ("depth_map",),
    dtype: int = TensorProto.FLOAT,
    answer: str = "Conv",
    input_name: str = "pixels",
) -> Path:
    """Two convolutions with fixed weights, from normalised pixels to a depth map.

    Args:
        path: where it is written.
        size, batch: of the input; words are dynamic dimensions.
        layout: of the input.
        shrink: how many times smaller the answer is.
        rank: dimensions of the answer: 3 or 4.
        opset: of the file.
        gain: what the answer is multiplied by.
        outputs: names of outputs, all with the same answer.
        dtype: type of the answer.
        answer: "Conv", or "Constant" or "NaN" for an answer that does not depend on the picture.
        input_name: of the input.
    """
    rng = np.random.default_rng(3)
    weights = {
        "first": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "second": rng.normal(0, 0.2, (1, 8, 3, 3)),
        "gain": np.array(gain),
        "level": np.array(np.nan if answer == "NaN" else 4.0),
        "nothing": np.array(0.0),
    }
    planes = input_name
    nodes = []
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [input_name], ["planes"], perm=(0, 3, 1, 2)))
        planes = "planes"
    last = "nothing" if answer == "Constant" else "gain"
    nodes += [
        helper.make_node("Conv", [planes, "first"], ["features"], name="first", pads=[1] * 4, strides=[shrink] * 2),
        helper.make_node("Relu", ["features"], ["rectified"]),
        helper.make_node("Conv", ["rectified", "second"], ["raw"], name="second", pads=[1] * 4),
        helper.make_node("Mul", ["raw", last], ["scaled"]),
        helper.make_node("Add", ["scaled", "level"], ["answer"]),
    ]
    final = "answer"
    if rank == 3:
        axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
        nodes.append(helper.make_node("Squeeze", ["answer", "axes"], ["flat"]))
        final = "flat"
    nodes += [helper.make_node("Cast", [final], [name], to=dtype) for name in outputs]
    shape: list[Any] = [batch, 3, *size] if layout == "NCHW" else [batch, *size, 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(each, np.float32), name) for name, each in weights.items()]
        + ([axes] if rank == 3 else []),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def write_photos(folder: Path, images: np.ndarray, count: int = 18) -> Path:
    """A folder of pictures of different sizes: crops of `images` (N x H x W x 3 uint8)."""
    folder.mkdir()
    for index in range(count):
        image = images[index % len(images)]
        cut = 2 * (index // len(images))
        write_image(folder / f"{index:02}.png", np.ascontiguousarray(image[cut:, : image.shape[1] - cut]))
    return folder
