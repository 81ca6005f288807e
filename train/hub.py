"""A trained network as one torch module, and its way to and from the Hugging Face Hub.

A repository on the Hub is a run bundle with a model card: what `save_pretrained` writes and `hf download` fetches,
`depthkit export` takes. Beside the bundle's files stand

config.json   the ModelSpec; the Hub shows it and counts downloads by it, nothing here reads it
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
from torch import Tensor
from typing_extensions import Self

from ..data.images import resize_depth, resize_image
from ..data.sources import open_dataset
from ..documents import to_json
from ..errors import BundleError
from ..files import write_text
from ..names import is_import_path
from .bundle import Bundle, Frames, read_bundle, write_bundle
from .camera_ready import CameraReady
from .document import FRAMES, MODEL, WEIGHTS, TrainingRecord, read_document
from .shipped import shipped_run

__all__ = ["CARD", "DepthModel", "pretrained"]

CARD: Final = "README.md"
CONFIG: Final = "config.json"

_FRAME_SIZE: Final = (96, 128)  # small: they travel with every copy of the weights


def pretrained(name: str = "compact", *, device: torch.device | str = "cpu") -> DepthModel:
    """A network with the weights that come with depthkit; nothing is downloaded.

    Args:
        name: of the weights.
        device: where to compute.

    Raises:
        UserError: there are no such weights; the message names those there are.
    """
    return DepthModel(read_bundle(shipped_run(name))).to(device)


class DepthModel(
    CameraReady,
    ModelHubMixin,  # not its PyTorch kind, which would save a state dict alone, and load without checking its keys
    library_name="depthkit",
    pipeline_tag="depth-estimation",
    tags=["monocular-depth-estimation"],
    repo_url="https://github.com/depthkit/depthkit",
    docs_url="https://github.com/depthkit/depthkit/tree/main/docs",
):
    """A trained network from a camera's bytes to metres, in evaluation mode.

    `from_pretrained` takes a run folder or the name of a repository on the Hub, `push_to_hub` publishes; both, and
    what they raise, are huggingface_hub's.

    Attributes:
        spec: the model's tensors, preprocessing and depth range.
        bundle: what it was read from.

    >>> model = pretrained("compact")
    >>> model.predict(np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64)
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.network, bundle.spec)
        self.bundle = bundle
        self.spec = bundle.spec
        self.eval()

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> np.ndarray:
        """Depth of one picture, as every session gives it: resized to the model's size, the depth back.

        Args:
            image: H x W x 3 uint8 RGB, of any size.

        Returns:
            H x W float32 metres, a new array.

        Raises:
            FrameError: no such picture.
        """
        frame = torch.from_numpy(resize_image(image, self.spec.size).copy())
        depth: Tensor = self(frame[None].to(self.gain.device))
        return resize_depth(depth[0].cpu().numpy(), (image.shape[0], image.shape[1]), smooth=True)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the bundle with frames of the built-in scenes, and without the places of files on this machine.

        What is published must not hold the pictures of somebody's data set. The card of the weights that were read
        goes along only while they are the same: it states their figures.
        """
        frames = Frames.from_dataset(open_dataset("scenes", "val", size=_FRAME_SIZE))
        training = self.bundle.training and _without_paths(self.bundle.training)
        write_bundle(save_directory, self.bundle.network, self.spec, training, frames)
        write_text(save_directory / CONFIG, to_json(self.spec))
        card, goal = self.bundle.folder / CARD, save_directory / CARD
        same = read_document(save_directory).weights_sha256 == self.bundle.weights_sha256
        if same and card.is_file() and not goal.exists():
            shutil.copyfile(card, goal)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # a keyword that means nothing here is an error
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
    ) -> Self:
        """Read a folder, or fetch the bundle's files from the Hub first. Raises BundleError and SpecError."""
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
                f"{model_id} is of {network}, and a download does not choose what code is imported here; "
                f"look at {folder}, and give that folder if you trust it"
            )
        return cls(read_bundle(folder))


def _without_paths(record: TrainingRecord) -> TrainingRecord:
    """The same training without where its files lay."""
    return replace(record, place=None, skipped=tuple(Path(file).name for file in record.skipped))
