"""The run bundle: a folder that holds a trained network and how it came to be.

model.safetensors   weights
model.json          ModelSpec and how it was trained
frames.npz          8 validation frames and their depth at the camera's size, so that export needs no data set
metrics.csv         a line an epoch
curve.png           the same as a picture
samples.png         picture, truth, prediction, error
last.ckpt           to resume
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..errors import BundleError
from ..files import atomic_write, sha256, write_text
from ..spec import ModelSpec, camera_ready, to_json
from .document import FRAMES, MODEL, WEIGHTS, BundleDocument, TrainingRecord, read_document
from .module import EpochRecord
from .networks import DepthNetwork, build_network, count_macs

__all__ = ["Bundle", "Frames", "read_bundle", "write_bundle", "write_history"]


class Frames:
    """Frames with their depth: `images` N x H x W x 3 uint8, `depths` N x H x W float32 metres (0: not measured)."""

    def __init__(self, images: np.ndarray, depths: np.ndarray) -> None:
        self.images = images
        self.depths = depths


class Bundle:
    """A bundle that was read: the network with its weights, in evaluation mode, and the documents."""

    def __init__(self, folder: Path, network: DepthNetwork, document: BundleDocument, frames: Frames) -> None:
        self.folder = folder
        self.network = network
        self.document = document
        self.spec = document.model
        self.training = document.training
        self.weights_sha256 = document.weights_sha256
        self.frames = frames

    def spec_at(self, size: tuple[int, int] | None) -> ModelSpec:
        """The run's ModelSpec at another size (None: its own). Raises SpecError for a size that does not fit."""
        size = size or self.spec.size
        image, depth = camera_ready(*size)
        return replace(self.spec, input=image, output=depth, macs=count_macs(self.network, size))


def write_bundle(
    folder: Path,
    network: DepthNetwork,
    spec: ModelSpec,
    training: TrainingRecord,
    frames: Frames,
) -> None:
    """Write frames, weights and, last, `model.json`, which makes the folder a bundle. Raises OutputError."""
    weights = folder / WEIGHTS
    with atomic_write(folder / FRAMES) as path:
        np.savez_compressed(path, images=frames.images, depths=frames.depths)
    with atomic_write(weights) as path:
        path.write_bytes(
            save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})
        )
    write_text(folder / MODEL, to_json(BundleDocument(spec, training, sha256(weights))))


def write_history(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write `metrics.csv`. Raises OutputError."""
    with atomic_write(folder / "metrics.csv") as path, path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)


def read_bundle(folder: Path) -> Bundle:
    """Read a run folder.

    Raises:
        BundleError: no such folder, no weights, weights that are not those of `model.json`, damaged frames.
        SpecError: `model.json` of another schema version, or with keys that are unknown or missing.
    """
    document = read_document(folder)
    network = build_network(document.model.network).eval()
    _load_weights(network, folder / WEIGHTS)
    return Bundle(folder, network, document, _read_frames(folder / FRAMES))


def _load_weights(network: DepthNetwork, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{path} does not hold this network's weights ({error}); train again") from error


def _read_frames(path: Path) -> Frames:
    try:
        # Opened here, because NumPy leaves the file open where the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return Frames(content["images"], content["depths"])
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged bytes
        raise BundleError(f"{path} does not hold the run's frames ({error}); train again") from error
