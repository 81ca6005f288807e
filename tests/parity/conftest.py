"""Both networks, exported in every precision, with static and dynamic batch, and torch's answers for their frames."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.spec import Dim
from depthkit.tolerances import Precision
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import TrainOptions, fit

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
            options = ExportOptions(precision, batch=BATCHES[batch])
            self._made[key] = export_onnx(read_bundle(self.run(network)), options).path
        return self._made[key]


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """See `Exports`. Read only."""
    return Exports(tmp_path_factory.mktemp("parity"))
