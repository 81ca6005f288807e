"""The report's pictures: camera frames, measured depth, the engines' depth, and how that differs from the reference."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

import numpy as np
from PIL import Image

from ..bench.results import Row
from ..data.colours import oriented
from ..metrics import VALID_DEPTH, valid_pixels
from ..reference import Reference

__all__ = ["ErrorMap", "Frame", "Picture", "Scene", "error_maps", "scenes"]

_WIDEST: Final = 320  # pixels; larger pictures are shrunk to keep the file small
_MOST_PICTURES: Final = 36  # of depth in all scenes; but each engine has at least one
_MOST_FRAMES: Final = 3
_MOST_MAPS: Final = 12  # of errors; but each engine has at least one
_DEPTH, _ERROR = "turbo", "viridis"  # neither has black, which is for NaN and infinity
_LEAST_REACH: Final = 1e-9  # of a scale whose ends are equal
_BRIGHT: Final = 99.5  # percentile at the bright end of an error map; single pixels are often far worse


@dataclass(frozen=True)
class Picture:
    """An embedded picture. `source`: a data URI; `rough`: so small that it must be enlarged without blur."""

    view: str
    source: str
    alt: str
    rough: bool


@dataclass(frozen=True)
class Frame:
    """A reference frame at `index`; depth is coloured from `near` to `far`: metres, or those words without metres."""

    index: int
    pictures: tuple[Picture, ...]
    near: str
    far: str


@dataclass(frozen=True)
class Scene:
    """Frames of one reference with the depth of some rows. `views`: names of each frame's pictures."""

    title: str
    views: tuple[str, ...]
    frames: tuple[Frame, ...]
    ramp: str


@dataclass(frozen=True)
class ErrorMap:
    """|engine - reference| of a row's worst frame.

    Attributes:
        name: of the row.
        frame: counted from 1.
        why: the figure in which the frame is the worst.
        picture: dark where nothing differs.
        ramp: its colours, from 0 to `high`; "" if no pixel differs.
        high: the difference at the bright end, with its unit; most pixels are below.
        most: that of the worst pixel.
    """

    name: str
    frame: int
    why: str
    picture: Picture
    ramp: str
    high: str
    most: str


_Answered = tuple[Row, Reference, np.ndarray]


