"""ONNX Runtime on the caller's own memory, and still the network that was trained."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import EngineError, FrameError
from depthkit.metrics import scaled_ssim
from depthkit.reference import Reference
from depthkit.runtime.load import load
from depthkit.spec import Dim

STEM = "compact-32x48"


def test_frames_are_read_where_the_caller_has_them(fp32: Path, reference: Reference) -> None:
    image, depth = np.zeros((1, 32, 48, 3), np.uint8), np.empty((1, 32, 48), np.float32)
    with load(fp32) as session:
        session.bind(image=image, depth=depth)
        for frame, expected in zip(reference.images, reference.depths, strict=True):
            image[0] = frame
            session.run()
            assert np.abs(depth[0] - expected).max() < 1e-3


def test_depth_lands_in_the_very_array_that_was_bound(fp32: Path, reference: Reference) -> None:
    """A slice of a larger buffer: only its bytes are written, at the address that it had before."""
    buffer = np.full((3, 32, 48), -1, np.float32)
    address = buffer.ctypes.data
    with load(fp32) as session:
        session.bind(image=reference.images[:1], depth=buffer[1:2])
        session.run()
    assert buffer.ctypes.data == address
    assert np.abs(buffer[1] - reference.depths[0]).max() < 1e-3
    assert (buffer[[0, 2]] == -1).all()


def test_runs_allocate_nothing(fp32: Path, reference: Reference) -> None:
    """Python keeps the first few hundred small objects for reuse; after those the memory stands still."""
    depth = np.empty((1, 32, 48), np.float32)
    with load(fp32) as session:
        session.bind(image=reference.images[:1], depth=depth)
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
    assert peak - before < depth.nbytes // 4, "not even one frame's depth"
    assert after - before < 256, "100 runs"


def test_session_keeps_bound_memory_alive_until_it_is_closed(fp32: Path, reference: Reference) -> None:
    session = load(fp32)
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


def test_call_answers_what_bind_and_run_do(fp32: Path, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    with load(fp32) as session:
        session.bind(image=reference.images[2:3], depth=depth)
        session.run()
        assert np.array_equal(session(reference.images[2]), depth[0])
        assert np.array_equal(session(reference.images)[2], depth[0])


def test_bind_moves_to_other_memory(fp32: Path, reference: Reference) -> None:
    first, second = np.zeros((2, 1, 32, 48), np.float32)
    with load(fp32) as session:
        session.bind(image=reference.images[:1], depth=first)
        session.run()
        kept = first.copy()
        session.bind(image=reference.images[1:2], depth=second)
        session.run()
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", [f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.onnx"])
def test_full_precision_is_torch_to_a_millimetre(pristine_exports: Path, reference: Reference, name: str) -> None:
    with load(pristine_exports / name) as session:
        assert np.abs(session(reference.images) - reference.depths).max() * 1000 <= 1.0


@pytest.mark.parametrize("name", [f"{STEM}.fp16.ort.onnx", f"{STEM}.fp16.onnx"])
def test_half_precision_is_torch_in_structure(pristine_exports: Path, reference: Reference, name: str) -> None:
    everywhere = np.ones((32, 48), bool)
    with load(pristine_exports / name) as session:
        found = session(reference.images)
    assert min(scaled_ssim(p, t, everywhere) for p, t in zip(found, reference.depths, strict=True)) >= 0.99


def test_depth_is_metres_within_the_specs_range(fp32: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    frames[1], frames[2] = 0, 255
    with load(fp32) as session:
        depth = session(frames)
        low, high = session.spec.depth_range
    assert np.isfinite(depth).all()
    assert low <= depth.min() <= depth.max() <= high


def test_dynamic_engine_takes_every_number_of_frames(
    batched: Callable[[int | Dim], Path], reference: Reference
) -> None:
    with load(batched(Dim("batch", 1, 2, 4))) as session:
        for frames in (1, 3, 4, 8):
            found = session(reference.images[:frames])
            assert np.abs(found - reference.depths[:frames]).max() < 1e-3
        with pytest.raises(FrameError):
            session.bind(image=reference.images[:5], depth=np.empty((5, 32, 48), np.float32))


def test_engine_of_two_frames_takes_pairs(batched: Callable[[int | Dim], Path], reference: Reference) -> None:
    with load(batched(2)) as session:
        assert np.abs(session(reference.images) - reference.depths).max() < 1e-3
        with pytest.raises(FrameError, match=r"3 frames.*batch of 2"):
            session(reference.images[:3])


def test_two_sessions_of_one_engine_do_not_meet(fp32: Path, reference: Reference) -> None:
    with load(fp32) as one, load(fp32) as other:
        first, second = np.zeros((2, 1, 32, 48), np.float32)
        one.bind(image=reference.images[:1], depth=first)
        other.bind(image=reference.images[1:2], depth=second)
        one.run()
        other.run()
        one.close()
        assert np.abs(first[0] - reference.depths[0]).max() < 1e-3
        other.run()
        assert np.abs(second[0] - reference.depths[1]).max() < 1e-3


def test_closed_session_refuses_in_our_words(fp32: Path, reference: Reference) -> None:
    session = load(fp32)
    with pytest.raises(EngineError, match="bind"):
        session.run()
    session.bind(image=reference.images[:1], depth=np.empty((1, 32, 48), np.float32))
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run()
    with pytest.raises(EngineError, match="closed"):
        session(reference.images)
