"""Write an ONNX file and its reference after all checks have passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from ..data.dataset import evenly_spaced
from ..data.images import resize_depth, resize_image
from ..errors import DataError, GateError, OutputError, UserError
from ..files import is_refused_write, make_folder, remove
from ..onnx_graph import describe_onnx, products
from ..parity import Parity
from ..precisions import LEAST_SHARE
from ..reference import Reference, reference_path, write_reference
from ..spec import ModelSpec
from .checks import Check, Subject, run_checks
from .finish import Origin, sign
from .quantize import place, plan, rank_layers
from .ranges import LEAST_FRAMES, METHODS, calibrate
from .recipe import Calibration, ExportOptions, Frames, onnx_path, recipe
from .source import Source

__all__ = ["OnnxFile", "RankedLayer", "export_onnx", "held_out_reference", "rank_run"]

CHOOSING: Final = 16
"""Number of calibration frames that methods, bias and layers are chosen by."""


@dataclass(frozen=True)
class OnnxFile:
    """Result of an export; `held_out`: the held-out frames with PyTorch's depth, if there are any."""

    path: Path
    reference: Path
    checks: tuple[Check, ...]
    held_out: Reference | None = None


def export_onnx(source: Source, options: ExportOptions, on_check: Callable[[Check], None] | None = None) -> OnnxFile:
    """Export `<run>/<stem>.<precision>.onnx` and `<run>/<stem>.reference.npz`.

    The file and reference of an earlier export stay until the new ones have passed.

    Args:
        source: the run.
        options: precision, sizes, batch, calibration.
        on_check: called with every check as soon as it is done.

    Raises:
        GateError: a check failed. An earlier export stays if it has the same weights; otherwise it is removed.
        SpecError: a size that the network does not support, or a smaller camera.
        DataError: too few calibration frames.
        OutputError: the folder cannot be written.
    """
    spec = source.spec_at(options.size, options.camera).with_batch(options.batch)
    goal = onnx_path(source.folder, source.document, options)
    make_folder(goal.parent)
    if goal.is_dir():
        raise OutputError(f"cannot write {goal}: it is a folder; move it away")
    reference = make_reference(source, spec)
    held_out = held_out_reference(source, spec, options.calibration)
    # In the goal's folder, so that moving the file is a rename, and a full disk leaves the old file.
    with _scratch(goal.parent) as scratch:
        candidate = scratch / goal.name
        origin = Origin(source.document.weights_sha256, recipe(source.folder, source.document, options))
        subject = Subject(candidate, source, spec, options.precision, reference, held_out=held_out)
        report = on_check or (lambda _check: None)
        checks = []
        for check in _made(subject, options, origin):
            checks.append(check)
            report(check)
            if not check.passed:
                if not _is_of(goal, source.document.weights_sha256):
                    remove(goal)  # an export of other weights would be mistaken for one of these
                raise GateError(f"{goal.name} was not written: {check.name} failed: {check.detail}{_remedy(options)}")
        path = reference_path(goal)
        write_reference(path, reference)
        candidate.replace(goal)
    return OnnxFile(goal, path, tuple(checks), held_out)


def _is_of(onnx_file: Path, weights_sha256: str) -> bool:
    """Whether a file is an intact export of these weights, which has passed its checks."""
    with suppress(UserError):
        found = describe_onnx(onnx_file)
        return found.intact and found.weights_sha256 == weights_sha256
    return False


def _remedy(options: ExportOptions) -> str:
    if options.precision != "int8":
        return ""
    return "; calibrate on frames of your camera (--calibrate)" + (
        "" if options.keep == "auto" else ", or keep the most sensitive layers in FP32 (--keep auto)"
    )


@dataclass(frozen=True)
class RankedLayer:
    """A layer with weights and the effect of quantising it alone.

    Attributes:
        layer, module: its node in the ONNX file, and its module in the network.
        share: its fraction of the network's multiply-accumulates.
        parity: of the network with only this layer in INT8.
    """

    layer: str
    module: str
    share: float
    parity: Parity


def rank_run(source: Source, spec: ModelSpec, calibration: Calibration) -> list[RankedLayer]:
    """The layers of a run in the graph of `spec`, most sensitive to INT8 first; ranges are minimum and maximum.

    Raises:
        DataError: too few calibration frames, or frames that cannot be read.
    """
    model = source.graph(spec, "int8")
    known = {each.name: each for each in products(model) if each.precision}
    work = sum(each.macs for each in known.values())
    frames, _ = calibration.frames
    ranges = calibrate(model, frames.images, "minmax")
    return [
        RankedLayer(each.layer, known[each.layer].module, known[each.layer].macs / work, each.parity)
        for each in rank_layers(model, ranges, _choosing(source, spec, frames))
    ]


