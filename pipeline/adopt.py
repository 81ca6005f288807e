"""Make a run of a foreign ONNX file: guess what its graph says, try it on real frames, and keep its answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import onnx

from ..data.images import resize_image
from ..documents import to_json
from ..errors import BundleError, UserError
from ..export.foreign import Foreign, choose_input, choose_output, read_foreign
from ..export.original import Original
from ..export.ranges import LEAST_FRAMES
from ..files import atomic_write, remove, sha256, write_text
from ..spec import Answers, ModelSpec, Preprocessing, camera_ready
from ..train.adoption import check_properties, require_answers
from ..train.document import (
    CHECKPOINT,
    MODEL,
    ORIGINAL,
    WEIGHTS,
    Adoption,
    BundleDocument,
    Frames,
    read_document,
    write_frames,
)
from ..train.origin import place_of
from .calibration import HELD_OUT
from .contact_sheet import write_sheet
from .pictures import Pictures, read_held_out
from .scaling import SCALE

if TYPE_CHECKING:
    from .tell import Tell

__all__ = ["AdoptOptions", "adopt_file"]

KEPT: Final = 8
"""Number of frames in a run."""

SHOWN: Final = 4
"""Number of frames in the contact sheet, on which other readings of the pixels are tried."""

MEANINGS: Final[dict[Answers, str]] = {
    "metres": "metres (red: far)",
    "share": "a share of a range (red: far)",
    "inverse": "inverse depth (red: near)",
    "relative": "depth up to scale (red: far)",
}
"""What the colours of the contact sheet mean."""

MUCH_SMOOTHER: Final = 0.5
FLAT: Final = 0.05
MUCH_LIVELIER: Final = 3.0
"""Limits for the warning about another reading: see `_doubts`."""


@dataclass(frozen=True)
class AdoptOptions:
    """Options of `depthkit adopt` for ONNX files; None: read from the graph.

    Attributes:
        frames: a data set, a folder of pictures, or one picture.
        answers: what the network answers.
        preprocessing: of its training.
        input, output: names of tensors.
        layout: of the input.
        size: height and width of the run.
        depth_range: in metres.
        focal: see `ModelSpec.focal`.
    """

    frames: str
    answers: Answers
    preprocessing: Preprocessing
    input: str | None = None
    output: str | None = None
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] | None = None
    focal: float | None = None


def adopt_file(path: Path, folder: Path, options: AdoptOptions, tell: Tell) -> None:
    """Make `folder` the run of a foreign ONNX file, or update such a run.

    Args:
        path: the file.
        folder: of the run.
        options: how it takes pictures and what it answers.
        tell: called with what was read from the graph, and with doubts.

    Raises:
        UserError: something is unclear, does not fit, or has no effect; nothing is written.
        GateError: the answers for the frames are constant or not finite; nothing is written.
        BundleError: the folder has another run.
        DataError: the frames cannot be read.
    """
    check_properties(options.preprocessing, options.depth_range, options.focal)
    name = folder.name
    _require_place(folder, name)
    if options.depth_range is None and options.answers == "share":
        raise UserError("--answers share needs --depth-range LOW,HIGH: the network's answer is a share of HIGH metres")
    if options.depth_range is not None and options.answers not in {"metres", "share"}:
        raise UserError(f"--depth-range has no effect with --answers {options.answers}, which has no metres")
    foreign = read_foreign(path)
    tensor, layout = choose_input(foreign, options.input, options.layout)
    assert tensor.shape is not None, "choose_input makes sure"
    batch, *sides = tensor.shape
    height, width = sides[1:] if layout == "NCHW" else sides[:2]
    size = _size(path, (height, width), options.size)
    pictures = read_held_out(options.frames, KEPT, LEAST_FRAMES, HELD_OUT, size)
    output = choose_output(foreign, tensor, layout, options.output, size)
    adoption = Adoption(
        input=tensor.name,
        output=output,
        layout=layout,
        dynamic_batch=batch is None,
        dynamic_size=height is None and width is None,
        opset=foreign.opset,
        frames=Path(options.frames).name,
        place=place_of(options.frames),
    )
    original = Original(path, adoption, size)
    answered = original.answered(size)
    _tell_graph(foreign, adoption, size, answered, tell)
    frames = [resize_image(image, size) for image in pictures.images]
    answers = [original.run(frame, options.preprocessing) for frame in frames]
    require_answers(answers)
    shown = frames[:SHOWN]
    readings = {"as given": answers[:SHOWN]}
    for reading, other in _other_readings(options.preprocessing).items():
        readings[reading] = [original.run(frame, other) for frame in shown]
    for doubt in _doubts(readings):
        tell("warns", doubt)
    spec = _spec(name, foreign, size, options, answers)
    if foreign.external:
        tell("note", "weights in other files are stored in the run's one file")
    _write(folder, foreign, spec, adoption, pictures)
    write_sheet(folder / "samples.png", shown, readings, f"{name} answers {MEANINGS[options.answers]}")


def _require_place(folder: Path, name: str) -> None:
    """Raise BundleError if the folder has another run."""
    if not any((folder / file).is_file() for file in (MODEL, WEIGHTS, CHECKPOINT)):
        return
    if not (folder / MODEL).is_file() or (found := read_document(folder)).adopted is None:
        raise BundleError(f"{folder} contains a run that is not overwritten; choose another folder with --out")
    if found.model.network != name:
        raise BundleError(f"{folder} contains the run of {found.model.network}; choose another folder with --out")


def _size(path: Path, own: tuple[int | None, int | None], asked: tuple[int, int] | None) -> tuple[int, int]:
    """The run's height and width. Raises UserError."""
    if asked is None:
        if None in own:
            raise UserError(f"height and width of {path} are dynamic; give the run's with --size HxW")
        return own  # type: ignore[return-value]
    if any(side not in {None, wanted} for side, wanted in zip(own, asked, strict=True)):
        fixed = "x".join("?" if side is None else str(side) for side in own)
        raise UserError(
            f"{path} has a fixed size of {fixed} (HxW), not {asked[0]}x{asked[1]}; leave --size out, or export the "
            "file with a dynamic height and width"
        )
    return asked


