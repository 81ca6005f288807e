"""Both networks, exported in every precision, with static and dynamic batch, and torch's answers for their frames."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from depthkit.export.graph import Origin, build_graph
from depthkit.export.onnx_file import make_reference
from depthkit.export.recipe import ExportOptions, onnx_path
from depthkit.reference import reference_path, write_reference
from depthkit.spec import Dim, ModelSpec
from depthkit.tolerances import Precision
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.fit import fit
from depthkit.train.options import TrainOptions

SIZE = (64, 96)
BATCHES: dict[str, int | Dim] = {"static": 1, "dynamic": Dim("batch", 1, 2, 4)}


class Exports:
    """ONNX files of both networks, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Real frames where there are any: the reference's frames are those of the training source.
        self._data = os.environ.get("DEPTHKIT_NYU", "scenes")
        self._made: dict[tuple[str, str, str], Path] = {}

    def run(self, network: str) -> Path:
        """A run of a few steps."""
        folder = self._folder / network
        if not (folder / "model.json").is_file():
            options = TrainOptions(
                network, data=self._data, size=SIZE, epochs=1, steps=4, batch=4, learning_rate=1e-3, out=self._folder
            )
            assert fit(options) == folder
        return folder

    def onnx(self, network: str, precision: Precision, batch: str) -> Path:
        """Its ONNX file."""
        key = network, precision, batch
        if key not in self._made:
            bundle = read_bundle(self.run(network))
            path = onnx_path(bundle.folder, bundle.document, ExportOptions(precision, batch=BATCHES[batch]))
            write_onnx(path, bundle, bundle.spec.with_batch(BATCHES[batch]), precision)
            write_reference(reference_path(path), make_reference(bundle, SIZE))
            self._made[key] = path
        return self._made[key]

    def smallest(self) -> Path:
        """An ONNX file of `compact` for frames of 16 x 16, which take no time."""
        bundle = read_bundle(self.run("compact"))
        path = self._folder / "smallest.fp32.onnx"
        if not path.is_file():
            write_onnx(path, bundle, bundle.spec_at((16, 16)), "fp32")
        return path


def write_onnx(path: Path, bundle: Bundle, spec: ModelSpec, precision: Precision) -> None:
    """Without the checks of an export, which have tests of their own."""
    onnx.save(build_graph(bundle.network, spec, precision, Origin(bundle.weights_sha256, "{}")), path)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """See `Exports`. Read only."""
    return Exports(tmp_path_factory.mktemp("parity"))
