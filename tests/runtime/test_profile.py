"""Layer profiles of real engines; no temporary file stays."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import manifest_path, read_manifest
from depthkit.errors import BackendError, EngineError, FrameError, UserError
from depthkit.reference import Reference
from depthkit.runtime import null, ort, trt
from depthkit.runtime.load import load
from depthkit.runtime.profile import profile_layers
from depthkit.runtime.profiled_runs import mean_times
from depthkit.session import LayerTime
from depthkit.spec import Dim
from depthkit.train.networks import compact

from ..support import STEM, flip_bit
from . import tensorrt_runtime
from .cudart import FakeCudart
from .tensorrt_runtime import World, image_of, manifest, plan, spec

MODULES = [name for name, module in compact().named_modules() if type(module).__name__ == "Conv2d"]
"""Convolutions of the network, in the order in which they are computed."""
FILES = ["fp32.ort.onnx", "fp32.onnx", "fp32.ov.blob"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may stay in the folder for temporary files or the working directory."""
    for name in ("temporary", "working"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "working")
        yield
    assert [*(tmp_path / "temporary").iterdir(), *(tmp_path / "working").iterdir()] == []


@pytest.mark.parametrize("file", FILES)
def test_convolutions_are_named_by_their_modules_in_order(engines: Path, reference: Reference, file: str) -> None:
    layers = profile_layers(engines / f"{STEM}.{file}", reference.images, runs=3)
    assert [layer.name for layer in layers if "conv" in layer.kind.lower()] == MODULES
    assert {"MaxPool", "Concat"} <= {layer.kind for layer in layers}
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(layer.ms >= 0 for layer in layers)
    assert sum(layer.ms > 0 for layer in layers) > len(MODULES) / 2


@pytest.mark.parametrize("file", FILES)
def test_sum_is_about_the_time_of_a_run(engines: Path, reference: Reference, file: str) -> None:
    layers = profile_layers(engines / f"{STEM}.{file}", reference.images, runs=20)
    times = []
    with load(engines / f"{STEM}.{file}") as session:
        for frame in [*reference.images] * 4:
            start = perf_counter()
            session(frame)
            times.append((perf_counter() - start) * 1000)
    # The clock of a busy machine is not what is tested, but the unit, and that runs are neither added up nor lost.
    assert min(times) / 10 < sum(layer.ms for layer in layers) < 10 * max(times)


def test_mean_without_the_first_run() -> None:
    times = [LayerTime(name, "Conv", ms) for ms in (100.0, 1.0, 3.0) for name in ("b", "a")]
    assert mean_times(times, 2) == (LayerTime("b", "Conv", 2.0), LayerTime("a", "Conv", 2.0))
    twice = [LayerTime("a", "Conv", ms) for ms in (100.0, 100.0, 1.0, 2.0)]
    assert mean_times(twice, 1) == (LayerTime("a", "Conv", 3.0),), "parts of one name are one layer"


@pytest.mark.parametrize("file", ["fp32.ort.onnx", "fp32.ov.blob"])
@pytest.mark.parametrize("beside", ["nothing", "another"])
def test_vendors_names_without_onnx_file(
    engines: Path, reference: Reference, tmp_path: Path, file: str, beside: str
) -> None:
    engine = tmp_path / f"{STEM}.{file}"
    for path in (engine, manifest_path(engine)):
        path.write_bytes((engines / path.name).read_bytes())
    if beside == "another":
        (tmp_path / f"{STEM}.fp32.onnx").write_bytes((engines / f"{STEM}.fp16.onnx").read_bytes())
    layers = profile_layers(engine, reference.images, runs=1)
    found = [layer.name for layer in layers if "conv" in layer.kind.lower()]
    assert len(found) == len(MODULES) and not set(found) & set(MODULES)


