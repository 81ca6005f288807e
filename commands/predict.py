"""`depthkit predict`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..names import DEPTH_UNITS
from .options import (
    DAY,
    NumberType,
    PathType,
    PlaceType,
    SectionedCommand,
    built_in_engine,
    colormap_option,
    input_size_option,
    near_first,
    range_option,
    timeout_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..pipeline.inputs import Input
    from ..runtime.scale import MetricScale


class _RayType(click.ParamType[str]):
    """The address of a Ray cluster; empty: of this machine."""

    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept "auto", "local" and "10.0.0.1:6379"."""
        text = str(value)
        if text.startswith("ray://"):
            self.fail(
                f"{text}: Ray Data does not run through Ray Client; run the command on a machine of the cluster, or by "
                "`ray job submit`",
                param,
                ctx,
            )
        if text not in {"", "auto", "local"} and not re.fullmatch(r"[\w.-]+:\d{1,5}", text, re.ASCII):
            self.fail(
                f"{text!r} is not the address of a Ray cluster (HOST:PORT, auto or local); for this machine, write "
                "--ray last",
                param,
                ctx,
            )
        return text


class _PredictCommand(SectionedCommand):
    """Its help ends with the table of outputs, which has one owner: `pipeline.outputs`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ..pipeline.outputs import OUTPUTS

        super().format_options(ctx, formatter)
        with formatter.section("Outputs (x is the picture, clip or frame)"):
            formatter.write_dl([(name, f"x{each.ending}: {each.about}") for name, each in OUTPUTS.items()])
            formatter.write_paragraph()
            formatter.write_text(
                "* Without metres: what the network answers. The 16-bit files then hold it scaled to 0 to 65535, and a "
                ".json beside them says from which to which answer; a bar says near and far."
            )


@click.command(
    cls=_PredictCommand,
    sections={
        "What to write": ("--save", "--out", "--range", "--colormap", "--smooth", "--seconds"),
        "The engine": ("--engine", "--ray"),
        "Metres of a network that answers inverse or relative depth": ("--calibrate-scale", "--depth-units"),
        "The camera": ("--intrinsics", "--axes", "--input-size", "--fps", "--timeout"),
    },
)
@click.argument("arguments", nargs=-1, required=True, metavar="[ENGINE] INPUT...", type=PlaceType())
@click.option("--engine", type=PathType(), help="The engine; all arguments are then INPUTS.")
@click.option(
    "--ray",
    type=_RayType(),
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Pictures on the workers of a Ray cluster: HOST:PORT, auto, or by default $RAY_ADDRESS, or all cores of this "
    "machine. What is written is not computed again; bad pictures are listed in failed.csv.",
)
@click.option(
    "--out",
    type=PathType(file_okay=False),
    default=Path("depth"),
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--save",
    metavar="NAME[,NAME...]",
    help="Outputs, listed below.  [default: color,depth16,npy for pictures, color-video for all else]",
)
@range_option("of each picture, or of a clip's first 2 seconds")
@colormap_option
@click.option("--smooth", is_flag=True, help="Less flicker in clips.")
@click.option("--seconds", type=NumberType(0, DAY * 365, above=True), help="Stop after so much of each clip or camera.")
@click.option(
    "--intrinsics",
    metavar="TEXT",
    help="fx,fy,cx,cy[@WxH] in pixels, a .json or .yaml file, exif, or fov=DEGREES. Corrects metres for the focal "
    "length; point clouds need it.",
)
@click.option(
    "--axes",
    type=click.Choice(["opencv", "opengl"]),
    default="opencv",
    show_default=True,
    help="Of point clouds: x right, y down, z forward; or y up, z backward.",
)
@click.option(
    "--calibrate-scale",
    "points",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Fit scale and shift to measured points of the one INPUT, a picture, and keep them beside the engine as "
    "scale.json for later. A CSV file with the columns x,y,depth (pixels, metres), or a 16-bit depth PNG.",
)
@click.option(
    "--depth-units",
    type=NumberType(0.001, 1_000_000),
    help=f"Units per metre of that PNG.  [default: {DEPTH_UNITS:g}]",
)
@input_size_option
@click.option(
    "--fps",
    type=NumberType(0, 1000, above=True),
    help="Of raw frames and pictures that become a clip, or to ask a camera for.",
)
@timeout_option
def predict(
    arguments: tuple[str, ...],
    engine: Path | None,
    ray: str | None,
    out: Path,
    points: Path | None,
    depth_units: float | None,
    span: tuple[float, float] | None,
    **options: Any,
) -> None:
    """Write the depth of pictures, videos, cameras and streams, at their own size.

    An INPUT is a picture, a folder, a quoted pattern ("*.jpg"), a numbered sequence (frames/%05d.png), a video, a
    camera (0, /dev/video0), an address (rtsp://, http://), or - for standard input. ENGINE is an engine, an ONNX file
    that depthkit exported, a run, or the name of built-in weights: nano or compact. Without one, the more accurate
    built-in weights are used.

    Videos keep their times and sound. A camera gives its newest frame, and what it drops is counted. Ctrl-C ends a
    video or camera, and what was written is kept.

    Networks that answer inverse or relative depth (adopt --answers) have no metres, and nothing calls their answers so.
    --calibrate-scale makes metres of them, for pictures of one scene by one camera.

    \b
    Examples:
      depthkit predict photo.jpg
      depthkit predict runs/compact/compact-96x128.fp16.ort.onnx photo.jpg
      depthkit predict clip.mp4 --save color-video,depth-video --smooth
      depthkit predict 0 --seconds 60 --range 0.5,5
      depthkit predict photo.jpg --intrinsics fov=63 --save color,ply
      depthkit predict runs/midas/midas-256x256.fp32.ort.onnx photo.jpg --calibrate-scale points.csv
      depthkit predict "s3://bucket/photos/*.jpg" --out /shared/depth --ray
    """
    from ..data.colours import palette
    from ..pipeline.inputs import plan_inputs, require_fitting, require_folder, require_goals, split_arguments
    from ..pipeline.outputs import parse_outputs
    from ..pipeline.prediction import Options, Prediction
    from ..pipeline.predictor import Predictor
    from ..pipeline.scaling import write_scale
    from .console import out as console
    from .predict_output import run, terminable

    if depth_units is not None and (points is None or points.suffix.lower() == ".csv"):
        raise click.UsageError("--depth-units is for a depth PNG of --calibrate-scale; leave it out")
    target, places = (engine, arguments) if engine else split_arguments(arguments)
    save = options.pop("save")
    chosen = () if save is None else parse_outputs(save, has_camera=options["intrinsics"] is not None)
    if ray is not None:
        from .predict_ray import predict_by_ray

        weights = target or built_in_engine("choose others with --engine")
        if points is not None:
            raise click.UsageError("--calibrate-scale is for one picture; fit the scale first, without --ray")
        predict_by_ray(ray, weights, places, chosen, out, {**options, "span": span})
        return
    inputs = plan_inputs(places, chosen)
    require_fitting(inputs, input_size=options["input_size"], fps=options["fps"], smooth=options["smooth"])
    require_folder(out)
    palette(options["colormap"])  # before anything is opened
    read = require_goals(inputs, chosen, out)
    target = target or built_in_engine("choose others with --engine")
    scale = None if points is None else _fitted(target, inputs, points, depth_units)
    with Predictor(target, scale=scale) as predictor, terminable():
        wishes = Options(out, chosen, near_first(span, predictor.spec), read=read, **options)
        predictions = [Prediction(each, wishes, predictor) for each in inputs]
        for prediction in predictions:
            prediction.check(alone=len(predictions) == 1)
        if scale is not None:
            console.print(f"Wrote {write_scale(target, scale)}", markup=False)
        if predictor.scale is not None:
            console.print(predictor.scale.describe(), markup=False)
        for prediction in predictions:
            run(prediction, predictor)


def _fitted(target: Path, inputs: Sequence[Input], points: Path, depth_units: float | None) -> MetricScale:
    """The scale that fits measured points of the one input; nothing is written. Raises UserError, DataError."""
    from ..errors import UserError
    from ..files import require_writable
    from ..pipeline.scaling import fit_to_points, scale_path
    from .console import tell

    pictures = [picture for each in inputs for picture in each.pictures if each.kind == "pictures"]
    if len(pictures) != 1 or len(inputs) != 1:
        raise UserError("--calibrate-scale needs one picture, in which its points were measured; name it alone")
    require_writable(scale_path(target))
    return fit_to_points(target, pictures[0], points, depth_units or DEPTH_UNITS, tell)