def scenes(rows: Sequence[Row], references: Sequence[Reference], answers: Sequence[np.ndarray | None]) -> list[Scene]:
    """One scene per distinct reference; rows without depth are left out."""
    found: dict[str, list[_Answered]] = {}
    for row, reference, depths in zip(rows, references, answers, strict=False):
        if depths is not None and len(depths):
            content = reference.images.tobytes() + reference.depths.tobytes()
            found.setdefault(hashlib.sha256(content).hexdigest(), []).append((row, reference, depths))
    total = sum(len(answered) for answered in found.values())
    most = min(_MOST_FRAMES, max(_MOST_PICTURES // max(total, 1), 1))
    return [_scene(answered, most) for answered in found.values()]


def _scene(answered: Sequence[_Answered], most: int) -> Scene:
    first, reference, _ = answered[0]
    views = ["camera", "measured depth", "reference"]
    models = dict.fromkeys(row.model for row, _, _ in answered)
    full = [row.name for row, _, _ in answered]
    brief = [f"{row.backend}, {row.precision}" for row, _, _ in answered]
    names = _distinct(brief if len(models) == 1 else full, taken=views)
    frames = []
    for index in _frames(answered)[:most]:
        truth = reference.truths[index]
        span = oriented(_shared_span(reference, index), first.answers)
        measured_span = span if reference.is_metric else _span(truth[valid_pixels(truth)], np.empty(0))
        maps = [("reference", reference.depths[index], "depth of the model itself in FP32, the reference")]
        maps += [
            (name, depths[index], f"depth predicted by {name}, frame {index + 1}, of {row.model or 'an unknown model'}")
            for name, (row, _, depths) in zip(names, answered, strict=True)
        ]
        pictures = [
            _photo("camera", reference.images[index], f"the camera's picture, frame {index + 1}"),
            _map("measured depth", np.where(valid_pixels(truth), truth, np.nan), measured_span, _DEPTH,
                 f"measured depth, frame {index + 1}, black where it was not measured"),
            *(_map(name, depth, span, _DEPTH, alt) for name, depth, alt in maps),
        ]  # fmt: skip
        ends = [f"{end:.1f} m" for end in span] if reference.is_metric else ["near", "far"]
        frames.append(Frame(index, tuple(pictures), *ends))
    title = " and ".join(filter(None, models)) or "unknown model"
    return Scene(title, (*views, *names), tuple(frames), _ramp(_DEPTH))


def _distinct(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Number repeated names, since pictures are chosen by name."""
    seen, found = dict.fromkeys(taken, 1), []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _frames(answered: Sequence[_Answered]) -> list[int]:
    """All frames, the most informative first: the one with the widest range of depth, then the rows' worst ones."""
    reference, last = answered[0][1], min(len(depths) for _, _, depths in answered)
    spans = [_shared_span(reference, index) for index in range(last)]
    wanted = [int(np.argmax([high - low for low, high in spans]))]
    for row, _, _ in answered:
        if row.parity is not None:
            wanted += [row.parity.worst_ssim_frame, row.parity.max_abs_frame]
    wanted += range(last)
    return [frame for frame in dict.fromkeys(wanted) if frame < last]


def error_maps(
    rows: Sequence[Row], references: Sequence[Reference], answers: Sequence[np.ndarray | None]
) -> list[ErrorMap]:
    """Error maps of every compared row: the frame with its worst pixel and, if rows are few, that of its worst SSIM."""
    found: list[ErrorMap] = []
    for row, reference, depths in zip(rows, references, answers, strict=False):
        if depths is None or row.parity is None:
            continue
        worst, unlike = row.parity.max_abs_frame, row.parity.worst_ssim_frame
        maps = {worst: "worst pixel and SSIM" if unlike == worst else "worst pixel"}
        if 2 * len(rows) <= _MOST_MAPS:
            maps.setdefault(unlike, "worst SSIM")
        found += [_error_map(row, frame, why, reference, depths) for frame, why in maps.items()]
    return found


def _error_map(row: Row, frame: int, why: str, reference: Reference, depths: np.ndarray) -> ErrorMap:
    error = np.abs(depths[frame].astype(np.float64) - reference.depths[frame])
    unit = "m"
    if not reference.is_metric:
        low, top = reference.scale
        error, unit = error * (100 / (top - low)), "%"
    finite = error[np.isfinite(error)]
    most = float(finite.max()) if finite.size else 0.0
    high = float(np.percentile(finite, _BRIGHT)) or most if most else 0.0
    largest = f"{most:.2g}\u00a0{unit}"
    alt = f"difference between {row.name} and the reference in frame {frame + 1}, at most {largest}"
    picture = _map("error", error, (0.0, high), _ERROR, alt)
    ramp = _ramp(_ERROR) if most else ""
    return ErrorMap(row.name, frame + 1, why, picture, ramp, f"{high:.2g}\u00a0{unit}", largest)


def _shared_span(reference: Reference, index: int) -> tuple[float, float]:
    """From which to which value all depth of a frame is coloured: that of measured depth, if depth has metres."""
    measured = reference.truths[index][valid_pixels(reference.truths[index])]
    return _span(measured if reference.is_metric else measured[:0], reference.depths[index])


def _span(measured: np.ndarray, otherwise: np.ndarray) -> tuple[float, float]:
    """The 2nd and 98th percentile of measured depths, or else of `otherwise`."""
    depths = measured if measured.size else otherwise[np.isfinite(otherwise)]
    low, high = np.percentile(depths, (2, 98)) if depths.size else VALID_DEPTH
    return float(low), float(high)


def _palette(name: str) -> np.ndarray:
    """256 x 3 uint8: black for NaN and infinity, then the colours of matplotlib's map."""
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(0, 1, 255), bytes=True)[:, :3]
    return np.concatenate([np.zeros((1, 3), np.uint8), colours])


def _map(view: str, depth: np.ndarray, span: tuple[float, float], colours: str, alt: str) -> Picture:
    """Colour values between the ends of `span`, of which the first may be the larger; NaN and infinity are black."""
    finite = np.isfinite(depth)
    reach = span[1] - span[0]
    share = (np.where(finite, depth, 0.0) - span[0]) / (reach if abs(reach) > _LEAST_REACH else _LEAST_REACH)
    levels = np.where(finite, 1 + np.rint(254 * np.clip(share, 0, 1)), 0).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(_palette(colours).tobytes())
    return _picture(view, picture, alt, Image.Resampling.NEAREST)


def _photo(view: str, image: np.ndarray, alt: str) -> Picture:
    return _picture(view, Image.fromarray(np.ascontiguousarray(image)), alt, Image.Resampling.BILINEAR)


def _picture(view: str, picture: Image.Image, alt: str, method: Image.Resampling) -> Picture:
    rough = picture.width < _WIDEST // 2
    if picture.width > _WIDEST:
        picture = picture.resize((_WIDEST, round(picture.height * _WIDEST / picture.width)), method)
    smooth = picture.mode == "RGB" and not rough
    return Picture(view, _data_uri(picture, "JPEG" if smooth else "PNG"), alt, rough)


def _ramp(colours: str) -> str:
    """A picture of the colour scale from left to right."""
    picture = Image.fromarray(np.arange(1, 256, dtype=np.uint8)[None].repeat(2, 0))
    picture.putpalette(_palette(colours).tobytes())
    return _data_uri(picture, "PNG")


def _data_uri(picture: Image.Image, form: Literal["PNG", "JPEG"]) -> str:
    stream = BytesIO()
    picture.save(stream, form, optimize=True, quality=88)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
