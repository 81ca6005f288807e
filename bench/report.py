"""A bench as one HTML file that opens offline: verdict, tables, and what each engine sees."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files as package_files
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment as Templates
from jinja2 import select_autoescape
from PIL import Image

from ..files import write_text
from ..images import colour
from ..metrics import VALID_DEPTH, valid_pixels
from ..reference import Reference
from .results import BenchResult, Row
from .table import TABLES, row_name, verdict

__all__ = ["write_report"]

_ERROR_SCALE: Final = 2.0  # metres at the red end of the error maps
_LEAST_WIDTH: Final = 256  # pixels to which small pictures are enlarged


def write_report(
    path: Path, result: BenchResult, references: Sequence[Reference], answers: Sequence[np.ndarray]
) -> None:
    """Write the report of a bench.

    Args:
        path: the HTML file.
        result: the bench.
        references: each row's reference.
        answers: each row's depth for its reference frames, N x H x W metres.

    Raises:
        OutputError: the file cannot be written.
    """
    templates = Templates(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    template = templates.from_string(package_files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    slowest = max(row.p50_ms for row in result.rows)
    frames = [
        _frame(row, reference, depths) for row, reference, depths in zip(result.rows, references, answers, strict=True)
    ]
    tables = [table for table in TABLES if table.wanted(result)]
    text = template.render(
        result=result,
        tables=tables,
        rows=[(row, verdict(row), 100 * row.p50_ms / slowest) for row in result.rows],
        frames=frames,
        names=[row_name(row) for row in result.rows],
        error_scale=_ERROR_SCALE,
    )
    write_text(path, text)


def _frame(row: Row, reference: Reference, depths: np.ndarray) -> dict[str, Any]:
    """The pictures of the frame whose depth reaches from nearest to farthest, which shows most."""
    spans = [_span(truth[valid_pixels(truth)]) for truth in reference.truths]
    index = int(np.argmax([high - low for low, high in spans]))
    truth, depth = reference.truths[index], depths[index]
    measured = valid_pixels(truth)
    low, high = spans[index] if measured.any() else _span(depth[np.isfinite(depth)])
    error = colour(np.abs(depth - truth), (0.0, _ERROR_SCALE))
    true_colours = colour(truth, (low, high))
    true_colours[~measured] = error[~measured] = 0
    names = row_name(row)
    pictures = [
        ("picture", reference.images[index], "the camera's picture"),
        ("truth", true_colours, "measured depth, black where it was not measured"),
        ("prediction", colour(depth, (low, high)), f"depth predicted by {names}"),
        ("error", error, f"distance between prediction and truth for {names}"),
    ]
    return {
        "title": names,
        "range": f"{low:.1f} to {high:.1f} m",
        "pictures": [(title, _data_uri(pixels), text) for title, pixels, text in pictures],
    }


def _span(depths: np.ndarray) -> tuple[float, float]:
    """Between which depths most pixels lie."""
    low, high = np.percentile(depths, (2, 98)) if depths.size else VALID_DEPTH
    return float(low), float(high)


def _data_uri(pixels: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.width < _LEAST_WIDTH:
        factor = -(-_LEAST_WIDTH // picture.width)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
