"""`depthkit adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from ..names import DEPTH_RANGE, DEPTH_UNITS, file_name
from .options import (
    NetworkType,
    NumbersType,
    NumberType,
    PathType,
    data_option,
    depth_units_option,
    runs_option,
    size_option,
)


@click.command()
@click.argument("network", type=NetworkType())
@click.option(
    "--weights",
    required=True,
    type=PathType(exists=True, dir_okay=False),
    help="Safetensors file with the network's state dict.",
)
@size_option("Size of the run.", default="240x320")
@click.option(
    "--depth-range",
    type=NumbersType("LOW,HIGH", 0, 1e4),
    default="{:g},{:g}".format(*DEPTH_RANGE),
    show_default=True,
    help="Metres; the network's output is a share of HIGH.",
)
@click.option("--mean", type=NumbersType("R,G,B", -1e3, 1e3), help="Mean of pixels from 0 to 1.  [default: ImageNet's]")
@click.option("--std", type=NumbersType("R,G,B", 1e-6, 1e3), help="Standard deviation of these.  [default: ImageNet's]")
@click.option(
    "--focal",
    type=NumberType(0, 1_000_000, above=True),
    help="Focal length of the training camera in pixels / width of the picture.  [default: unknown]",
)
@data_option("Source of the reference frames.", default="scenes")
@depth_units_option
@runs_option
def adopt(
    network: str,
    weights: Path,
    size: tuple[int, int],
    depth_range: tuple[float, float],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    focal: float | None,
    data: str,
    depth_units: float | None,
    runs: Path,
) -> None:
    """Make a run from a network that was trained elsewhere.

    NETWORK is package.module:Network, which must be importable, or a built-in network. The run is RUNS/Network, for
    export, bench and tune. The same command updates it with other weights.

    \b
    Example:
      depthkit adopt mypackage.module:MyNet --weights w.safetensors --size 96x128
    """
    from ..data.sources import open_dataset
    from ..spec import Preprocessing
    from ..train.bundle import import_weights
    from .console import out as console
    from .console import tell

    usual = Preprocessing()
    folder = runs / file_name(network)
    import_weights(
        folder,
        network,
        weights,
        size,
        open_dataset(data, "val", depth_units=depth_units or DEPTH_UNITS),
        preprocessing=Preprocessing("RGB", mean or usual.mean, std or usual.std),
        depth_range=depth_range,
        focal=focal,
    )
    tell("wrote", f"{folder}: {network} with {weights}")
    console.print(f"next: depthkit export {folder}", markup=False)
