"""OpenVINO on the caller's own memory, and still the network that was trained."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from depthkit.errors import EngineError, FrameError, UserError
from depthkit.metrics import scaled_ssim
from depthkit.reference import Reference
from depthkit.runtime.ov import OpenVinoSession, open_engine
from depthkit.runtime.run_options import RunOptions
from depthkit.spec import Dim

from .engines import STEM, Engine, build_engine, needs_bf16, open_session


def test_frames_are_read_where_the_caller_has_them(session: OpenVinoSession, reference: Reference) -> None:
    image, depth = np.zeros((1, 32, 48, 3), np.uint8), np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images, reference.depths, strict=True):
        image[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_depth_lands_in_the_very_array_that_was_bound(session: OpenVinoSession, reference: Reference) -> None:
    """A slice of a larger buffer: only its bytes are written, at the address that it had before."""
    buffer = np.full((3, 32, 48), -1, np.float32)
    address = buffer.ctypes.data
    session.bind(image=reference.images[:1], depth=buffer[1:2])
    session.run()
    assert buffer.ctypes.data == address
    assert np.abs(buffer[1] - reference.depths[0]).max() < 1e-3
    assert (buffer[[0, 2]] == -1).all()


def test_read_only_frames_are_read_in_place_too(session: OpenVinoSession, reference: Reference, tmp_path: Path) -> None:
    """Pages that the operating system lets nobody write: a copy would miss what their owner writes later."""
    (tmp_path / "camera").write_bytes(reference.images[0].tobytes())
    owner = np.memmap(tmp_path / "camera", np.uint8, "r+", shape=(1, 32, 48, 3))
    image = np.memmap(tmp_path / "camera", np.uint8, "r", shape=(1, 32, 48, 3))
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images[:3], reference.depths[:3], strict=True):
        owner[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_runs_allocate_nothing(session: OpenVinoSession, reference: Reference) -> None:
    """Python keeps the first few hundred small objects for reuse; after those the memory stands still."""
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
    assert peak - before < min(image.nbytes, depth.nbytes), "neither is copied"
    assert after - before < 256, "100 runs"


def test_memory_is_freed_when_sessions_are_closed(engine: Engine, reference: Reference) -> None:
    process, closed = psutil.Process(), list[OpenVinoSession]()

    def use() -> None:
        with open_session(engine) as opened:
            opened(reference.images[:1])
            list(opened.stream(reference.images[:2, None]))
        closed.append(opened)

    for _ in range(5):
        use()
    before = process.memory_info().rss
    for _ in range(10):
        use()
    assert process.memory_info().rss - before < 10 * engine[0].stat().st_size // 4


def test_session_keeps_bound_memory_alive_until_it_is_closed(engine: Engine, reference: Reference) -> None:
    session = open_session(engine)
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


def test_call_answers_what_bind_and_run_do(session: OpenVinoSession, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=reference.images[2:3], depth=depth)
    session.run()
    assert np.array_equal(session(reference.images[2]), depth[0])
    assert np.array_equal(session(reference.images)[2], depth[0])


def test_bind_moves_to_other_memory(session: OpenVinoSession, reference: Reference) -> None:
    first, second = np.zeros((2, 1, 32, 48), np.float32)
    session.bind(image=reference.images[:1], depth=first)
    session.run()
    kept = first.copy()
    session.bind(image=reference.images[1:2], depth=second)
    session.run()
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_full_precision_is_torch_to_a_millimetre(session: OpenVinoSession, reference: Reference) -> None:
    assert np.abs(session(reference.images) - reference.depths).max() * 1000 <= 1.0


@pytest.mark.parametrize(
    ("stored", "hint", "executed"),
    [("fp16", "", {"f16", "f32"}), pytest.param("fp32", "bf16", {"bf16"}, marks=needs_bf16)],
)
def test_half_precision_is_torch_in_structure(
    pristine_exports: Path, tmp_path: Path, reference: Reference, stored: str, hint: str, executed: set[str]
) -> None:
    path = pristine_exports / f"{STEM}.{stored}.onnx"
    half = build_engine(path, tmp_path / "engine", {"inference_precision": hint})
    with open_session(half) as opened:
        found = opened(reference.images)
        assert opened.precision == half[1].precision_found
        assert opened.provider.split(", ")[1] in executed
    everywhere = np.ones((32, 48), bool)
    assert min(scaled_ssim(p, t, everywhere) for p, t in zip(found, reference.depths, strict=True)) >= 0.99


@needs_bf16
def test_engine_computes_in_what_it_was_built_for_also_where_openvino_prefers_another(engine: Engine) -> None:
    """A blob is compiled anew whenever it is imported, and then OpenVINO would take BF16 by itself."""
    with open_session(engine) as opened:
        assert (opened.precision, opened.provider.split(", ")[1]) == ("fp32", "f32")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threads": 1}, "OpenVINO CPU, f32, 1 thread, latency"),
        ({"threads": 1, "hint": "throughput", "pinning": True}, "OpenVINO CPU, f32, 1 thread, throughput"),
    ],
)
def test_provider_is_what_openvino_says_of_the_opened_engine(
    pristine_exports: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with open_session(build_engine(pristine_exports / f"{STEM}.fp32.onnx", tmp_path / "engine", options)) as opened:
        assert opened.provider == told


def test_dynamic_engine_takes_every_number_of_frames(
    sized: Callable[[tuple[int, int], Dim], Engine], reference: Reference
) -> None:
    with open_session(sized((32, 48), Dim("batch", 1, 2, 4))) as dynamic:
        for frames in (1, 3, 4, 8, 2):
            found = dynamic(reference.images[:frames])
            assert np.abs(found - reference.depths[:frames]).max() < 1e-3
        depths = np.full((4, 32, 48), -1, np.float32)
        dynamic.bind(image=reference.images[:3], depth=depths[:3])
        dynamic.run()
        assert np.abs(depths[:3] - reference.depths[:3]).max() < 1e-3
        assert (depths[3] == -1).all()
        groups = [reference.images[:3], reference.images[3:4], reference.images[4:]]
        answers = np.concatenate(list(dynamic.stream(groups)))
        assert np.abs(answers - reference.depths).max() < 1e-3
        with pytest.raises(FrameError):
            dynamic.bind(image=reference.images[:5], depth=np.empty((5, 32, 48), np.float32))


def test_engine_of_two_frames_takes_pairs(
    sized: Callable[[tuple[int, int], int], Engine], reference: Reference
) -> None:
    with open_session(sized((32, 48), 2)) as pairs:
        assert np.abs(pairs(reference.images) - reference.depths).max() < 1e-3
        with pytest.raises(FrameError, match=r"3 frames.*batch of 2"):
            pairs(reference.images[:3])


def test_closing_one_session_leaves_the_other(engine: Engine, reference: Reference) -> None:
    with open_session(engine) as one, open_session(engine) as other:
        first, second = np.zeros((2, 1, 32, 48), np.float32)
        one.bind(image=reference.images[:1], depth=first)
        other.bind(image=reference.images[1:2], depth=second)
        one.run()
        one.close()
        other.run()
        assert np.abs(first[0] - reference.depths[0]).max() < 1e-3
        assert np.abs(second[0] - reference.depths[1]).max() < 1e-3


def test_closed_session_refuses_in_our_words(engine: Engine, reference: Reference) -> None:
    session = open_session(engine)
    with pytest.raises(EngineError, match="bind"):
        session.run()
    session.bind(image=reference.images[:1], depth=np.empty((1, 32, 48), np.float32))
    session.close()
    session.close()
    for use in (session.run, lambda: session(reference.images), lambda: list(session.stream([]))):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_transfer_modes_are_for_gpus(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"openvino runs on the CPU.*'pinned'"):
        open_engine(*engine, RunOptions(transfer="pinned"))


# Series of frames
