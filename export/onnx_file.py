"""Write an ONNX file and its reference, once every check has passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..errors import GateError, OutputError
from ..files import is_refused_write, make_folder, remove
from ..images import resize_depth, resize_image
from ..reference import Reference, reference_path, write_reference
from ..train.bundle import Bundle
from ..train.session import TorchSession
from .checks import Check, Subject, run_checks
from .graph import Origin, build_graph
from .recipe import ExportOptions, onnx_path, recipe

__all__ = ["OnnxFile", "export_onnx"]


@dataclass(frozen=True)
class OnnxFile:
    """What an export left."""

    path: Path
    reference: Path
    checks: tuple[Check, ...]


def export_onnx(bundle: Bundle, options: ExportOptions, on_check: Callable[[Check], None] | None = None) -> OnnxFile:
    """Export `<run>/<stem>.<precision>.onnx` and `<run>/<stem>.reference.npz`.

    Args:
        bundle: the run.
        options: precision, size, batch.
        on_check: told of every check as soon as it is done.

    Raises:
        GateError: a check failed; no file stands under the goal's name then.
        SpecError: a size that the network does not take.
        OutputError: the folder cannot be written.
    """
    spec = bundle.spec_at(options.size).with_batch(options.batch)
    goal = onnx_path(bundle.folder, bundle.document, options)
    make_folder(goal.parent)
    remove(goal)
    reference = make_reference(bundle, spec.size)
    # Beside the goal, so that moving it there is a rename, and a full disk is found before anything stands there.
    with _scratch(goal.parent) as scratch:
        candidate = scratch / goal.name
        origin = Origin(bundle.weights_sha256, recipe(bundle.folder, options))
        onnx.save(build_graph(bundle.network, spec, options.precision, origin), candidate)
        checks = []
        for check in run_checks(Subject(candidate, bundle.network, spec, options.precision, reference)):
            checks.append(check)
            if on_check is not None:
                on_check(check)
            if not check.passed:
                raise GateError(f"{goal.name} was not written: {check.name} failed: {check.detail}")
        path = reference_path(goal)
        write_reference(path, reference)
        candidate.replace(goal)
    return OnnxFile(goal, path, tuple(checks))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        if not is_refused_write(error):
            raise
        raise OutputError(f"cannot write to {folder}: {error.strerror}; free some space or choose another") from error


def make_reference(bundle: Bundle, size: tuple[int, int]) -> Reference:
    """The run's frames at `size`, with torch's FP32 answers."""
    images = np.stack([resize_image(image, size) for image in bundle.frames.images])
    truths = np.stack([resize_depth(depth, size, smooth=False) for depth in bundle.frames.depths])
    with TorchSession(bundle, size) as session:
        return Reference(images, session(images), truths, bundle.weights_sha256)
