"""Accuracy of an engine: its depth against measured depth, at the camera's resolution."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import tee
from typing import Literal

import numpy as np

from ..frames import predict_frames
from ..metrics import Alignment, DepthScores, aggregate, choose_alignment, score_frame
from ..parity import loss_faults
from ..precisions import Precision
from ..session import Session

__all__ = ["accuracy_faults", "measure_accuracy"]


def measure_accuracy(
    session: Session,
    samples: Iterable[tuple[np.ndarray, np.ndarray]],
    crop: tuple[slice, slice] | None,
    how: Alignment | Literal["auto"] = "auto",
) -> DepthScores:
    """Score a session on pictures with measured depth.

    Args:
        session: pictures are resized to its size and the depth back, so a smaller engine is penalised for its blur.
        samples: pairs of H x W x 3 uint8 and H x W metres (0: not measured), read one by one.
        crop: rows and columns that count for AbsRel, RMSE, log10 and the thresholds; None: all.
        how: how each prediction is aligned to its truth first, see `metrics.choose_alignment` and `metrics.align`.

    Raises:
        UserError: the session's answers cannot be aligned so.
    """
    how, inverse = choose_alignment(how, session.spec.answers), session.spec.answers == "inverse"
    images, truths = tee(samples)
    predictions = predict_frames(session, (image for image, _ in images))
    pairs = zip(predictions, (truth for _, truth in truths), strict=True)
    return aggregate(score_frame(*pair, crop, how, inverse=inverse) for pair in pairs)


def accuracy_faults(scores: DepthScores, fp32: DepthScores, precision: Precision) -> list[str]:
    """How scores fall short of FP32's on the same pictures beyond a precision's tolerance; empty: they do not."""
    abs_rel = scores.pooled.abs_rel - fp32.pooled.abs_rel
    delta1 = fp32.pooled.delta1 - scores.pooled.delta1
    return loss_faults(abs_rel, delta1, precision, f"FP32's on {scores.frames} measured frames")
