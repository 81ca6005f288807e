"""Depth metrics in NumPy: errors in metres after Eigen et al., and the paper's MSE and SSIM on depth / 10 m.

Metric predictions are not aligned to the ground truth unless asked; answers without metres always are. One NaN or
infinity in a prediction makes every metric of its picture NaN; the picture is not skipped.

Sources: AbsRel, RMSE, log10 and the threshold accuracies: Eigen, Puhrsch, Fergus, "Depth Map Prediction from a
Single Image using a Multi-Scale Deep Network", NIPS 2014, section 4; log10: Saxena, Sun, Ng, "Make3D", PAMI 2009.
SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, with their Gaussian window (11 pixels, sigma 1.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from .spec import Answers

__all__ = [
    "DEPTH_SCALE",
    "EIGEN_CROP",
    "EIGEN_SIZE",
    "LEAST_SIDE",
    "METRICS",
    "VALID_DEPTH",
    "Alignment",
    "DepthScores",
    "Metric",
    "PixelSums",
    "Scores",
    "aggregate",
    "align",
    "choose_alignment",
    "implausible_depth",
    "number",
    "pixel_sums",
    "scaled_mse",
    "scaled_ssim",
    "score_frame",
    "valid_pixels",
]

Alignment = Literal["none", "median", "affine"]

DEPTH_SCALE: Final = 10.0
"""Depth in metres that the paper scales to 1 for MSE and SSIM."""

VALID_DEPTH: Final = (1e-3, 10.0)
"""Range of valid ground-truth depth in metres."""

NEAREST_MEDIAN: Final = 0.2
"""Metres; a smaller median of the ground truth indicates a wrong unit."""

EIGEN_CROP: Final = (slice(45, 471), slice(41, 601))
"""Rows and columns of a 480x640 NYU frame that are evaluated."""

EIGEN_SIZE: Final = (480, 640)
"""Height and width of the frames that `EIGEN_CROP` applies to."""

_SSIM_BORDER: Final = 5  # half of the 11-pixel window, which must lie inside the picture

LEAST_SIDE: Final = 2 * _SSIM_BORDER + 1
"""Smallest height and width of a picture for SSIM."""


@dataclass(frozen=True)
class PixelSums:
    """Error sums over the valid pixels of one or more pictures; they can be added."""

    count: int
    abs_rel: float
    squared: float
    log10: float
    delta1: float
    delta2: float
    delta3: float

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def scores(self) -> Scores:
        """The means; all NaN when no pixel was valid."""
        if self.count == 0:
            return Scores(*[float("nan")] * 6)
        n = self.count
        return Scores(
            self.abs_rel / n,
            (self.squared / n) ** 0.5,
            self.log10 / n,
            self.delta1 / n,
            self.delta2 / n,
            self.delta3 / n,
        )


@dataclass(frozen=True)
class Scores:
    """AbsRel, RMSE (metres), mean |log10 error|, and the shares of pixels within a factor of 1.25, 1.25^2, 1.25^3."""

    abs_rel: float
    rmse: float
    log10: float
    delta1: float
    delta2: float
    delta3: float


@dataclass(frozen=True)
class DepthScores:
    """Metrics over a set of pictures.

    Attributes:
        mse, ssim: the paper's, on depth / 10 m over the whole frame, averaged over pictures.
        pooled: means over all valid pixels of all pictures.
        per_image: means over pictures.
        frames: pictures with at least one valid pixel.
    """

    mse: float
    ssim: float
    pooled: Scores
    per_image: Scores
    frames: int


@dataclass(frozen=True)
class Metric:
    """How evaluate, bench, report and the model card show one metric.

    Attributes:
        name: field of `Scores` if `pooled`, else of `DepthScores`; also its key in JSON and CSV.
        heading: the usual abbreviation, with the unit if there is one.
        form: format specification.
        better: whether lower or higher values are better.
        pooled: a mean over pixels, of all pictures or picture by picture; otherwise a mean over pictures.
        brief: also shown in tables that must fit into 80 columns.
    """

    name: str
    heading: str
    form: str
    better: Literal["lower", "higher"]
    pooled: bool = True
    brief: bool = False

    def of(self, scores: DepthScores) -> float:
        """The metric's value; if `pooled`, over the pixels of all pictures."""
        value: float = getattr(scores.pooled if self.pooled else scores, self.name)
        return value


METRICS: Final = (
    Metric("mse", "MSE", ".5f", "lower", pooled=False, brief=True),
    Metric("ssim", "SSIM", ".4f", "higher", pooled=False, brief=True),
    Metric("abs_rel", "AbsRel", ".3f", "lower", brief=True),
    Metric("rmse", "RMSE m", ".3f", "lower", brief=True),
    Metric("log10", "log10", ".3f", "lower"),
    Metric("delta1", "δ1", ".3f", "higher", brief=True),
    Metric("delta2", "δ2", ".3f", "higher"),
    Metric("delta3", "δ3", ".3f", "higher"),
)
"""All metrics, in the order of table columns."""


