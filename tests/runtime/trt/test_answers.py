"""TensorRT sessions: arrays on the host and on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import EngineError, FrameError
from depthkit.runtime.cuda import CudaError
from depthkit.runtime.run_options import RunOptions
from depthkit.runtime.trt import open_engine
from depthkit.spec import Dim

from .. import cudart, tensorrt_runtime
from ..cudart import FakeCudart
from ..device_array import OnGpu
from ..tensorrt_runtime import HEIGHT, MODES, WIDTH, Open, answer, blank, image_of, manifest, plan, spec


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_bound_arrays_are_used_at_every_run(open_session: Open, mode: str, cuda_graph: bool) -> None:
    session = open_session(2, transfer=mode, cuda_graph=cuda_graph)
    image, depth = image_of(0, 2), blank(2)
    session.bind(image=image, depth=depth)
    for seed in range(5):
        image[:] = image_of(seed, 2)
        session.run()
        np.testing.assert_array_equal(depth, answer(image_of(seed, 2)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("image_there", "depth_there"), [(True, True), (True, False), (False, True)])
def test_arrays_on_the_gpu(open_session: Open, on_gpu: OnGpu, mode: str, image_there: bool, depth_there: bool) -> None:
    session = open_session(transfer=mode)
    image, depth = image_of(0), blank()
    theirs, ours = on_gpu(image), on_gpu(depth)
    session.bind(image=theirs if image_there else image, depth=ours if depth_there else depth)
    for seed in range(4):
        image[:] = image_of(seed)
        theirs.write(image)
        session.run()
        np.testing.assert_array_equal(ours.read() if depth_there else depth, answer(image))


def test_arrays_on_the_gpu_are_not_copied(open_session: Open, on_gpu: OnGpu, fake: FakeCudart) -> None:
    image, depth = on_gpu(image_of(0)), on_gpu(blank())
    held = fake.live()
    session = open_session()
    session.bind(image=image, depth=depth)
    for _ in range(3):
        session.run()
    assert fake.count("cudaMemcpyAsync") == 0
    assert fake.live() - held == {"stream": 1, "event": 1, "exec": 1}


@pytest.mark.parametrize(("mode", "kind", "copies"), [("pinned", "pinned", 2), ("mapped", "mapped", 0)])
def test_allocated_arrays_need_no_copy_by_the_host(
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


def test_slices_of_allocated_arrays_are_used_in_place(open_session: Open) -> None:
    for mode in ("pinned", "mapped"):
        session = open_session(Dim("batch", 1, 2, 4), transfer=mode)
        image, depth = session.allocate()
        assert image.shape == (4, HEIGHT, WIDTH, 3)
        image[:], depth[:] = image_of(3, 4), -1
        session.bind(image=image[2:3], depth=depth[1:2])
        session.run()
        np.testing.assert_array_equal(depth[1], answer(image_of(3, 4))[2])
        assert (depth[[0, 2, 3]] == -1).all()


def test_allocated_arrays_are_ordinary_in_mode_device(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(transfer="device")
    image, depth = session.allocate()
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.run()
    np.testing.assert_array_equal(depth, answer(image))
    assert not {"pinned", "mapped"} & fake.live().keys()


@pytest.mark.parametrize("mode", MODES)
def test_call_returns_new_arrays(open_session: Open, mode: str) -> None:
    session = open_session(transfer=mode)
    first, second = session(image_of(0)[0]), session(image_of(1))
    np.testing.assert_array_equal(first, answer(image_of(0))[0])
    np.testing.assert_array_equal(second, answer(image_of(1)))


def test_dynamic_batch(open_session: Open, fake: FakeCudart) -> None:
    session = open_session(Dim("batch", 1, 2, 4))
    for count in (4, 1, 3, 4, 9):
        np.testing.assert_array_equal(session(image_of(count, count)), answer(image_of(count, count)))
    assert session.provider.endswith("no CUDA graph: dynamic batch, pinned")
    assert fake.count("cudaStreamBeginCapture") == 0
    assert (fake.count("cudaMalloc"), fake.count("cudaHostAlloc")) == (2, 2), "buffers are made once"


@pytest.mark.parametrize(("integrated", "mode"), [(True, "mapped"), (False, "pinned")])
def test_transfer_mode_depends_on_the_gpu(tmp_path: Path, integrated: bool, mode: str) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(plan(spec()))
    with (
        cudart.installed(integrated=integrated) as fake,
        tensorrt_runtime.installed(fake, "tensorrt"),
        open_engine(path, manifest(path, spec()), RunOptions()) as session,
    ):
        assert session.device == "gpu"
        assert session.provider == f"tensorrt {tensorrt_runtime.VERSION}, Stand-in, CUDA graph, {mode}"
        assert session.precision == "fp16"


WRONG: dict[str, tuple[Callable[[], tuple[np.ndarray, np.ndarray]], str]] = {
    "dtype": (lambda: (image_of(0).astype(np.float32), blank()), "image must be uint8"),
    "depth dtype": (lambda: (image_of(0), blank().astype(np.float64)), "depth must be float32"),
    "shape": (lambda: (image_of(0)[:, 1:], blank()), "image must have shape"),
    "count": (lambda: (image_of(0, 2), blank()), "image must have shape"),
}


@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
@pytest.mark.parametrize("fault", WRONG)
def test_invalid_arrays_are_refused_and_the_bound_ones_kept(
    open_session: Open, on_gpu: OnGpu, fault: str, there: bool
) -> None:
    session, (make, words) = open_session(), WRONG[fault]
    image, depth = image_of(0), blank()
    session.bind(image=image, depth=depth)
    wrong = [on_gpu(each) if there else each for each in make()]
    with pytest.raises(FrameError, match=words):
        session.bind(image=wrong[0], depth=wrong[1])
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_layout_and_writability_are_checked_on_the_host(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(FrameError, match="image is not C-contiguous"):
        session.bind(image=np.repeat(image_of(0), 2, axis=2)[:, :, ::2], depth=blank())
    depth = blank()
    depth.flags.writeable = False
    with pytest.raises(FrameError, match="depth is read-only"):
        session.bind(image=image_of(0), depth=depth)


def test_layout_writability_and_alignment_are_checked_on_the_gpu(open_session: Open, on_gpu: OnGpu) -> None:
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


def test_image_and_depth_must_have_the_same_batch(open_session: Open) -> None:
    with pytest.raises(FrameError, match="image has 2 frames, but depth has 3"):
        open_session(Dim("batch", 1, 2, 4)).bind(image=image_of(0, 2), depth=blank(3))


def test_bind_without_memory_binds_nothing(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    fake.fail("cudaMalloc", "cudaErrorMemoryAllocation", nth=2)
    with pytest.raises(CudaError, match="requested"):
        session.bind(image=image_of(0), depth=blank())
    with pytest.raises(EngineError, match="nothing is bound"):
        session.run()
    np.testing.assert_array_equal(session(image_of(0)), answer(image_of(0)))


@pytest.mark.parametrize("mode", MODES)
def test_phases_of_a_run(open_session: Open, mode: str) -> None:
    session = open_session(transfer=mode)
    image, depth = image_of(0), blank()
    session.bind(image=image, depth=depth)
    for seed in range(4):
        image[:] = image_of(seed)
        phases = session.run_phases()
        np.testing.assert_array_equal(depth, answer(image))
        image[:] = image_of(seed + 10)
        session.run()
        np.testing.assert_array_equal(depth, answer(image))
    copies = set() if mode == "mapped" else {"h2d", "d2h"}
    assert phases.keys() == {"device", "enqueue"} | copies
