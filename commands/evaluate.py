"""`depthkit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import CountType, PathType, data_option, depth_units_option, expand, json_option


@click.command()
@click.argument("target", nargs=-1, required=True, type=PathType(), callback=expand)
@data_option("Data set whose test split is used.", default="scenes")
@click.option("--frames", type=CountType(1, 1_000_000), help="Only so many frames, evenly spaced.  [default: all]")
@depth_units_option
@json_option
def evaluate(target: tuple[Path, ...], data: str, frames: int | None, depth_units: float | None, as_json: bool) -> None:
    """Score runs, ONNX files or engines against measured depth.

    TARGET may also be the name of weights that come with depthkit: compact.

    Depth is metric: nothing is aligned to the truth. Predictions are resized to the truth's own size. MSE and SSIM are
    the paper's, on depth / 10 m over the whole frame; the others count valid pixels, on NYU inside the Eigen crop.
    "pooled" counts every pixel of the set alike, "per image" every picture. NaN or infinite depth exits 3.

    \b
    Examples:
      depthkit evaluate compact --data path/to/nyu
      depthkit evaluate runs/compact runs/compact/*.ort.onnx --data path/to/nyu --frames 100
    """
    from math import isfinite

    from rich.text import Text

    from ..bench.accuracy import measure_accuracy
    from ..errors import GateError
    from ..pipeline.samples import doubt, sample_set
    from ..pipeline.targets import depth_units_of, open_target
    from .console import err, out, table
    from .console import progress as progress_bar

    samples = sample_set(data, frames, depth_units_of(target, depth_units))
    if warning := doubt(samples):
        err.print(warning, style="yellow", markup=False)
    title = f"{data}, {samples.frames} of {samples.available} test frames"
    columns = ("target", "MSE", "SSIM", "average", "AbsRel", "RMSE m", "log10", "δ1", "δ2", "δ3")
    shown = table(*columns, text={"target"}, title=title)
    results = {}
    for path in target:
        with open_target(path) as session, progress_bar() as bar:
            pairs = (samples.samples[index] for index in bar.track(range(samples.frames), description=path.name))
            scores = measure_accuracy(session, pairs, samples.crop)
        results[str(path)] = scores
        for first, name, part in ((True, "pooled", scores.pooled), (False, "per image", scores.per_image)):
            head: list[str | Text] = (
                [Text(str(path)), f"{scores.mse:.5f}", f"{scores.ssim:.4f}"] if first else [Text(), "", ""]
            )
            figures = [part.abs_rel, part.rmse, part.log10, part.delta1, part.delta2, part.delta3]
            shown.add_row(*head, name, *(f"{figure:.3f}" for figure in figures))
    if as_json:
        from ..documents import to_json

        click.echo(json.dumps({path: json.loads(to_json(scores)) for path, scores in results.items()}, indent=2))
    else:
        out.print(shown)
    bad = [path for path, scores in results.items() if not (isfinite(scores.mse) and isfinite(scores.pooled.rmse))]
    if bad:
        raise GateError(f"NaN or Inf in the depth of {', '.join(bad)}, or no valid pixel in the data")
