"""`depthkit.Predictor`: frames of any size and memory layout, threads, closing, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import depthkit
from depthkit.data.images import fill_image, resize_depth, resize_image
from depthkit.errors import BackendError, EngineError, FrameError, UserError
from depthkit.frames import AnySize, predict_frames
from depthkit.pipeline import predictor as module
from depthkit.pipeline.predictor import Predictor
from depthkit.runtime.load import load
from depthkit.runtime.null import NullSession
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle
from depthkit.train.hub import DepthModel

from ..support import STEM, model_spec

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 90))


class FirstChannel(NullSession):
    """Depth is the frame's first channel: what the session saw can be read from its answer."""

    def __init__(self, batch: int | Dim = 1) -> None:
        super().__init__(model_spec(16, 32, batch), 0.0)

    def run(self) -> None:
        image, depth = self._buffers()
        depth[...] = image[..., 0]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FirstChannel]]:
    """The sessions that predictors opened, each a `FirstChannel`."""
    sessions: list[FirstChannel] = []

    def open_target(_: Path) -> FirstChannel:
        sessions.append(FirstChannel())
        return sessions[-1]

    monkeypatch.setattr(module, "open_target", open_target)
    yield sessions
    assert all(session._closed for session in sessions)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(size=SIZES)
def test_depth_has_the_size_of_the_frame_and_belongs_to_the_caller(size: tuple[int, int]) -> None:
    model, frame = AnySize(FirstChannel()), noise(*size)
    (depth,) = model.run([frame])
    expected = resize_depth(resize_image(frame, (16, 32))[..., 0].astype(np.float32), size, smooth=True)
    assert depth.shape == size
    assert depth.dtype == np.float32
    assert np.abs(depth - expected).max() <= 1 + 1e-3
    before = depth.copy()
    next(model.run([255 - frame]))
    np.testing.assert_array_equal(depth, before)


@given(down=st.integers(1, 11), across=st.integers(1, 11), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_sizes_that_divide_differ_from_training_by_a_rounding(down: int, across: int, size: tuple[int, int]) -> None:
    for frame in (noise(size[0] * down, size[1] * across), np.full((size[0] * down, size[1] * across, 3), 255, "u1")):
        target = np.zeros((*size, 3), np.uint8)
        fill_image(target, frame)
        assert np.abs(target.astype(int) - resize_image(frame, size)).max() <= 1


@given(small=st.tuples(st.integers(1, 20), st.integers(1, 20)), more=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_depth_is_enlarged_as_pillow_does(small: tuple[int, int], more: tuple[int, int]) -> None:
    from PIL import Image

    depth = np.random.default_rng(0).uniform(0, 10, small).astype(np.float32)
    size = small[0] + more[0], small[1] + more[1]
    expected = np.asarray(Image.fromarray(depth).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize_depth(depth, size, smooth=True), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 32), (32, 64), (33, 50), (8, 8)])
@pytest.mark.usefixtures("opened")
def test_bgr_is_rgb_of_the_frame_with_its_channels_reversed(size: tuple[int, int]) -> None:
    frame = noise(*size)
    with Predictor("x", color="bgr") as bgr, Predictor("x") as rgb:
        np.testing.assert_array_equal(bgr(frame), rgb(np.ascontiguousarray(frame[..., ::-1])))
        assert not np.array_equal(bgr(frame), rgb(frame))


@pytest.mark.parametrize("size", [(32, 64), (16, 32), (25, 40)])
@pytest.mark.usefixtures("opened")
def test_memory_layout_does_not_matter_and_the_frame_is_not_written(size: tuple[int, int]) -> None:
    frame = noise(*size)
    fortran, wide = np.asfortranarray(frame), np.zeros((*size, 5), np.uint8)
    wide[..., 1:4] = frame
    double = np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1)
    read_only = frame.copy()
    read_only.flags.writeable = False
    with Predictor("x") as predictor:
        expected = predictor(frame)
        views = [
            fortran,
            wide[..., 1:4],
            double[::2, ::2],
            frame[::-1].copy()[::-1],
            frame[..., ::-1].copy()[..., ::-1],
        ]
        for view in (read_only, *views):
            np.testing.assert_array_equal(predictor(view), expected)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (noise(8, 8)[None], "one by one"),
        (noise(8, 8)[..., 0], "np.repeat"),
        (np.zeros((8, 8, 4), np.uint8), "fourth channel"),
        (np.zeros((8, 8, 1), np.uint8), r"not \(8, 8, 1\)"),
        (np.zeros((8, 8, 3), np.float32), "float32; convert it to 8 bits"),
        (np.zeros((8, 8, 3), np.uint16), "uint16"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        ([[[0, 0, 0]]], "not list"),
        (None, "not NoneType"),
    ],
)
@pytest.mark.usefixtures("opened")
def test_what_is_no_frame_is_refused_in_one_sentence(frame: Any, words: str) -> None:
    with Predictor("x") as predictor:
        with pytest.raises(FrameError, match=words) as error:
            predictor(frame)
        assert "H x W x 3 uint8" in str(error.value)
        assert predictor(noise(8, 8)).shape == (8, 8)


