"""Transfers between the caller's memory and an engine's addresses, on the stand-in for the CUDA runtime."""

from __future__ import annotations

import numpy as np
import pytest

from depthkit.errors import EngineError
from depthkit.runtime.cuda import CudaError, device_view
from depthkit.runtime.transfer import Mode, Transfer

from ..support import model_spec
from .cudart import DeviceArray, FakeCudart
from .device_array import OnGpu

MODES: tuple[Mode, ...] = ("pinned", "mapped", "device")
SPEC = model_spec(16, 32)


def frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 16, 32, 3), dtype=np.uint8)


def blank() -> np.ndarray:
    return np.zeros((1, 16, 32), np.float32)


def bind_on_gpu(transfer: Transfer, image: DeviceArray, depth: DeviceArray) -> None:
    transfer.bind(device_view(image, transfer.stream), device_view(depth, transfer.stream))


def engine(fake: FakeCudart, transfer: Transfer) -> None:
    """Enqueue a kernel that copies the red channel to the depth."""
    image, depth = transfer.routes

    def compute() -> None:
        red = fake.on_device(image.engine, image.size)[::3].astype(np.float32)
        fake.on_device(depth.engine, depth.size)[:] = red.view(np.uint8)

    fake.enqueue(transfer.stream.handle, compute)


def run(fake: FakeCudart, transfer: Transfer) -> None:
    transfer.prepare()
    transfer.upload()
    engine(fake, transfer)
    transfer.download()
    transfer.finish()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
def test_fixed_addresses_serve_every_array(fake: FakeCudart, on_gpu: OnGpu, mode: Mode, there: bool) -> None:
    with Transfer(SPEC, mode, fixed=True) as transfer:
        addresses = set()
        for seed in range(3):
            image, depth = frame(seed), blank()
            ours = on_gpu(depth)
            if there:
                bind_on_gpu(transfer, on_gpu(image), ours)
            else:
                transfer.bind(image, depth)
            run(fake, transfer)
            np.testing.assert_array_equal(ours.read() if there else depth, image[..., 0])
            addresses.add(tuple(route.engine for route in transfer.routes))
        assert len(addresses) == 1


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_allocated_once_and_on_demand(fake: FakeCudart, mode: Mode) -> None:
    with Transfer(SPEC, mode) as transfer:
        assert fake.live() == {"stream": 1, "event": 1}
        for _ in range(3):
            transfer.bind(frame(0), blank())
        kinds = {"pinned": {"pinned": 2, "device": 2}, "mapped": {"mapped": 2}, "device": {"device": 2}}[mode]
        assert fake.live() == {"stream": 1, "event": 1, **kinds}


def test_failed_bind_keeps_the_bound_arrays(fake: FakeCudart, on_gpu: OnGpu) -> None:
    with Transfer(SPEC, "pinned") as transfer:
        ours = on_gpu(blank())
        bind_on_gpu(transfer, on_gpu(frame(0)), ours)
        fake.fail("cudaHostAlloc", "cudaErrorMemoryAllocation")
        held = fake.live()
        with pytest.raises(CudaError, match="page-locked"):
            transfer.bind(frame(1), blank())
        assert fake.live() == held
        run(fake, transfer)
        np.testing.assert_array_equal(ours.read(), frame(0)[..., 0])


def test_closed_transfer_refuses_to_bind(fake: FakeCudart) -> None:
    transfer = Transfer(SPEC, "pinned")
    transfer.bind(frame(0), blank())
    transfer.close()
    transfer.close()
    assert not fake.live()
    with pytest.raises(EngineError, match="closed"):
        transfer.bind(frame(0), blank())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
def test_only_copies_that_happen_are_phases(fake: FakeCudart, on_gpu: OnGpu, mode: Mode, there: bool) -> None:
    image, depth = frame(0), blank()
    ours = on_gpu(depth)
    with Transfer(SPEC, mode) as transfer:
        if there:
            bind_on_gpu(transfer, on_gpu(image), ours)
        else:
            transfer.bind(image, depth)
        phases = transfer.time_phases(lambda: engine(fake, transfer))
    np.testing.assert_array_equal(ours.read() if there else depth, image[..., 0])
    copies = set() if there or mode == "mapped" else {"h2d", "d2h"}
    assert phases.keys() == {"device", "enqueue"} | copies
    assert all(phases[name] == 1.5 for name in phases if name != "enqueue"), "by CUDA's events"
    assert 0 < phases["enqueue"] < 1000
