"""PyTorch without depthkit: the network in torch's default layout, eager or compiled, as most people run it.

`TorchSession` is faster: as camera frames are N x H x W x 3, its tensors are channels-last.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from ..session import Call, Peer
from .answer import as_depth, depth_in
from .bundle import read_bundle

__all__ = ["open_torch_peer"]


def open_torch_peer(
    run: Path,
    size: tuple[int, int] | None = None,
    *,
    batch: int = 1,
    compiled: bool = False,
    camera: tuple[int, int] | None = None,
) -> Peer:
    """PyTorch in FP32 on the CPU, with its default number of threads.

    Args:
        run: a run folder.
        size, batch, camera: see `TorchSession`.
        compiled: use `torch.compile` in its default mode.

    Raises:
        BundleError: the run cannot be read.
    """
    bundle = read_bundle(run)
    spec = bundle.spec_at(size, camera).with_batch(batch)
    network = bundle.network.eval()
    # As most people write it, and not with depthkit's `normalisation`: a peer has no depthkit in it.
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (spec.preprocessing.mean, spec.preprocessing.std))

    def answer(image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2).contiguous().float() / spec.preprocessing.scale
        if spec.preprocessing.color == "BGR":
            pixels = pixels.flip(1)
        if spec.resized_to is not None:
            pixels = interpolate(pixels, spec.resized_to, mode="bilinear", antialias=True)
        depth = depth_in(network((pixels - mean) / std), spec.network_output)
        if depth.shape[1:] != spec.size:
            depth = interpolate(depth[:, None], spec.size, mode="bilinear")[:, 0]
        return as_depth(depth, spec)

    call = torch.compile(answer) if compiled else answer

    def prepare(image: np.ndarray, depth: np.ndarray) -> Call:
        pixels, metres = torch.from_numpy(image), torch.from_numpy(depth)

        @torch.inference_mode()
        def run() -> None:
            metres.copy_(call(pixels))

        return run

    how = "compile" if compiled else "eager"
    return Peer(spec, f"torch {torch.__version__} {how}, {torch.get_num_threads()} threads", "fp32", prepare)
