"""`depthkit predict`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PathType, built_in_engine, expand

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[ENGINE] INPUT...", type=PathType(), callback=expand)
@click.option(
    "--engine",
    type=PathType(),
    help="The engine; all arguments are then INPUTS.",
)
@click.option(
    "--out",
    type=PathType(file_okay=False),
    default=Path("depth"),
    show_default=True,
    help="Folder for the results.",
)
def predict(arguments: tuple[Path, ...], engine: Path | None, out: Path) -> None:
    """Write the depth of pictures, at each picture's own size.

    INPUTS are pictures that Pillow opens, or folders of them; results of an earlier predict are skipped. ENGINE is an
    engine, an ONNX file that depthkit exported, a run, or the name of built-in weights: nano or compact. The first
    argument is the ENGINE, unless it has the name of a picture or is a folder but not a run; then the more accurate
    built-in weights are used.

    For each picture x:

    \b
      x_depth.png   colours, from near (blue) to far (red)
      x_depth16.png 16-bit PNG in millimetres
      x_depth.npy   float32 metres, for NumPy

    \b
    Examples:
      depthkit predict photo.jpg
      depthkit predict runs/compact/compact-96x128.fp16.ort.onnx photo.jpg
      depthkit predict photos/ --engine runs/compact --out depth
    """
    import numpy as np

    from ..data.colours import colour
    from ..data.images import read_resized, write_depth_png, write_image
    from ..files import atomic_write
    from ..pipeline.predictor import Predictor
    from .console import out as console
    from .console import progress

    target, inputs = (engine, arguments) if engine else _split(arguments)
    pictures = _pictures(inputs)
    names = _names(pictures)
    _require_goals(pictures, names, out)
    with Predictor(target) as predictor, progress() as bar:
        # Read every picture before the first result is written: a broken one must not leave half of the results.
        for picture in pictures:
            read_resized(picture, predictor.size)
        for picture in bar.track(pictures, description="depth"):
            image, shape = read_resized(picture, predictor.size)
            depth = predictor(image, shape)
            low, high = (float(v) for v in np.percentile(_sampled(depth, predictor.size), (2, 98)))
            write_image(out / f"{names[picture]}_depth.png", colour(depth, (low, high)))
            write_depth_png(out / f"{names[picture]}_depth16.png", depth)
            with atomic_write(out / f"{names[picture]}_depth.npy") as temporary:
                np.save(temporary, depth)
            console.print(
                f"{picture}: {low:.2f} to {high:.2f} m  ->  {out / names[picture]}_depth[.png|16.png|.npy]",
                markup=False,
            )


def _sampled(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every n-th row and column, so that about `size` of them are left; percentiles of a large picture are slow."""
    down, across = (max(1, have // want) for have, want in zip(depth.shape, size, strict=True))
    return depth[::down, ::across]


def _split(arguments: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    """The engine and the inputs. Raises UserError for an engine alone."""
    from ..data.images import looks_like_picture
    from ..errors import UserError
    from ..pipeline.targets import is_run

    first, *rest = arguments
    if looks_like_picture(first) or (first.is_dir() and not is_run(first)):
        return built_in_engine("choose others with --engine"), arguments
    if not rest:
        raise UserError(
            f"{first} is not a picture or a folder of pictures; name some after the engine: "
            "`depthkit predict [ENGINE] INPUT...`"
        )
    return first, tuple(rest)


def _pictures(inputs: tuple[Path, ...]) -> list[Path]:
    """The input files and the pictures in input folders, without results of predict. Raises DataError."""
    from ..data.images import find_images, is_result, warn_skipped
    from ..errors import DataError
    from ..pipeline.targets import is_run

    missing = [str(path) for path in inputs if not os.path.exists(path)]  # noqa: PTH110 - pathlib raises for a loop
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    # A run has pictures of its own, which are no inputs.
    if runs := [str(path) for path in inputs if is_run(path)]:
        raise DataError(
            f"{', '.join(runs)} is a run, not a folder of pictures; name the engine first, or with --engine"
        )
    found: list[Path] = []
    results = [path for path in inputs if path.is_file() and is_result(path)]
    for path in inputs:
        if path not in results:
            found += find_images(path) if path.is_dir() else [path]
    if not found:
        raise DataError(f"{results[0]} is a result of `depthkit predict`; name pictures")
    warn_skipped("the arguments", results, len(inputs))
    return list(dict.fromkeys(found))


def _names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each picture's results: its stem, preceded by its folder's name if stems repeat."""
    stems = [picture.stem for picture in pictures]
    names = {p: p.stem if stems.count(p.stem) == 1 else f"{p.parent.resolve().name}_{p.name}" for p in pictures}
    if len(set(names.values())) < len(names):
        names = {picture: f"{index:05d}_{picture.stem}" for index, picture in enumerate(pictures)}
    return names


def _require_goals(pictures: list[Path], names: dict[Path, str], out: Path) -> None:
    """Raise OutputError if a result cannot be written, or would overwrite an input."""
    from ..data.images import RESULTS
    from ..errors import OutputError
    from ..files import MOST_NAME_BYTES

    inputs = {picture.resolve() for picture in pictures}
    for picture in pictures:
        for ending in RESULTS:
            goal = out / f"{names[picture]}{ending}"
            if len(os.fsencode(goal.name)) > MOST_NAME_BYTES:
                raise OutputError(
                    f"{picture}: its results' names would exceed {MOST_NAME_BYTES} bytes; shorten the picture's name"
                )
            if goal.resolve() in inputs:
                raise OutputError(
                    f"the results of {picture} would replace the picture {goal}; choose another folder with --out"
                )
