"""What every module of a backend offers in this folder, so that who knows one knows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np

from ..engines.build import BACKENDS, backend, require
from ..engines.manifest import Layer, Manifest
from ..errors import BackendError, DepthkitError
from ..precisions import Precision
from ..session import LayerTime, Peer, Session
from .run_options import RunOptions

__all__ = [
    "GRAPH_RUNNERS",
    "Graph",
    "GraphRunner",
    "OnnxRunner",
    "Runner",
    "onnx_runner",
    "open_graph",
    "open_peer",
    "runner",
]

READS_ONNX: Final = "onnxruntime"
"""The backend that runs ONNX files as they are."""

GRAPH_RUNNERS: Final = ("openvino", "onnxruntime")
"""The backends that run any graph (`GraphRunner`) on this machine's CPU, the faster first."""


@dataclass(frozen=True)
class Graph:
    """An ONNX graph of one input and one output that a vendor compiled.

    Attributes:
        layers: as they were compiled.
        run: the output for an input; valid until the next run.
    """

    layers: tuple[Layer, ...]
    run: Callable[[np.ndarray], np.ndarray]


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


class GraphRunner(Runner, Protocol):
    """One that also runs graphs that are no network of ours, such as a part of one."""

    def open_graph(self, graph: bytes, asked: Precision, options: Any) -> Graph:
        """A serialised `onnx.ModelProto`, compiled as an engine with the backend's `options` would be.

        Raises BackendError.
        """

    def open_peer(self, onnx: Path) -> Peer:
        """The raw vendor API as its documentation shows it, to be benched beside our sessions.

        It reads an FP32 ONNX file of ours, works on the caller's memory, and has as many threads as our session. All
        else is the vendor's default, even where that is not FP32: `precision` is what it computes in. Raises the
        vendor's errors.
        """


class OnnxRunner(GraphRunner, Protocol):
    """One that also runs ONNX files of ours."""

    def open_onnx(self, path: Path, run: RunOptions) -> Session:
        """The ONNX file, ready to run. Raises BackendError, UserError."""

    def profile_onnx(self, path: Path, images: np.ndarray, runs: int) -> tuple[LayerTime, ...]:
        """See `profile.profile_layers`."""

    def open_as_written(self, graph: bytes) -> Graph:
        """See `open_graph`, without any optimisation and in the types that the file has."""


def runner(name: str) -> Runner:
    """What runs the engines of a backend."""
    module, _, _ = BACKENDS[name].partition(":")
    return cast("Runner", import_module(f".{module}", __package__))


def onnx_runner() -> OnnxRunner:
    """What runs ONNX files. Raises BackendError where it is not installed."""
    require(READS_ONNX, to_run=True)
    return cast("OnnxRunner", runner(READS_ONNX))


def open_graph(name: str, graph: bytes, asked: Precision, options: Mapping[str, Any]) -> Graph:
    """Compile any graph by one of `GRAPH_RUNNERS`; see `GraphRunner.open_graph`. Raises BackendError."""
    maker = backend(name)
    if name not in GRAPH_RUNNERS:
        raise BackendError(
            f"{name} does not run parts of a graph here; {' and '.join(GRAPH_RUNNERS)} do: build the same ONNX file by "
            "one of them"
        )
    require(name, to_run=True)
    return cast("GraphRunner", runner(name)).open_graph(graph, asked, maker.parse_options(options))


def open_peer(name: str, onnx: Path) -> Peer:
    """The raw API of a vendor, one of `GRAPH_RUNNERS`. Raises BackendError where its library is missing or refuses."""
    try:
        return cast("GraphRunner", runner(name)).open_peer(onnx)
    except ImportError as error:
        raise BackendError(f"{name} cannot be benched as a peer: {error}; pip install {name}") from error
    except DepthkitError:
        raise
    except Exception as error:  # the vendors' errors share no base
        raise BackendError(f"{name} cannot be benched as a peer with {onnx}: {error}") from error


if TYPE_CHECKING:  # the type checker sees to it that each module fits
    from . import null, ort, ov, trt

    _RUNNERS: tuple[Runner, ...] = (null, trt)
    _GRAPH_RUNNER: GraphRunner = ov
    _ONNX_RUNNER: OnnxRunner = ort
