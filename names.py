"""Names and defaults that `--help` shows, in one file that imports nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["BACKENDS", "DEPTH_UNITS", "NETWORKS", "PRECISIONS"]

NETWORKS: Final = ("compact", "unet")
"""What `train.networks.NETWORKS` builds."""

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")
"""What `tolerances.TOLERANCES` has a gate for."""

BACKENDS: Final = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-tensorrt",
    "onnxruntime-cuda",
    "openvino",
    "onnxruntime",
    "null",
)
"""What `engines.build.BACKENDS` builds by: the fastest first, and last the one that computes nothing."""

DEPTH_UNITS: Final = 1000.0
"""Units of stored depth per metre where neither the user nor a run says otherwise: millimetres."""
