"""Time per layer of an engine, from its vendor's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..engines.backend import find_origins
from ..engines.manifest import Layer
from ..errors import BackendError, UserError
from ..files import sha256
from ..onnx_graph import describe_onnx
from ..session import LayerTime
from .load import is_onnx_file, verified
from .runner import onnx_runner, runner

__all__ = ["profile_layers"]


def profile_layers(path: str | Path, images: np.ndarray, runs: int = 20) -> tuple[LayerTime, ...]:
    """Mean milliseconds of each layer in a run, in execution order.

    Profiling slows a run down, so the sum exceeds the session's latency. If the ONNX file is there, a layer with
    weights (and what is fused into it) gets the name of its module in the network ("encoder.0.3"); the others keep the
    vendor's names.

    Args:
        path: an engine with its manifest, or an ONNX file that depthkit exported; see `load`.
        images: N x H x W x 3 uint8 of the engine's size, used in turn; any N.
        runs: measured runs, after one warm-up run.

    Raises:
        EngineError, SpecError: see `load`.
        FrameError: there are no images, or they are of another size or dtype.
        BackendError: the vendor cannot profile this engine.
        UserError: `runs` is less than 1.
    """
    path = Path(path)
    if runs < 1:
        raise UserError(f"cannot profile {runs} runs; give at least 1")
    if is_onnx_file(path):
        return _named(onnx_runner().profile_onnx(path, images, runs), path)
    manifest = verified(path)
    layers = runner(manifest.backend).profile_engine(path, manifest, images, runs)
    if not layers:
        raise BackendError(f"{manifest.backend} reports no layers for {path}; build it again")
    onnx = path.with_name(manifest.onnx)
    return _named(layers, onnx) if onnx.is_file() and sha256(onnx) == manifest.onnx_sha256 else layers


def _named(layers: Sequence[LayerTime], onnx: Path) -> tuple[LayerTime, ...]:
    """Name layers after their modules in the network."""
    origins = find_origins([Layer(each.name, each.kind, "") for each in layers], describe_onnx(onnx).products)
    return tuple(
        layer if origin is None or not origin.module else replace(layer, name=origin.module)
        for layer, origin in zip(layers, origins, strict=True)
    )
