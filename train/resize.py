"""Resizing as torch modules, for graphs that take a camera's frames, and for answers of another size than the frames.

They compute in FP32 whatever the network's precision, and have no convolution, so INT8 does not quantise them. All
backends compute them alike. ONNX's Resize would not do (docs/results/camera_export.md): with antialiasing, TensorRT-RTX
refuses it and OpenVINO ignores it; without, OpenVINO is ten times as slow.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..data.resample import neighbours, weights

__all__ = ["Average", "Filter", "Resample", "shrinking"]


def shrinking(size: tuple[int, int], goal: tuple[int, int]) -> Average | Filter:
    """The module that shrinks frames of `size` (height, width) to `goal`: `Average` if both ratios are whole."""
    down, across = (n // to for n, to in zip(size, goal, strict=True))
    return Average(down, across) if size == (goal[0] * down, goal[1] * across) else Filter(size, goal)


class Average(nn.Module):
    """From uint8 N x H x W x 3 to float32 N x 3 x H/down x W/across: means of blocks.

    Rows are averaged before the layout changes, so that only the smaller picture is transposed. A row is one axis then,
    because OpenVINO reduces tensors of five axes ten times as slowly.
    """

    def __init__(self, down: int, across: int) -> None:
        super().__init__()
        self.down = down
        self.across = across

    def forward(self, image: Tensor) -> Tensor:
        """Shrink frames."""
        _, height, width, channels = image.shape
        blocks = image.float().reshape(-1, height // self.down, self.down, width * channels)
        rows = blocks.mean(2).reshape(-1, height // self.down, width, channels)
        return avg_pool2d(rows.permute(0, 3, 1, 2), (1, self.across))


class Filter(nn.Module):
    """From uint8 N x H x W x 3 to float32 N x 3 x h x w by the filter of training, `data.resample.weights`."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], goal: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (torch.from_numpy(weights(n, to)) for n, to in zip(size, goal, strict=True))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns.T.contiguous(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Shrink frames."""
        _, _, width, channels = image.shape
        shrunk = torch.matmul(self.rows, image.float().flatten(2)).reshape(-1, len(self.rows), width, channels)
        return torch.matmul(shrunk.permute(0, 3, 1, 2), self.columns)


class Resample(nn.Module):
    """From N x h x w to N x H x W as `data.resample` does: linear interpolation, or its filter for shrinking."""

    def __init__(self, size: tuple[int, int], goal: tuple[int, int]) -> None:
        super().__init__()
        self.down, self.across = (
            _Stretch(n, to) if to >= n else _Shrink(n, to) for n, to in zip(size, goal, strict=True)
        )

    def forward(self, depth: Tensor) -> Tensor:
        """Resize depth. Rows are gathered much faster than columns, so columns become rows first."""
        return cast("Tensor", self.down(self.across(depth.transpose(1, 2)).transpose(1, 2)))


class _Stretch(nn.Module):
    """From N x `length` x M to N x `goal` x M by linear interpolation."""

    before: Tensor
    after: Tensor
    share: Tensor

    def __init__(self, length: int, goal: int) -> None:
        super().__init__()
        for name, array in zip(("before", "after", "share"), neighbours(length, goal), strict=True):
            self.register_buffer(name, torch.tensor(array), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        before, after = rows.index_select(1, self.before), rows.index_select(1, self.after)
        return before + (after - before) * self.share


class _Shrink(nn.Module):
    """From N x `length` x M to N x `goal` x M by a filter."""

    weights: Tensor

    def __init__(self, length: int, goal: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(weights(length, goal)), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.matmul(self.weights, rows)