def _tell_graph(
    foreign: Foreign, adoption: Adoption, size: tuple[int, int], answered: tuple[int, int], tell: Tell
) -> None:
    dynamic = [what for what, is_so in (("batch", adoption.dynamic_batch), ("size", adoption.dynamic_size)) if is_so]
    tell("read", f"input {adoption.input}: {adoption.layout}, {size[0]}x{size[1]}" + _dynamic(dynamic))
    same = "" if answered == size else ", which is resized to the input's size"
    tell("read", f"output {adoption.output}: {answered[0]}x{answered[1]}{same}")
    tell("read", f"opset {foreign.opset}, {foreign.parameters:,} parameters")


def _dynamic(what: Sequence[str]) -> str:
    return f", dynamic {' and '.join(what)}" if what else ", all dimensions fixed"


def _other_readings(given: Preprocessing) -> dict[str, Preprocessing]:
    """Other ways to read pixels, by a short name."""
    swapped = replace(given, color="BGR" if given.color == "RGB" else "RGB")
    plain = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    readings = {
        f"as {swapped.color}": swapped,
        "pixels 0 to 1": Preprocessing(given.color, *plain),
        "pixels 0 to 255": Preprocessing(given.color, *plain, scale=1.0),
    }
    return {name: reading for name, reading in readings.items() if reading != given}


def _doubts(readings: dict[str, list[np.ndarray]]) -> list[str]:
    """Warnings about readings that fit better than the given one, which is the first."""
    (_, given), *others = readings.items()
    found = []
    for name, answers in others:
        if not all(np.isfinite(answer).all() and np.ptp(answer) > 0 for answer in answers):
            continue
        if _roughness(answers) < MUCH_SMOOTHER * _roughness(given):
            found.append(f"read {name}, the answers are much smoother; compare them in samples.png")
        elif _spread(given) < FLAT and _spread(answers) > MUCH_LIVELIER * _spread(given):
            found.append(f"the answers are nearly constant, and much less so {name}; compare them in samples.png")
    return found


def _roughness(answers: Sequence[np.ndarray]) -> float:
    """Mean difference of neighbours, as a share of each answer's span, over the answers."""
    return float(
        np.mean([(np.abs(np.diff(a, axis=0)).mean() + np.abs(np.diff(a, axis=1)).mean()) / _span(a) for a in answers])
    )


def _spread(answers: Sequence[np.ndarray]) -> float:
    """Span of an answer as a share of its largest magnitude, mean over the answers."""
    return float(np.mean([_span(answer) / np.abs(answer).max() for answer in answers]))


def _span(answer: np.ndarray) -> float:
    low, high = np.percentile(answer, (2, 98))
    return max(float(high - low), float(np.finfo(np.float32).tiny))


def _spec(
    name: str, foreign: Foreign, size: tuple[int, int], options: AdoptOptions, answers: Sequence[np.ndarray]
) -> ModelSpec:
    image, depth = camera_ready(*size)
    if options.answers in {"metres", "share"}:
        limits = options.depth_range or (0.0, 1000.0)
    else:
        low, high = np.percentile(np.stack(answers), (2, 98))
        limits = float(low), float(high)
    return ModelSpec(
        network=name,
        widths=(),
        input=image,
        output=depth,
        preprocessing=options.preprocessing,
        depth_range=limits,
        parameters=foreign.parameters,
        macs=0,  # counted by the export, which reads the weights
        focal=options.focal,
        answers=options.answers,
    )


def _write(folder: Path, foreign: Foreign, spec: ModelSpec, adoption: Adoption, pictures: Pictures) -> None:
    """Write the run; the file that makes a folder a run comes last. Raises OutputError."""
    depths = pictures.depths or [np.zeros(image.shape[:2], np.float32) for image in pictures.images]
    write_frames(folder, Frames(np.stack(pictures.images), np.stack(depths)))
    goal = folder / ORIGINAL
    with atomic_write(goal) as temporary:
        if foreign.external:
            onnx.save(onnx.load(foreign.path), temporary)
        else:
            shutil.copyfile(foreign.path, temporary)
    document = to_json(BundleDocument(spec, None, sha256(goal), adoption))
    if not (folder / MODEL).is_file() or (folder / MODEL).read_text(encoding="utf-8") != document:
        remove(folder / SCALE)  # it was fitted to what the run answered before
    write_text(folder / MODEL, document)
