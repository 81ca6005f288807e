"""Everything that depends on the precision: one entry of `PRECISIONS` for each.

The gate, `Tolerance`, says how much an engine may differ from the network that it was made from. An FP32 engine
computes the same sums in another order, so every pixel must agree to 1 mm. FP16 rounds activations to 11 significant
bits, BF16 to 8, and INT8 to 8 bits of the whole range: single pixels at depth edges then move by centimetres while the
picture stays the same. These are held to structural similarity, and to their accuracy against measured depth.

What only one vendor needs of a precision is a table in that vendor's module; `tests/test_precisions.py` fails for a
table that lacks one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["LEAST_SHARE", "PRECISIONS", "WIDENED", "Precision", "PrecisionFacts", "Tolerance", "computed_in"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]

LEAST_SHARE: Final = 0.95
"""How much of the convolutions' multiply-accumulates must run in the precision that the ONNX file stores."""

WIDENED: Final = "fp16→fp32"
"""What an engine reports that stores FP16 and computes in FP32, as on CPUs without FP16 arithmetic."""


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision against torch in FP32; None: not limited. NaN or Inf anywhere always fails.

    Attributes:
        max_abs_mm: of any pixel of any frame, in millimetres.
        min_ssim: of the worst frame, on depth / 10 m.
        max_abs_rel_loss, max_delta1_loss: how much worse AbsRel and δ1 may be, over all measured pixels of all frames.
    """

    max_abs_mm: float | None = None
    min_ssim: float | None = None
    max_abs_rel_loss: float | None = None
    max_delta1_loss: float | None = None


@dataclass(frozen=True)
class PrecisionFacts:
    """What follows from a precision.

    Attributes:
        onnx_type: how ONNX (`TensorProto.DataType`) calls the type of the weights.
        float_type: how torch calls the type that the exported graph computes in; INT8 is quantised from FP32.
        value_bytes: bytes of one weight or activation.
        opset: of its ONNX files. 18 to 20 are what ONNX Runtime, OpenVINO and TensorRT 10 and 11 all read. BF16
            convolutions came with 22, for which ONNX Runtime has no CPU kernels, and which the others read.
        layer_limit: `bench --bisect` reports a layer whose output is further from the FP32 graph's than this, as
            ||a - b|| / ||b|| over all frames: three times the worst layer of sound engines, or more (measured in
            docs/precision.md).
        marker: of its points in charts, as matplotlib writes it.
        tolerance: the gate.
        flag: help of its flag of `depthkit export`; empty: it is what is exported without a flag.
    """

    onnx_type: str
    float_type: Literal["float32", "float16", "bfloat16"]
    value_bytes: int
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
        opset=20,
        layer_limit=1e-5,
        marker="o",
        tolerance=Tolerance(max_abs_mm=1.0),
    ),
    "fp16": PrecisionFacts(
        onnx_type="FLOAT16",
        float_type="float16",
        value_bytes=2,
        opset=20,
        layer_limit=1e-2,
        marker="s",
        flag="Weights and layers in FP16; input and output stay as they are.",
        tolerance=Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    ),
    "bf16": PrecisionFacts(
        onnx_type="BFLOAT16",
        float_type="bfloat16",
        value_bytes=2,
        opset=22,
        layer_limit=5e-2,
        marker="D",
        flag="The same in BF16; ONNX Runtime has no CPU kernels for it.",
        tolerance=Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    ),
    "int8": PrecisionFacts(
        onnx_type="INT8",
        float_type="float32",
        value_bytes=1,
        opset=20,
        layer_limit=0.1,
        marker="^",
        flag="Convolutions in INT8 (QDQ), calibrated on real frames.",
        tolerance=Tolerance(min_ssim=0.98, max_abs_rel_loss=0.005, max_delta1_loss=0.01),
    ),
}


def computed_in(found: str) -> Precision | None:
    """The precision that an engine multiplies in, from what it reports; None: that cannot be told.

    >>> computed_in("int8"), computed_in("fp16→fp32"), computed_in("unknown")
    ('int8', 'fp32', None)
    """
    return "fp32" if found == WIDENED else next((each for each in PRECISIONS if each == found), None)
