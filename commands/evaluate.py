"""`depthkit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .options import CountType, PathType, data_option, depth_units_option, expand, json_option

if TYPE_CHECKING:
    from ..metrics import Alignment


@click.command()
@click.argument("target", nargs=-1, required=True, type=PathType(), callback=expand)
@data_option("Data set whose test split is used.", default="scenes")
@click.option("--frames", type=CountType(1, 1_000_000), help="Number of frames, evenly spaced.  [default: all]")
@click.option(
    "--align",
    type=click.Choice(["auto", "none", "median", "affine"]),
    default="auto",
    show_default=True,
    help="Scale each prediction to its truth first, by the medians, or by scale and shift of inverse depth. Such "
    "figures judge the shape of depth, not metres. auto: only answers without metres, inverse depth by affine, "
    "relative depth by median.",
)
@depth_units_option
@json_option
def evaluate(
    target: tuple[Path, ...],
    data: str,
    frames: int | None,
    align: Alignment | Literal["auto"],
    depth_units: float | None,
    as_json: bool,
) -> None:
    """Score runs, ONNX files or engines against measured depth.

    TARGET may also be the name of built-in weights: nano or compact.

    Predictions are resized to measured depth. Metres are not aligned to it, except by --align; inverse and relative
    depth, which has no metres, always is. Aligned figures say so. MSE and SSIM are the paper's, on depth / 10 m over
    the whole frame; the other metrics are over valid pixels (on NYU inside the Eigen crop). "pooled" is over all pixels
    of the set, "per image" the mean over pictures. NaN or infinite depth exits 3.

    \b
    Examples:
      depthkit evaluate compact --data path/to/nyu
      depthkit evaluate runs/compact runs/compact/*.ort.onnx --data path/to/nyu --frames 100
    """
    from math import isfinite

    from rich.text import Text

    from ..bench.accuracy import measure_accuracy
    from ..errors import GateError
    from ..metrics import METRICS, choose_alignment
    from ..pipeline.samples import doubt, sample_set
    from ..pipeline.targets import depth_units_of, describe_target, open_target
    from .console import err, out, table
    from .console import progress as progress_bar

    how = {path: choose_alignment(align, describe_target(path)[0].answers) for path in target}
    samples = sample_set(data, frames, depth_units_of(target, depth_units))
    if warning := doubt(samples):
        err.print(warning, style="yellow", markup=False)
    title = f"{data}, {samples.frames} of {samples.available} test frames"
    of_pictures = [metric for metric in METRICS if not metric.pooled]
    of_pixels = [metric for metric in METRICS if metric.pooled]
    headings = [[metric.heading for metric in group] for group in (of_pictures, of_pixels)]
    shown = table("target", *headings[0], "average", *headings[1], text={"target"}, title=title)
    results = {}
    for path in target:
        with open_target(path) as session, progress_bar() as bar:
            pairs = (samples.samples[index] for index in bar.track(range(samples.frames), description=path.name))
            scores = measure_accuracy(session, pairs, samples.crop, how[path])
        results[str(path)] = scores
        label = "" if how[path] == "none" else f"aligned ({how[path]})"
        for first, name, part in ((True, "pooled", scores.pooled), (False, "per image", scores.per_image)):
            whole = [format(metric.of(scores), metric.form) if first else "" for metric in of_pictures]
            figures = [format(getattr(part, metric.name), metric.form) for metric in of_pixels]
            shown.add_row(Text(str(path) if first else label), *whole, name, *figures)
    if as_json:
        from ..documents import to_json

        labels = {str(path): {} if each == "none" else {"aligned": each} for path, each in how.items()}
        documents = {path: json.loads(to_json(scores)) | labels[path] for path, scores in results.items()}
        click.echo(json.dumps(documents, indent=2))
    else:
        out.print(shown)
    bad = [path for path, scores in results.items() if not (isfinite(scores.mse) and isfinite(scores.pooled.rmse))]
    if bad:
        raise GateError(f"NaN or Inf in the depth of {', '.join(bad)}, or no valid pixel in the data")
