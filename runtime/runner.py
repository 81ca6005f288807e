"""What every module of a backend offers in this folder, so that who knows one knows them all."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np

from ..engines.build import BACKENDS, require
from ..engines.manifest import Manifest
from ..session import LayerTime, Session
from .run_options import RunOptions

__all__ = ["OnnxRunner", "Runner", "onnx_runner", "runner"]

READS_ONNX: Final = "onnxruntime"
"""The backend that runs ONNX files as they are."""


class Runner(Protocol):
    """A module that runs engines whose manifests were verified."""

    def open_engine(self, path: Path, manifest: Manifest, run: RunOptions) -> Session:
        """The engine, ready to run.

        Raises:
            EngineError: it is damaged, of another model, or computes in another precision than its manifest says.
            BackendError: the vendor refuses it.
            UserError: a transfer mode was asked for that it does not have.
        """

    def profile_engine(self, path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
        """See `profile.profile_layers`; layers are called as the vendor calls them."""


class OnnxRunner(Runner, Protocol):
    """One that also runs ONNX files of ours."""

    def open_onnx(self, path: Path, run: RunOptions) -> Session:
        """The ONNX file, ready to run. Raises BackendError, UserError."""

    def profile_onnx(self, path: Path, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
        """See `profile.profile_layers`."""


def runner(name: str) -> Runner:
    """What runs the engines of a backend."""
    module, _, _ = BACKENDS[name].partition(":")
    return cast("Runner", import_module(f".{module}", __package__))


def onnx_runner() -> OnnxRunner:
    """What runs ONNX files. Raises BackendError where it is not installed."""
    require(READS_ONNX, to_run=True)
    return cast("OnnxRunner", runner(READS_ONNX))


if TYPE_CHECKING:  # the type checker sees to it that each module fits
    from . import null, ort, ov, trt

    _RUNNERS: tuple[Runner, ...] = (null, ov, trt)
    _ONNX_RUNNER: OnnxRunner = ort
