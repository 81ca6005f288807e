"""How much an engine may differ from the network it was made from: the one table that every gate reads.

An FP32 engine computes the same sums in another order, so it is held to a distance: 1 mm. A half-precision engine
rounds every activation to 11 significant bits (BF16: 8), an INT8 engine to 8 bits of the whole range; single pixels at
depth edges then move by centimetres while the picture stays the same, so they are held to structural similarity, and
to what their depth is still worth against measured depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["LEAST_SHARE", "TOLERANCES", "Precision", "Tolerance"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]

LEAST_SHARE: Final = 0.95
"""How much of the convolutions' work, in multiply-accumulates, must run in the precision that the ONNX file stores."""


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


TOLERANCES: Final[dict[Precision, Tolerance]] = {
    "fp32": Tolerance(max_abs_mm=1.0),
    "fp16": Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    "bf16": Tolerance(min_ssim=0.995, max_abs_rel_loss=0.002),
    "int8": Tolerance(min_ssim=0.98, max_abs_rel_loss=0.005, max_delta1_loss=0.01),
}
