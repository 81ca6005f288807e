"""A teacher: a network whose depth a student follows, besides the measured depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import Self

from ..data.dataset import RGBDDataset
from ..errors import UserError
from ..session import Session
from ..spec import Dim, ModelSpec

__all__ = ["Teacher"]


class Teacher:
    """Depth of pictures, from a run, an ONNX file or an engine of any size.

    Args:
        session: opened for this process alone; it reads pictures of its own size.
        target: its path, for messages.
        weights_sha256: of its weights, so that a resumed run has the same teacher.

    Raises:
        UserError: its depth has no metres.
    """

    def __init__(self, session: Session, target: Path, weights_sha256: str) -> None:
        if not session.spec.is_metric:
            raise UserError(
                f"the teacher {target} answers {session.spec.answers} depth; choose one that answers metres"
            )
        self.target = target
        self.weights_sha256 = weights_sha256
        self._session = session

    def __deepcopy__(self, memo: object) -> Self:
        """The same teacher: averaging of weights copies a module with its teacher, and a session cannot be copied."""
        return self

    def require_fit(self, student: ModelSpec, folder: Path) -> None:
        """Raise UserError if the student, to be trained in `folder`, is the teacher, or its depth has another range."""
        target = self.target.resolve()
        if folder.resolve() in (target, *target.parents):
            raise UserError(f"the teacher {self.target} is the run that is trained; choose another --out or teacher")
        taught, learnt = self._session.spec.depth_range, student.depth_range
        if taught != learnt:
            raise UserError(
                f"the teacher {self.target} predicts {taught[0]:g} to {taught[1]:g} m, and the student "
                f"{learnt[0]:g} to {learnt[1]:g} m; choose a teacher of the same depth range"
            )

    def has_answered(self, data: RGBDDataset, place: str) -> bool:
        """Whether `data`, read from `place`, has the answers of this teacher; UserError if it has another's."""
        if data.taught_by not in (None, self.weights_sha256):
            raise UserError(
                f"{place} has the answers of another teacher (weights {data.taught_by:.12}…) than {self.target} "
                f"({self.weights_sha256:.12}…); give --teacher that one, or prepare the source again with this one"
            )
        return data.taught_by is not None

    def depths(self, images: np.ndarray) -> np.ndarray:
        """Depth in metres, N x H x W float32, of N x H x W x 3 uint8 pictures; see `__call__`."""
        answers: np.ndarray = self(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)[:, 0].numpy()
        return answers

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Depth in metres, N x 1 x H x W, of N x 3 x H x W pictures in 0..1; resized bilinearly both ways."""
        height, width = self._session.spec.size
        own = interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)
        pixels = (own * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        metres = torch.from_numpy(self._ask(pixels.cpu().numpy()))[:, None].to(image.device)
        return interpolate(metres, image.shape[-2:], mode="bilinear", align_corners=False)

    def _ask(self, frames: np.ndarray) -> np.ndarray:
        """The session's depth of any number of frames: its batch is filled up with the last frame."""
        batch = self._session.spec.batch
        least, most = (batch.min, batch.max) if isinstance(batch, Dim) else (batch, batch)
        lacking = max(-(-len(frames) // most) * least - len(frames), 0)
        filled = np.concatenate([frames, np.repeat(frames[-1:], lacking, axis=0)])
        return self._session(filled)[: len(frames)]
