"""From answers without metres to metres: one scale and shift, fitted to measured points of one picture.

Inverse depth a becomes 1 / (scale * a + shift) metres, relative depth a becomes scale * a metres. A network that
answers so chooses both anew for every picture (Ranftl et al., "Towards Robust Monocular Depth Estimation", TPAMI 2022),
so a fit holds for pictures of the same scene by the same camera.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..errors import DataError, EngineError
from ..session import Session, SessionBase
from ..spec import ModelSpec

__all__ = ["BEYOND", "LEAST_POINTS", "MetricScale", "ScaledSession", "fit_scale"]

LEAST_POINTS: Final = 2
LEAST_SPREAD: Final = 1.1
"""Farthest over nearest point, below which a shift cannot be told from a scale."""

BEYOND: Final = 10.0
"""How many times nearer than the nearest and farther than the farthest point the results may be."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_TRUSTED: Final = 0.05
"""Residual, as a share of the median, above which a point counts less: then its error is more likely a mistake."""


@dataclass(frozen=True, config=STRICT)
class MetricScale:
    """What turns a network's answers into metres: `scale.json` of a run.

    Attributes:
        answers: of the network, see `ModelSpec`.
        scale, shift: see the module; the shift of relative depth is 0.
        depth_range: the smallest and largest result in metres.
        weights_sha256: of the network.
        network_size: height and width at which it computed.
        points: number of measured points.
        abs_rel: mean of |result - measured| / measured over these points.
        picture: name of their picture.
        created: UTC, ISO 8601.
    """

    answers: Literal["inverse", "relative"]
    scale: _Positive
    shift: _Finite
    depth_range: tuple[_Positive, _Positive]
    weights_sha256: str
    network_size: tuple[int, int]
    points: int
    abs_rel: float
    picture: str
    created: str
    schema_version: Literal[1] = 1

    def apply(self, answers: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The metres (float32) of answers of any shape, within `depth_range`; NaN stays NaN.

        Args:
            answers: what the network answered.
            out: receives the metres, and may be `answers` itself; None: a new array.
        """
        metres: np.ndarray = np.multiply(answers, np.float32(self.scale), out=out)
        metres += np.float32(self.shift)
        low, high = map(np.float32, self.depth_range)
        if self.answers == "inverse":
            # Zero and less is farther than everything, so the limits come first.
            np.clip(metres, 1 / high, 1 / low, out=metres)
            np.reciprocal(metres, out=metres)
        else:
            np.clip(metres, low, high, out=metres)
        return metres

    def spec_of(self, model: ModelSpec) -> ModelSpec:
        """The spec of the network with this scale. It has no training camera: the scale is of the camera in use."""
        return replace(model, answers="metres", depth_range=self.depth_range, focal=None)

    def describe(self) -> str:
        """In one sentence, where the metres come from."""
        low, high = self.depth_range
        return (
            f"Metres by a scale fitted to {self.points} points of {self.picture} (AbsRel {self.abs_rel:.3f} there), "
            f"cut off at {low:.3g} and {high:.3g} m: they hold for that scene and camera only."
        )


class ScaledSession(SessionBase):
    """A session whose answers without metres become metres.

    Args:
        session: of the network; this owns and closes it.
        scale: of its answers.

    Raises:
        EngineError: the session answers something else.
    """

    def __init__(self, session: Session, scale: MetricScale) -> None:
        if session.spec.answers != scale.answers:
            raise EngineError(f"this scale is for {scale.answers} depth, and the engine answers {session.spec.answers}")
        self.spec = scale.spec_of(session.spec)
        self.provider, self.precision, self.device = session.provider, session.precision, session.device
        self._session, self._scale = session, scale

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`; arrays must be on the host."""
        super().bind(image=image, depth=depth)
        self._session.bind(image=image, depth=depth)

    def run(self) -> None:
        """See `Session.run`."""
        _, depth = self._buffers()
        self._session.run()
        self._scale.apply(depth, out=depth)

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._session.close()


def fit_scale(found: np.ndarray, measured: np.ndarray, answers: Literal["inverse", "relative"]) -> tuple[float, float]:
    """The scale and shift by which answers fit measured depth best.

    Inverse depth: least squares in inverse depth, as the protocol of MiDaS has it, but by the loss "soft L1", so that
    mistaken points count less. Relative depth: the median of measured / answer.

    Args:
        found: what the network answers at N points.
        measured: metres there.
        answers: what `found` is.

    Raises:
        DataError: fewer than two points; points that are too alike to tell the shift; or answers that contradict them.

    >>> scale, shift = fit_scale(np.array([2.5, 1.5, 0.7]), np.array([1.0, 2.0, 10.0]), "inverse")
    >>> round(scale, 6), round(shift, 6)
    (0.5, -0.25)
    """
    count = len(measured)
    if count < LEAST_POINTS:
        raise DataError(f"a scale needs at least {LEAST_POINTS} measured points, and there {_are(count)}; measure more")
    if answers == "relative":
        scale, shift = _median_ratio(found, measured), 0.0
    else:
        scale, shift = _fit_inverse(found, measured)
    if not 0 < scale < inf:
        raise DataError(
            "the measured points contradict the network: what it answers to be nearer was measured farther away; are "
            "x and y exchanged, or is the depth in other units?"
        )
    return scale, shift


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _median_ratio(found: np.ndarray, measured: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.median(measured / found.astype(np.float64)))


def _fit_inverse(found: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    from scipy.optimize import least_squares  # takes a third of a second, which other predictions need not wait for

    near, far = float(measured.min()), float(measured.max())
    if far < LEAST_SPREAD * near or not np.ptp(found) > 0:
        raise DataError(
            f"the measured points are too alike to tell the shift (they are {near:.3g} to {far:.3g} m away); measure "
            "something nearer and something farther away"
        )
    # In units of their own spread, so that the two unknowns are of one size.
    middle, spread = float(np.median(found)), float(np.std(found, dtype=np.float64))
    columns = np.stack([(found - middle) / spread, np.ones(len(found))], axis=1).astype(np.float64)
    target = 1 / measured.astype(np.float64)
    start, *_ = np.linalg.lstsq(columns, target, rcond=None)
    best = least_squares(
        lambda guess: columns @ guess - target,
        start,
        jac=lambda _: columns,
        loss="soft_l1",
        f_scale=_TRUSTED * float(np.median(target)),
    ).x
    scale = float(best[0]) / spread
    return scale, float(best[1]) - scale * middle
