"""Parity of a session on the reference frames."""

from __future__ import annotations

import numpy as np

from ..errors import EngineError
from ..frames import predict_frames
from ..parity import Parity, compare
from ..reference import Reference
from ..session import Session

__all__ = ["measure_parity"]


def measure_parity(session: Session, reference: Reference) -> tuple[Parity, np.ndarray]:
    """Compare with the reference on all its frames; also return the session's depth, N x H x W float32.

    Raises:
        EngineError: the reference has another size than the engine.
    """
    if reference.size != session.spec.size:
        raise EngineError(
            f"the reference has frames of {reference.size} (H, W), but the engine takes {session.spec.size}; "
            "export both again from one run"
        )
    depths = np.stack(list(predict_frames(session, reference.images)))
    return compare(depths, reference), depths
