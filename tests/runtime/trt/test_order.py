"""TensorRT sessions: CUDA graphs, the caller's stream, streams of frames."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from depthkit.errors import EngineError, FrameError
from depthkit.runtime.cuda import CudaGraphWarning

from ..cudart import FakeCudart, real
from ..device_array import OnGpu
from ..tensorrt_runtime import MODES, Open, World, answer, blank, image_of


def test_second_run_is_recorded_and_later_ones_replay_it(open_session: Open, fake: FakeCudart, world: World) -> None:
    session = open_session()
    session.bind(image=image_of(0), depth=blank())
    launches = []
    for _ in range(4):
        session.run()
        launches.append((fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch"), world.executed))
    assert launches == [(0, 0, 1), (1, 1, 2), (1, 2, 2), (1, 3, 2)]


def test_other_numpy_arrays_keep_the_graph(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    for seed in range(4):
        np.testing.assert_array_equal(session(image_of(seed)), answer(image_of(seed)))
    assert (fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch")) == (1, 3)


def test_other_arrays_on_the_gpu_record_another_graph(open_session: Open, on_gpu: OnGpu, fake: FakeCudart) -> None:
    session = open_session()
    for seed in range(3):
        image, depth = on_gpu(image_of(seed)), on_gpu(blank())
        session.bind(image=image, depth=depth)
        for _ in range(3):
            session.run()
        np.testing.assert_array_equal(depth.read(), answer(image_of(seed)))
        assert fake.live()["exec"] == 1
    assert (fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch")) == (3, 6)


def test_session_that_cannot_be_recorded_warns_once(open_session: Open, world: World) -> None:
    session = open_session()
    world.capturable = False
    session.bind(image=(image := image_of(0)), depth=(depth := blank()))
    session.run()
    with pytest.warns(CudaGraphWarning, match="operation not permitted when stream is capturing") as warned:
        session.run()
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(depth, answer(image))
    assert "no CUDA graph: tensorrt cannot run the engine: operation not permitted" in session.provider
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.run()
        session(image_of(1))
        assert len(list(session.stream(image_of(seed) for seed in range(4)))) == 4


def test_graph_that_cuda_refuses_warns(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    session(image_of(0))
    fake.fail("cudaGraphInstantiate", "cudaErrorNotSupported")
    with pytest.warns(CudaGraphWarning, match="cudaErrorNotSupported"):
        depth = session(image_of(1))
    np.testing.assert_array_equal(depth, answer(image_of(1)))


def test_graph_can_be_switched_off(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(cuda_graph=False)
    for _ in range(3):
        session(image_of(0))
    assert fake.count("cudaStreamBeginCapture") == 0
    assert "no CUDA graph: switched off" in session.provider


@pytest.mark.parametrize("named", ["argument", "array", "default"])
def test_run_waits_for_the_callers_stream(open_session: Open, on_gpu: OnGpu, fake: FakeCudart, named: str) -> None:
    _, handle = fake.cudaStreamCreateWithFlags(real.cudaStreamNonBlocking)
    callers = real.cudaStreamLegacy if named == "default" else int(handle)
    image = on_gpu(image_of(0), stream=callers if named == "array" else None)
    depth = on_gpu(blank(), stream=callers if named == "array" else None)
    session = open_session()
    session.bind(image=image, depth=depth, stream=callers if named == "argument" else None)
    for seed in range(4):
        fake.enqueue(callers, lambda seed=seed: image.write(image_of(seed)))  # type: ignore[misc]
        session.run()
        np.testing.assert_array_equal(depth.read(), answer(image_of(seed)))
    fake.cudaStreamDestroy(int(handle))


def test_callers_stream_waits_for_enqueued_work(open_session: Open, on_gpu: OnGpu, fake: FakeCudart) -> None:
    _, handle = fake.cudaStreamCreateWithFlags(real.cudaStreamNonBlocking)
    image, depth, found = on_gpu(image_of(0)), on_gpu(blank()), []
    session = open_session()
    session.bind(image=image, depth=depth, stream=int(handle))
    for seed in range(4):
        fake.enqueue(int(handle), lambda seed=seed: image.write(image_of(seed)))  # type: ignore[misc]
        session.enqueue()
        fake.enqueue(int(handle), lambda: found.append(depth.read()))
    assert len(found) < 4
    fake.drain(int(handle))
    np.testing.assert_array_equal(found, [answer(image_of(seed)) for seed in range(4)])
    fake.cudaStreamDestroy(int(handle))


@pytest.mark.parametrize("mode", MODES)
def test_enqueue_refuses_ordinary_arrays(open_session: Open, mode: str) -> None:
    session = open_session(transfer=mode)
    session.bind(image=image_of(0), depth=blank())
    with pytest.raises(EngineError, match=r"enqueue\(\) needs arrays on the GPU or from allocate\(\)"):
        session.enqueue()


def test_bind_waits_for_enqueued_work(open_session: Open, on_gpu: OnGpu) -> None:
    session = open_session()
    (image, _), depth = session.allocate(), on_gpu(blank())
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.enqueue()
    np.testing.assert_array_equal(session(image_of(1)), answer(image_of(1)))
    np.testing.assert_array_equal(depth.read(), answer(image_of(0)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [0, 1, 2, 3, 8])
def test_stream_keeps_the_order_and_the_bound_arrays(open_session: Open, mode: str, frames: int) -> None:
    session = open_session(2, transfer=mode)
    session.bind(image=(image := image_of(99, 2)), depth=(depth := blank(2)))
    images = [image_of(seed, 2) for seed in range(frames)]
    answers = list(session.stream(iter(images)))
    assert len({each.ctypes.data for each in answers}) == frames
    np.testing.assert_array_equal(answers, [answer(each) for each in images] or answers)
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_stream_starts_the_next_frame_before_it_answers(open_session: Open, world: World) -> None:
    session = open_session()
    under_way = [world.executed for _ in session.stream([image_of(seed) for seed in range(2)])]
    assert under_way == [2, 2]


def test_abandoned_stream_leaves_nothing(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    held = fake.live()
    for _ in session.stream(image_of(seed) for seed in range(9)):
        assert fake.live()["stream"] == held["stream"] + 2
        break
    assert fake.live() == held


def test_invalid_frame_comes_after_the_earlier_answers(open_session: Open) -> None:
    session = open_session()
    answers = session.stream([image_of(0), image_of(1), image_of(2)[:, 1:]])
    for seed in range(2):
        np.testing.assert_array_equal(next(answers), answer(image_of(seed)))
    with pytest.raises(FrameError, match="image must have shape"):
        next(answers)


def test_stream_ends_with_its_session(open_session: Open) -> None:
    session = open_session()
    answers = session.stream(image_of(seed) for seed in range(9))
    next(answers)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        next(answers)


def test_both_slots_of_a_stream_are_recorded(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    list(session.stream(image_of(seed) for seed in range(8)))
    assert (fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch")) == (2, 6)
