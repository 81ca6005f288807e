"""A trained network as one torch module, and its upload to and download from the Hugging Face Hub.

A repository on the Hub is a run bundle with a model card: `depthkit export` takes a folder that `save_pretrained` wrote
or `hf download` fetched. It has two more files:

config.json   the ModelSpec; the Hub shows it and counts downloads by it, depthkit does not read it
README.md     the model card
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from typing_extensions import Self

from ..data.sources import open_dataset
from ..documents import to_json
from ..errors import BundleError
from ..files import write_text
from ..frames import predict_frames
from ..names import is_import_path
from .bundle import Bundle, frames_of, read_bundle, write_bundle
from .camera_ready import CameraReady
from .document import FRAMES, MODEL, WEIGHTS, TrainingRecord, read_document
from .shipped import shipped_run
from .torch_session import ModuleSession

__all__ = ["CARD", "DepthModel", "pretrained"]

CARD: Final = "README.md"
CONFIG: Final = "config.json"

_FRAME_SIZE: Final = (96, 128)  # small, because every copy of the weights includes them


def pretrained(name: str = "compact", *, device: torch.device | str = "cpu") -> DepthModel:
    """A network with built-in weights; nothing is downloaded.

    Args:
        name: of the weights.
        device: where to compute.

    Raises:
        UserError: there are no such weights; the message lists the names.
    """
    return DepthModel(read_bundle(shipped_run(name))).to(device)


class DepthModel(
    CameraReady,
    ModelHubMixin,  # not PyTorchModelHubMixin, which saves only a state dict, and loads it without checking keys
    library_name="depthkit",
    pipeline_tag="depth-estimation",
    tags=["monocular-depth-estimation"],
    repo_url="https://github.com/depthkit/depthkit",
    docs_url="https://github.com/depthkit/depthkit/tree/main/docs",
):
    """A trained network from a camera's bytes to depth, in evaluation mode.

    `from_pretrained` takes a run folder or the name of a repository on the Hub, and `push_to_hub` publishes. Both come
    from huggingface_hub and raise its errors.

    Attributes:
        spec: the model's tensors, preprocessing and depth range.
        bundle: the bundle that it was read from.

    >>> model = pretrained("compact")
    >>> model.predict(np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64)
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.network, bundle.spec)
        self.bundle = bundle
        self.eval()

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Depth of one picture: the picture is resized to the model's size, and the depth back.

        Args:
            image: H x W x 3 uint8 RGB, of any size.

        Returns:
            H x W float32, a new array: metres if `spec.is_metric`.

        Raises:
            FrameError: `image` has another shape or dtype.
        """
        with ModuleSession(self, self.spec, self.gain.device) as session:
            return next(predict_frames(session, [image]))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the bundle with frames of the built-in scenes, and without paths of this machine.

        A published bundle must not contain pictures of a private data set. The model card is copied only if the weights
        have not changed, because it states their scores.
        """
        frames = frames_of(open_dataset("scenes", "val", size=_FRAME_SIZE))
        training = self.bundle.training and _without_paths(self.bundle.training)
        write_bundle(save_directory, self.bundle.network, self.spec, training, frames)
        write_text(save_directory / CONFIG, to_json(self.spec))
        card, goal = self.bundle.folder / CARD, save_directory / CARD
        same = read_document(save_directory).weights_sha256 == self.bundle.weights_sha256
        if same and card.is_file() and not goal.exists():
            shutil.copyfile(card, goal)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # unknown keywords are an error here
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
    ) -> Self:
        """Read a folder, or download the bundle from the Hub and read it. Raises BundleError, SpecError."""
        if Path(model_id).is_dir():
            return cls(read_bundle(Path(model_id)))
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[WEIGHTS, MODEL, FRAMES, CARD],
            )
        )
        network = read_document(folder).model.network
        if is_import_path(network):
            raise BundleError(
                f"{model_id} needs the code of {network}, and a download must not choose what code is imported; "
                f"check {folder}, and pass that folder if you trust it"
            )
        return cls(read_bundle(folder))


def _without_paths(record: TrainingRecord) -> TrainingRecord:
    """The same record without paths."""
    return replace(record, place=None, skipped=tuple(Path(file).name for file in record.skipped))
