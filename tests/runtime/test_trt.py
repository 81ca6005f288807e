"""TensorRT's session on stand-ins for CUDA and for TensorRT's runtime."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depthkit
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import find_gpu
from depthkit.engines.manifest import Layer, Manifest, write_manifest
from depthkit.errors import BackendError, EngineError, FrameError
from depthkit.files import sha256
from depthkit.runtime.cuda import CudaError
from depthkit.runtime.options import RunOptions
from depthkit.runtime.trt import CudaGraphWarning, TensorRTSession, open_engine
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready

from . import cudart, tensorrt_runtime
from .cudart import DeviceArray, FakeCudart, real
from .tensorrt_runtime import World, answer, plan

HEIGHT, WIDTH = 16, 32
MODES = ("pinned", "mapped", "device")
Open = Callable[..., TensorRTSession]


def spec(batch: int | Dim = 1) -> ModelSpec:
    image, depth = camera_ready(HEIGHT, WIDTH, batch)
    return ModelSpec("compact", (1,), image, depth, Preprocessing(), (0.0, 10.0), parameters=1, macs=1)


def manifest(path: Path, model: ModelSpec, backend: str = "tensorrt") -> Manifest:
    return Manifest(
        model=model,
        backend=backend,
        backend_version=tensorrt_runtime.VERSION,
        device=Fingerprint("gpu", "Stand-in", "sm_89"),
        precision_asked="fp16",
        precision_found="fp16",
        layers=(Layer("conv", "CONVOLUTION", "fp16"),),
        layers_from="engine",
        engine_sha256=sha256(path),
        onnx_sha256="0" * 64,
        weights_sha256="0" * 64,
        onnx="compact.fp16.onnx",
        reference="compact.reference.npz",
        options={},
        build_seconds=1.0,
        created="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def fake() -> Iterator[FakeCudart]:
    with cudart.installed() as fake:
        yield fake


@pytest.fixture
def world(fake: FakeCudart) -> Iterator[World]:
    with tensorrt_runtime.installed(fake, "tensorrt") as world:
        yield world


@pytest.fixture
def open_session(world: World, tmp_path: Path) -> Iterator[Open]:
    """Open the stand-in's engine for a batch, with options; it is closed at the end."""
    opened = []

    def open_session(batch: int | Dim = 1, **options: Any) -> TensorRTSession:
        path, model = tmp_path / "engine.plan", spec(batch)
        path.write_bytes(plan(model))
        opened.append(open_engine(path, manifest(path, model), RunOptions(**options)))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


@pytest.fixture
def on_gpu(fake: FakeCudart) -> Iterator[Callable[..., DeviceArray]]:
    """Arrays on the device."""
    made = []

    def on_gpu(values: np.ndarray, **options: Any) -> DeviceArray:
        made.append(DeviceArray(fake, values, **options))
        return made[-1]

    yield on_gpu
    for array in made:
        array.free()


