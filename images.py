"""Pictures and depth maps: read, resize, write. Every part of the house that touches an image file does it here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import DataError, FrameError
from .files import atomic_write

__all__ = [
    "IMAGE_SUFFIXES",
    "colour",
    "find_images",
    "read_depth",
    "read_image",
    "resize_depth",
    "resize_image",
    "write_depth_png",
    "write_image",
]

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_DEPTH_MODES: Final = frozenset({"L", "I", "I;16", "I;16B"})
_MILLIMETRES: Final = 1000


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder, by name; not those in folders within it. Raises DataError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{folder} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def read_image(path: Path) -> np.ndarray:
    """An image file as H x W x 3 uint8 RGB, upright as its EXIF says.

    Raises:
        DataError: missing, empty, truncated or no image.
    """
    with _decoded(path) as picture:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def read_depth(path: Path) -> np.ndarray:
    """A one-channel PNG as it is stored: H x W, uint8 or (16 bit) int32. Raises DataError."""
    with _decoded(path) as picture:
        if picture.mode not in _DEPTH_MODES:
            raise DataError(f"{path} is no depth map (Pillow mode {picture.mode}); one 8- or 16-bit channel is needed")
        return np.array(picture) if picture.mode == "L" else np.array(picture, dtype=np.int32)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H x W x 3 uint8 to `size` (height, width), bilinear with antialiasing; the same array where it already fits.

    Raises:
        FrameError: an array that is no uint8 picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise FrameError(f"a picture must be H x W x 3 uint8, not {image.shape} {image.dtype}")
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_depth(depth: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """H x W float32 metres to `size` (height, width); the same array where it already fits.

    A prediction is interpolated (`smooth`). A measured map is not: nearest neighbour keeps its holes, and invents no
    depth between two surfaces.
    """
    if depth.shape == size:
        return depth
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(depth).resize((size[1], size[0]), method))


def colour(depth: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """H x W metres as H x W x 3 uint8 in matplotlib's `turbo`, near blue to far red, between the two ends of `span`."""
    from matplotlib import colormaps

    low, high = span
    share = np.clip((depth - low) / max(high - low, 1e-6), 0, 1)
    return np.asarray(colormaps["turbo"](share, bytes=True)[..., :3])


def write_image(path: Path, image: np.ndarray) -> None:
    """Write H x W x 3 uint8 in the format of the suffix, whole or not at all. Raises OutputError."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)


def write_depth_png(path: Path, depth: np.ndarray) -> None:
    """Write H x W metres as 16-bit PNG in millimetres (0 for NaN), whole or not at all. Raises OutputError."""
    millimetres = np.clip(np.rint(np.nan_to_num(depth, nan=0.0) * _MILLIMETRES), 0, 65535).astype(np.uint16)
    with atomic_write(path) as temporary:
        Image.fromarray(millimetres).save(temporary)


@contextmanager
def _decoded(path: Path) -> Iterator[Image.Image]:
    """Open an image and decode it whole; every way in which Pillow can refuse becomes a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of before it raises, or of very large pictures
            with Image.open(path) as picture:
                picture.load()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        state = "is empty" if path.stat().st_size == 0 else "is not an image that Pillow knows"
        raise DataError(f"{path} {state}; replace it or take it out") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded ({error}); replace it or take it out") from error
    yield picture
