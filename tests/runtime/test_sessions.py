"""ONNX Runtime and OpenVINO on the CPU: sessions read and write the caller's own memory."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import EngineError, FrameError
from depthkit.reference import Reference
from depthkit.runtime.load import load
from depthkit.session import Session
from depthkit.spec import Dim

from ..support import STEM


@pytest.fixture(params=["ort.onnx", "ov.blob"], ids=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, engines: Path) -> Path:
    return engines / f"{STEM}.fp32.{request.param}"


@pytest.fixture
def session(engine: Path) -> Iterator[Session]:
    with load(engine) as session:
        yield session


@pytest.fixture(params=["onnxruntime", "openvino"])
def of_batch(request: pytest.FixtureRequest, batched: Callable[..., Path]) -> Callable[[int | Dim], Path]:
    """Engines for another batch."""
    return lambda batch: batched(batch, backend=request.param)


def test_image_is_read_in_place(session: Session, reference: Reference) -> None:
    image, depth = np.zeros((1, 32, 48, 3), np.uint8), np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images, reference.depths, strict=True):
        image[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_depth_is_written_in_place(session: Session, reference: Reference) -> None:
    """Into a slice of a larger buffer, and nowhere else."""
    buffer = np.full((3, 32, 48), -1, np.float32)
    address = buffer.ctypes.data
    session.bind(image=reference.images[:1], depth=buffer[1:2])
    session.run()
    assert buffer.ctypes.data == address
    assert np.abs(buffer[1] - reference.depths[0]).max() < 1e-3
    assert (buffer[[0, 2]] == -1).all()


def test_read_only_image_is_read_in_place(session: Session, reference: Reference, tmp_path: Path) -> None:
    """In pages that are mapped read-only, whose owner writes to them later."""
    (tmp_path / "camera").write_bytes(reference.images[0].tobytes())
    owner, image = (np.memmap(tmp_path / "camera", np.uint8, mode, shape=(1, 32, 48, 3)) for mode in ("r+", "r"))
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images[:3], reference.depths[:3], strict=True):
        owner[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_runs_allocate_nothing(session: Session, reference: Reference) -> None:
    """Python keeps the first few hundred small objects for reuse, so the first 500 runs do not count."""
    image, depth = reference.images[:1], np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    tracemalloc.start()
    try:
        for _ in range(500):
            session.run()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            session.run()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < depth.nbytes // 4, "neither array is copied"
    assert after - before < 256, "100 runs"


def test_bound_memory_is_kept_alive_until_close(engine: Path, reference: Reference) -> None:
    session = load(engine)
    image, depth = reference.images[:1].copy(), np.empty((1, 32, 48), np.float32)
    watched = weakref.ref(image), weakref.ref(depth)
    session.bind(image=image, depth=depth)
    del image, depth
    gc.collect()
    assert all(reference() is not None for reference in watched)
    session.run()
    session.close()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_call_equals_bind_and_run(session: Session, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=reference.images[2:3], depth=depth)
    session.run()
    assert np.array_equal(session(reference.images[2]), depth[0])
    assert np.array_equal(session(reference.images)[2], depth[0])


def test_bind_moves_to_other_memory(session: Session, reference: Reference) -> None:
    first, second = np.zeros((2, 1, 32, 48), np.float32)
    session.bind(image=reference.images[:1], depth=first)
    session.run()
    kept = first.copy()
    session.bind(image=reference.images[1:2], depth=second)
    session.run()
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_depth_is_within_the_range_of_the_spec(session: Session) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    frames[1], frames[2] = 0, 255
    depth = session(frames)
    low, high = session.spec.depth_range
    assert np.isfinite(depth).all()
    assert low <= depth.min() <= depth.max() <= high


def test_dynamic_batch(of_batch: Callable[[int | Dim], Path], reference: Reference) -> None:
    with load(of_batch(Dim("batch", 1, 2, 4))) as session:
        for frames in (1, 3, 4, 8, 2):
            found = session(reference.images[:frames])
            assert np.abs(found - reference.depths[:frames]).max() < 1e-3
        depths = np.full((4, 32, 48), -1, np.float32)
        session.bind(image=reference.images[:3], depth=depths[:3])
        session.run()
        assert np.abs(depths[:3] - reference.depths[:3]).max() < 1e-3
        assert (depths[3] == -1).all()
        groups = [reference.images[:3], reference.images[3:4], reference.images[4:]]
        assert np.abs(np.concatenate(list(session.stream(groups))) - reference.depths).max() < 1e-3
        with pytest.raises(FrameError):
            session.bind(image=reference.images[:5], depth=np.empty((5, 32, 48), np.float32))


def test_static_batch_of_two(of_batch: Callable[[int | Dim], Path], reference: Reference) -> None:
    with load(of_batch(2)) as session:
        assert np.abs(session(reference.images) - reference.depths).max() < 1e-3
        with pytest.raises(FrameError, match=r"3 frames.*batch of 2"):
            session(reference.images[:3])


def test_sessions_of_one_engine_are_independent(engine: Path, reference: Reference) -> None:
    with load(engine) as one, load(engine) as other:
        first, second = np.zeros((2, 1, 32, 48), np.float32)
        one.bind(image=reference.images[:1], depth=first)
        other.bind(image=reference.images[1:2], depth=second)
        one.run()
        one.close()
        other.run()
        assert np.abs(first[0] - reference.depths[0]).max() < 1e-3
        assert np.abs(second[0] - reference.depths[1]).max() < 1e-3


def test_closed_session_refuses_every_use(engine: Path, reference: Reference) -> None:
    session = load(engine)
    with pytest.raises(EngineError, match="bind"):
        session.run()
    session.bind(image=reference.images[:1], depth=np.empty((1, 32, 48), np.float32))
    session.close()
    session.close()
    for use in (session.run, lambda: session(reference.images)):
        with pytest.raises(EngineError, match="closed"):
            use()
