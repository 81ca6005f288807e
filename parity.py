"""Parity: compare an engine's depth with the model's own in FP32 on the reference frames; apply a precision's gate."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
from pydantic.dataclasses import dataclass

from .documents import STRICT
from .metrics import DEPTH_SCALE, number, pixel_sums, scaled_mse, scaled_ssim, valid_pixels
from .precisions import PRECISIONS, Precision
from .reference import Reference

__all__ = ["Parity", "compare", "describe_gate", "describe_parity", "gate_faults", "loss_faults"]


@dataclass(frozen=True, config=STRICT)
class Parity:
    """An engine compared with its reference.

    Attributes:
        mse: mean over frames, on depth scaled by `Reference.scale` (metres: depth / 10 m).
        ssim, worst_ssim: mean and lowest over frames, on the same scale.
        max_abs_mm: largest difference of any pixel, in millimetres; NaN without metres.
        worst_ssim_frame, max_abs_frame: indices (from 0) of the frames with `worst_ssim` and the largest difference.
        finite: no NaN and no infinity in any frame.
        frames: number of frames.
        abs_rel_loss, delta1_loss: increase of AbsRel and decrease of δ1 over all measured pixels; negative if the
            engine is better, None if the frames have no measured pixel or depth has no metres.
        is_metric: whether depth is in metres.
        max_abs_percent: without metres, the largest difference in percent of the span of `Reference.scale`; else NaN.
    """

    mse: float
    ssim: float
    worst_ssim: float
    max_abs_mm: float
    worst_ssim_frame: int
    max_abs_frame: int
    finite: bool
    frames: int
    abs_rel_loss: float | None = None
    delta1_loss: float | None = None
    is_metric: bool = True
    max_abs_percent: float = nan

    @property
    def difference(self) -> str:
        """The largest difference of any pixel, with its unit."""
        return f"{self.max_abs_mm:.3g} mm" if self.is_metric else f"{self.max_abs_percent:.3g} %"


def compare(answers: np.ndarray, reference: Reference) -> Parity:
    """Compare depths (N x H x W float32) for the reference's first N frames with its own."""
    depths, truths = reference.depths[: len(answers)], reference.truths[: len(answers)]
    if not reference.is_metric:  # to a span of 10, as the paper's metrics are on depth / 10 m
        low, high = reference.scale
        answers, depths = ((each - low) * (DEPTH_SCALE / (high - low)) for each in (answers, depths))
        truths = np.zeros_like(depths)
    pairs = list(zip(answers, depths, strict=True))
    everywhere = np.ones(reference.size, bool)
    similarity = [scaled_ssim(answer, depth, everywhere) for answer, depth in pairs]
    finite = bool(np.isfinite(answers).all())
    distances = np.abs(answers - depths).max(axis=(1, 2))
    measured = valid_pixels(truths)
    found, trained = (pixel_sums(each, truths, measured).scores() for each in (answers, depths))
    judged = bool(measured.any())
    largest = float(distances.max()) if finite else nan
    return Parity(
        mse=float(np.mean([scaled_mse(answer, depth, everywhere) for answer, depth in pairs])),
        ssim=float(np.mean(similarity)),
        worst_ssim=float(np.min(similarity)),
        max_abs_mm=1000 * largest if reference.is_metric else nan,
        worst_ssim_frame=int(np.argmin(similarity)),  # the first NaN, if there is one
        max_abs_frame=int(np.argmax(distances)),
        finite=finite,
        frames=len(pairs),
        abs_rel_loss=found.abs_rel - trained.abs_rel if judged else None,
        delta1_loss=trained.delta1 - found.delta1 if judged else None,
        is_metric=reference.is_metric,
        max_abs_percent=nan if reference.is_metric else 100 * largest / DEPTH_SCALE,
    )


def gate_faults(parity: Parity, precision: Precision) -> list[str]:
    """Why `parity` fails the gate of a precision; empty if it passes."""
    if not parity.finite:
        return ["NaN or Inf in the output"]
    tolerance = PRECISIONS[precision].tolerance
    faults = []
    found, most, unit = parity.max_abs_mm, tolerance.max_abs_mm, "mm"
    if not parity.is_metric:
        found, most, unit = parity.max_abs_percent, tolerance.max_abs_percent, "%"
    if most is not None and not found <= most:
        faults.append(f"max |Δ| {parity.difference} > {most:g} {unit}")
    if tolerance.min_ssim is not None and not parity.worst_ssim >= tolerance.min_ssim:
        faults.append(f"SSIM {parity.worst_ssim:.4f} < {tolerance.min_ssim:g}")
    return faults + loss_faults(parity.abs_rel_loss, parity.delta1_loss, precision)


def loss_faults(
    abs_rel: float | None, delta1: float | None, precision: Precision, than: str = "the reference's"
) -> list[str]:
    """Why accuracy losses exceed the gate of a precision; empty if they do not.

    Args:
        abs_rel, delta1: increase of AbsRel and decrease of δ1; None if not measured.
        precision: whose gate applies.
        than: the baseline, as named in the message.
    """
    tolerance, faults = PRECISIONS[precision].tolerance, []
    for name, loss, most in (
        ("AbsRel", abs_rel, tolerance.max_abs_rel_loss),
        ("δ1", delta1, tolerance.max_delta1_loss),
    ):
        if loss is not None and most is not None and (isnan(loss) or loss > most):
            faults.append(f"{name} is {loss:.4f} worse than {than}, more than {most:g}")
    return faults


def describe_gate(precision: Precision, *, is_metric: bool = True) -> str:
    """The limits of a precision's gate as text; `is_metric`: depth is in metres.

    >>> describe_gate("int8"), describe_gate("fp32", is_metric=False)
    ('SSIM ≥ 0.98, AbsRel ≤ 0.005 worse, δ1 ≤ 0.01 worse', 'max |Δ| ≤ 0.01 %')
    """
    tolerance = PRECISIONS[precision].tolerance
    in_metres = (
        ("max |Δ| ≤ {:g} mm", tolerance.max_abs_mm),
        ("SSIM ≥ {:g}", tolerance.min_ssim),
        ("AbsRel ≤ {:g} worse", tolerance.max_abs_rel_loss),
        ("δ1 ≤ {:g} worse", tolerance.max_delta1_loss),
    )
    without = (("max |Δ| ≤ {:g} %", tolerance.max_abs_percent), ("SSIM ≥ {:g}", tolerance.min_ssim))
    limits = in_metres if is_metric else without
    return ", ".join(words.format(limit) for words, limit in limits if limit is not None)


def describe_parity(parity: Parity, precision: Precision) -> str:
    """Largest error, worst SSIM, and the losses that the gate of a precision limits, as text."""
    words = f"max |Δ| {parity.difference}, worst SSIM {parity.worst_ssim:.5f}"
    if parity.abs_rel_loss is not None:
        words += f", AbsRel {number(parity.abs_rel_loss, '+.4f')}"
    if parity.delta1_loss is not None and PRECISIONS[precision].tolerance.max_delta1_loss is not None:
        words += f", δ1 {number(-parity.delta1_loss, '+.4f')}"
    return words
