"""`depthkit adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from ..names import DEPTH_RANGE, DEPTH_UNITS, file_name
from .options import (
    DataType,
    NetworkType,
    NumbersType,
    NumberType,
    PathType,
    SectionedCommand,
    SizeType,
    data_option,
    depth_units_option,
    runs_option,
)

if TYPE_CHECKING:
    from ..spec import Answers

_FOR_FILES: Final = ("frames", "input_name", "layout")
_FOR_NETWORKS: Final = ("weights", "data", "depth_units")


class _ModelType(click.ParamType["Path | str"]):
    """An ONNX file, or a network as `NetworkType` takes it."""

    name = "MODEL.onnx|package.module:Network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if str(value).endswith(".onnx"):
            path: Path = PathType(exists=True, dir_okay=False).convert(value, param, ctx)
            return path
        return NetworkType().convert(value, param, ctx)


@click.command(
    cls=SectionedCommand,
    sections={
        "What it answers": ("--answers", "--output", "--depth-range", "--focal"),
        "How it takes pixels": ("--color", "--scale", "--mean", "--std", "--size"),
        "ONNX file": ("--frames", "--input", "--layout"),
        "Network in torch": ("--weights", "--data", "--depth-units"),
        "Run": ("--out", "--runs"),
    },
)
@click.argument("model", type=_ModelType())
@click.option(
    "--answers",
    type=click.Choice(["metres", "share", "inverse", "relative"]),
    help="metres; share: a share (0 to 1) of the depth range's HIGH; inverse: inverse depth up to scale and shift "
    "(MiDaS, Depth Anything); relative: depth up to scale.  [default: share for torch; ONNX files: required]",
)
@click.option(
    "--depth-range",
    type=NumbersType("LOW,HIGH", 0, 1e4),
    help="Metres; depth is clamped to it.  [default: {:g},{:g} for share in torch; 0,1000 for metres]".format(
        *DEPTH_RANGE
    ),
)
@click.option(
    "--focal",
    type=NumberType(0, 1_000_000, above=True),
    help="Focal length of the training camera in pixels / width of the picture.  [default: unknown]",
)
@click.option("--color", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Channel order.")
@click.option(
    "--scale",
    type=NumberType(0, 1e6, above=True),
    default=255.0,
    show_default=True,
    help="Divides pixels first.",
)
@click.option(
    "--mean", type=NumbersType("R,G,B", -1e3, 1e3), help="Subtracted next; --color order.  [default: ImageNet]"
)
@click.option("--std", type=NumbersType("R,G,B", 1e-6, 1e3), help="Divides last; --color order.  [default: ImageNet]")
@click.option(
    "--size",
    type=SizeType(),
    metavar="HxW",
    help="Size of the run.  [default: the file's, if it is fixed; 240x320 for torch]",
)
@click.option(
    "--frames",
    type=DataType(),
    metavar="PATH",
    help="Real pictures: a folder, a data set, or one picture. The file's answers for 8 of them become the reference; "
    "others calibrate INT8.  [required]",
)
@click.option("--input", "input_name", metavar="NAME", help="Input for pictures.  [default: the only one that fits]")
@click.option(
    "--output",
    "output_name",
    metavar="NAME",
    help="Output with depth; for torch a key, field or index.  [default: the only one that fits]",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "NCHW", "NHWC"]),
    default="auto",
    show_default=True,
    help="Of the input; auto: where 3 channels are.",
)
@click.option(
    "--weights", type=PathType(exists=True, dir_okay=False), help="Safetensors file with the state dict.  [required]"
)
@data_option("Source of the reference frames.", default="scenes")
@depth_units_option
@click.option("--out", type=PathType(file_okay=False), help="Folder of the run.  [default: RUNS/name of the model]")
@runs_option
@click.pass_context
def adopt(
    ctx: click.Context,
    model: Path | str,
    answers: Answers | None,
    depth_range: tuple[float, float] | None,
    focal: float | None,
    color: Literal["rgb", "bgr"],
    scale: float,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    size: tuple[int, int] | None,
    frames: str | None,
    input_name: str | None,
    output_name: str | None,
    layout: Literal["auto", "NCHW", "NHWC"],
    weights: Path | None,
    data: str,
    depth_units: float | None,
    out: Path | None,
    runs: Path,
) -> None:
    """Make a run of a model from elsewhere, for export, bench, tune, predict and view.

    MODEL is an ONNX file, which needs no torch; or package.module:Network, which must be importable, or a built-in
    network, with --weights. The same command updates the run.

    Of an ONNX file, input, output, layout and size are read from the graph. It runs on real frames as it is, and its
    answers become the reference. Look at samples.png in the run: it shows these answers, and those for pixels read in
    other ways.

    \b
    Examples:
      depthkit adopt midas.onnx --answers inverse --frames photos
      depthkit adopt dav2s.onnx --answers inverse --frames photos --size 252x336
      depthkit adopt metric.onnx --answers metres --mean 0,0,0 --std 1,1,1 --frames nyu
      depthkit adopt mypackage.module:MyNet --weights w.safetensors --size 96x128
      depthkit adopt mypackage.module:MyNet --weights w.safetensors --answers inverse
    """
    from ..packages import ADOPTING, require_packages
    from ..spec import Preprocessing
    from .console import out as console
    from .console import tell

    usual = Preprocessing()
    preprocessing = Preprocessing("BGR" if color == "bgr" else "RGB", mean or usual.mean, std or usual.std, scale)
    is_file = isinstance(model, Path)
    _refuse_useless(ctx, _FOR_NETWORKS if is_file else _FOR_FILES, "an ONNX file" if is_file else "a network in torch")
    if isinstance(model, Path):
        if answers is None:
            raise click.UsageError("nothing in an ONNX file says what it answers; give --answers, see --help")
        if frames is None:
            raise click.UsageError("give real pictures with --frames: a folder, a data set, or one picture")
        require_packages(*ADOPTING)
        from ..pipeline.adopt import AdoptOptions, adopt_file

        folder = out or runs / model.name.removesuffix(".onnx")
        options = AdoptOptions(
            frames, answers, preprocessing, input_name, output_name, layout, size, depth_range, focal
        )
        adopt_file(model, folder, options, tell)
        tell("wrote", f"{folder}; look at {folder / 'samples.png'}")
    else:
        if weights is None:
            raise click.UsageError("give the network's weights with --weights FILE")
        from ..data.sources import open_dataset
        from ..train.bundle import import_weights

        folder = out or runs / file_name(model)
        spec = import_weights(
            folder,
            model,
            weights,
            size or (240, 320),
            open_dataset(data, "val", depth_units=depth_units or DEPTH_UNITS),
            preprocessing=preprocessing,
            answers=answers or "share",
            output=output_name,
            depth_range=depth_range,
            focal=focal,
        )
        if spec.network_output is not None:
            tell("read", f"output {spec.network_output}")
        tell("wrote", f"{folder}: {model} with {weights}")
    console.print(f"next: depthkit export {folder}", markup=False)


def _refuse_useless(ctx: click.Context, names: tuple[str, ...], kind: str) -> None:
    """Raise UsageError if an option was given that has no effect on this kind of model."""
    given = [name for name in names if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"--{given[0].removesuffix('_name').replace('_', '-')} has no effect on {kind}")
