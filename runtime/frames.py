"""Frames of any size through an engine of one size, and depth back at the frames' own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from ..errors import FrameError
from ..images import resize_depth, resize_image
from ..session import Session
from ..spec import Dim

__all__ = ["predict_frames"]


def predict_frames(session: Session, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Depth in metres (H x W float32, each at its picture's size) of H x W x 3 uint8 pictures, in order.

    A picture of another size than the engine's is resized to it and its depth back; an engine with a batch gets that
    many pictures at once, and the last group is filled up with its first picture.

    Raises:
        FrameError: an array that is no uint8 picture.
    """
    batch = session.spec.batch
    least, most = (batch.min, batch.opt) if isinstance(batch, Dim) else (batch, batch)
    pending = iter(images)
    while group := list(islice(pending, most)):
        for image in group:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise FrameError(f"a picture must be H x W x 3 uint8, not {image.shape} {image.dtype}")
        resized = [resize_image(image, session.spec.size) for image in group]
        filled = resized + resized[:1] * (least - len(group))
        depths = session(np.stack(filled))
        for image, depth in zip(group, depths, strict=False):
            yield resize_depth(depth, image.shape[:2], smooth=True)