def _made(subject: Subject, options: ExportOptions, origin: Origin) -> Iterator[Check]:
    """Write the file and check it; also yield the choices of calibration and kept layers."""
    kept: tuple[str, ...] = ()
    if options.precision == "int8":
        model, decided = _quantized(subject, options, origin)
        yield decided
    else:
        if options.keep == "auto":
            kept = _overflowing(subject, options)
        model = sign(
            subject.source.graph(subject.spec, options.precision, kept), subject.spec, options.precision, origin
        )
        if options.keep == "auto":
            yield _half_range(model, kept)
    onnx.save(model, subject.path)
    yield from run_checks(replace(subject, kept=kept))


def _overflowing(subject: Subject, options: ExportOptions) -> tuple[str, ...]:
    """The layers that exceed FP16's range on calibration frames."""
    if options.calibration is None:
        raise UserError("--keep auto needs frames to choose layers; give some with --calibrate")
    frames, _ = options.calibration.frames
    chosen = evenly_spaced(frames.images, CHOOSING)
    return subject.source.overflows(
        subject.spec, [resize_image(frames.images[index], subject.spec.size) for index in chosen]
    )


def _half_range(model: onnx.ModelProto, kept: tuple[str, ...]) -> Check:
    found = [each for each in products(model) if each.precision]
    work, half = sum(each.macs for each in found), sum(each.macs for each in found if each.precision == "fp16")
    share = half / work if work else 1.0
    detail = _kept_in_fp32(kept)
    if share < LEAST_SHARE:
        detail += f": only {share:.0%} of the work would run in FP16, not {LEAST_SHARE:.0%}; export --bf16 or FP32"
    return Check("FP16 range", passed=share >= LEAST_SHARE, detail=detail)


def _quantized(subject: Subject, options: ExportOptions, origin: Origin) -> tuple[onnx.ModelProto, Check]:
    """The INT8 graph, and how it was calibrated."""
    calibration = options.calibration
    if calibration is None:
        raise UserError("INT8 needs calibration frames; give some with --calibrate")
    plain = subject.source.graph(subject.spec, "int8")
    frames, _ = calibration.frames
    if len(frames) < LEAST_FRAMES:
        raise DataError(f"INT8 calibration needs at least {LEAST_FRAMES} frames, but there are {len(frames)}")
    choosing = _choosing(subject.source, subject.spec, frames)
    how = plan(plain, frames.images, choosing, options.keep)
    best, tried = how.best, ", ".join(f"{method} {how.tried[method].change:.2%}" for method in METHODS)
    used = f"{len(frames)} frames of {calibration.source}"
    if all(image.min() == image.max() for image in frames.images):
        used += ", each of one colour"
    detail = f"{how.method} changes depth least ({tried}) on {used}; {_kept_in_fp32(how.kept)}"
    if best.shift:
        offset = f"{1000 * best.shift_m:.0f} mm"
        if not choosing.is_metric:
            low, high = choosing.scale
            offset = f"{100 * best.shift_m / (high - low):.2g} % of the span"
        detail += f"; median depth offset of {offset} corrected in the last bias"
    model = sign(place(plain, how.ranges, how.kept, shift=best.shift), subject.spec, "int8", origin)
    return model, Check("INT8 calibration", passed=True, detail=detail)


def _kept_in_fp32(layers: tuple[str, ...]) -> str:
    return f"kept in FP32: {', '.join(layers)}" if layers else "no layer kept in FP32"


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        if not is_refused_write(error):
            raise
        raise OutputError(f"cannot write to {folder}: {error.strerror}; free some space or choose another") from error


def make_reference(source: Source, spec: ModelSpec) -> Reference:
    """The run's frames at the size of `spec`, with the run's own FP32 depth."""
    return _answered(source, spec, Frames(tuple(source.frames.images), tuple(source.frames.depths)))


def held_out_reference(source: Source, spec: ModelSpec, calibration: Calibration | None) -> Reference | None:
    """A calibration's held-out frames at the size of `spec`, with the run's own FP32 depth; None if there are none."""
    _, frames = calibration.frames if calibration else (None, Frames(()))
    return _answered(source, spec, frames) if len(frames) else None


def _choosing(source: Source, spec: ModelSpec, frames: Frames) -> Reference:
    chosen = evenly_spaced(frames.images, CHOOSING)
    some = Frames(tuple(frames.images[i] for i in chosen), tuple(frames.truths[i] for i in chosen if frames.truths))
    return _answered(source, spec, some)


def _answered(source: Source, spec: ModelSpec, frames: Frames) -> Reference:
    """Frames at the size of `spec`, with the run's own FP32 depth."""
    images = np.stack([resize_image(image, spec.size) for image in frames.images])
    answers = source.answer(spec, images)
    depths = [resize_depth(depth, spec.size, smooth=False) for depth in frames.truths]
    truths = np.stack(depths) if depths else np.zeros_like(answers)
    return Reference(images, answers, truths, source.document.weights_sha256, spec.resized_to, spec.is_metric)
