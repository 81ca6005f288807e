"""`depthkit predict`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("depth"),
    show_default=True,
    help="Folder for the results.",
)
def predict(engine: Path, inputs: tuple[Path, ...], out: Path) -> None:
    """Write the depth of pictures, at each picture's own size.

    ENGINE is an engine, an ONNX file of ours or a run. INPUTS are images, or folders of images. For each picture x:

    \b
      x_depth.png   colours, near blue to far red, for eyes
      x_depth16.png 16-bit PNG in millimetres, for programs
      x_depth.npy   float32 metres, for NumPy

    \b
    Examples:
      depthkit predict runs/compact/compact-96x128.fp16.ort.onnx photo.jpg
      depthkit predict runs/compact photos/ --out depth
    """
    import numpy as np

    from ..files import atomic_write
    from ..images import colour, read_image, write_depth_png, write_image
    from ..runtime.frames import predict_frames
    from .console import out as console
    from .console import progress
    from .targets import open_target

    pictures = _pictures(inputs)
    names = _names(pictures)
    with open_target(engine) as session, progress() as bar:
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


def _pictures(inputs: tuple[Path, ...]) -> list[Path]:
    """Files as they are, folders as the pictures in them. Raises DataError, naming everything that is missing."""
    from ..errors import DataError
    from ..images import IMAGE_SUFFIXES

    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"there is no file or folder {', '.join(missing)}")
    found: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found += inside
    return list(dict.fromkeys(found))


def _names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each picture's results: its stem, with its folder's name before it where stems repeat."""
    stems = [picture.stem for picture in pictures]
    names = {p: p.stem if stems.count(p.stem) == 1 else f"{p.parent.resolve().name}_{p.name}" for p in pictures}
    if len(set(names.values())) < len(names):
        names = {picture: f"{index:05d}_{picture.stem}" for index, picture in enumerate(pictures)}
    return names
