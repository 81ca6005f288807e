"""A session's answers to the reference frames."""

from __future__ import annotations

import numpy as np

from ..errors import EngineError
from ..parity import Parity, compare
from ..reference import Reference
from ..runtime.frames import predict_frames
from ..session import Session

__all__ = ["measure_parity"]


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
    return compare(answers, reference), answers
