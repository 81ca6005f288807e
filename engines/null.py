"""The null backend: an engine that answers one depth everywhere, the median of its reference's truth.

It needs no vendor library, so everything above the runtime can be tested without one. Named to `depthkit bench
--engine` it shows what a frame costs without a network, and how accurate knowing nothing is; it fails the parity gate,
as it must.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from .. import __version__
from ..metrics import valid_pixels
from ..reference import read_reference, reference_path
from .availability import Availability
from .fingerprint import Fingerprint, cpu_fingerprint
from .manifest import Layer

__all__ = ["EXTENSION", "availability", "build", "fingerprint", "found_precision"]

EXTENSION: Final = "null"


def availability() -> Availability:
    """Always there."""
    return Availability(version=__version__, reason="answers the median depth; for tests, and as a floor", remedy="")


def fingerprint() -> Fingerprint:
    """The CPU, whatever it is."""
    return cpu_fingerprint()


def build(onnx: Path, engine: Path, options: dict[str, str | int | bool]) -> tuple[Layer, ...]:  # noqa: ARG001
    """Write the median of the true depth in the ONNX file's reference to `engine`. Raises EngineError without one."""
    truths = read_reference(reference_path(onnx)).truths
    measured = truths[valid_pixels(truths)]
    engine.write_text(json.dumps({"depth_m": float(np.median(measured)) if measured.size else 1.0}))
    return (Layer("depth", "Constant", "fp32"),)


def found_precision(layers: tuple[Layer, ...], asked: str) -> str:  # noqa: ARG001
    """A constant is written in FP32, whatever was asked for."""
    return "fp32"
