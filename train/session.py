"""Torch as a Session: the reference that engines are held to, and a peer that they are timed against."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from ..session import SessionBase
from .bundle import Bundle, read_bundle
from .camera import CameraReady

__all__ = ["TorchSession"]


class TorchSession(SessionBase):
    """Torch eager in FP32, at any size that the network takes; on CUDA where `device` says so.

    Args:
        bundle: a run folder, or a bundle that was read.
        size: height and width of frames; None: what the run was trained at.
        batch: frames a run.
        device: "cpu" or "cuda".
    """

    def __init__(
        self, bundle: Path | Bundle, size: tuple[int, int] | None = None, *, batch: int = 1, device: str = "cpu"
    ) -> None:
        bundle = read_bundle(bundle) if isinstance(bundle, Path) else bundle
        self.spec = bundle.spec_at(size).with_batch(batch)
        self.precision = "fp32"
        self.provider = f"torch eager, {device}"
        self._device = torch.device(device)
        self._model = CameraReady(bundle.network, self.spec).eval().to(self._device)
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`; on CUDA every run copies both ways."""
        super().bind(image=image, depth=depth)
        with warnings.catch_warnings():
            # The picture may be read-only, and is only read.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self._tensors = torch.from_numpy(image), torch.from_numpy(depth)

    @torch.inference_mode()
    def run(self) -> None:
        """See `Session.run`."""
        self._buffers()
        assert self._tensors is not None
        image, depth = self._tensors
        depth.copy_(self._model(image.to(self._device)))

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._tensors = None
