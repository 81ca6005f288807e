"""The way between the caller's memory and an engine's addresses, on a stand-in for the CUDA runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from depthkit.errors import EngineError
from depthkit.runtime.cuda import CudaError, device_view
from depthkit.runtime.transfer import Mode, Transfer
from depthkit.spec import ModelSpec, Preprocessing, camera_ready

from .cudart import DeviceArray, FakeCudart, installed

MODES: tuple[Mode, ...] = ("pinned", "mapped", "device")
IMAGE, DEPTH = camera_ready(16, 32)
SPEC = ModelSpec("compact", (1,), IMAGE, DEPTH, Preprocessing(), (0.0, 10.0), parameters=1, macs=1)


@pytest.fixture
def fake() -> Iterator[FakeCudart]:
    with installed() as fake:
        yield fake


def frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 16, 32, 3), dtype=np.uint8)


def engine(fake: FakeCudart, transfer: Transfer) -> None:
    """Put on the stream what reads one address and writes the other: depth is the red channel."""
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
def test_fixed_addresses_serve_arrays_wherever_they_lie(fake: FakeCudart, mode: Mode, there: bool) -> None:
    with Transfer(SPEC, mode, fixed=True) as transfer:
        addresses = set()
        for seed in range(3):
            image, depth = frame(seed), np.zeros((1, 16, 32), np.float32)
            theirs, ours = DeviceArray(fake, image), DeviceArray(fake, depth)
            if there:
                transfer.bind(device_view(theirs, transfer.stream), device_view(ours, transfer.stream))
            else:
                transfer.bind(image, depth)
            run(fake, transfer)
            np.testing.assert_array_equal(ours.read() if there else depth, image[..., 0])
            addresses.add(tuple(route.engine for route in transfer.routes))
            theirs.free()
            ours.free()
        assert len(addresses) == 1


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_made_when_it_is_needed_and_once(fake: FakeCudart, mode: Mode) -> None:
    with Transfer(SPEC, mode) as transfer:
        assert fake.live() == {"stream": 1, "event": 1}
        for _ in range(3):
            transfer.bind(frame(0), np.zeros((1, 16, 32), np.float32))
        kinds = {"pinned": {"pinned": 2, "device": 2}, "mapped": {"mapped": 2}, "device": {"device": 2}}[mode]
        assert fake.live() == {"stream": 1, "event": 1, **kinds}


def test_a_bind_without_memory_leaves_what_was_bound(fake: FakeCudart) -> None:
    with Transfer(SPEC, "pinned") as transfer:
        ours = DeviceArray(fake, np.zeros((1, 16, 32), np.float32))
        theirs = DeviceArray(fake, frame(0))
        transfer.bind(device_view(theirs, transfer.stream), device_view(ours, transfer.stream))
        fake.fail("cudaHostAlloc", "cudaErrorMemoryAllocation")
        held = fake.live()
        with pytest.raises(CudaError, match="page-locked"):
            transfer.bind(frame(1), np.zeros((1, 16, 32), np.float32))
        assert fake.live() == held
        run(fake, transfer)
        np.testing.assert_array_equal(ours.read(), frame(0)[..., 0])
        theirs.free()
        ours.free()


def test_nothing_can_be_done_with_a_closed_one(fake: FakeCudart) -> None:
    transfer = Transfer(SPEC, "pinned")
    transfer.bind(frame(0), np.zeros((1, 16, 32), np.float32))
    transfer.close()
    transfer.close()
    assert not fake.live()
    with pytest.raises(EngineError, match="closed"):
        transfer.bind(frame(0), np.zeros((1, 16, 32), np.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
def test_phases_are_those_that_there_are(fake: FakeCudart, mode: Mode, there: bool) -> None:
    image, depth = frame(0), np.zeros((1, 16, 32), np.float32)
    ends = DeviceArray(fake, image), DeviceArray(fake, depth)
    with Transfer(SPEC, mode) as transfer:
        if there:
            transfer.bind(device_view(ends[0], transfer.stream), device_view(ends[1], transfer.stream))
        else:
            transfer.bind(image, depth)
        phases = transfer.time_phases(lambda: engine(fake, transfer))
        found = ends[1].read() if there else depth
    for each in ends:
        each.free()
    np.testing.assert_array_equal(found[0], image[0, :, :, 0])
    copies = set() if there or mode == "mapped" else {"h2d", "d2h"}
    assert phases.keys() == {"device", "enqueue"} | copies, "what is not copied has no phase, rather than a zero"
    assert all(phases[name] == 1.5 for name in phases if name != "enqueue"), "by CUDA's events"
    assert 0 < phases["enqueue"] < 1000