def number(value: float, form: str) -> str:
    """`format(value, form)`, without the minus sign of what rounds to zero.

    >>> number(-0.00001, ".4f"), number(-0.0, "+.4f"), number(-0.2, "+.4f")
    ('0.0000', '+0.0000', '-0.2000')
    """
    text = format(value, form)
    return text if text.strip("+-0.e%") else format(abs(value), form)


def valid_pixels(truth: np.ndarray, crop: tuple[slice, slice] | None = None) -> np.ndarray:
    """Mask of the valid pixels of an H x W depth map in metres: measured, within `VALID_DEPTH`, and inside `crop`."""
    low, high = VALID_DEPTH
    valid: np.ndarray = np.isfinite(truth) & (truth > low) & (truth <= high)
    if crop is not None:
        inside = np.zeros_like(valid)
        inside[crop] = True
        valid &= inside
    return valid


def implausible_depth(depths: Iterable[np.ndarray]) -> str | None:
    """A warning if the median measured depth of H x W maps in metres is implausible, else None.

    Cameras of rooms and streets do not measure below 0.2 m. With a median above `VALID_DEPTH`, training and scores
    ignore more than half of the ground truth. The usual cause of both is a wrong number of units per metre.
    """
    measured = [depth[np.isfinite(depth) & (depth > 0)] for depth in depths]
    pixels = np.concatenate([np.ravel(part) for part in measured]) if measured else np.empty(0)
    if not pixels.size:
        return None
    median = float(np.median(pixels))
    if NEAREST_MEDIAN <= median <= VALID_DEPTH[1]:
        return None
    why = (
        "nearer than cameras of rooms and streets measure"
        if median < NEAREST_MEDIAN
        else f"and beyond {VALID_DEPTH[1]:g} m nothing is trained on or scored"
    )
    return f"the median measured depth is {median:.3g} m, {why}: check --depth-units"


def pixel_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> PixelSums:
    """Error sums of one picture: H x W depths in metres, H x W bool.

    The log10 error of a prediction of zero or less is infinite, and such a prediction counts in no delta.

    >>> truth = np.full((2, 2), 2.0); all_valid = np.ones((2, 2), bool)
    >>> pixel_sums(truth * 1.2, truth, all_valid).scores().delta1
    1.0
    >>> round(pixel_sums(truth * 1.3, truth, all_valid).scores().abs_rel, 3)
    0.3
    """
    p, t = prediction[valid].astype(np.float64), truth[valid].astype(np.float64)
    if not np.isfinite(p).all():
        return PixelSums(p.size, *[float("nan")] * 6)
    difference = p - t
    with np.errstate(divide="ignore", invalid="ignore"):
        log_error = np.where(p > 0, np.abs(np.log10(p) - np.log10(t)), np.inf)
        factor = np.where(p > 0, np.maximum(p / t, t / p), np.inf)
    return PixelSums(
        count=p.size,
        abs_rel=float((np.abs(difference) / t).sum()),
        squared=float((difference**2).sum()),
        log10=float(log_error.sum()),
        delta1=float((factor < 1.25).sum()),
        delta2=float((factor < 1.25**2).sum()),
        delta3=float((factor < 1.25**3).sum()),
    )