def image_of(seed: int, batch: int = 1) -> np.ndarray:
    shape = (batch, HEIGHT, WIDTH, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blank(batch: int = 1) -> np.ndarray:
    return np.zeros((batch, HEIGHT, WIDTH), np.float32)


# Answers, wherever the arrays lie.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_bound_array_is_read_and_written_at_every_run(open_session: Open, mode: str, cuda_graph: bool) -> None:
    session = open_session(2, transfer=mode, cuda_graph=cuda_graph)
    image, depth = image_of(0, 2), blank(2)
    session.bind(image=image, depth=depth)
    for seed in range(5):
        image[:] = image_of(seed, 2)
        session.run()
        np.testing.assert_array_equal(depth, answer(image_of(seed, 2)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("image_there", "depth_there"), [(True, True), (True, False), (False, True)])
def test_arrays_on_the_gpu_and_mixed_ones(
    open_session: Open, on_gpu: Callable[..., DeviceArray], mode: str, image_there: bool, depth_there: bool
) -> None:
    session = open_session(transfer=mode)
    image, depth = image_of(0), blank()
    theirs, ours = on_gpu(image), on_gpu(depth)
    session.bind(image=theirs if image_there else image, depth=ours if depth_there else depth)
    for seed in range(4):
        image[:] = image_of(seed)
        theirs.write(image)
        session.run()
        np.testing.assert_array_equal(ours.read() if depth_there else depth, answer(image))


def test_arrays_on_the_gpu_are_not_copied(
    open_session: Open, on_gpu: Callable[..., DeviceArray], fake: FakeCudart
) -> None:
    image, depth = on_gpu(image_of(0)), on_gpu(blank())
    held = fake.live()
    session = open_session()
    session.bind(image=image, depth=depth)
    for _ in range(3):
        session.run()
    assert fake.count("cudaMemcpyAsync") == 0
    assert fake.live() - held == {"stream": 1, "event": 1, "exec": 1}


@pytest.mark.parametrize(("mode", "kind", "copies"), [("pinned", "pinned", 2), ("mapped", "mapped", 0)])
def test_allocated_arrays_are_copied_by_the_device_or_not_at_all(
    open_session: Open, fake: FakeCudart, mode: str, kind: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(transfer=mode, cuda_graph=False)
    image, depth = session.allocate()
    assert fake.live()[kind] == 2
    session.bind(image=image, depth=depth)
    image[:] = image_of(1)
    with monkeypatch.context() as patch:
        patch.setattr("numpy.copyto", None)  # the host's copies; the stand-in's are undone when they are waited for
        session.enqueue()
    session.synchronize()
    np.testing.assert_array_equal(depth, answer(image_of(1)))
    assert fake.count("cudaMemcpyAsync") == copies


def test_parts_of_allocated_arrays_are_used_where_they_are(open_session: Open) -> None:
    for mode in ("pinned", "mapped"):
        session = open_session(Dim("batch", 1, 2, 4), transfer=mode)
        image, depth = session.allocate()
        assert image.shape == (4, HEIGHT, WIDTH, 3)
        image[:], depth[:] = image_of(3, 4), -1
        session.bind(image=image[2:3], depth=depth[1:2])
        session.run()
        np.testing.assert_array_equal(depth[1], answer(image_of(3, 4))[2])
        assert (depth[[0, 2, 3]] == -1).all()


def test_allocated_arrays_outlive_the_session(open_session: Open) -> None:
    session = open_session()
    image, depth = session.allocate()
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.run()
    session.close()
    np.testing.assert_array_equal(depth, answer(image))


def test_in_mode_device_allocated_arrays_are_ordinary(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(transfer="device")
    image, depth = session.allocate()
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.run()
    np.testing.assert_array_equal(depth, answer(image))
    assert not {"pinned", "mapped"} & fake.live().keys()


@pytest.mark.parametrize("mode", MODES)
def test_a_call_answers_new_arrays(open_session: Open, mode: str) -> None:
    session = open_session(transfer=mode)
    first, second = session(image_of(0)[0]), session(image_of(1))
    np.testing.assert_array_equal(first, answer(image_of(0))[0])
    np.testing.assert_array_equal(second, answer(image_of(1)))


def test_a_dynamic_batch_takes_what_is_in_its_range(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(Dim("batch", 1, 2, 4))
    for count in (4, 1, 3, 4, 9):
        np.testing.assert_array_equal(session(image_of(count, count)), answer(image_of(count, count)))
    assert session.provider.endswith("no CUDA graph: dynamic batch, pinned")
    assert fake.count("cudaStreamBeginCapture") == 0
    assert (fake.count("cudaMalloc"), fake.count("cudaHostAlloc")) == (2, 2), "buffers are made once"


@pytest.mark.parametrize(("integrated", "mode"), [(True, "mapped"), (False, "pinned")])
def test_the_gpu_decides_on_the_transfer(tmp_path: Path, integrated: bool, mode: str) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(plan(spec()))
    with (
        cudart.installed(integrated=integrated) as fake,
        tensorrt_runtime.installed(fake, "tensorrt"),
        open_engine(path, manifest(path, spec()), RunOptions()) as session,
    ):
        assert session.provider == f"tensorrt {tensorrt_runtime.VERSION}, Stand-in, CUDA graph, {mode}"
        assert session.precision == "fp16"


# What is bound.


WRONG: dict[str, tuple[Callable[[], tuple[np.ndarray, np.ndarray]], str]] = {
    "dtype": (lambda: (image_of(0).astype(np.float32), blank()), "image must be uint8"),
    "depth dtype": (lambda: (image_of(0), blank().astype(np.float64)), "depth must be float32"),
    "shape": (lambda: (image_of(0)[:, 1:], blank()), "image must have shape"),
    "count": (lambda: (image_of(0, 2), blank()), "image must have shape"),
}


@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
@pytest.mark.parametrize("fault", WRONG)
def test_wrong_arrays_are_told_and_what_was_bound_stays(
    open_session: Open, on_gpu: Callable[..., DeviceArray], fault: str, there: bool
) -> None:
    session, (make, words) = open_session(), WRONG[fault]
    image, depth = image_of(0), blank()
    session.bind(image=image, depth=depth)
    wrong = [on_gpu(each) if there else each for each in make()]
    with pytest.raises(FrameError, match=words):
        session.bind(image=wrong[0], depth=wrong[1])
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_layout_and_leave_to_write_are_checked_on_the_host(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(FrameError, match="image is not C-contiguous"):
        session.bind(image=np.repeat(image_of(0), 2, axis=2)[:, :, ::2], depth=blank())
    depth = blank()
    depth.flags.writeable = False
    with pytest.raises(FrameError, match="depth is read-only"):
        session.bind(image=image_of(0), depth=depth)


def test_layout_leave_to_write_and_alignment_are_checked_on_the_gpu(
    open_session: Open, on_gpu: Callable[..., DeviceArray]
) -> None:
    session, image, depth = open_session(), on_gpu(image_of(0)), on_gpu(blank())
    image.overrides = {"strides": (1, 1, HEIGHT, HEIGHT * WIDTH)}
    with pytest.raises(FrameError, match="image is not C-contiguous"):
        session.bind(image=image, depth=depth)
    image.overrides, depth.overrides = {}, {"data": (depth.pointer, True)}
    with pytest.raises(FrameError, match="depth is read-only"):
        session.bind(image=image, depth=depth)
    depth.overrides = {"data": (depth.pointer + 4, False)}
    with pytest.raises(FrameError, match="depth is not aligned to 256 bytes; bind a copy"):
        session.bind(image=image, depth=depth)


def test_as_many_images_as_depths(open_session: Open) -> None:
    with pytest.raises(FrameError, match="image holds 2 frames and depth 3"):
        open_session(Dim("batch", 1, 2, 4)).bind(image=image_of(0, 2), depth=blank(3))


def test_nothing_is_bound_after_a_bind_that_found_no_memory(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    fake.fail("cudaMalloc", "cudaErrorMemoryAllocation", nth=2)
    with pytest.raises(CudaError, match="were asked for"):
        session.bind(image=image_of(0), depth=blank())
    with pytest.raises(EngineError, match="nothing is bound"):
        session.run()
    np.testing.assert_array_equal(session(image_of(0)), answer(image_of(0)))


# The CUDA graph.


def test_the_second_run_is_recorded_and_the_others_replay_it(
    open_session: Open, fake: FakeCudart, world: World
) -> None:
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


def test_other_arrays_on_the_gpu_need_another_graph(
    open_session: Open, on_gpu: Callable[..., DeviceArray], fake: FakeCudart
) -> None:
    session = open_session()
    for seed in range(3):
        image, depth = on_gpu(image_of(seed)), on_gpu(blank())
        session.bind(image=image, depth=depth)
        for _ in range(3):
            session.run()
        np.testing.assert_array_equal(depth.read(), answer(image_of(seed)))
        assert fake.live()["exec"] == 1
    assert (fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch")) == (3, 6)


def test_a_session_that_cannot_be_recorded_says_so_once_and_answers(open_session: Open, world: World) -> None:
    session = open_session()
    world.capturable = False
    session.bind(image=(image := image_of(0)), depth=(depth := blank()))
    session.run()
    with pytest.warns(CudaGraphWarning, match="operation not permitted when stream is capturing") as told:
        session.run()
    assert told[0].filename == __file__
    np.testing.assert_array_equal(depth, answer(image))
    assert "no CUDA graph: tensorrt cannot run the engine: operation not permitted" in session.provider
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.run()
        session(image_of(1))
        assert len(list(session.stream(image_of(seed) for seed in range(4)))) == 4


def test_a_graph_that_cuda_refuses_is_told_too(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    session(image_of(0))
    fake.fail("cudaGraphInstantiate", "cudaErrorNotSupported")
    with pytest.warns(CudaGraphWarning, match="cudaErrorNotSupported"):
        depth = session(image_of(1))
    np.testing.assert_array_equal(depth, answer(image_of(1)))


def test_a_graph_can_be_declined(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(cuda_graph=False)
    for _ in range(3):
        session(image_of(0))
    assert fake.count("cudaStreamBeginCapture") == 0
    assert "no CUDA graph: switched off" in session.provider


# Whose turn it is.


@pytest.mark.parametrize("named", ["argument", "array", "default"])
def test_a_run_waits_for_the_callers_stream(
    open_session: Open, on_gpu: Callable[..., DeviceArray], fake: FakeCudart, named: str
) -> None:
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


def test_the_callers_stream_waits_for_what_was_enqueued(
    open_session: Open, on_gpu: Callable[..., DeviceArray], fake: FakeCudart
) -> None:
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
def test_what_the_host_copies_cannot_be_enqueued(open_session: Open, mode: str) -> None:
    session = open_session(transfer=mode)
    session.bind(image=image_of(0), depth=blank())
    with pytest.raises(EngineError, match=r"enqueue\(\) takes arrays on the GPU or of allocate\(\)"):
        session.enqueue()


def test_binding_waits_for_what_was_enqueued(open_session: Open, on_gpu: Callable[..., DeviceArray]) -> None:
    session = open_session()
    (image, _), depth = session.allocate(), on_gpu(blank())
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.enqueue()
    np.testing.assert_array_equal(session(image_of(1)), answer(image_of(1)))
    np.testing.assert_array_equal(depth.read(), answer(image_of(0)))


# A stream of frames.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [0, 1, 2, 3, 8])
def test_a_stream_answers_in_order_and_leaves_what_is_bound(open_session: Open, mode: str, frames: int) -> None:
    session = open_session(2, transfer=mode)
    session.bind(image=(image := image_of(99, 2)), depth=(depth := blank(2)))
    images = [image_of(seed, 2) for seed in range(frames)]
    answers = list(session.stream(iter(images)))
    assert len({each.ctypes.data for each in answers}) == frames
    np.testing.assert_array_equal(answers, [answer(each) for each in images] or answers)
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_the_next_frame_is_under_way_before_an_answer_is_given(open_session: Open, world: World) -> None:
    session = open_session()
    under_way = [world.executed for _ in session.stream([image_of(seed) for seed in range(2)])]
    assert under_way == [2, 2]


def test_a_stream_that_is_left_early_leaves_nothing(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    held = fake.live()
    for _ in session.stream(image_of(seed) for seed in range(9)):
        assert fake.live()["stream"] == held["stream"] + 2
        break
    assert fake.live() == held


def test_a_wrong_frame_does_not_lose_the_answer_before_it(open_session: Open) -> None:
    session = open_session()
    answers = session.stream([image_of(0), image_of(1), image_of(2)[:, 1:]])
    for seed in range(2):
        np.testing.assert_array_equal(next(answers), answer(image_of(seed)))
    with pytest.raises(FrameError, match="image must have shape"):
        next(answers)


def test_a_stream_ends_with_its_session(open_session: Open) -> None:
    session = open_session()
    answers = session.stream(image_of(seed) for seed in range(9))
    next(answers)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        next(answers)


def test_both_halves_of_a_stream_are_recorded(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    list(session.stream(image_of(seed) for seed in range(8)))
    assert (fake.count("cudaStreamBeginCapture"), fake.count("cudaGraphLaunch")) == (2, 6)


# Its life.


def test_memory_does_not_grow(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    for seed in range(3):
        session(image_of(seed))
    held, made = fake.live(), len(fake.memories)
    for seed in range(200):
        session(image_of(seed))
    assert (fake.live(), len(fake.memories)) == (held, made)


def test_closing_frees_everything_once(open_session: Open, fake: FakeCudart, world: World) -> None:
    session = open_session()
    for seed in range(3):
        session(image_of(seed))
    assert world.engines == 1
    session.close()
    assert not fake.live()
    assert world.engines == 0
    session.close()
    for use in (session.run, session.enqueue, session.synchronize, session.allocate, lambda: session(image_of(0))):
        with pytest.raises(EngineError, match="this session is closed"):
            use()


def test_closing_waits_for_what_was_enqueued(open_session: Open) -> None:
    session = open_session()
    image, depth = session.allocate()
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.enqueue()
    session.close()
    np.testing.assert_array_equal(depth, answer(image))


@pytest.mark.parametrize("call", ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"])
def test_a_session_that_cannot_be_opened_leaves_nothing(open_session: Open, fake: FakeCudart, call: str) -> None:
    fake.fail(call, "cudaErrorDevicesUnavailable")
    with pytest.raises(CudaError, match="cudaErrorDevicesUnavailable"):
        open_session()
    assert not fake.live()


def test_no_memory_for_a_context_is_said_in_tensorrts_words(open_session: Open, world: World, fake: FakeCudart) -> None:
    world.no_context = True
    with pytest.raises(BackendError, match=r"tensorrt cannot run .*engine\.plan: out of memory"):
        open_session()
    assert not fake.live()


def test_a_run_that_tensorrt_refuses_is_said_in_its_words(open_session: Open, world: World) -> None:
    session = open_session()
    session.bind(image=(image := image_of(0)), depth=(depth := blank()))
    world.failing = True
    with pytest.raises(BackendError, match="tensorrt cannot run the engine: illegal memory access"):
        session.run()
    world.failing = False
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_a_device_that_failed_at_work_is_said_when_it_is_waited_for(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    session.bind(image=image_of(0), depth=blank())
    fake.fail("cudaStreamSynchronize", "cudaErrorIllegalAddress")
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        session.run()


# Its engine.


def opened(path: Path, content: bytes, model: ModelSpec) -> TensorRTSession:
    path.write_bytes(content)
    return open_engine(path, manifest(path, model), RunOptions())


def changed(document: bytes, **values: Any) -> bytes:
    whole = json.loads(document)
    whole["tensors"] |= values.pop("tensors", {})
    return json.dumps(whole | values).encode()


def test_host_code_in_a_plan_is_not_allowed(world: World, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="host code"):
        opened(tmp_path / "engine.plan", changed(plan(spec()), host_code=True), spec())


def test_what_is_no_plan_is_said_in_tensorrts_words(world: World, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="Magic tag does not match"):
        opened(tmp_path / "engine.plan", b"\0" * 64, spec())


@pytest.mark.parametrize(
    "tensors",
    [
        {"image": ["INPUT", "HALF", [1, HEIGHT, WIDTH, 3]]},
        {"image": ["INPUT", "UINT8", [1, 3, HEIGHT, WIDTH]]},
        {"depth": ["OUTPUT", "FLOAT", [-1, HEIGHT, WIDTH]]},
        {"depth": ["INPUT", "FLOAT", [1, HEIGHT, WIDTH]]},
        {"confidence": ["OUTPUT", "FLOAT", [1, HEIGHT, WIDTH]]},
    ],
)
def test_an_engine_of_other_tensors_is_not_run(world: World, tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="and its manifest says INPUT image UINT8") as caught:
        opened(tmp_path / "engine.plan", changed(plan(spec()), tensors=tensors), spec())
    ((name, (mode, kind, shape)),) = tensors.items()
    assert f"{mode} {name} {kind} {tuple(shape)}" in str(caught.value)


def test_an_engine_of_a_smaller_range_of_batches_refuses(world: World, tmp_path: Path, fake: FakeCudart) -> None:
    model = spec(Dim("batch", 1, 2, 4))
    with opened(tmp_path / "engine.plan", changed(plan(model), batch=[1, 2]), model) as session:
        with pytest.raises(BackendError, match=r"tensorrt cannot take \(3, 16, 32, 3\)"):
            session(image_of(0, 3))
        np.testing.assert_array_equal(session(image_of(0, 2)), answer(image_of(0, 2)))


@pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")
def test_without_a_gpu_there_is_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensorrt runs on a GPU, and .* use a machine with an NVIDIA GPU"):
        opened(tmp_path / "engine.plan", plan(spec()), spec())


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_load_opens_either(fake: FakeCudart, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(plan(spec()))
    write_manifest(path, manifest(path, spec(), backend))
    with tensorrt_runtime.installed(fake, backend.replace("-", "_")):
        with depthkit.load(path, transfer="mapped", cuda_graph=False) as session:
            np.testing.assert_array_equal(session(image_of(0)), answer(image_of(0)))
        write_manifest(path, replace(manifest(path, spec(), backend), device=Fingerprint("gpu", "Other", "sm_90")))
        with pytest.raises(EngineError, match=f"built for Other .* Stand-in .* --backend {backend}"):
            depthkit.load(path)


def test_the_stand_in_has_only_names_of_every_supported_release() -> None:
    table = json.loads((Path(__file__).parents[1] / "engines" / "tensorrt_api.json").read_text(encoding="utf-8"))
    every = table["Runtime"][""]
    assert {"rtx1.7", "10.13", "11.4"} <= set(every)
    for each in tensorrt_runtime.CLASSES:
        releases = ["rtx1.7"] if each.__name__ == "ComputeCapability" else every  # asked for by tensorrt-rtx alone
        for name in ("", *(name for name in vars(each) if not name.startswith("_"))):
            assert table[each.__name__].get(name) == releases, f"{each.__name__}.{name}"