@pytest.mark.usefixtures("opened")
def test_size_of_the_depth_can_be_chosen() -> None:
    frame = noise(48, 64)
    with Predictor("x") as predictor:
        assert predictor(frame, (5, 7)).shape == (5, 7)
        small = predictor(frame, predictor.size)
        np.testing.assert_array_equal(resize_depth(small, (48, 64), smooth=True), predictor(frame))
        for size in ((0, 5), (5,), 5, "ab", (5.5, 3)):
            with pytest.raises(FrameError, match="height and a width"):
                predictor(frame, size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"), [({"color": "RGB"}, "'rgb', 'bgr'"), ({"threads": 0}, "from 1"), ({"threads": 1.5}, "1.5")]
)
def test_wrong_options_are_refused_before_an_engine_is_opened(
    opened: list[FirstChannel], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Predictor("x", **options)
    assert opened == []


def test_an_unknown_engine_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"no run, ONNX file or engine nowhere.*compact"):
        Predictor("nowhere")


@pytest.mark.parametrize("threads", [1, 3])
def test_many_threads_get_what_one_gets(pristine_exports: Path, threads: int) -> None:
    engine = pristine_exports / f"{STEM}.fp32.ort.onnx"
    frames = [noise(20 + 4 * index, 96 - 3 * index, index) for index in range(12)]
    with Predictor(engine) as alone:
        expected = [alone(frame) for frame in frames]
    with Predictor(engine, threads=threads) as predictor, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: list(map(predictor, frames)), range(8)):
            for depth, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(depth, other)


def test_sessions_are_opened_when_they_are_needed(opened: list[FirstChannel], monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=20)
    with Predictor("x", threads=5) as predictor:
        for _ in range(3):
            predictor(noise(8, 8))
        assert len(opened) == 1
        monkeypatch.setattr(FirstChannel, "run", lambda _: together.wait())
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(predictor, [noise(8, 8)] * 2))
        assert len(opened) == 2


@pytest.mark.usefixtures("opened")
def test_an_error_does_not_lose_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: FirstChannel) -> None:
        raise BackendError("out of memory")

    with Predictor("x") as predictor:
        with monkeypatch.context() as patch:
            patch.setattr(FirstChannel, "run", fail)
            for _ in range(3):
                with pytest.raises(BackendError, match="out of memory"):
                    predictor(noise(8, 8))
        assert predictor(noise(8, 8)).shape == (8, 8)


def test_a_session_that_cannot_be_opened_leaves_its_place_free(
    opened: list[FirstChannel], monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(_: Path) -> FirstChannel:
        raise BackendError("no memory")

    with Predictor("x", threads=2) as predictor, predictor._pool.lend():
        with monkeypatch.context() as patch:
            patch.setattr(module, "open_target", refuse)
            for _ in range(3):
                with pytest.raises(BackendError, match="no memory"):
                    predictor(noise(8, 8))
        assert predictor(noise(8, 8)).shape == (8, 8)
    assert len(opened) == 2


def test_close_waits_for_the_call_in_flight_and_refuses_those_that_wait(
    opened: list[FirstChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()
    run = FirstChannel.run

    def slow(session: FirstChannel) -> None:
        started.set()
        assert go_on.wait(20)
        assert not session._closed
        run(session)

    monkeypatch.setattr(FirstChannel, "run", slow)
    predictor = Predictor("x")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(predictor, noise(8, 8))
        assert started.wait(20)
        second = pool.submit(predictor, noise(8, 8))
        closing = [pool.submit(predictor.close) for _ in range(2)]
        with pytest.raises(EngineError, match="this predictor is closed"):
            second.result(20)
        assert not any(each.done() for each in closing)
        go_on.set()
        assert first.result(20).shape == (8, 8)
        for each in closing:
            each.result(20)
    assert opened[0]._closed
    predictor.close()
    with pytest.raises(EngineError, match="this predictor is closed; make another one"):
        predictor(noise(8, 8))


def test_repr_says_what_runs(pristine_exports: Path) -> None:
    engine = pristine_exports / f"{STEM}.fp32.ort.onnx"
    with Predictor(engine, color="bgr", threads=2) as predictor:
        shown = repr(predictor)
    words = (engine.name, "compact at 32x48", "fp32 by CPUExecutionProvider", "color=bgr", "threads=2")
    assert [word for word in words if word not in shown] == []


@pytest.mark.parametrize("name", ["fp32.ort.onnx", "fp32.onnx", ""])
def test_engine_file_and_run_answer_alike(pristine_exports: Path, name: str) -> None:
    target = pristine_exports / f"{STEM}.{name}" if name else pristine_exports
    frame = noise(64, 96)
    expected = DepthModel(read_bundle(pristine_exports)).predict(frame)
    with depthkit.Predictor(target) as predictor:
        np.testing.assert_allclose(predictor(frame), expected, atol=1e-3)


def test_an_engine_with_a_batch_takes_single_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (4, Dim("batch", 2, 4, 8)):
        monkeypatch.setattr(module, "open_target", lambda _, batch=batch: FirstChannel(batch))
        with Predictor("x") as predictor:
            np.testing.assert_array_equal(predictor(noise(16, 32)), noise(16, 32)[..., 0])


def test_answers_are_those_of_before_but_for_a_rounding(pristine_exports: Path) -> None:
    """Before, every frame was resized by `resize_image`; where sizes do not divide, answers are the same."""
    with load(pristine_exports / f"{STEM}.fp32.ort.onnx") as session, Predictor(pristine_exports) as predictor:
        for size, most in (((64, 96), 0.05), ((50, 70), 1e-3), ((32, 48), 1e-3)):
            before = resize_depth(session(resize_image(noise(*size), (32, 48))), size, smooth=True)
            (after,) = predict_frames(session, [noise(*size)])
            assert np.abs(after - before).max() < most
            assert np.abs(predictor(noise(*size)) - before).max() < most
