"""The run bundle: a folder with a trained network and the record of its training.

model.safetensors   weights
model.json          ModelSpec, and the training record if it was trained here
frames.npz          8 validation frames and their depth at the camera's size, so that export needs no data set
metrics.csv         a line per epoch
curve.png           a plot of metrics.csv
samples.png         picture, ground truth, prediction, error
last.ckpt           checkpoint for --resume
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..data.dataset import RGBDDataset, evenly_spaced
from ..data.images import resize_image
from ..documents import to_json
from ..errors import BundleError, DataError, GateError, SpecError
from ..files import atomic_write, sha256, write_text
from ..names import DEPTH_RANGE
from ..spec import Answers, ModelSpec, Preprocessing, camera_ready
from .adoption import check_properties, require_answers
from .answer import as_depth
from .camera_ready import CameraReady
from .document import (
    CHECKPOINT,
    MODEL,
    WEIGHTS,
    BundleDocument,
    Frames,
    TrainingRecord,
    read_document,
    read_frames,
    write_frames,
)
from .networks import build_network, count_macs, describe_network

__all__ = ["Bundle", "frames_of", "import_weights", "load_weights", "read_bundle", "write_bundle"]

_KEPT: Final = 8  # frames in a bundle
_SHOWN: Final = 10  # names that an error lists; it only counts the rest
_LEAST_WITHIN: Final = 0.01
"""Smallest share of the pixels of an adopted network whose depth is within its range."""

_RANGES: Final[dict[Answers, tuple[float, float]]] = {"share": DEPTH_RANGE, "metres": (0.0, 1000.0)}
"""Default depth ranges; other answers have no metres."""


def frames_of(data: RGBDDataset) -> Frames:
    """Eight evenly spaced samples, without those that cannot be read or differ in size from the first.

    Raises DataError if none can be read.
    """
    samples, faults = [], []
    for index in evenly_spaced(data, _KEPT):
        try:
            samples.append(data[index])
        except DataError as error:
            faults.append(error)
    if not samples:
        raise faults[0]
    same = [sample for sample in samples if sample.image.shape == samples[0].image.shape]
    return Frames(np.stack([s.image for s in same]), np.stack([s.depth for s in same]))


class Bundle:
    """A bundle in memory: the network with its weights, in evaluation mode, and the documents."""

    def __init__(self, folder: Path, network: nn.Module, document: BundleDocument, frames: Frames) -> None:
        self.folder = folder
        self.network = network
        self.document = document
        self.spec = document.model
        self.training = document.training
        self.weights_sha256 = document.weights_sha256
        self.frames = frames

    def spec_at(self, size: tuple[int, int] | None, camera: tuple[int, int] | None = None) -> ModelSpec:
        """The run's ModelSpec at another size (None: its own), for frames of `camera` (None: not resized).

        Raises SpecError for a size that does not fit, or a camera that is smaller.
        """
        size = size or self.spec.size
        image, depth = camera_ready(*size)
        plain = replace(
            self.spec, input=image, output=depth, macs=count_macs(self.network, size, self.spec.network_output)
        )
        return plain.with_camera(camera)


def write_bundle(
    folder: Path,
    network: nn.Module,
    spec: ModelSpec,
    training: TrainingRecord | None,
    frames: Frames,
) -> None:
    """Write frames, weights and, last, `model.json`, which makes the folder a bundle. Raises OutputError."""
    weights = folder / WEIGHTS
    write_frames(folder, frames)
    with atomic_write(weights) as path:
        # Copies, because safetensors rejects tensors that share memory, such as tied weights.
        copies = {
            n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in network.state_dict().items()
        }
        path.write_bytes(save(copies))
    write_text(folder / MODEL, to_json(BundleDocument(spec, training, sha256(weights))))


def import_weights(
    folder: Path,
    name: str,
    weights: Path,
    size: tuple[int, int],
    data: RGBDDataset,
    *,
    preprocessing: Preprocessing,
    answers: Answers = "share",
    output: str | None = None,
    depth_range: tuple[float, float] | None = None,
    focal: float | None = None,
) -> ModelSpec:
    """Make `folder` the run of a network that was trained elsewhere, or update such a run.

    Args:
        folder: the run folder.
        name: `package.module:Network`, or a built-in name.
        weights: a safetensors file.
        size: height and width of the run.
        data: source of the bundle's frames, at the camera's size.
        preprocessing: the preprocessing of its training.
        answers: what the network answers.
        output: name of depth among the tensors that it returns; None: the only one that may be depth.
        depth_range: in metres, if the network answers metres or a share; None: 0 to 1000 m, or 0.1 to 10 m for a share.
        focal: focal length of its training camera, see `ModelSpec.focal`; None: unknown.

    Returns:
        The run's ModelSpec.

    Raises:
        BundleError: the weights do not fit, or the folder has a run that was trained here or of another network.
        SpecError: the network does not accept the size or does not return depth, see `try_network`; or an invalid depth
            range, preprocessing or focal length.
        GateError: its answers for the frames are not finite, constant, or out of the depth range.
        UserError, DataError, OutputError: see `build_network`, `frames_of`, `write_bundle`.
    """
    check_properties(preprocessing, depth_range, focal)
    if depth_range is not None and answers not in _RANGES:
        raise SpecError(f"a depth range has no effect on a network that answers {answers} depth, without metres")
    if any((folder / file).is_file() for file in (MODEL, CHECKPOINT)):
        found = read_document(folder)
        if found.training is not None or found.model.network != name:
            origin = "was imported" if found.training is None else "was trained here"
            raise BundleError(
                f"{folder} contains a run of {found.model.network} that {origin} and is not overwritten; "
                "choose another folder with --runs, or move it away"
            )
    network = build_network(name).eval()
    load_weights(network, weights)
    spec = describe_network(
        name,
        network,
        size,
        preprocessing=preprocessing,
        depth_range=depth_range or _RANGES.get(answers, (0.0, 1.0)),
        focal=focal,
        answers=answers,
        output=output,
    )
    frames = frames_of(data)
    answered = _answers(network, spec, frames)
    _require_depth(answered, spec)
    if not spec.is_metric:
        low, high = np.percentile(answered, (2, 98))
        spec = replace(spec, depth_range=(float(low), float(high)))
    write_bundle(folder, network, spec, None, frames)
    return spec


def _answers(network: nn.Module, spec: ModelSpec, frames: Frames) -> np.ndarray:
    """What the network itself answers for frames, N x H x W float32, without the spec's range."""
    camera = CameraReady(network, replace(spec, answers="relative")).eval()
    images = (torch.from_numpy(resize_image(image, spec.size)[None]) for image in frames.images)
    with torch.inference_mode():
        return np.concatenate([camera(image).numpy() for image in images])


