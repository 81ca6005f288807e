"""Both networks, exported in every precision, with static and dynamic batch, and torch's answers for their frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from depthkit.engines.build import backend
from depthkit.export.finish import Origin, sign
from depthkit.export.graph import build_graph
from depthkit.export.onnx_file import make_reference
from depthkit.export.recipe import ExportOptions, onnx_path
from depthkit.export.torch_source import TorchSource
from depthkit.names import BACKENDS
from depthkit.precisions import Precision
from depthkit.reference import reference_path, write_reference
from depthkit.spec import Dim, ModelSpec
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions

SIZE = (64, 96)
BATCHES: dict[str, int | Dim] = {"static": 1, "dynamic": Dim("batch", 1, 2, 4)}


class Exports:
    """ONNX files of both networks, each made when it is first asked for by any worker."""

    def __init__(self, shared: Callable[[str, Callable[[Path], object]], Path]) -> None:
        self._shared = shared
        # Real frames where there are any: the reference's frames are those of the training source.
        self._data = os.environ.get("DEPTHKIT_NYU", "scenes")

    def run(self, network: str) -> Path:
        """A run of a few steps."""
        options = TrainOptions(network, data=self._data, size=SIZE, epochs=1, steps=2, batch=4, learning_rate=1e-3)
        return self._shared(f"parity-{network}", lambda out: fit(replace(options, out=out))) / network

    def onnx(self, network: str, precision: Precision, batch: str) -> Path:
        """Its ONNX file."""
        bundle = read_bundle(self.run(network))
        asked = ExportOptions(precision, batch=BATCHES[batch])
        name = onnx_path(Path(), bundle.document, asked).name

        def export(out: Path) -> None:
            write_onnx(out / name, bundle, bundle.spec.with_batch(BATCHES[batch]), precision)
            write_reference(reference_path(out / name), make_reference(TorchSource(bundle), bundle.spec_at(SIZE)))

        return self._shared(f"parity-{network}-{precision}-{batch}", export) / name

    def smallest(self) -> Path:
        """An ONNX file of `compact` for frames of 16 x 16, which take no time."""
        bundle = read_bundle(self.run("compact"))
        name = "smallest.fp32.onnx"
        spec = bundle.spec_at((16, 16))
        return self._shared("parity-smallest", lambda out: write_onnx(out / name, bundle, spec, "fp32")) / name


def write_onnx(path: Path, bundle: Bundle, spec: ModelSpec, precision: Precision) -> None:
    """Without the checks of an export, which have tests of their own."""
    graph = build_graph(bundle.network, spec, precision)
    onnx.save(sign(graph, spec, precision, Origin(bundle.weights_sha256, "{}")), path)


@pytest.fixture(scope="session")
def networks(shared: Callable[[str, Callable[[Path], object]], Path]) -> Exports:
    """See `Exports`. Read only."""
    return Exports(shared)


def require(name: str) -> None:
    """Skip where a backend cannot run."""
    found = backend(name).availability()
    if not found.runnable:
        pytest.skip(f"{name}: {found.reason}")


@pytest.fixture(params=[name for name in BACKENDS if name != "null"])
def name(request: pytest.FixtureRequest) -> str:
    """Each backend that computes and can run here."""
    require(request.param)
    return str(request.param)
