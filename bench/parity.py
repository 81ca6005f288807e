"""Whether an engine is still the network that was trained: its answers against torch's, on the reference frames."""

from __future__ import annotations

import numpy as np
from pydantic.dataclasses import dataclass

from ..errors import EngineError
from ..metrics import scaled_mse, scaled_ssim
from ..reference import Reference
from ..runtime.frames import predict_frames
from ..session import Session
from ..spec import STRICT
from ..tolerances import TOLERANCES, Precision

__all__ = ["Parity", "gate_faults", "measure_parity"]


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
    """

    mse: float
    ssim: float
    worst_ssim: float
    max_abs_mm: float
    worst_ssim_frame: int
    max_abs_frame: int
    finite: bool
    frames: int


def measure_parity(session: Session, reference: Reference) -> tuple[Parity, np.ndarray]:
    """Compare on every reference frame; also return the engine's answers, N x H x W metres.

    Raises:
        EngineError: the reference is of another size than the engine.
    """
    if reference.size != session.spec.size:
        raise EngineError(
            f"the reference holds frames of {reference.size} (H, W), and the engine takes {session.spec.size}"
        )
    answers = np.stack(list(predict_frames(session, reference.images)))
    pairs = list(zip(answers, reference.depths, strict=True))
    everywhere = np.ones(reference.size, bool)
    similarity = [scaled_ssim(answer, depth, everywhere) for answer, depth in pairs]
    finite = bool(np.isfinite(answers).all())
    distances = np.abs(answers - reference.depths).max(axis=(1, 2))
    parity = Parity(
        mse=float(np.mean([scaled_mse(answer, depth, everywhere) for answer, depth in pairs])),
        ssim=float(np.mean(similarity)),
        worst_ssim=float(np.min(similarity)),
        max_abs_mm=float(distances.max()) * 1000 if finite else float("nan"),
        worst_ssim_frame=int(np.argmin(similarity)),  # of NaN the first, which is the worst
        max_abs_frame=int(np.argmax(distances)),
        finite=finite,
        frames=len(pairs),
    )
    return parity, answers


def gate_faults(parity: Parity, precision: Precision) -> list[str]:
    """Why a parity does not pass the gate of a precision; empty: it passes."""
    if not parity.finite:
        return ["NaN or Inf in the output"]
    tolerance = TOLERANCES[precision]
    faults = []
    if tolerance.max_abs_mm is not None and not parity.max_abs_mm <= tolerance.max_abs_mm:
        faults.append(f"max |Δ| {parity.max_abs_mm:.3g} mm > {tolerance.max_abs_mm:g} mm")
    if tolerance.min_ssim is not None and not parity.worst_ssim >= tolerance.min_ssim:
        faults.append(f"SSIM {parity.worst_ssim:.4f} < {tolerance.min_ssim:g}")
    return faults
