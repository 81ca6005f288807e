"""The table of the modules that run engines, graphs and raw vendor APIs, by backend."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ..engines.build import backend, require
from ..errors import BackendError, DepthkitError
from ..names import BACKENDS
from ..precisions import Precision
from ..session import Peer
from .contract import Graph, GraphRunner, OnnxRunner, Runner

__all__ = ["GRAPH_RUNNERS", "onnx_runner", "open_graph", "open_peer", "require_graph_runner", "runner"]

READS_ONNX: Final = "onnxruntime"
"""The backend that runs ONNX files directly."""

GRAPH_RUNNERS: Final = ("openvino", "onnxruntime")
"""The backends that run any graph (`GraphRunner`) on this machine's CPU, the fastest first."""


def runner(name: str) -> Runner:
    """The module that runs a backend's engines."""
    module, _, _ = BACKENDS[name].partition(":")
    return cast("Runner", import_module(f".{module}", __package__))


def onnx_runner() -> OnnxRunner:
    """The module that runs ONNX files. Raises BackendError if its library is not installed."""
    require(READS_ONNX, to_run=True)
    return cast("OnnxRunner", runner(READS_ONNX))


def open_graph(name: str, graph: bytes, asked: Precision, options: Mapping[str, Any]) -> Graph:
    """Compile any graph by one of `GRAPH_RUNNERS`; see `GraphRunner.open_graph`. Raises BackendError."""
    require_graph_runner(name)
    return cast("GraphRunner", runner(name)).open_graph(graph, asked, backend(name).parse_options(options))


def require_graph_runner(name: str) -> None:
    """Raise BackendError unless this machine can run graphs with a backend."""
    backend(name)
    if name not in GRAPH_RUNNERS:
        raise BackendError(
            f"{name} cannot run parts of a graph; build the same ONNX file for {' or '.join(GRAPH_RUNNERS)}, which can"
        )
    require(name, to_run=True)


def open_peer(name: str, onnx: Path) -> Peer:
    """The raw API of one of `GRAPH_RUNNERS`. Raises BackendError if its library is missing or refuses the file."""
    try:
        return cast("GraphRunner", runner(name)).open_peer(onnx)
    except ImportError as error:
        raise BackendError(f"{name} cannot be benched as a peer: {error}; pip install {name}") from error
    except DepthkitError:
        raise
    except Exception as error:  # the vendors' errors share no base
        raise BackendError(f"{name} cannot be benched as a peer with {onnx}: {error}") from error


if TYPE_CHECKING:  # makes the type checker verify that each module fits its protocol
    from . import null, ort, ov, trt

    _RUNNERS: tuple[Runner, ...] = (null, trt)
    _GRAPH_RUNNER: GraphRunner = ov
    _ONNX_RUNNER: OnnxRunner = ort
