"""A run's network in torch as the source of an export. FP16 and BF16 are tried in torch itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..errors import GateError
from ..precisions import Precision
from ..spec import ModelSpec
from ..train.bundle import Bundle
from ..train.camera_ready import DTYPES
from ..train.torch_session import TorchSession
from .checks import Check, Subject, judge
from .graph import build_graph, prepare

__all__ = ["TorchSource"]

HALF_BUDGET: Final = 400e9
"""Most multiply-accumulates of the half-precision check, because torch is slow in FP16 on a CPU without FP16
arithmetic. Large networks are checked on fewer reference frames, and the output states how many."""


class TorchSource:
    """See `Source`.

    Args:
        bundle: the run; not changed.
    """

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self.folder, self.document, self.frames = bundle.folder, bundle.document, bundle.frames
        self._bundle = bundle

    def spec_at(self, size: tuple[int, int] | None, camera: tuple[int, int] | None = None) -> ModelSpec:
        """See `Source.spec_at`."""
        return self._bundle.spec_at(size, camera)

    def graph(self, spec: ModelSpec, precision: Precision, kept: Collection[str] = ()) -> onnx.ModelProto:
        """See `Source.graph`; `kept` names modules."""
        return build_graph(self._bundle.network, spec, precision, kept)

    def answer(self, spec: ModelSpec, images: np.ndarray) -> np.ndarray:
        """See `Source.answer`."""
        with TorchSession(self._bundle, spec.network_size, camera=spec.size) as session:
            return session(images)

    def overflows(self, spec: ModelSpec, images: Sequence[np.ndarray]) -> tuple[str, ...]:
        """See `Source.overflows`; in the order of the graph. `HALF_BUDGET` limits how many frames are used.

        A kept layer's output is FP32, so the next layer may then be the first that overflows.

        Raises:
            GateError: torch does not compute this network in FP16.
        """
        frames = np.stack(images[: _affordable(spec, len(images))])
        kept: tuple[str, ...] = ()
        while True:
            _, watch = self._compute(spec, "fp16", kept, frames)
            layer = None if watch.overflowed is None else watch.overflowed.removesuffix(".layer")
            if layer is None or layer in kept:
                return kept
            kept = (*kept, layer)

    def check_half(self, subject: Subject) -> Check:
        """Run PyTorch in real FP16 or BF16; every layer must stay finite, and depth must pass the gate.

        ONNX Runtime's CPU provider computes FP16 graphs in FP32, which would hide an overflow, and cannot run BF16
        graphs.
        """
        precision, images = subject.precision, subject.reference.images
        name = f"torch {precision.upper()} vs FP32"
        try:
            frames = images[: _affordable(subject.spec, len(images))]
            found, watch = self._compute(subject.spec, precision, subject.kept, frames)
        except GateError as error:
            return Check(name, passed=False, detail=str(error))
        most = float(torch.finfo(DTYPES[precision]).max)
        if watch.overflowed is not None:
            detail = f"{watch.overflowed} exceeds the range of {precision.upper()} ({most:g}) and gives NaN or Inf; "
            return Check(name, passed=False, detail=f"{detail}`--keep auto` keeps such layers in FP32")
        before = f"largest activation {watch.largest:.4g} of {most:g}; "
        return judge(name, found, subject.reference, precision, before)

    def _compute(
        self, spec: ModelSpec, precision: Precision, kept: Collection[str], images: np.ndarray
    ) -> tuple[np.ndarray, _RangeWatch]:
        """PyTorch's depth for N x H x W x 3 frames in a precision, and the range of its activations.

        Raises:
            GateError: an operator has no kernel in this precision, or a constant of the network stayed FP32.
        """
        camera = prepare(self._bundle.network, spec, precision, kept)
        watch = _RangeWatch(camera.network)
        try:
            with torch.inference_mode():
                return np.concatenate([camera(torch.from_numpy(image[None])).numpy() for image in images]), watch
        except RuntimeError as error:
            raise GateError(
                f"torch cannot run this network in {precision.upper()} ({str(error).strip()}); export it in FP32"
            ) from error


def _affordable(spec: ModelSpec, there: int) -> int:
    """How many of `there` frames `HALF_BUDGET` allows; all if the network's work is unknown."""
    return int(np.clip(HALF_BUDGET // spec.macs, 1, there)) if spec.macs else there


class _RangeWatch:
    """Records the largest activation, and the first layer whose output is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.largest = 0.0
        self.overflowed: str | None = None
        for name, module in model.named_modules():
            if not any(module.children()) and not isinstance(module, nn.Identity):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def look(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            if self.overflowed is None and isinstance(output, Tensor) and output.is_floating_point():
                largest = float(output.abs().max())
                if np.isfinite(largest):
                    self.largest = max(self.largest, largest)
                else:
                    self.overflowed = name

        return look
