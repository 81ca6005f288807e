"""What `depthkit export --triton` writes, loaded and run by Triton; see tritonserver.py for what is Triton's there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http

from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.tell import silent
from depthkit.pipeline.triton import add_engine
from depthkit.reference import read_reference
from depthkit.spec import Dim

from ..support import STEM
from .test_triton import new_weights
from .tritonserver import Triton, serving, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("DEPTHKIT_TRITON" not in os.environ, reason="DEPTHKIT_TRITON names no Python with pytriton"),
]

BATCHES: dict[str, int | Dim] = {"": 1, "-b4": 4, "-b1to8": Dim("batch", 1, 4, 8)}


def ask(triton: Triton, name: str, images: np.ndarray) -> np.ndarray:
    """Depth by a model of the server."""
    image = http.InferInput("image", images.shape, "UINT8")
    image.set_data_from_numpy(images)
    return np.array(triton.client.infer(name, [image]).as_numpy("depth"))


def test_triton_serves_every_batch_by_both_backends(exports: Path, tmp_path: Path) -> None:
    for batch in BATCHES.values():
        onnx = export_onnx(open_source(exports), ExportOptions(batch=batch)).path
        for backend in ("onnxruntime", "openvino"):
            add_engine(build(onnx, BuildOptions(backend)).path, tmp_path / "models", silent)
    reference = read_reference(exports / f"{STEM}.reference.npz")
    names = [f"{STEM}{word}.fp32.{backend}" for word in BATCHES for backend in ("onnxruntime", "openvino")]
    with serving(tmp_path / "models", tmp_path) as triton:
        wait_for(lambda: all(map(triton.client.is_model_ready, names)))
        # Each was warmed up with reference frames, and the dynamic one with each batch that it prefers.
        first, four = (int(reference.images[:count].sum()) for count in (1, 4))
        warm = [(1, first), (1, four), (1, first), (4, 4 * first), (8, 8 * first)]
        assert sorted(triton.runs()) == sorted(warm * 2)
        for name in names:
            count = 1 if f"{STEM}.fp32" in name else 4
            depth = ask(triton, name, reference.images[:count])
            assert np.abs(depth - reference.depths[:count]).max() < 0.001  # metres: the gate of FP32


def test_triton_goes_over_to_the_next_version(exports: Path, tmp_path: Path) -> None:
    engine, name = exports / f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.onnxruntime"
    add_engine(engine, tmp_path / "models", silent)
    images = read_reference(exports / f"{STEM}.reference.npz").images[:1]
    with serving(tmp_path / "models", tmp_path) as triton:
        wait_for(lambda: triton.client.is_model_ready(name))
        before = ask(triton, name, images)
        add_engine(new_weights(exports), tmp_path / "models", silent)
        wait_for(lambda: triton.client.get_model_metadata(name)["versions"] == ["2"])
        wait_for(lambda: not np.array_equal(ask(triton, name, images), before))
        after = read_reference(exports / f"{STEM}.reference.npz").depths[:1]
        assert np.abs(ask(triton, name, images) - after).max() < 0.001
        assert "failed to load" not in triton.log.read_text(errors="replace")
