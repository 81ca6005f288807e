"""What every session does alike, on the one that needs no vendor, and what it refuses, on torch as well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.errors import EngineError, FrameError
from depthkit.runtime.null import NullSession
from depthkit.session import Peer, Session
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready
from depthkit.train.torch_session import TorchSession

from .support import Recorded

DEPTH = 2.5


def _session(batch: int | Dim = 1, size: tuple[int, int] = (16, 32)) -> NullSession:
    return NullSession(
        ModelSpec("compact", (8,), *camera_ready(*size, batch), Preprocessing(), (0.0, 10.0), 1, 1, None), DEPTH
    )


@pytest.fixture(params=["null", "torch"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Two backends whose shared refusals come from `SessionBase`."""
    if request.param == "null":
        opened: Session = _session()
    else:
        opened = TorchSession(request.getfixturevalue("pristine_run"), (16, 32))
    with opened:
        yield opened


def _frames(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def _bound() -> tuple[NullSession, np.ndarray]:
    """A session, and the depth that it is bound to."""
    session, depth = _session(), np.zeros((1, 16, 32), np.float32)
    session.bind(image=_frames(1, 16, 32, 3), depth=depth)
    return session, depth


def _watched(batch: int | Dim) -> Recorded:
    """Answers the first pixel of each frame."""
    return Recorded([], batch=batch, answer=lambda frame: frame[:1, :1, 0])


def _sizes(session: Recorded) -> list[int]:
    """How many frames each run took."""
    return [len(pixels) for pixels in session.seen]


def test_null_session_keeps_the_protocol() -> None:
    session = _session()
    assert isinstance(session, Session)
    assert session.provider
    assert session.precision == "fp32"


def test_run_writes_into_the_callers_own_array() -> None:
    session, depth = _bound()
    assert (depth == 0).all(), "bind computes nothing"
    session.run()
    assert (depth == DEPTH).all()


def test_one_frame_and_a_stack_answer_in_their_own_rank() -> None:
    with _session() as session:
        one, stack = session(_frames(16, 32, 3)), session(_frames(3, 16, 32, 3))
    assert one.shape == (16, 32)
    assert stack.shape == (3, 16, 32)
    assert one.dtype == stack.dtype == np.float32
    assert (one == DEPTH).all()


def test_answers_belong_to_the_caller(session: Session) -> None:
    first = session(_frames(16, 32, 3))
    kept = first.copy()
    second = session(_frames(16, 32, 3) + np.uint8(99))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


@given(batch=st.integers(1, 5), frames=st.integers(0, 12))
def test_static_batch_takes_its_multiples_only(batch: int, frames: int) -> None:
    session = _watched(batch)
    stack = _frames(frames, 16, 32, 3) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
    if frames and frames % batch == 0:
        depth = session(stack)
        assert _sizes(session) == [batch] * (frames // batch)
        assert (depth == np.arange(frames)[:, None, None]).all(), "frames in the order in which they came"
    else:
        with pytest.raises(FrameError, match=f"{frames} frames.*batch of {batch}"):
            session(stack)
        assert not session.seen


@given(sizes=st.tuples(*[st.integers(1, 6)] * 3), frames=st.integers(1, 20))
def test_dynamic_batch_runs_within_its_range(sizes: tuple[int, int, int], frames: int) -> None:
    low, best, high = sorted(sizes)
    session = _watched(Dim("batch", low, best, high))
    stack = _frames(frames, 16, 32, 3) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
    feasible = any(low * runs <= frames <= high * runs for runs in range(1, frames + 1))
    if feasible:
        assert (session(stack) == np.arange(frames)[:, None, None]).all()
        assert sum(_sizes(session)) == frames
        assert all(low <= size <= high for size in _sizes(session))
    else:
        with pytest.raises(FrameError):
            session(stack)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((16, 32, 3), np.float32), "uint8.*float32"),
        (np.zeros((16, 32, 3), np.int8), "uint8.*int8"),
        (_frames(32, 16, 3), "16, 32"),
        (_frames(1, 16, 48, 3), "16, 32"),
        (_frames(16, 32, 4), "16, 32, 3"),
        (_frames(16, 32), "16, 32, 3"),
        (_frames(1, 1, 16, 32, 3), "16, 32, 3"),
        (np.uint8(3) + _frames(), "16, 32, 3"),
    ],
)
def test_frame_of_another_dtype_size_or_rank_is_named(session: Session, frames: np.ndarray, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        session(frames)


def test_stream_answers_in_order_and_each_answer_is_the_callers_own() -> None:
    session = _watched(2)
    stacks = [np.full((2, 16, 32, 3), index, np.uint8) for index in range(5)]
    depths = list(session.stream(iter(stacks)))
    assert [depth.shape for depth in depths] == [(2, 16, 32)] * 5
    assert [float(depth.max()) for depth in depths] == [0, 1, 2, 3, 4]
    assert all(depth.dtype == np.float32 for depth in depths)
    assert not any(np.shares_memory(a, b) for a, b in pairwise(depths))


def test_stream_draws_no_more_than_it_must() -> None:
    """A camera's frames, without end."""
    drawn: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for index in count():
            drawn.append(index)
            yield np.full((1, 16, 32, 3), index, np.uint8)

    depths = _watched(1).stream(camera())
    assert drawn == []
    assert [float(next(depths).max()) for _ in range(3)] == [0, 1, 2]
    assert len(drawn) <= 8


def test_stream_refuses_what_the_engine_does_not_take_and_what_is_closed() -> None:
    session = _watched(1)
    depths = session.stream([_frames(1, 16, 32, 3), _frames(1, 16, 48, 3)])
    next(depths)
    with pytest.raises(FrameError, match="16, 32"):
        next(depths)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        next(session.stream([_frames(1, 16, 32, 3)]))
    assert list(session.stream([])) == []


def test_frames_that_are_not_contiguous_are_copied_by_a_call() -> None:
    session = _watched(1)
    flipped = np.arange(32, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)[:, ::-1]
    assert not flipped.flags.c_contiguous
    assert (session(flipped) == 31).all()


@pytest.mark.parametrize(
    ("image", "depth"),
    [
        (np.zeros((1, 16, 64, 3), np.uint8)[:, :, ::2], np.zeros((1, 16, 32), np.float32)),
        (_frames(1, 16, 32, 3), np.zeros((1, 16, 64), np.float32)[:, :, ::2]),
        (_frames(1, 16, 32, 3), np.broadcast_to(np.float32(0), (1, 16, 32))),
        (_frames(1, 16, 32, 3), np.zeros((1, 16, 32), np.float64)),
        (_frames(2, 16, 32, 3), np.zeros((2, 16, 32), np.float32)),
    ],
    ids=["strided image", "strided depth", "broadcast depth", "float64 depth", "two frames"],
)
def test_bind_refuses_memory_that_cannot_be_used_in_place(
    session: Session, image: np.ndarray, depth: np.ndarray
) -> None:
    with pytest.raises(FrameError):
        session.bind(image=image, depth=depth)


def test_bind_refuses_a_read_only_depth_and_takes_a_read_only_image(session: Session) -> None:
    image, depth = _frames(1, 16, 32, 3), np.zeros((1, 16, 32), np.float32)
    image.flags.writeable = False
    session.bind(image=image, depth=depth)
    depth.flags.writeable = False
    with pytest.raises(FrameError, match="read-only"):
        session.bind(image=image, depth=depth)


def test_bind_refuses_different_numbers_of_frames() -> None:
    session = _session(Dim("batch", 1, 2, 4))
    with pytest.raises(FrameError, match=r"2.*3"):
        session.bind(image=_frames(2, 16, 32, 3), depth=np.zeros((3, 16, 32), np.float32))


def test_refused_bind_keeps_what_was_bound() -> None:
    session, depth = _bound()
    with pytest.raises(FrameError):
        session.bind(image=_frames(1, 16, 48, 3), depth=depth)
    session.run()
    assert (depth == DEPTH).all()


def test_run_before_bind_says_what_to_call(session: Session) -> None:
    with pytest.raises(EngineError, match="bind"):
        session.run()


def test_closed_session_refuses_everything_and_closing_twice_is_harmless(session: Session) -> None:
    image, depth = _frames(1, 16, 32, 3), np.zeros((1, 16, 32), np.float32)
    session.bind(image=image, depth=depth)
    session.close()
    session.close()
    for use in (session.run, lambda: session(image[0]), lambda: session.bind(image=image, depth=depth)):
        with pytest.raises(EngineError, match="closed"):
            use()


class _Slow(NullSession):
    """Stays in use until `ends` is set."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, DEPTH)
        self.entered, self.ends = threading.Event(), threading.Event()

    def run(self) -> None:
        self.entered.set()
        assert self.ends.wait(10)
        super().run()


def _uses(session: NullSession) -> list[Callable[[], object]]:
    image, depth = _frames(1, 16, 32, 3), np.zeros((1, 16, 32), np.float32)
    return [
        lambda: session.bind(image=image, depth=depth),
        session.run,
        session.run_phases,
        lambda: session(_frames(16, 32, 3)),
        lambda: next(session.stream([image])),
        session.close,
    ]


@pytest.mark.parametrize("index", range(3, 5))
def test_a_session_in_use_refuses_another_thread_whatever_it_asks(index: int) -> None:
    """Also a backend that defines the method itself, as `_Slow` does."""
    session = _Slow(_session().spec)
    use = _uses(session)[index]
    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert session.entered.wait(10)
        for other in _uses(session):
            with pytest.raises(EngineError, match="another thread uses this session"):
                other()
    finally:
        session.ends.set()
        thread.join()
    assert (session(_frames(16, 32, 3)) == DEPTH).all(), "one after the other is no fault"


def test_a_thread_may_run_what_another_bound() -> None:
    session, depth = _bound()
    _in_a_thread(session.run)
    assert (depth == DEPTH).all()


def test_run_refuses_where_another_thread_has_bound_its_own_memory_since() -> None:
    session, depth = _bound()
    _in_a_thread(lambda: session.bind(image=_frames(1, 16, 32, 3), depth=np.zeros_like(depth)))
    with pytest.raises(EngineError, match="another thread has bound"):
        session.run()
    session.bind(image=_frames(1, 16, 32, 3), depth=depth)
    session.run()
    assert (depth == DEPTH).all()


def test_a_stream_is_not_in_use_while_its_caller_holds_an_answer() -> None:
    session = _watched(1)
    depths = session.stream(np.full((1, 16, 32, 3), index, np.uint8) for index in range(2))
    assert float(next(depths).max()) == 0
    _in_a_thread(lambda: session(np.full((16, 32, 3), 7, np.uint8)))
    assert float(next(depths).max()) == 1


def test_a_peer_says_what_every_session_says_before_bind_and_after_close() -> None:
    peer = Peer(_session().spec, "vendor", "fp32", lambda _, depth: lambda: depth.fill(DEPTH))
    with pytest.raises(EngineError, match="bind"):
        peer.run()
    depth = np.zeros((1, 16, 32), np.float32)
    peer.bind(image=_frames(1, 16, 32, 3), depth=depth)
    peer.run()
    assert (depth == DEPTH).all()
    peer.close()
    with pytest.raises(EngineError, match="closed"):
        peer.run()


def _in_a_thread(use: Callable[[], object]) -> None:
    """Run to the end in a thread of its own, and raise what it raised."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(use).result()


def test_with_block_closes_when_it_fails() -> None:
    session = _session()
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError
    with pytest.raises(EngineError, match="closed"):
        session.run()
