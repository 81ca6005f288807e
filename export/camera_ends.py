"""Make a foreign ONNX graph camera-ready: uint8 N x H x W x 3 RGB in, float32 N x H x W out.

The nodes compute what `train.camera_ready.CameraReady` computes for networks in torch. They are in FP32 whatever the
network's precision, and their names begin with `PREFIX`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..data.resample import neighbours, weights
from ..onnx_graph import opset_of
from ..spec import Dim, ModelSpec
from ..train.document import Adoption

__all__ = ["PREFIX", "add_camera_ends"]

PREFIX: Final = "camera."
"""Begins the names of the added nodes and tensors."""

_AXES_ARE_INPUTS: Final = 18
"""The opset from which ReduceMean takes its axes as an input."""


def add_camera_ends(
    model: onnx.ModelProto, adopted: Adoption, spec: ModelSpec, answered: tuple[int, int]
) -> onnx.ModelProto:
    """Add the nodes to a graph, which is changed and returned.

    Args:
        model: of opset 13 or later; its input has the size `spec.network_size` and the batch of the spec.
        adopted: names of its tensors, and the input's layout.
        spec: of the result.
        answered: height and width of the network's answer, which is resized to the spec's size.
    """
    graph = model.graph
    inner = _free_names(graph, {spec.input.name, spec.output.name})
    ends = _Ends(opset_of(model), -1 if isinstance(spec.batch, Dim) else spec.batch)
    before = ends.preprocess(spec, adopted.layout, inner.get(adopted.input, adopted.input))
    after = ends.postprocess(spec, answered, inner.get(adopted.output, adopted.output))
    network = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*before, *network, *after])
    graph.initializer.extend(ends.constants)
    batch = spec.batch.name if isinstance(spec.batch, Dim) else spec.batch
    for values, tensor, kind in ((graph.input, spec.input, "UINT8"), (graph.output, spec.output, "FLOAT")):
        shape = [batch, *(side for side in tensor.shape[1:] if isinstance(side, int))]
        values.append(helper.make_tensor_value_info(tensor.name, getattr(TensorProto, kind), shape))
    return model


def _free_names(graph: onnx.GraphProto, wanted: set[str]) -> dict[str, str]:
    """Rename the graph's own tensors that have a wanted name; the new names by the old ones."""
    renamed = {name: f"{name}.inner" for name in wanted}
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    return renamed


class _Ends:
    """Collects nodes and their constants."""

    def __init__(self, opset: int, batch: int) -> None:
        self.constants: list[onnx.TensorProto] = []
        self._opset, self._batch = opset, batch
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0

    def preprocess(self, spec: ModelSpec, layout: str, goal: str) -> list[onnx.NodeProto]:
        """The nodes from `image` to the network's input, the tensor `goal`."""
        # Pixels are cast before their layout changes, because TensorRT's parser cannot transpose uint8.
        pixels, planar = self._add("Cast", spec.input.name, to=TensorProto.FLOAT), layout == "NCHW"
        if spec.resized_to is not None:
            pixels = self._shrink(pixels, spec.size, spec.resized_to)
            pixels = pixels if planar else self._add("Transpose", pixels, perm=(0, 2, 3, 1))
        elif planar:
            pixels = self._add("Transpose", pixels, perm=(0, 3, 1, 2))
        if spec.preprocessing.color == "BGR":
            pixels = self._add("Gather", pixels, self._whole([2, 1, 0]), axis=1 if planar else 3)
        mean, std = (np.array(each, np.float64) for each in (spec.preprocessing.mean, spec.preprocessing.std))
        shape = (1, 3, 1, 1) if planar else (1, 1, 1, 3)
        gain, offset = 1 / (spec.preprocessing.scale * std), -mean / std
        pixels = self._add("Mul", pixels, self._float(gain.reshape(shape)))
        if offset.any():
            pixels = self._add("Add", pixels, self._float(offset.reshape(shape)))
        return self._take(pixels, goal)

    def postprocess(self, spec: ModelSpec, answered: tuple[int, int], answer: str) -> list[onnx.NodeProto]:
        """The nodes from the network's `answer` to `depth`."""
        depth = self._add("Reshape", answer, self._whole([self._batch, *answered]))
        depth = self._resize(depth, answered, spec.size)
        if spec.answers == "share":
            depth = self._add("Mul", depth, self._float(spec.depth_range[1]))
        if spec.is_metric:
            depth = self._add("Clip", depth, *(self._float(end) for end in spec.depth_range))
        return self._take(depth, spec.output.name)

    def _shrink(self, pixels: str, size: tuple[int, int], goal: tuple[int, int]) -> str:
        """Float N x H x W x 3 to N x 3 x h x w, by the filters of `train.resize`."""
        (height, width), (rows, columns) = size, goal
        if (height % rows, width % columns) == (0, 0):
            down, across = height // rows, width // columns
            blocks = self._add("Reshape", pixels, self._whole([self._batch, rows, down, width * 3]))
            axes = {} if self._opset >= _AXES_ARE_INPUTS else {"axes": [2]}
            given = [self._whole([2])] if self._opset >= _AXES_ARE_INPUTS else []
            means = self._add("ReduceMean", blocks, *given, keepdims=0, **axes)
            wide = self._add("Reshape", means, self._whole([self._batch, rows, width, 3]))
            planes = self._add("Transpose", wide, perm=(0, 3, 1, 2))
            return self._add("AveragePool", planes, kernel_shape=(1, across), strides=(1, across))
        flat = self._add("Reshape", pixels, self._whole([self._batch, height, width * 3]))
        shrunk = self._add("MatMul", self._float(weights(height, rows)), flat)
        wide = self._add("Reshape", shrunk, self._whole([self._batch, rows, width, 3]))
        planes = self._add("Transpose", wide, perm=(0, 3, 1, 2))
        return self._add("MatMul", planes, self._float(weights(width, columns).T))

    def _resize(self, depth: str, size: tuple[int, int], goal: tuple[int, int]) -> str:
        """N x h x w to N x H x W: linear interpolation, or the filter for shrinking. Columns become rows first."""
        if size[1] != goal[1]:
            turned = self._add("Transpose", depth, perm=(0, 2, 1))
            depth = self._add("Transpose", self._rows(turned, size[1], goal[1]), perm=(0, 2, 1))
        return depth if size[0] == goal[0] else self._rows(depth, size[0], goal[0])

    def _rows(self, depth: str, length: int, goal: int) -> str:
        """N x `length` x M to N x `goal` x M."""
        if goal < length:
            return self._add("MatMul", self._float(weights(length, goal)), depth)
        before, after, share = neighbours(length, goal)
        one, other = (self._add("Gather", depth, self._whole(each), axis=1) for each in (before, after))
        moved = self._add("Mul", self._add("Sub", other, one), self._float(share))
        return self._add("Add", one, moved)

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{PREFIX}{operator}_{self._count}"
        self._count += 1
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _take(self, last: str, goal: str) -> list[onnx.NodeProto]:
        """The nodes collected so far, of which the one that wrote `last` now writes `goal`."""
        nodes, self._nodes = self._nodes, []
        assert nodes[-1].output[0] == last, "the last node writes the result"
        nodes[-1].output[0] = goal
        return nodes

    def _whole(self, numbers: Sequence[int] | np.ndarray) -> str:
        return self._constant(np.asarray(numbers, np.int64))

    def _float(self, numbers: np.ndarray | float) -> str:
        return self._constant(np.asarray(numbers, np.float32))

    def _constant(self, array: np.ndarray) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name
