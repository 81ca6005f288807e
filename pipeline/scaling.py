"""The metric scale of a run: fitted to measured points, kept as `scale.json`, and found by everything that predicts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from math import floor, isfinite
from pathlib import Path
from typing import Final, Literal

import numpy as np

from ..data.images import read_image, read_pair
from ..documents import from_json, to_json
from ..errors import DataError, EngineError, UserError
from ..files import write_text
from ..frames import predict_frames
from ..runtime.scale import BEYOND, MetricScale, fit_scale
from ..sizes import by
from .targets import describe_target, is_run, locate, open_target
from .tell import Tell, silent

__all__ = ["SCALE", "find_scale", "fit_to_points", "scale_path", "write_scale"]

SCALE: Final = "scale.json"
_COLUMNS: Final = ("x", "y", "depth")
_AGAIN: Final = "fit it again with `depthkit predict --calibrate-scale`, or remove that file"


def scale_path(target: Path) -> Path:
    """Where the scale of a run, ONNX file or engine is kept: in the run's folder, else beside the file."""
    path = locate(target)
    folder = path if path.is_dir() else path.parent
    above = folder.absolute().parent
    return (above if not is_run(folder) and is_run(above) else folder) / SCALE


def find_scale(target: Path) -> MetricScale | None:
    """The scale of a run, ONNX file or engine that answers without metres; None: it has none, or answers metres.

    Raises:
        EngineError: it cannot be read, or was fitted to other weights or at another size.
        SpecError: it is malformed.
    """
    path = scale_path(target)
    if not path.is_file():
        return None
    model, weights = describe_target(target)
    if model.is_metric:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error
    scale = from_json(MetricScale, content, source=str(path))
    if (scale.weights_sha256, scale.answers) != (weights, model.answers):
        raise EngineError(f"{path} was fitted to other weights than those of {target}; {_AGAIN}")
    if scale.network_size != model.network_size:
        raise EngineError(
            f"{path} was fitted at {by(scale.network_size)}, and {target} computes at {by(model.network_size)}; "
            f"{_AGAIN}"
        )
    return scale


def write_scale(target: Path, scale: MetricScale) -> Path:
    """Keep the scale of a run, ONNX file or engine; return the file. Raises OutputError."""
    path = scale_path(target)
    write_text(path, to_json(scale))
    return path


def fit_to_points(target: Path, picture: Path, points: Path, depth_units: float, tell: Tell = silent) -> MetricScale:
    """Fit the scale of a run, ONNX file or engine that answers without metres to measured points of a picture.

    Args:
        target: what answers.
        picture: of the scene.
        points: a CSV file with a line `x,y,depth` for the columns: pixels (the first pixel's centre is 0,0) and metres;
            or a 16-bit PNG of the picture's size, 0 where nothing was measured.
        depth_units: units per metre of the PNG.
        tell: called if a part of the picture would be much nearer or farther than every point.

    Raises:
        UserError: `target` answers metres.
        DataError: a file cannot be read, a point is outside the picture or no depth, or see `fit_scale`.
        EngineError: the answer is not finite.
    """
    model, weights = describe_target(target)
    if model.is_metric:
        raise UserError(
            f"{target} answers metres already, and --calibrate-scale is for inverse and relative depth; leave it out"
        )
    image, found = _read(picture, points, depth_units)
    with open_target(target) as session:
        (answer,) = predict_frames(session, [image])
    at = answer[found.rows, found.columns]
    if not np.isfinite(at).all():
        raise EngineError(f"the answer of {target} is not finite at the measured points")
    answers: Literal["inverse", "relative"] = "inverse" if model.answers == "inverse" else "relative"
    scale, shift = fit_scale(at, found.metres, answers)
    made = MetricScale(
        answers=answers,
        scale=scale,
        shift=shift,
        depth_range=(float(found.metres.min()) / BEYOND, float(found.metres.max()) * BEYOND),
        weights_sha256=weights,
        network_size=model.network_size,
        points=len(found.metres),
        abs_rel=0.0,
        picture=picture.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    low, high = made.depth_range
    whole = made.apply(answer)
    beyond = float(np.mean((whole < low * 1.001) | (whole > high * 0.999)))
    if beyond:
        tell("note", f"{beyond:.1%} of {picture.name} is cut off at {low:.3g} and {high:.3g} m, far beyond all points")
    return replace(made, abs_rel=float(np.mean(np.abs(made.apply(at) - found.metres) / found.metres)))


@dataclass(frozen=True, eq=False)
class _Points:
    """Measured points: their pixels, and metres there."""

    rows: np.ndarray
    columns: np.ndarray
    metres: np.ndarray


def _read(picture: Path, points: Path, depth_units: float) -> tuple[np.ndarray, _Points]:
    """The picture and its measured points. Raises DataError."""
    if points.suffix.lower() == ".csv":
        image = read_image(picture)
        table = np.array(list(_csv_points(points, image.shape[:2])), np.float64).reshape(-1, 3)
        return image, _Points(table[:, 1].astype(int), table[:, 0].astype(int), table[:, 2])
    image, stored = read_pair(picture, points)
    if stored.shape != image.shape[:2]:
        raise DataError(
            f"{points} is {by(stored.shape)} (HxW), but {picture} is {by(image.shape[:2])}; measured depth must have "
            "the picture's size"
        )
    rows, columns = np.nonzero(stored)
    return image, _Points(rows, columns, stored[rows, columns] / depth_units)


def _csv_points(path: Path, size: tuple[int, int]) -> Iterator[tuple[int, int, float]]:
    """Column, row and metres of every line. Raises DataError."""
    height, width = size
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{path} must begin with the line x,y,depth, and name pixels and metres below it")
            for line in reader:
                x, y, metres = (_number(line[name], path, reader.line_num) for name in _COLUMNS)
                column, row = floor(x + 0.5), floor(y + 0.5)
                if not (0 <= column < width and 0 <= row < height):
                    raise DataError(
                        f"{path}, line {reader.line_num}: pixel {x:g},{y:g} is outside the picture of {width} columns "
                        f"and {height} rows"
                    )
                if not metres > 0:
                    raise DataError(f"{path}, line {reader.line_num}: depth is {metres:g}; write metres above 0")
                yield column, row, metres
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; write a CSV file with the columns x,y,depth") from error


def _number(text: str | None, path: Path, line: int) -> float:
    try:
        found = float(text or "")
    except ValueError:
        found = float("nan")
    if not isfinite(found):
        raise DataError(f"{path}, line {line}: {text!r} is not a number; every line has x, y and depth")
    return found
