"""ONNX Runtime's session on the GPU, on stand-ins for CUDA and for the vendor's session.

The vendor's own needs a GPU: see tests/parity.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from depthkit.engines import ort
from depthkit.engines.ort import CUDA, TENSORRT
from depthkit.errors import BackendError, EngineError, FrameError
from depthkit.precisions import PRECISIONS, Precision
from depthkit.runtime.ort import OnnxRuntimeGpuSession
from depthkit.runtime.transfer import Mode

from ..support import model_spec
from .cudart import FakeCudart
from .device_array import OnGpu

SIZE = (16, 32)
SPEC = model_spec(*SIZE, 2)
MODES: tuple[Mode, ...] = ("device", "pinned", "mapped")


class Vendor:
    """An `InferenceSession` whose network is the mean of the three colours; it works on the stream of this handle."""

    def __init__(self, cudart: FakeCudart, stream: int) -> None:
        self.cudart, self.stream = cudart, stream
        self.bound: dict[str, tuple[Any, ...]] = {}
        self.seen: list[tuple[int, int]] = []

    def get_providers(self) -> list[str]:
        return [CUDA.provider, "CPUExecutionProvider"]

    def io_binding(self) -> Any:
        def keep(name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
            assert (device, number) == ("cuda", 0)
            self.bound[name] = np.dtype(dtype), shape, address

        return SimpleNamespace(bind_input=keep, bind_output=keep)

    def run_with_iobinding(self, _binding: object) -> None:
        (_, shape, source), (_, _, target) = self.bound["image"], self.bound["depth"]
        self.seen.append((source, target))

        def compute() -> None:
            image = self.cudart.on_device(source, int(np.prod(shape))).view(np.uint8).reshape(shape)
            depth = image.mean(axis=-1).astype(np.float32)
            self.cudart.on_device(target, depth.nbytes)[...] = depth.view(np.uint8).reshape(-1)

        self.cudart.enqueue(self.stream, compute)


def opened(fake: FakeCudart, mode: Mode = "pinned", *, cuda_graph: bool = True) -> tuple[OnnxRuntimeGpuSession, Vendor]:
    vendors: list[Vendor] = []

    def open_session(stream: int) -> Vendor:
        vendors.append(Vendor(fake, stream))
        return vendors[0]

    session = OnnxRuntimeGpuSession(open_session, SPEC, "fp32", mode, cuda_graph=cuda_graph)
    return session, vendors[0]


def frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, *SIZE, 3), np.uint8)


def blank() -> np.ndarray:
    return np.zeros((2, *SIZE), np.float32)


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_arrays_on_the_host_are_used_in_place(fake: FakeCudart, mode: Mode, cuda_graph: bool) -> None:
    session, vendor = opened(fake, mode, cuda_graph=cuda_graph)
    with session:
        image, depth = np.empty((2, *SIZE, 3), np.uint8), blank()
        session.bind(image=image, depth=depth)
        for seed in range(3):
            image[...] = frames(seed)
            session.run()
            np.testing.assert_allclose(depth, image.mean(axis=-1), rtol=1e-6)
        np.testing.assert_allclose(session(frames(9)), frames(9).mean(axis=-1), rtol=1e-6)
        assert len(set(vendor.seen)) == 1, "what a graph recorded is at the same addresses for every run"
        assert mode in session.provider
        assert session.device == "gpu"
    assert not fake.live()


def test_phases_of_a_run(fake: FakeCudart) -> None:
    session, _ = opened(fake)
    image, depth = frames(1), blank()
    with session:
        session.bind(image=image, depth=depth)
        assert session.run_phases().keys() == {"h2d", "device", "d2h"}, "ONNX Runtime itself waits"
    np.testing.assert_allclose(depth, image.mean(axis=-1), rtol=1e-6)


def test_arrays_on_the_gpu_are_used_in_place_without_a_graph(fake: FakeCudart, on_gpu: OnGpu) -> None:
    session, vendor = opened(fake, cuda_graph=False)
    image, depth = on_gpu(frames(1)), on_gpu(blank())
    with session:
        session.bind(image=image, depth=depth)
        session.run()
        assert vendor.seen == [(image.pointer, depth.pointer)]
        np.testing.assert_allclose(depth.read(), frames(1).mean(axis=-1), rtol=1e-6)


def test_failed_open_leaves_nothing(fake: FakeCudart) -> None:
    def refuse(_stream: int) -> Any:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        OnnxRuntimeGpuSession(refuse, SPEC, "fp32", "pinned", cuda_graph=True)
    assert not fake.live()


def test_invalid_arrays_and_closed_sessions_are_refused(fake: FakeCudart) -> None:
    session, _ = opened(fake)
    with session:
        with pytest.raises(FrameError, match="uint8"):
            session.bind(image=frames(0).astype(np.float32), depth=blank())
        with pytest.raises(EngineError, match="nothing is bound"):
            session.run()
    with pytest.raises(EngineError, match="closed"):
        session.bind(image=frames(0), depth=blank())
    session.close()


@pytest.mark.parametrize(("maker", "options"), [(CUDA, {"tf32": True}), (TENSORRT, {"workspace_mib": 64})])
def test_options_reach_the_provider(maker: Any, options: dict[str, Any]) -> None:
    (name, given), *_ = maker.providers(maker.parse_options(options), "fp16")
    assert name == maker.provider
    assert all(isinstance(value, str) for value in given.values())
    if maker is CUDA:
        assert given["use_tf32"] == "1"
        assert maker.providers(maker.parse_options({}), "fp32")[0][1]["use_tf32"] == "0"
    else:
        assert given["trt_max_workspace_size"] == str(64 << 20)
        assert given["trt_fp16_enable"] == "1"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_uses_the_precision_of_the_file(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the provider writes what TensorRT would: one node with its plan."""
    chosen: dict[str, str] = {}

    def create(_file: Path, _settings: object, providers: list[tuple[str, dict[str, str]]]) -> None:
        chosen.update(providers[0][1])
        node = onnx.helper.make_node("EPContext", [], ["depth"], "plan", domain="com.microsoft")
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), chosen["trt_ep_context_file_path"]
        )

    monkeypatch.setattr(ort, "create", create)
    options = TENSORRT.parse_options({"timing_cache": False})
    TENSORRT.build(tmp_path / "a.onnx", tmp_path / "engine.onnx", precision, options)
    on = {key for key, value in chosen.items() if value == "1" and key in {f"trt_{each}_enable" for each in PRECISIONS}}
    assert on == (set() if precision == "fp32" else {f"trt_{precision}_enable"})


