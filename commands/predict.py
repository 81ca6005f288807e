"""`depthkit predict`."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULT = "compact"
"""Weights that come with depthkit, for pictures without an engine."""


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[ENGINE] INPUT...", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="The engine, where it does not stand first; every argument is then an INPUT.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("depth"),
    show_default=True,
    help="Folder for the results.",
)
def predict(arguments: tuple[Path, ...], engine: Path | None, out: Path) -> None:
    """Write the depth of pictures, at each picture's own size.

    INPUTS are images, or folders of images. ENGINE is an engine, an ONNX file of ours, a run, or the name of weights
    that come with depthkit: compact. The first argument is the ENGINE, unless it is named as an image or is a folder
    that is no run; then it is an INPUT, and compact answers.

    For each picture x:

    \b
      x_depth.png   colours, near blue to far red, for eyes
      x_depth16.png 16-bit PNG in millimetres, for programs
      x_depth.npy   float32 metres, for NumPy

    \b
    Examples:
      depthkit predict photo.jpg
      depthkit predict runs/compact/compact-96x128.fp16.ort.onnx photo.jpg
      depthkit predict photos/ --engine runs/compact --out depth
    """
    import numpy as np

    from ..files import atomic_write
    from ..images import colour, read_image, write_depth_png, write_image
    from ..runtime.frames import predict_frames
    from .console import out as console
    from .console import progress
    from .targets import open_target

    target, inputs = (engine, arguments) if engine else _split(arguments)
    pictures = _pictures(inputs)
    names = _names(pictures)
    with open_target(target) as session, progress() as bar:
        # Every picture is read before the first result is written: a broken one must not leave half of a folder.
        for picture in pictures:
            read_image(picture)
        for picture in bar.track(pictures, description="depth"):
            (depth,) = predict_frames(session, [read_image(picture)])
            low, high = (float(v) for v in np.percentile(depth, (2, 98)))
            write_image(out / f"{names[picture]}_depth.png", colour(depth, (low, high)))
            write_depth_png(out / f"{names[picture]}_depth16.png", depth)
            with atomic_write(out / f"{names[picture]}_depth.npy") as temporary:
                np.save(temporary, depth)
            console.print(
                f"{picture}: {low:.2f} to {high:.2f} m  ->  {out / names[picture]}_depth[.png|16.png|.npy]",
                markup=False,
            )


def _split(arguments: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    """The engine and the inputs. Raises UserError for an engine alone."""
    from ..errors import UserError
    from ..images import IMAGE_SUFFIXES
    from ..train.shipped import shipped_run
    from .console import err
    from .targets import is_run

    first, *rest = arguments
    if first.suffix.lower() in IMAGE_SUFFIXES or (first.is_dir() and not is_run(first)):
        err.print(f"by {DEFAULT}, weights that come with depthkit; --engine names another")
        return shipped_run(DEFAULT), arguments
    if not rest:
        raise UserError(
            f"{first} is no picture and no folder of pictures; name some, after an engine if one is to answer: "
            "`depthkit predict [ENGINE] INPUT...`"
        )
    return first, tuple(rest)


def _pictures(inputs: tuple[Path, ...]) -> list[Path]:
    """Files as they are, folders as the pictures in them. Raises DataError, naming everything that is missing."""
    from ..errors import DataError
    from ..images import find_images
    from .targets import is_run

    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"there is no file or folder {', '.join(missing)}")
    # A run holds pictures of its own, which nobody means.
    if runs := [str(path) for path in inputs if is_run(path)]:
        raise DataError(
            f"{', '.join(runs)} is a run, not a folder of pictures; the engine stands first, or in --engine"
        )
    found: list[Path] = []
    for path in inputs:
        found += find_images(path) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each picture's results: its stem, with its folder's name before it where stems repeat."""
    stems = [picture.stem for picture in pictures]
    names = {p: p.stem if stems.count(p.stem) == 1 else f"{p.parent.resolve().name}_{p.name}" for p in pictures}
    if len(set(names.values())) < len(names):
        names = {picture: f"{index:05d}_{picture.stem}" for index, picture in enumerate(pictures)}
    return names