def _require_depth(answers: np.ndarray, spec: ModelSpec) -> None:
    """Raise GateError for answers that no trained network gives to real frames, or that are out of range."""
    require_answers(answers)
    if spec.is_metric:
        depth, (nearest, farthest) = as_depth(torch.from_numpy(answers), spec).numpy(), spec.depth_range
        within = ((nearest < depth) & (depth < farthest)).mean()
        if within < _LEAST_WITHIN:
            ends = np.percentile(answers.reshape(len(answers), -1), (2, 98), axis=1)
            raise GateError(
                f"the network answers {ends.min():.3g} to {ends.max():.3g}; read as {spec.answers}, only {within:.1%} "
                f"is within {nearest:g} to {farthest:g} m; is it something else? See --answers and --depth-range"
            )


def read_bundle(folder: Path) -> Bundle:
    """Read a run folder.

    Raises:
        BundleError: no such folder, no weights, weights that do not match `model.json`, damaged frames.
        SpecError: `model.json` has another schema version, or keys that are unknown or missing.
        UserError: the network is unknown, or can no longer be imported.
    """
    document = read_document(folder)
    if document.adopted is not None:
        raise BundleError(f"{folder} is an adopted ONNX file, which torch does not compute; use its engine")
    network = build_network(document.model.network).eval()
    load_weights(network, folder / WEIGHTS)
    return Bundle(folder, network, document, read_frames(folder))


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file into `network`. Raises BundleError, with the names of tensors that do not fit."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path} is not a safetensors file ({error}); convert a state dict saved by torch with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), GOAL)"
        ) from error
    wanted = network.state_dict()
    given = {wanted[name].data_ptr() for name in found.keys() & wanted.keys()}
    # Of tied weights, a file needs to contain only one.
    lacking = [name for name in wanted if name not in found and wanted[name].data_ptr() not in given]
    unknown = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    lists = {"lacks": lacking, "has unknown tensors:": unknown, "has wrong shapes:": misshapen}
    faults = [f"it {verb} {_some(names)}" for verb, names in lists.items() if names]
    if faults:
        raise BundleError(f"{path} does not contain the weights of this {type(network).__name__}: {'; '.join(faults)}")
    network.load_state_dict(found, strict=False)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
