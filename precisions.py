"""Everything that depends on the precision, with one entry of `PRECISIONS` for each.

The gate, `Tolerance`, limits how much an engine may differ from the trained network. An FP32 engine computes the same
sums in another order, so every pixel must agree to 1 mm; without metres, to 0.01 % of the reference's span, as 1 mm is
of 10 m. FP16 rounds activations to 11 significant bits, BF16 to 8, and INT8 to 8 bits of the whole range. Single pixels
at depth edges then move by centimetres, although the depth map stays the same. Their gates limit structural similarity
and the loss of accuracy against measured depth instead.

Facts that only one vendor needs are in a table in that vendor's module; `tests/test_precisions.py` fails if such a
table lacks a precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "LEAST_SHARE",
    "PRECISIONS",
    "WIDENED",
    "Precision",
    "PrecisionFacts",
    "Tolerance",
    "computed_in",
    "stored_in",
]

Precision = Literal["fp32", "fp16", "bf16", "int8"]

LEAST_SHARE: Final = 0.95
"""Smallest fraction of the multiply-accumulates of layers with weights that must run in the ONNX file's precision."""

WIDENED: Final = "fp16→fp32"
"""Reported by engines that store FP16 and compute in FP32, as on CPUs without FP16 arithmetic."""


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision against the reference in FP32; None: no limit. NaN or Inf anywhere always fails.

    Attributes:
        max_abs_mm: largest difference of any pixel of any frame, in millimetres.
        max_abs_percent: the same for depth without metres, in percent of the span of `Reference.scale`.
        min_ssim: lowest SSIM of any frame, on depth scaled by `Reference.scale`.
        max_abs_rel_loss, max_delta1_loss: how much worse AbsRel and δ1 may be, over all measured pixels of all frames.
    """

    max_abs_mm: float | None = None
    max_abs_percent: float | None = None
    min_ssim: float | None = None
    max_abs_rel_loss: float | None = None
    max_delta1_loss: float | None = None


@dataclass(frozen=True)
class PrecisionFacts:
    """Properties of a precision.

    Attributes:
        onnx_type: ONNX's name (`TensorProto.DataType`) for the type of the weights.
        float_type: PyTorch's name for the type that the exported graph computes in; INT8 is quantised from FP32.
        value_bytes: bytes of one weight or activation.
        largest: the largest finite number.
        opset: of its ONNX files. ONNX Runtime, OpenVINO, TensorRT 10 and 11 all read opsets 18 to 20. BF16 convolutions
            need opset 22, for which ONNX Runtime has no CPU kernels; the others read it.
        layer_limit: `bench --bisect` reports layers whose relative difference from the FP32 graph,
            ||a - b|| / ||b|| over all frames, exceeds this: at least three times the worst layer of correct engines
            (measured in docs/precision.md).
        marker: matplotlib marker in charts.
        tolerance: the gate.
        flag: help text of its flag of `depthkit export`; empty for the precision that needs no flag.
    """

    onnx_type: str
    float_type: Literal["float32", "float16", "bfloat16"]
    value_bytes: int
    largest: float
    opset: int
    layer_limit: float
    marker: str
    tolerance: Tolerance
    flag: str = ""


PRECISIONS: Final[dict[Precision, PrecisionFacts]] = {
    "fp32": PrecisionFacts(
        onnx_type="FLOAT",
        float_type="float32",
        value_bytes=4,
        largest=(2 - 2**-23) * 2.0**127,
        opset=20,
        layer_limit=1e-5,
        marker="o",
        tolerance=Tolerance(max_abs_mm=1.0, max_abs_percent=0.01),
    ),
    "fp16": PrecisionFacts(
        onnx_type="FLOAT16",
        float_type="float16",
        value_bytes=2,
        largest=65504.0,
        opset=20,
        layer_limit=1e-2,
        marker="s",
        flag="FP16 weights and arithmetic; input and output types do not change.",
        tolerance=Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    ),
    "bf16": PrecisionFacts(
        onnx_type="BFLOAT16",
        float_type="bfloat16",
        value_bytes=2,
        largest=(2 - 2**-7) * 2.0**127,
        opset=22,
        layer_limit=5e-2,
        marker="D",
        flag="BF16 weights and arithmetic; ONNX Runtime has no CPU kernels for it.",
        tolerance=Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    ),
    "int8": PrecisionFacts(
        onnx_type="INT8",
        float_type="float32",
        value_bytes=1,
        largest=127.0,
        opset=20,
        layer_limit=0.1,
        marker="^",
        flag="INT8 convolutions and matrix products (QDQ), calibrated on real frames.",
        tolerance=Tolerance(min_ssim=0.98, max_abs_rel_loss=0.005, max_delta1_loss=0.01),
    ),
}


def computed_in(found: str) -> Precision | None:
    """The precision that an engine multiplies in, from what it reports; None if unknown.

    >>> computed_in("int8"), computed_in("fp16→fp32"), computed_in("unknown")
    ('int8', 'fp32', None)
    """
    return "fp32" if found == WIDENED else _known(found)


def stored_in(found: str) -> Precision | None:
    """The precision of an engine's weights, from what it reports; None if unknown.

    >>> stored_in("int8"), stored_in("fp16→fp32"), stored_in("unknown")
    ('int8', 'fp16', None)
    """
    return "fp16" if found == WIDENED else _known(found)


def _known(name: str) -> Precision | None:
    return next((each for each in PRECISIONS if each == name), None)
