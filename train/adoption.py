"""What holds for every model from elsewhere, as a network in torch or as an ONNX file. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..errors import GateError, SpecError
from ..spec import Preprocessing

__all__ = ["check_properties", "require_answers"]

_LONGEST_FOCAL: Final = 20.0  # a field of view of 3 degrees

_CONSTANT: Final = 1e-4
"""An answer is constant if its 2nd and 98th percentile differ by no more than this share of its largest magnitude."""


def check_properties(
    preprocessing: Preprocessing, depth_range: tuple[float, float] | None, focal: float | None
) -> None:
    """Raise SpecError for values that no model can have; see `ModelSpec`."""
    if depth_range is not None and not 0 <= depth_range[0] < depth_range[1]:
        raise SpecError(f"invalid depth range {depth_range[0]:g},{depth_range[1]:g}; needs 0 <= LOW < HIGH, in metres")
    if min(preprocessing.std) <= 0:
        raise SpecError(f"std {preprocessing.std} must be above 0, because pixels are divided by it")
    if focal is not None and not 0 < focal <= _LONGEST_FOCAL:
        raise SpecError(
            f"focal length {focal:g} is not above 0 and up to {_LONGEST_FOCAL:g}; if it is in pixels, divide it by the "
            "width of the picture, for instance 518.9 / 640 = 0.811"
        )


def require_answers(answers: Sequence[np.ndarray] | np.ndarray) -> None:
    """Raise GateError for answers (h x w float32, one for each frame) that no trained network gives to real frames."""
    remedy = "is it normalised otherwise? See --color, --scale, --mean and --std"
    frames = len(answers)
    if broken := sum(not np.isfinite(answer).all() for answer in answers):
        raise GateError(f"the network answers NaN or Inf to {broken} of {frames} frames; {remedy}")
    if constant := sum(_is_constant(answer) for answer in answers):
        raise GateError(f"the network answers one constant to {constant} of {frames} frames; {remedy}")


def _is_constant(answer: np.ndarray) -> bool:
    low, high = np.percentile(answer, (2, 98))
    return bool(high - low <= _CONSTANT * np.abs(answer).max())
