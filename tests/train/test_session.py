"""Torch as a session. What every session refuses: tests/test_session.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from depthkit.errors import FrameError, SpecError
from depthkit.session import Session
from depthkit.train.bundle import read_bundle
from depthkit.train.torch_session import TorchSession

SIZE = (32, 48)


@pytest.fixture
def session(pristine_run: Path) -> Iterator[TorchSession]:
    with TorchSession(pristine_run) as opened:
        yield opened


def _frames(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_keeps_the_contract(session: TorchSession, pristine_run: Path) -> None:
    assert isinstance(session, Session)
    assert session.spec == read_bundle(pristine_run).spec
    assert session.precision == "fp32"
    assert "torch" in session.provider
    assert "cpu" in session.provider
    assert session.device == "cpu"


def test_answers_what_the_network_answers(session: TorchSession, pristine_run: Path) -> None:
    """The preprocessing of the ModelSpec, the network, and the range in metres, written out."""
    bundle, frame = read_bundle(pristine_run), _frames(1)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (bundle.spec.preprocessing.mean, bundle.spec.preprocessing.std)
    )
    with torch.no_grad():
        share = bundle.network((torch.from_numpy(frame).permute(0, 3, 1, 2) / 255 - mean) / std)[:, 0]
    low, high = bundle.spec.depth_range
    expected = (share * high).clamp(low, high).numpy()
    answer = session(frame)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_one_frame_or_many(session: TorchSession) -> None:
    frames = _frames(3)
    depths = session(frames)
    assert depths.shape == (3, *SIZE)
    for frame, depth in zip(frames, depths, strict=True):
        alone = session(frame)
        assert alone.shape == SIZE
        np.testing.assert_array_equal(alone, depth)


def test_bound_memory_is_read_and_written_in_place(session: TorchSession) -> None:
    frames = _frames(2)
    expected = session(frames)
    image, depth = np.empty((1, *SIZE, 3), np.uint8), np.zeros((1, *SIZE), np.float32)
    session.bind(image=image, depth=depth)
    for frame, answer in zip(frames, expected, strict=True):
        image[0] = frame  # after bind: only shared memory carries this over
        session.run()
        np.testing.assert_array_equal(depth[0], answer)


def test_a_read_only_picture_is_taken(session: TorchSession) -> None:
    frame = _frames(1)
    expected = session(frame)
    frame.flags.writeable = False
    np.testing.assert_array_equal(session(frame), expected)


def test_views_of_other_memory_are_taken_by_a_call(session: TorchSession) -> None:
    frame = _frames(1)
    mirrored = frame[:, :, ::-1]
    np.testing.assert_array_equal(session(mirrored), session(np.ascontiguousarray(mirrored)))


@pytest.mark.parametrize("size", [(16, 16), (48, 64)])
def test_another_size(pristine_run: Path, size: tuple[int, int]) -> None:
    with TorchSession(pristine_run, size) as session:
        assert session.spec.size == size
        assert session(_frames(2, size)).shape == (2, *size)
        with pytest.raises(FrameError):
            session(_frames(1))


def test_a_size_that_the_network_does_not_take(pristine_run: Path) -> None:
    with pytest.raises(SpecError, match="32x48"):
        TorchSession(pristine_run, (33, 48))


def test_a_batch(pristine_run: Path, session: TorchSession) -> None:
    frames = _frames(4)
    with TorchSession(read_bundle(pristine_run), batch=2) as pair:
        np.testing.assert_allclose(pair(frames), session(frames), atol=1e-4)
        with pytest.raises(FrameError, match="3 frames"):
            pair(frames[:3])


def test_the_bundles_own_preprocessing_and_range_are_used(run: Path) -> None:
    """ModelSpec owns them: a bundle that was trained with others is run with those."""
    path = run / "model.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["preprocessing"].update(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    document["model"]["depth_range"] = [0.5, 1.0]
    path.write_text(json.dumps(document), encoding="utf-8")
    with TorchSession(run) as session:
        assert session.spec == read_bundle(run).spec
        depth = session(_frames(1))
    assert 0.5 <= depth.min() <= depth.max() <= 1.0
