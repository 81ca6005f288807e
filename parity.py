"""Whether answers are still those of the network that was trained: torch's, on the reference frames; and the gates."""

from __future__ import annotations

from math import isnan

import numpy as np
from pydantic.dataclasses import dataclass

from .documents import STRICT
from .metrics import number, pixel_sums, scaled_mse, scaled_ssim, valid_pixels
from .precisions import PRECISIONS, Precision
from .reference import Reference

__all__ = ["Parity", "compare", "describe_gate", "describe_parity", "gate_faults", "loss_faults"]


@dataclass(frozen=True, config=STRICT)
class Parity:
    """An engine against torch FP32.

    Attributes:
        mse: mean over frames, on depth / 10 m.
        ssim, worst_ssim: mean and lowest over frames, on depth / 10 m.
        max_abs_mm: largest distance of any pixel, in millimetres.
        worst_ssim_frame, max_abs_frame: which frames these two were found in, from 0.
        finite: no NaN and no infinity anywhere.
        frames: how many.
        abs_rel_loss, delta1_loss: by how much AbsRel rose and δ1 fell, over all measured pixels; negative: the engine
            is better; None: nothing was measured in these frames.
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


def compare(answers: np.ndarray, reference: Reference) -> Parity:
    """How `answers` (N x H x W metres) to the reference's first N frames differ from torch's."""
    depths, truths = reference.depths[: len(answers)], reference.truths[: len(answers)]
    pairs = list(zip(answers, depths, strict=True))
    everywhere = np.ones(reference.size, bool)
    similarity = [scaled_ssim(answer, depth, everywhere) for answer, depth in pairs]
    finite = bool(np.isfinite(answers).all())
    distances = np.abs(answers - depths).max(axis=(1, 2))
    measured = valid_pixels(truths)
    found, trained = (pixel_sums(each, truths, measured).scores() for each in (answers, depths))
    judged = bool(measured.any())
    return Parity(
        mse=float(np.mean([scaled_mse(answer, depth, everywhere) for answer, depth in pairs])),
        ssim=float(np.mean(similarity)),
        worst_ssim=float(np.min(similarity)),
        max_abs_mm=float(distances.max()) * 1000 if finite else float("nan"),
        worst_ssim_frame=int(np.argmin(similarity)),  # of NaN the first, which is the worst
        max_abs_frame=int(np.argmax(distances)),
        finite=finite,
        frames=len(pairs),
        abs_rel_loss=found.abs_rel - trained.abs_rel if judged else None,
        delta1_loss=trained.delta1 - found.delta1 if judged else None,
    )


def gate_faults(parity: Parity, precision: Precision) -> list[str]:
    """Why a parity does not pass the gate of a precision; empty: it passes."""
    if not parity.finite:
        return ["NaN or Inf in the output"]
    tolerance = PRECISIONS[precision].tolerance
    faults = []
    if tolerance.max_abs_mm is not None and not parity.max_abs_mm <= tolerance.max_abs_mm:
        faults.append(f"max |Δ| {parity.max_abs_mm:.3g} mm > {tolerance.max_abs_mm:g} mm")
    if tolerance.min_ssim is not None and not parity.worst_ssim >= tolerance.min_ssim:
        faults.append(f"SSIM {parity.worst_ssim:.4f} < {tolerance.min_ssim:g}")
    return faults + loss_faults(parity.abs_rel_loss, parity.delta1_loss, precision)


def loss_faults(abs_rel: float | None, delta1: float | None, precision: Precision, than: str = "torch's") -> list[str]:
    """Why losses against measured depth are more than the gate of a precision allows; empty: they are not.

    Args:
        abs_rel, delta1: by how much AbsRel rose and δ1 fell; None: not measured.
        precision: which gate.
        than: whose they were before.
    """
    tolerance, faults = PRECISIONS[precision].tolerance, []
    for name, loss, most in (
        ("AbsRel", abs_rel, tolerance.max_abs_rel_loss),
        ("δ1", delta1, tolerance.max_delta1_loss),
    ):
        if loss is not None and most is not None and (isnan(loss) or loss > most):
            faults.append(f"{name} is {loss:.4f} worse than {than}, more than {most:g}")
    return faults


def describe_gate(precision: Precision) -> str:
    """The limits in words.

    >>> describe_gate("int8")
    'SSIM ≥ 0.98, AbsRel ≤ 0.005 worse, δ1 ≤ 0.01 worse'
    """
    tolerance = PRECISIONS[precision].tolerance
    limits = (
        ("max |Δ| ≤ {:g} mm", tolerance.max_abs_mm),
        ("SSIM ≥ {:g}", tolerance.min_ssim),
        ("AbsRel ≤ {:g} worse", tolerance.max_abs_rel_loss),
        ("δ1 ≤ {:g} worse", tolerance.max_delta1_loss),
    )
    return ", ".join(words.format(limit) for words, limit in limits if limit is not None)


def describe_parity(parity: Parity, precision: Precision) -> str:
    """Largest error, worst SSIM and what the gate of a precision looks at besides, in words."""
    words = f"max |Δ| {parity.max_abs_mm:.3g} mm, worst SSIM {parity.worst_ssim:.5f}"
    if parity.abs_rel_loss is not None:
        words += f", AbsRel {number(parity.abs_rel_loss, '+.4f')}"
    if parity.delta1_loss is not None and PRECISIONS[precision].tolerance.max_delta1_loss is not None:
        words += f", δ1 {number(-parity.delta1_loss, '+.4f')}"
    return words