def test_error_of_a_tensorrt_without_bf16_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: object) -> None:
        raise RuntimeError("Unknown provider option: `trt_bf16_enable`")

    monkeypatch.setattr(ort, "create", create)
    options = TENSORRT.parse_options({"timing_cache": False})
    with pytest.raises(BackendError, match=r"cannot build .*a\.onnx.*trt_bf16_enable"):
        TENSORRT.build(tmp_path / "a.onnx", tmp_path / "engine.onnx", "bf16", options)


def test_provider_that_does_not_start_is_not_available(fake: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU and the wheel are there, and CUDA's libraries are not; `--backend auto` must not take it."""
    monkeypatch.setattr(ort, "_installed", lambda: ("onnxruntime-gpu", "1.31.1"))
    ort._trouble.cache_clear()
    try:
        found = CUDA.availability()
    finally:
        ort._trouble.cache_clear()
    assert not found.usable
    assert CUDA.provider in found.reason


def test_tensorrt_is_imported_before_onnx_runtime_loads_it(fake: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(name: str) -> None:
        asked.append(name)
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [TENSORRT.provider])
    monkeypatch.setattr(ort, "import_module", refuse)
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.10.*pip install 'tensorrt<11'"):
        ort.create(b"", ort.session_options(1), [(TENSORRT.provider, {})])
    assert asked == ["tensorrt"]
