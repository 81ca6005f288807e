"""Depth of pictures of any size, by a session of a fixed size: resize, run, resize back.

It is here and not in `runtime/`, because the model in `train/hub.py` does the same, and `train` and `runtime` do not
import each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from .data.images import fill_image, resize_depth
from .session import Session
from .spec import Dim

__all__ = ["AnySize", "predict_frames"]


class AnySize:
    """A session with its own bound buffers, for pictures of any size.

    Args:
        session: bound here; bind nothing else while this is used.
        frames: pictures per run; None: the fewest that the session takes.
        flip: whether pictures are BGR instead of RGB.
    """

    def __init__(self, session: Session, *, frames: int | None = None, flip: bool = False) -> None:
        count = _batch(session)[0] if frames is None else frames
        self.session = session
        self._flip = flip
        self._image = np.zeros((count, *session.spec.size, 3), np.uint8)
        self._depth = np.empty((count, *session.spec.size), np.float32)
        session.bind(image=self._image, depth=self._depth)

    def run(self, images: Sequence[np.ndarray], size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Compute the depth of at most as many pictures as there are frames per run; the first fills the rest.

        Args:
            images: H x W x 3 uint8, of any sizes and memory layouts.
            size: height and width of the depth; None: each picture's.

        Returns:
            For each picture, in order, float32 depth: new arrays, which must be read before the next run.

        Raises:
            FrameError: an array is not a uint8 picture.
        """
        for target, image in zip(self._image, images, strict=False):
            fill_image(target, image, flip=self._flip)
        self._image[len(images) :] = self._image[0]
        self.session.run()
        sizes = [(image.shape[0], image.shape[1]) if size is None else size for image in images]
        return (_at_size(depth, each) for depth, each in zip(self._depth, sizes, strict=False))

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def predict_frames(session: Session, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the depth (H x W float32, at each picture's size) of H x W x 3 uint8 pictures, in order.

    Pictures are resized to the engine's size, and the depth back to the picture's. An engine with a batch gets that
    many pictures at once; the last group is padded with its first picture. It replaces the session's binding.

    Raises:
        FrameError: an array is not a uint8 picture.
    """
    least, most = _batch(session)
    pending = iter(images)
    while group := list(islice(pending, most)):
        yield from AnySize(session, frames=max(len(group), least)).run(group)


def _batch(session: Session) -> tuple[int, int]:
    """The fewest pictures per run, and how many are best."""
    batch = session.spec.batch
    return (batch.min, batch.opt) if isinstance(batch, Dim) else (batch, batch)


def _at_size(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth in a new array of that size."""
    return depth.copy() if depth.shape == size else resize_depth(depth, size, smooth=True)
