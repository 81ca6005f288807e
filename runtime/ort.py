"""ONNX Runtime on the caller's own memory: on the CPU, by CUDA, by its TensorRT provider."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..description import describe_onnx
from ..engines.build import backend
from ..engines.manifest import Manifest
from ..engines.ort import CPU, OnnxRuntime, create, read_layers, session_options, translated
from ..session import SessionBase
from ..spec import ModelSpec
from .options import RunOptions

__all__ = ["OnnxRuntimeSession", "open_engine", "open_onnx"]


class OnnxRuntimeSession(SessionBase):
    """Runs a graph through IOBinding: frames are read and depth is written where the caller has them."""

    def __init__(self, session: Any, spec: ModelSpec, precision: str) -> None:
        self._session = session
        self._binding = session.io_binding()
        self.spec = spec
        self.precision = precision
        self.provider = session.get_providers()[0]

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        """See `Session.bind`. ONNX Runtime keeps only the addresses; the session keeps the arrays alive."""
        super().bind(image=image, depth=depth)
        self._binding.bind_input(self.spec.input.name, "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        self._binding.bind_output(self.spec.output.name, "cpu", 0, depth.dtype, depth.shape, depth.ctypes.data)

    def run(self) -> None:
        """See `Session.run`."""
        self._buffers()
        self._session.run_with_iobinding(self._binding)

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._binding = self._session = None


def open_engine(path: Path, manifest: Manifest, run: RunOptions) -> OnnxRuntimeSession:
    """An engine whose manifest was verified: it is optimised already, and is loaded as it is."""
    import onnxruntime

    maker = backend(manifest.backend)
    assert isinstance(maker, OnnxRuntime)
    run.require_cpu(maker.name)
    options = maker.parse_options(manifest.options)
    settings = session_options(maker.threads(options))
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with translated(f"cannot open {path}"):
        session = create(path, settings, maker.providers(options, manifest.precision_asked))
    return OnnxRuntimeSession(session, manifest.model, manifest.precision_found)


def open_onnx(path: Path, run: RunOptions) -> OnnxRuntimeSession:
    """An ONNX file of ours, optimised while it is loaded; its precision is read back from the optimised graph."""
    run.require_cpu("an ONNX file")
    description = describe_onnx(path)
    options = CPU.parse_options({})
    settings = session_options(CPU.threads(options))
    with TemporaryDirectory(prefix="depthkit-") as scratch, translated(f"cannot open {path}"):
        optimised = Path(scratch) / "optimised.onnx"
        settings.optimized_model_filepath = str(optimised)
        session = create(path, settings, CPU.providers(options, description.precision))
        precision = CPU.found_precision(read_layers(optimised), description.precision)
    return OnnxRuntimeSession(session, description.model, precision)
