"""The protocols that each backend's module in this folder implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..engines.manifest import Layer, Manifest
from ..precisions import Precision
from ..session import LayerTime, Peer, Session
from .run_options import RunOptions

__all__ = ["Graph", "GraphRunner", "OnnxRunner", "Runner"]


@dataclass(frozen=True)
class Graph:
    """A compiled ONNX graph with one input and one output.

    Attributes:
        layers: the layers after compilation.
        run: computes the output for an input; the output is valid until the next run.
    """

    layers: tuple[Layer, ...]
    run: Callable[[np.ndarray], np.ndarray]


class Runner(Protocol):
    """A module that runs engines. Their manifests have been verified before."""

    def open_engine(self, path: Path, manifest: Manifest, run: RunOptions) -> Session:
        """Open the engine.

        Raises:
            EngineError: it is damaged, of another model, or computes in another precision than its manifest says.
            BackendError: the vendor library refuses it.
            UserError: it does not have the transfer mode.
        """

    def profile_engine(self, path: Path, manifest: Manifest, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
        """See `profile.profile_layers`; layers have the vendor's names."""


class GraphRunner(Runner, Protocol):
    """A runner that also runs any other graph, such as a part of a network."""

    def open_graph(self, graph: bytes, asked: Precision, options: Any) -> Graph:
        """Compile a serialised `onnx.ModelProto` like an engine with the backend's `options`.

        Raises BackendError.
        """

    def open_peer(self, onnx: Path) -> Peer:
        """The raw vendor API as its documentation shows it, to be benched beside depthkit's sessions.

        It reads an FP32 ONNX file that depthkit exported, works on the caller's memory, and has as many threads as
        depthkit's session. Everything else is the vendor's default, even if that is not FP32: `precision` says what it
        computes in. Raises the vendor's errors.
        """


class OnnxRunner(GraphRunner, Protocol):
    """A runner that also runs ONNX files that depthkit exported."""

    def open_onnx(self, path: Path, run: RunOptions) -> Session:
        """Open the ONNX file. Raises BackendError, UserError."""

    def profile_onnx(self, path: Path, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
        """See `profile.profile_layers`."""

    def open_as_written(self, graph: bytes) -> Graph:
        """See `open_graph`; without optimisation, in the file's own types."""
