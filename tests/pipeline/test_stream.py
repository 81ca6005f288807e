"""Depth of a source: all frames of a file in order, the newest of a live source, and the end in every case."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import depthkit
from depthkit.data.images import resize_image, write_image
from depthkit.errors import DataError, EngineError, UserError
from depthkit.pipeline.stream import stream
from depthkit.runtime.smooth import Smoother
from depthkit.runtime.source import Frame, Source
from depthkit.runtime.sources import open_source, paced

from ..runtime.clips import number, numbered, write_clip

SIZE = (24, 32)


def grey(image: np.ndarray) -> np.ndarray:
    """Metres that tell which picture they are of."""
    metres: np.ndarray = image.mean(axis=2, dtype=np.float32) + 1
    return metres


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    left = [each.name for each in threading.enumerate() if each.name.startswith("depthkit")]
    assert not left


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_is_answered_whole_and_in_order(tmp_path: Path, threads: int) -> None:
    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(28)))
    results = list(stream(source, grey, SIZE, threads=threads))
    assert [number(result.image) for result in results] == list(range(28))
    assert [result.frame.index for result in results] == list(range(28))
    for result in results:
        np.testing.assert_array_equal(result.small, grey(result.image))
        assert result.depth.shape == result.frame.size == (48, 64)
        assert result.at(SIZE) is result.small
        assert set(result.spent) == {"decode", "resize", "engine"}
    with pytest.raises(DataError, match="closed before"):
        iter(source)


def test_pictures_of_several_sizes_are_answered_each_at_its_own(tmp_path: Path) -> None:
    sizes = [(48, 64), (30, 20), (24, 32)]
    for index, size in enumerate(sizes):
        write_image(tmp_path / f"{index}.png", np.full((*size, 3), index, np.uint8))
    results = list(stream(open_source(tmp_path), grey, SIZE))
    assert [result.depth.shape for result in results] == [result.frame.size for result in results] == sizes


def test_the_predictor_streams_what_it_answers_frame_by_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        write_image(tmp_path / f"{index}.png", rng.integers(0, 256, (48, 64, 3), np.uint8))
    with depthkit.Predictor("compact") as predictor:
        for result in predictor.stream(tmp_path):
            image = result.frame.image()
            np.testing.assert_array_equal(result.image, resize_image(image, predictor.size))
            assert np.abs(result.depth - predictor(image)).max() < 1e-5
        with pytest.raises(DataError, match="no such file"):
            predictor.stream(tmp_path / "nothing.mp4")
    with depthkit.Predictor("compact", color="bgr") as bgr, pytest.raises(UserError, match="RGB"):
        bgr.stream(tmp_path)


def test_smoothing_follows_the_order_of_the_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(12))
    smooth = Smoother()
    expected = [smooth(grey(image), image) for image in (f.image(SIZE) for f in open_source(path))]
    found = [r.small for r in stream(open_source(path), grey, SIZE, threads=3, smoother=Smoother())]
    np.testing.assert_array_equal(found, expected)


def test_few_frames_are_read_ahead(tmp_path: Path) -> None:
    taken = []

    def frames() -> Iterator[Frame]:
        for index in range(100):
            taken.append(index)
            yield Frame(SIZE, index / 30, index, str(index), lambda *_: np.zeros((*SIZE, 3), np.uint8))

    for answered, _ in enumerate(stream(Source("x", frames(), SIZE), grey, SIZE, threads=2)):
        time.sleep(0.001)
        assert len(taken) <= answered + 1 + 2 + 3
    assert len(taken) == 100


def test_a_slow_engine_gets_the_newest_frame_of_a_live_source(tmp_path: Path) -> None:
    engine = 0.1

    def slow(image: np.ndarray) -> np.ndarray:
        time.sleep(engine)
        return grey(image)

    source = paced(open_source(write_clip(tmp_path / "clip.mkv", numbered(28) * 2)), 30)
    results = [(result.frame.index, result.age) for result in stream(source, slow, SIZE)]
    indices = [index for index, _ in results]
    assert indices == sorted(set(indices))  # none twice
    assert len(results) + source.dropped == 56
    ages = sorted(age for _, age in results)
    assert ages[len(ages) // 2] < 2 * engine


def test_a_caller_that_is_slow_gets_no_result_that_waited_for_it_twice(tmp_path: Path) -> None:
    source = paced(open_source(write_clip(tmp_path / "clip.mkv", numbered(28) * 2)), 30)
    ages = []
    for result in stream(source, grey, SIZE):
        ages.append(result.age)
        time.sleep(0.1)
    assert sorted(ages)[len(ages) // 2] < 0.15


def test_stopping_early_closes_the_source(tmp_path: Path) -> None:
    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(28)))
    results = stream(source, grey, SIZE)
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator
    with pytest.raises(DataError, match="closed"):
        iter(source)


def test_a_camera_that_gives_nothing_more_can_be_left() -> None:
    stopped = threading.Event()

    def frames() -> Iterator[Frame]:
        yield Frame(SIZE, 0, 0, "0", lambda *_: np.zeros((*SIZE, 3), np.uint8))
        stopped.wait()

    results = stream(Source("x", frames(), SIZE, live=True, close=stopped.set), grey, SIZE)
    next(results)
    before = time.perf_counter()
    results.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - before < 1


def test_what_comes_before_an_error_of_the_source_is_answered() -> None:
    def frames() -> Iterator[Frame]:
        for index in range(5):
            yield Frame(SIZE, index, index, str(index), lambda *_: np.zeros((*SIZE, 3), np.uint8))
        raise DataError("the disk is gone")

    answered: list[int] = []
    with pytest.raises(DataError, match="disk is gone"):
        answered.extend(result.frame.index for result in stream(Source("x", frames(), SIZE), grey, SIZE, threads=2))
    assert answered == [0, 1, 2, 3, 4]


def test_an_error_of_the_engine_reaches_the_caller(tmp_path: Path) -> None:
    def broken(image: np.ndarray) -> np.ndarray:
        raise EngineError("the device was lost")

    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(5)))
    with pytest.raises(EngineError, match="device was lost"):
        list(stream(source, broken, SIZE))