def scaled_mse(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The paper's MSE of one picture: mean squared difference of depth / 10 m over the valid pixels (no unit)."""
    if not valid.any():
        return float("nan")
    return float(np.mean(((prediction[valid] - truth[valid]) / DEPTH_SCALE) ** 2, dtype=np.float64))


def scaled_ssim(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The paper's SSIM of one picture on depth / 10 m (data range 1), averaged over the valid pixels.

    Holes in the ground truth are filled with the prediction, so pixels within 5 of a hole score too high; NYU's depth
    is dense and has no holes. Pixels within 5 of the edge do not count, as in Wang et al.'s own code, because their
    window is not whole.
    """
    from skimage.metrics import structural_similarity  # takes half a second, which running need not wait for

    if not np.isfinite(prediction).all():
        return float("nan")
    inner = np.zeros_like(valid)
    inner[_SSIM_BORDER:-_SSIM_BORDER, _SSIM_BORDER:-_SSIM_BORDER] = True
    inner &= valid
    if not inner.any():
        return float("nan")
    p = (prediction / DEPTH_SCALE).astype(np.float32)
    t = np.where(valid, truth / DEPTH_SCALE, p).astype(np.float32)
    _, similarity = structural_similarity(
        t, p, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return float(np.mean(similarity[inner], dtype=np.float64))


def choose_alignment(asked: Alignment | Literal["auto"], answers: Answers) -> Alignment:
    """How to align what a network answers; auto: metres not at all, inverse depth "affine", relative depth "median".

    Raises:
        UserError: the answers cannot be scored so.

    >>> choose_alignment("auto", "metres"), choose_alignment("auto", "inverse"), choose_alignment("median", "share")
    ('none', 'affine', 'median')
    """
    usual: dict[Answers, Alignment] = {"inverse": "affine", "relative": "median"}
    needed = usual.get(answers, "none")
    if asked == "none" != needed:
        raise UserError(
            f"{answers} depth has no metres, so it cannot be scored without alignment; leave --align out, which aligns "
            f"it ({needed})"
        )
    if asked == "median" and answers == "inverse":
        raise UserError("inverse depth also needs a shift, which --align median lacks; leave it out, or take affine")
    return needed if asked == "auto" else asked


def align(
    prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, how: Alignment, *, inverse: bool = False
) -> np.ndarray:
    """A picture's predicted depth (H x W) in metres, with its scale, or scale and shift, taken from the truth.

    What remains is the error of the shape. An aligned figure says nothing about metres, and must be labelled so.

    Args:
        prediction: depth, in metres or up to scale; with `inverse`, inverse depth up to scale and shift.
        how: "median": times the ratio of the medians over valid pixels (Eigen et al.'s later users, as Zhou et al.,
            CVPR 2017). "affine": scale and shift of inverse depth by least squares (Ranftl et al., "Towards Robust
            Monocular Depth Estimation", TPAMI 2022, the protocol of MiDaS); inverse depth is cut off at 1 / 10 m.
        inverse: needs "affine".

    >>> truth = np.array([[1.0, 2.0], [4.0, 8.0]]); everywhere = np.ones((2, 2), bool)
    >>> align(truth * 3, truth, everywhere, "median").tolist()
    [[1.0, 2.0], [4.0, 8.0]]
    >>> align(1 / (2 / truth + 0.5), truth, everywhere, "affine").round(6).tolist()
    [[1.0, 2.0], [4.0, 8.0]]
    >>> align(6 / truth + 5, truth, everywhere, "affine", inverse=True).round(6).tolist()
    [[1.0, 2.0], [4.0, 8.0]]
    """
    assert how == "affine" or not inverse, "see choose_alignment"
    if how == "none" or not valid.any() or not np.isfinite(prediction).all():
        return prediction
    low, high = VALID_DEPTH
    if how == "median":
        middle = float(np.median(prediction[valid]))
        return prediction * (float(np.median(truth[valid])) / middle) if middle > 0 else prediction
    answer = prediction.astype(np.float64)
    disparity = answer if inverse else 1 / np.maximum(answer, low)
    columns = np.stack([disparity[valid], np.ones(int(valid.sum()))], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(columns, 1 / truth[valid].astype(np.float64), rcond=None)
    aligned: np.ndarray = 1 / np.maximum(scale * disparity + shift, 1 / high)
    return aligned


@dataclass(frozen=True)
class FrameScore:
    """Scores of one picture."""

    sums: PixelSums
    mse: float
    ssim: float


def score_frame(
    prediction: np.ndarray,
    truth: np.ndarray,
    crop: tuple[slice, slice] | None = None,
    how: Alignment = "none",
    *,
    inverse: bool = False,
) -> FrameScore:
    """Score one H x W prediction against the ground truth of the same shape, in metres; 0 means not measured.

    MSE and SSIM are over the whole frame (the paper names no crop), the other metrics over `crop`. With `how` and
    `inverse`, the prediction is aligned first, by the pixels of `crop`: see `align`.
    """
    whole, inside = valid_pixels(truth), valid_pixels(truth, crop)
    prediction = align(prediction, truth, inside, how, inverse=inverse)
    if not np.isfinite(prediction).all():
        nan = float("nan")
        return FrameScore(PixelSums(int(inside.sum()), *[nan] * 6), nan, nan)
    return FrameScore(
        pixel_sums(prediction, truth, inside),
        scaled_mse(prediction, truth, whole),
        scaled_ssim(prediction, truth, whole),
    )


def aggregate(frames: Iterable[FrameScore]) -> DepthScores:
    """Pooled and per-image means over pictures. Pictures without a valid pixel are skipped; all NaN if none is left."""
    kept = [frame for frame in frames if frame.sums.count]
    if not kept:
        nothing = Scores(*[float("nan")] * 6)
        return DepthScores(float("nan"), float("nan"), nothing, nothing, 0)
    total = kept[0].sums
    for frame in kept[1:]:
        total = total + frame.sums
    rows = [frame.sums.scores() for frame in kept]
    per_image = Scores(*(float(np.mean([getattr(row, f.name) for row in rows])) for f in fields(Scores)))
    return DepthScores(
        mse=float(np.mean([frame.mse for frame in kept])),
        ssim=float(np.mean([frame.ssim for frame in kept])),
        pooled=total.scores(),
        per_image=per_image,
        frames=len(kept),
    )
