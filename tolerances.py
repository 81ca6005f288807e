"""How much an engine may differ from the network it was made from: the one table that every gate reads.

An FP32 engine computes the same sums in another order, so it is held to a distance: 1 mm. A half-precision engine
rounds every activation to 11 significant bits (BF16: 8); single pixels at depth edges then move by centimetres while
the picture stays the same, so it is held to structural similarity instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["TOLERANCES", "Precision", "Tolerance"]

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision against torch in FP32; None: not limited. NaN or Inf anywhere always fails."""

    max_abs_mm: float | None = None
    min_ssim: float | None = None


TOLERANCES: Final[dict[Precision, Tolerance]] = {
    "fp32": Tolerance(max_abs_mm=1.0),
    "fp16": Tolerance(min_ssim=0.99),
    "bf16": Tolerance(min_ssim=0.99),
}