@pytest.mark.parametrize(("batch", "images"), [(4, 3), (Dim("batch", 1, 2, 8), 8)], ids=["few images", "dynamic"])
def test_other_batches_are_profiled(batched: Any, reference: Reference, batch: int | Dim, images: int) -> None:
    layers = profile_layers(batched(batch), reference.images[:images], runs=2)
    assert sum("conv" in layer.kind.lower() for layer in layers) == len(MODULES)


def test_the_null_engine_is_one_layer(engines: Path, reference: Reference) -> None:
    (layer,) = profile_layers(engines / f"{STEM}.fp32.null", reference.images, runs=2)
    assert (layer.name, layer.kind) == ("depth", "Constant")
    assert layer.ms > 0


@pytest.mark.parametrize("file", [*FILES, "fp32.null"])
def test_invalid_images_are_refused(engines: Path, reference: Reference, file: str) -> None:
    path = engines / f"{STEM}.{file}"
    for images in (reference.images[:0], reference.images[:, :16], reference.images.astype(np.float32)):
        with pytest.raises(FrameError):
            profile_layers(path, images)


def test_a_profile_needs_runs(engines: Path, reference: Reference) -> None:
    with pytest.raises(UserError, match="cannot profile 0 runs"):
        profile_layers(engines / f"{STEM}.fp32.ort.onnx", reference.images, runs=0)


def test_engine_is_verified_before_profiling(copied: Path, reference: Reference, engines: Path, pretend: Any) -> None:
    with pytest.raises(EngineError, match="there is no engine"):
        profile_layers(copied.with_name("none.ov.blob"), reference.images)
    flip_bit(copied)
    with pytest.raises(EngineError, match="SHA-256 differs"):
        profile_layers(copied, reference.images)
    pretend({})
    for file in FILES:
        with pytest.raises(BackendError, match="is not here"):
            profile_layers(engines / f"{STEM}.{file}", reference.images)


def test_onnx_runtime_on_a_gpu_cannot_be_profiled(fp32: Path, reference: Reference) -> None:
    on_gpu = replace(read_manifest(fp32), backend="onnxruntime-cuda", device=Fingerprint("gpu", "Stand-in", "sm_89"))
    with pytest.raises(BackendError, match=r"onnxruntime-cuda cannot profile .*Nsight Systems"):
        ort.profile_engine(fp32, on_gpu, reference.images, 1)


class IProfiler:
    """TensorRT's base class."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


@pytest.fixture
def world(fake: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The stand-in for TensorRT, with two layers in every profile."""
    execute = tensorrt_runtime.IExecutionContext.execute_async_v3

    def reporting(self: Any, stream_handle: int) -> bool:
        assert World.now.cudart.streams[stream_handle].recording is None, "a graph would hide the layers"
        done = execute(self, stream_handle)
        for name, ms in (("conv", 2.0 + World.now.executed), ("shuffle", 0.5)):
            self.profiler.report_layer_time(name, ms)
        return done

    monkeypatch.setattr(tensorrt_runtime.IExecutionContext, "execute_async_v3", reporting)
    with tensorrt_runtime.installed(fake, "tensorrt") as world:
        monkeypatch.setitem(vars(sys.modules["tensorrt"]), "IProfiler", IProfiler)
        yield world


def test_tensorrt_reports_to_a_profiler_without_a_cuda_graph(world: World, tmp_path: Path) -> None:
    path, model = tmp_path / "engine.plan", spec(2)
    path.write_bytes(plan(model))
    images = np.concatenate([image_of(seed) for seed in range(3)])
    layers = trt.profile_engine(path, manifest(path, model), images, 4)
    assert world.executed == 5, "one that does not count"
    assert layers == (LayerTime("conv", "CONVOLUTION", 5.5), LayerTime("shuffle", "", 0.5))
    assert world.engines == 0, "it is closed"


def test_empty_profile_is_an_error(engines: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "profile_engine", lambda *_: ())
    with pytest.raises(BackendError, match="null reports no layers"):
        profile_layers(engines / f"{STEM}.fp32.null", reference.images)
