"""Torch against every engine that this machine can run; what it lacks is skipped, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.errors import BackendError, EngineError
from depthkit.precisions import Precision
from depthkit.reference import Reference, reference_path
from depthkit.runtime.load import load
from depthkit.session import Session
from depthkit.spec import Dim
from depthkit.testing import assert_parity, read_reference
from depthkit.train.torch_session import TorchSession

from .conftest import require

if TYPE_CHECKING:
    from .conftest import Exports


@contextmanager
def engine(onnx: Path, name: str) -> Iterator[tuple[Session, Reference]]:
    with load(build(onnx, BuildOptions(name)).path) as session:
        yield session, read_reference(reference_path(onnx))


@pytest.mark.parametrize(
    ("network", "precision", "batch"),
    [
        ("compact", "fp32", "static"),
        ("compact", "fp32", "dynamic"),
        ("compact", "fp16", "static"),
        ("compact", "fp16", "dynamic"),
        ("unet", "fp32", "dynamic"),
        pytest.param("unet", "fp32", "static", marks=pytest.mark.slow),
        pytest.param("unet", "fp16", "static", marks=pytest.mark.slow),
        pytest.param("unet", "fp16", "dynamic", marks=pytest.mark.slow),
    ],
)
def test_engine_is_the_network_that_torch_trained(
    networks: Exports, name: str, network: str, precision: Precision, batch: str
) -> None:
    with engine(networks.onnx(network, precision, batch), name) as (session, reference):
        parity = assert_parity(session, reference, precision=precision)
        assert session.precision.startswith(precision) or session.precision == "unknown"
    assert parity.frames == 8


@pytest.mark.parametrize("network", ["compact", pytest.param("unet", marks=pytest.mark.slow)])
def test_bfloat16_of_openvino_holds_its_gate(networks: Exports, network: str) -> None:
    require("openvino")
    onnx = networks.onnx(network, "fp32", "static")
    try:
        built = build(onnx, BuildOptions("openvino", {"inference_precision": "bf16"}))
    except BackendError as error:
        pytest.skip(str(error))
    with load(built.path) as session:
        parity = assert_parity(session, read_reference(reference_path(onnx)), precision="bf16")
        assert session.precision == "bf16"
    assert parity.max_abs_mm > 0, "BF16 answers cannot be FP32's to the bit"


def test_dynamic_batch_answers_alike_for_every_number_of_frames(networks: Exports, name: str) -> None:
    with engine(networks.onnx("compact", "fp32", "dynamic"), name) as (session, reference):
        batch = session.spec.batch
        assert isinstance(batch, Dim)
        for frames in range(batch.min, batch.max + 1):
            np.testing.assert_allclose(session(reference.images[:frames]), reference.depths[:frames], atol=1e-3)
        np.testing.assert_allclose(session(reference.images), reference.depths, atol=1e-3)


def test_engine_agrees_with_torch_on_frames_that_no_reference_holds(networks: Exports, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    onnx = networks.onnx("compact", "fp32", "static")
    with TorchSession(networks.run("compact")) as torch, engine(onnx, name) as (session, _):
        np.testing.assert_allclose(session(noise), torch(noise), atol=1e-3)


def test_a_failed_parity_names_metric_limit_what_was_seen_and_the_worst_frame(networks: Exports) -> None:
    require("onnxruntime")
    with engine(networks.onnx("compact", "fp32", "static"), "onnxruntime") as (session, reference):
        moved = reference.depths.copy()
        moved[5, 7, 9] += 0.25
        with pytest.raises(AssertionError) as caught:
            assert_parity(session, Reference(reference.images, moved, reference.truths), precision="fp32")
    message = str(caught.value)
    assert "max |Δ| 250 mm > 1 mm" in message
    worst = next(line.split() for line in message.splitlines() if line.startswith("  max |Δ| mm"))
    assert worst[3:] == ["≤", "1", "250", "5"]
    assert "8 reference frames" in message


def test_fp16_parity_is_judged_by_structure(networks: Exports) -> None:
    require("onnxruntime")
    with engine(networks.onnx("compact", "fp16", "static"), "onnxruntime") as (session, reference):
        # Each pixel is off by at most 10 cm, which a distance of metres would forgive: the structure is not the same.
        waves = reference.depths.copy()
        waves[2, ::2] += np.float32(0.1)
        with pytest.raises(AssertionError, match=r"SSIM 0\.\d+ < 0\.995"):
            assert_parity(session, Reference(reference.images, waves, reference.truths), precision="fp16")


def test_a_reference_of_another_size_is_no_parity(networks: Exports) -> None:
    require("onnxruntime")
    with engine(networks.onnx("compact", "fp32", "static"), "onnxruntime") as (session, reference):
        small = Reference(reference.images[:, :32], reference.depths[:, :32], reference.truths[:, :32])
        with pytest.raises(EngineError, match="the engine takes"):
            assert_parity(session, small, precision="fp32")
