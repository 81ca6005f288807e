"""What each layer of an engine takes, as its vendor's profiler tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..engines.backend import find_origins
from ..engines.manifest import Layer
from ..errors import BackendError, FrameError, UserError
from ..files import sha256
from ..onnx_graph import describe_onnx
from ..session import LayerTime, Session
from .load import is_onnx_file, verified
from .runner import onnx_runner, runner

__all__ = ["mean_times", "profile_layers", "shown"]


def profile_layers(path: str | Path, images: np.ndarray, runs: int = 20) -> tuple[LayerTime, ...]:
    """Mean milliseconds of a run that each layer takes, in the order in which they are executed.

    Profiling makes a run longer, and so the sum is more than the session's latency. A convolution is called by its
    module in the network ("encoder.0.3") where the ONNX file is at hand, with whatever the engine fuses with it; all
    else is called as the vendor calls it.

    Args:
        path: an engine with its manifest, or an ONNX file of ours; see `load`.
        images: N x H x W x 3 uint8 of the engine's size, shown in turn, N as you like.
        runs: that count, after one that does not.

    Raises:
        EngineError, SpecError: see `load`.
        FrameError: there are no images, or they are of another size or dtype.
        BackendError: the vendor cannot profile this engine.
        UserError: no runs.
    """
    path = Path(path)
    if runs < 1:
        raise UserError(f"{runs} runs cannot be profiled; ask for one at least")
    if is_onnx_file(path):
        return _named(onnx_runner().profile_onnx(path, images, runs), path)
    manifest = verified(path)
    layers = runner(manifest.backend).profile_engine(path, manifest, images, runs)
    if not layers:
        raise BackendError(f"{manifest.backend} tells nothing of the layers of {path}; build it again")
    onnx = path.with_name(manifest.onnx)
    return _named(layers, onnx) if onnx.is_file() and sha256(onnx) == manifest.onnx_sha256 else layers


def shown(session: Session, images: np.ndarray, runs: int) -> Iterator[None]:
    """Run on one image after the other and yield after each run: one that does not count, and `runs` that do.

    Raises:
        FrameError: see `profile_layers`.
    """
    if not len(images):
        raise FrameError("there are no images to profile with; give one at least")
    batch = session.spec.opt_batch
    image = np.empty((batch, *images.shape[1:]), images.dtype)
    session.bind(image=image, depth=np.empty((batch, *session.spec.size), np.float32))
    for run in range(1 + runs):
        np.take(images, range(run * batch, (run + 1) * batch), axis=0, mode="wrap", out=image)
        session.run()
        yield


def mean_times(told: Sequence[LayerTime], runs: int) -> tuple[LayerTime, ...]:
    """Each layer once, in the order of execution, of what was told of all runs of `shown`."""
    warm_up = len(told) // (1 + runs)
    kinds: dict[str, str] = {}
    times: dict[str, float] = {}
    for layer in told[warm_up:]:
        kinds.setdefault(layer.name, layer.kind)
        times[layer.name] = times.get(layer.name, 0.0) + layer.ms
    return tuple(LayerTime(name, kinds[name], ms / runs) for name, ms in times.items())


def _named(layers: Sequence[LayerTime], onnx: Path) -> tuple[LayerTime, ...]:
    """Convolutions by their modules."""
    origins = find_origins([Layer(each.name, each.kind, "") for each in layers], describe_onnx(onnx).convolutions)
    return tuple(
        layer if origin is None or not origin.module else replace(layer, name=origin.module)
        for layer, origin in zip(layers, origins, strict=True)
    )
