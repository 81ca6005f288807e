"""The null backend: an engine that predicts one depth everywhere, the median ground truth of its reference.

It needs no vendor library, so everything above the runtime can be tested without one. In `depthkit bench --engine` it
shows the time of a frame without a network, and the accuracy of a constant. As expected, it fails the parity gate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
from pydantic.dataclasses import dataclass

from .. import __version__
from ..documents import STRICT
from ..metrics import valid_pixels
from ..onnx_graph import describe_onnx
from ..precisions import Precision
from ..reference import find_reference, read_reference
from .backend import Availability, Backend, Built
from .fingerprint import Fingerprint, cpu_fingerprint
from .manifest import Layer

__all__ = ["NULL", "Null", "NullOptions"]


@dataclass(frozen=True, config=STRICT)
class NullOptions:
    """No options."""


class Null(Backend[NullOptions]):
    """The null backend; see the module."""

    name = "null"
    extension = "null"
    options = NullOptions
    computes = False

    def availability(self) -> Availability:
        """See `Backend.availability`: always available."""
        return Availability(version=__version__, reason="predicts the median depth; for tests and as a baseline")

    def here(self) -> Fingerprint:
        """See `Backend.here`: the CPU."""
        return cpu_fingerprint()

    def build(self, onnx: Path, engine: Path, asked: Precision, options: NullOptions) -> Built:
        """See `Backend.build`. Raises EngineError if the ONNX file has no reference beside it."""
        made = describe_onnx(onnx)
        truths = read_reference(find_reference(onnx, made.weights_sha256, made.model)).truths
        measured = truths[valid_pixels(truths)]
        engine.write_text(json.dumps({"depth_m": float(np.median(measured)) if measured.size else 1.0}))
        return Built((Layer("depth", "Constant", "fp32"),))

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        """See `Backend.found_precision`: the constant is FP32, whatever the requested precision."""
        return "fp32"


NULL: Final = Null()
