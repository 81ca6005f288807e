"""Depth of pictures of any size, by an engine of a fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from ..data.images import resize_depth, resize_image
from ..session import Session
from ..spec import Dim

__all__ = ["predict_frames"]


def predict_frames(session: Session, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the depth in metres (H x W float32, at each picture's size) of H x W x 3 uint8 pictures, in order.

    Pictures are resized to the engine's size, and the depth back to the picture's. An engine with a batch gets that
    many pictures at once; the last group is padded with its first picture.

    Raises:
        FrameError: an array is not a uint8 picture.
    """
    batch = session.spec.batch
    least, most = (batch.min, batch.opt) if isinstance(batch, Dim) else (batch, batch)
    pending = iter(images)
    while group := list(islice(pending, most)):
        resized = [resize_image(image, session.spec.size) for image in group]
        filled = resized + resized[:1] * (least - len(group))
        depths = session(np.stack(filled))
        for image, depth in zip(group, depths, strict=False):
            yield resize_depth(depth, image.shape[:2], smooth=True)
