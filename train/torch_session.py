"""PyTorch as a Session: the reference for parity, and a baseline for speed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..precisions import Precision
from ..session import RunPhase, SessionBase
from ..spec import ModelSpec
from .bundle import Bundle, read_bundle
from .camera_ready import DTYPES, CameraReady

__all__ = ["ModuleSession", "TorchSession"]


class ModuleSession(SessionBase):
    """A torch module from camera frames to depth, as it is: not copied, on its device.

    Args:
        module: maps N x H x W x 3 uint8 to N x H x W float32 depth; usually a `CameraReady` in evaluation mode.
        spec: the module's.
        device: where the module is.
        precision: that the module computes in.
        how: "eager" or "compile ...", for the provider's name.
    """

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        spec: ModelSpec,
        device: torch.device,
        precision: Precision = "fp32",
        how: str = "eager",
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.provider = f"torch {how}, {device}"
        self._device = device
        self.device = "cpu" if device.type == "cpu" else "gpu"
        self._model = module
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`; on CUDA every run copies both ways."""
        super().bind(image=image, depth=depth)
        with warnings.catch_warnings():
            # The picture may be read-only; it is never written.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self._tensors = torch.from_numpy(image), torch.from_numpy(depth)

    @torch.inference_mode()
    def run(self) -> None:
        """See `Session.run`."""
        self._buffers()
        assert self._tensors is not None
        image, depth = self._tensors
        depth.copy_(self._model(image.to(self._device)))

    @torch.inference_mode()
    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`."""
        if self._device.type == "cpu":
            return super().run_phases()
        self._buffers()
        assert self._tensors is not None
        begin, copied, ran, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))  # type: ignore[no-untyped-call]
        image, depth = self._tensors
        begin.record()
        pixels = image.to(self._device)
        copied.record()
        start = perf_counter()
        metres = self._model(pixels)
        enqueue = (perf_counter() - start) * 1000
        ran.record()
        depth.copy_(metres)
        end.record()
        end.synchronize()
        copies: dict[RunPhase, float] = {"h2d": begin.elapsed_time(copied), "d2h": ran.elapsed_time(end)}
        return {**copies, "device": copied.elapsed_time(ran), "enqueue": enqueue}

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._tensors = None


class TorchSession(ModuleSession):
    """PyTorch at any size that the network supports.

    Args:
        bundle: a run folder, or a bundle in memory, which is not changed.
        size: height and width of the network's input; None: the size of training.
        batch: frames per run.
        device: "cpu" or "cuda".
        precision: of the network: "fp32", "fp16" or "bf16".
        compiled: use `torch.compile(mode="max-autotune")`, which takes minutes, and replays a graph on CUDA.
        camera: height and width of frames and depth, which are resized in torch; None: `size`.
    """

    def __init__(
        self,
        bundle: Path | Bundle,
        size: tuple[int, int] | None = None,
        *,
        batch: int = 1,
        device: str = "cpu",
        precision: Precision = "fp32",
        compiled: bool = False,
        camera: tuple[int, int] | None = None,
    ) -> None:
        if precision == "int8":
            raise UserError("torch does not run INT8 networks here; choose fp32, fp16 or bf16, or export an engine")
        bundle = read_bundle(bundle) if isinstance(bundle, Path) else bundle
        spec = bundle.spec_at(size, camera).with_batch(batch)
        module = CameraReady(copy.deepcopy(bundle.network), spec, DTYPES[precision]).eval().to(device)
        model: Callable[[Tensor], Tensor] = torch.compile(module, mode="max-autotune") if compiled else module
        how = "compile max-autotune" if compiled else "eager"
        super().__init__(model, spec, torch.device(device), precision, how)
