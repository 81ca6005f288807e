"""OpenVINO streams: several requests at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest

from depthkit.errors import EngineError, FrameError
from depthkit.reference import Reference
from depthkit.runtime.ov import OpenVinoSession

from .engines import Engine, open_session


class _Watched:
    """A compiled model for three requests at a time, which counts them and can make one fail."""

    optimum = 3

    def __init__(self, compiled: Any, failing: int | None = None) -> None:
        self._compiled, self._failing = compiled, failing
        self.made = self.waits = 0
        self.started: list[Any] = []

    def create_infer_request(self) -> Any:
        watched, request = self, self._compiled.create_infer_request()

        class Request:
            def start_async(self) -> None:
                request.start_async()
                watched.started.append(request)

            def wait(self) -> None:
                request.wait()
                watched.waits += 1
                if watched.waits == watched._failing:
                    raise RuntimeError("Exception from src/a.cpp:1:\nout of luck")

            def __getattr__(self, name: str) -> Any:
                return getattr(request, name)

        self.made += 1
        return Request()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def get_property(self, name: str) -> Any:
        return self.optimum if name == "OPTIMAL_NUMBER_OF_INFER_REQUESTS" else self._compiled.get_property(name)

    @property
    def at_rest(self) -> bool:
        return all(request.wait_for(0) for request in self.started)


def _watch(session: OpenVinoSession, failing: int | None = None) -> _Watched:
    session._compiled = watched = _Watched(session._compiled, failing)
    return watched


@pytest.mark.parametrize("several", [False, True], ids=["optimum here", "three"])
def test_stream_equals_a_call(throughput: Engine, reference: Reference, several: bool) -> None:
    order = np.random.default_rng(0).permutation(np.arange(8).repeat(8))
    with open_session(throughput) as opened:
        expected = opened(reference.images)
        if several:
            _watch(opened)
        found = list(opened.stream(reference.images[i : i + 1] for i in order))
    assert [depth.shape for depth in found] == [(1, 32, 48)] * len(order)
    assert np.array_equal(np.concatenate(found), expected[order])
    assert len({depth.ctypes.data for depth in found}) == len(found), "each the caller's own"


def test_stream_runs_the_optimal_number_of_requests(throughput: Engine, reference: Reference) -> None:
    drawn = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal drawn
        for _ in range(40):
            drawn += 1
            yield reference.images[:1]

    with open_session(throughput) as opened:
        watched = _watch(opened)
        under_way = [drawn - answered for answered, _ in enumerate(opened.stream(frames()))]
        assert under_way == [3] * 38 + [2, 1]
        assert watched.made == watched.optimum


def test_latency_engine_streams_frame_by_frame(session: OpenVinoSession, reference: Reference) -> None:
    frames = iter(reference.images[:, None])
    answers = session.stream(frames)
    assert np.abs(next(answers) - reference.depths[:1]).max() < 1e-3
    assert np.array_equal(next(frames), reference.images[1:2])


def test_stream_keeps_the_bound_arrays(throughput: Engine, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    with open_session(throughput) as opened:
        opened.bind(image=reference.images[:1], depth=depth)
        list(opened.stream(reference.images[1:, None]))
        opened.run()
    assert np.abs(depth - reference.depths[:1]).max() < 1e-3


def test_abandoned_stream_leaves_no_request_running(throughput: Engine, reference: Reference) -> None:
    with open_session(throughput) as opened:
        watched = _watch(opened)
        answers = opened.stream(reference.images[:1] for _ in range(20))
        next(answers)
        assert isinstance(answers, Generator)
        answers.close()
        assert watched.at_rest


@pytest.mark.parametrize("good", [0, 1, 5])
def test_error_of_the_source_leaves_nothing_running(throughput: Engine, reference: Reference, good: int) -> None:
    def frames() -> Iterator[np.ndarray]:
        for _ in range(good):
            yield reference.images[:1]
        raise OSError("camera unplugged")

    with open_session(throughput) as opened:
        watched = _watch(opened)
        with pytest.raises(OSError, match="camera unplugged"):
            list(opened.stream(frames()))
        assert watched.at_rest
        assert np.abs(opened(reference.images[0]) - reference.depths[0]).max() < 1e-3


def test_invalid_frame_is_refused(throughput: Engine, reference: Reference) -> None:
    with open_session(throughput) as opened:
        for wrong in (reference.images[:2], reference.images[:1].astype(np.float32), reference.images[:1, ::-1]):
            depths, answered = opened.stream([reference.images[:1], wrong]), 0
            with pytest.raises(FrameError, match="image"):
                for depth in depths:
                    np.testing.assert_allclose(depth, reference.depths[:1], atol=1e-3)
                    answered += 1
            assert answered == 1, "the answers of those before it come first"


@pytest.mark.parametrize("failing", [1, 2, 5])
def test_failed_inference_is_an_engine_error(throughput: Engine, reference: Reference, failing: int) -> None:
    with open_session(throughput) as opened:
        watched = _watch(opened, failing)
        with pytest.raises(EngineError, match=r"openvino cannot run: OpenVINO says: out of luck") as caught:
            list(opened.stream(reference.images[:, None]))
        assert caught.value.__cause__ is not None
        assert watched.at_rest


def test_stream_ends_when_its_session_is_closed(throughput: Engine, reference: Reference) -> None:
    opened = open_session(throughput)
    answers = opened.stream(reference.images[:1] for _ in range(20))
    next(answers)
    opened.close()
    for frames in (answers, opened.stream([])):
        with pytest.raises(EngineError, match="closed"):
            list(frames)
