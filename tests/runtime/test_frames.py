"""Pictures of any size through an engine of one size."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.data.images import read_image, resize_depth, resize_image
from depthkit.errors import FrameError
from depthkit.frames import predict_frames
from depthkit.reference import Reference
from depthkit.runtime.load import load
from depthkit.runtime.null import NullSession
from depthkit.spec import Dim

from ..support import model_spec

BATCHES = st.integers(1, 5) | st.lists(st.integers(1, 5), min_size=3, max_size=3).map(
    lambda sizes: Dim("batch", *sorted(sizes))
)


class _Brightness(NullSession):
    """Depth is the mean of the first channel; keeps the batch of each run."""

    def __init__(self, batch: int | Dim) -> None:
        super().__init__(model_spec(16, 32, batch), 0.0)
        self.runs: list[int] = []

    def run(self) -> None:
        image, depth = self._buffers()
        self.runs.append(len(image))
        depth[...] = image[..., 0].mean(axis=(1, 2), keepdims=True)


def _pictures(count: int) -> list[np.ndarray]:
    """Pictures of different sizes, each of its own brightness."""
    return [np.full((10 + 7 * index, 50 - 3 * index, 3), 10 * index, np.uint8) for index in range(count)]


@given(batch=BATCHES, count=st.integers(0, 11))
def test_depths_keep_the_order_and_the_sizes_of_the_pictures(batch: int | Dim, count: int) -> None:
    session, pictures = _Brightness(batch), _pictures(count)
    depths = list(predict_frames(session, pictures))
    assert [depth.shape for depth in depths] == [picture.shape[:2] for picture in pictures]
    assert all(depth.dtype == np.float32 for depth in depths)
    assert [float(depth.mean()) for depth in depths] == pytest.approx(
        [10.0 * index for index in range(count)], abs=1e-3
    )


@pytest.mark.parametrize(("count", "runs"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_last_batch_is_padded(count: int, runs: int) -> None:
    session = _Brightness(2)
    assert len(list(predict_frames(session, _pictures(count)))) == count
    assert session.runs == [2] * runs


def test_pictures_are_read_one_batch_at_a_time() -> None:
    read: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for index, picture in enumerate(_pictures(6)):
            read.append(index)
            yield picture

    depths = predict_frames(_Brightness(2), pictures())
    assert read == []
    next(depths)
    assert read == [0, 1]
    next(depths)
    assert read == [0, 1]
    next(depths)
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((16, 32, 3), np.float32),
        np.zeros((16, 32, 3), np.uint16),
        np.zeros((16, 32), np.uint8),
        np.zeros((16, 32, 4), np.uint8),
        np.zeros((1, 16, 32, 3), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
    ],
    ids=lambda picture: f"{picture.shape} {picture.dtype}",
)
def test_invalid_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(FrameError, match="H x W x 3 uint8"):
        list(predict_frames(_Brightness(1), [picture]))


def test_depth_is_the_same_for_every_batch(fp32: Path, batched: Callable[..., Path], reference: Reference) -> None:
    pictures = reference.images[:5]
    for engine in (fp32, batched(2), batched(Dim("batch", 1, 2, 4))):
        with load(engine) as session:
            found = np.stack(list(predict_frames(session, pictures)))
        assert np.abs(found - reference.depths[:5]).max() < 1e-3


def test_nyu_frames_at_their_native_size(nyu: Path, fp32: Path) -> None:
    rows = list(csv.reader((nyu / "data" / "nyu2_test.csv").read_text().splitlines()))[::200]
    pictures = [read_image(nyu / image) for image, _ in rows]
    with load(fp32) as session:
        depths = list(predict_frames(session, pictures))
        for picture, depth in zip(pictures, depths, strict=True):
            assert picture.shape == (480, 640, 3)
            assert depth.shape == (480, 640)
            assert np.isfinite(depth).all()
            assert 0 <= depth.min() < depth.max() <= 10
            small = session(resize_image(picture, (32, 48)))
            assert np.array_equal(depth, resize_depth(small, (480, 640), smooth=True))
