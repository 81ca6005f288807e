"""What an export is made from: a run's network in torch, or the ONNX file of an adopted run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx

from ..precisions import Precision
from ..spec import ModelSpec
from ..train.document import BundleDocument, Frames

if TYPE_CHECKING:
    from .checks import Check, Subject

__all__ = ["Source"]


class Source(Protocol):
    """A run that can be exported.

    Attributes:
        name: who computes its references, for messages: "torch", or "the original".
        folder: of the run.
        document: its `model.json`.
        frames: its own frames.
    """

    name: str
    folder: Path
    document: BundleDocument
    frames: Frames

    def spec_at(self, size: tuple[int, int] | None, camera: tuple[int, int] | None = None) -> ModelSpec:
        """The run's ModelSpec at another size (None: its own), for frames of `camera` (None: not resized).

        Raises SpecError for a size that does not fit, or a camera that is smaller.
        """

    def graph(self, spec: ModelSpec, precision: Precision, kept: Collection[str] = ()) -> onnx.ModelProto:
        """The camera-ready graph, constants folded, without metadata.

        Args:
            spec: size, batch (a `Dim` makes the batch dynamic), preprocessing, range.
            precision: of the network; input, output and depth range stay as in the spec. For "int8" the graph is FP32,
                and `export.quantize` quantises it.
            kept: names of layers that stay in FP32, as `overflows` gives them.

        Raises:
            BackendError: the network cannot become such a graph.
        """

    def answer(self, spec: ModelSpec, images: np.ndarray) -> np.ndarray:
        """The run's own FP32 depth (N x H x W float32) of frames (N x H x W x 3 uint8) of the spec's size."""

    def overflows(self, spec: ModelSpec, images: Sequence[np.ndarray]) -> tuple[str, ...]:
        """The layers that must stay in FP32, because activations exceed FP16's range on frames of the spec's size."""

    def check_half(self, subject: Subject) -> Check:
        """Check the range of FP16 or BF16 on the reference's frames."""
