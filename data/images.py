"""Read, resize and write pictures and depth maps. All access to image files goes through this module."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, FrameError, UserError
from ..files import atomic_write
from .quiet import quiet
from .resample import can_shrink, enlarge, shrink
from .upload import UPLOAD_FORMATS, Upload

__all__ = [
    "RESULTS",
    "DataWarning",
    "Picture",
    "count_pixels",
    "fill_image",
    "find_images",
    "is_result",
    "looks_like_picture",
    "picture_size",
    "read_depth",
    "read_exif",
    "read_image",
    "read_pair",
    "read_resized",
    "resize_depth",
    "resize_image",
    "warn_skipped",
    "write_image",
]

RESULTS: Final = ("_depth.png", "_depth16.png", "_depth.npy")
"""Endings of the three files that `depthkit predict` writes of each picture, unless others are asked for."""

_PLUGINS: Final = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "Pillow>=11.3"}
"""Suffixes that some installations of Pillow do not open, and the package to install."""

# Formats that Pillow recognises but does not decode, or decodes by starting another program (EPS: Ghostscript).
_NOT_DECODED: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_SIXTEEN_BITS: Final = frozenset({"JPEG2000", "PNG", "PPM", "TIFF"})  # formats with a known white level at 16 bits
_DEPTH_MODES: Final = frozenset({"L", "I", "I;16", "I;16B"})
_ORIENTATION: Final = 0x0112
_TURNING: Final = range(2, 9)
_SIDEWAYS: Final = range(5, 9)  # of them, those that exchange height and width
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_LARGE: Final = 1 << 24  # pixels above which a JPEG is decoded at reduced size, if the target is small
_STRIP: Final = 256  # rows converted at a time, so that no whole copy of a large picture is made
_NAMED: Final = 10  # skipped files that a warning names; it only counts the rest


Picture: TypeAlias = Path | Upload
"""A file, or what somebody sent."""


class DataWarning(UserWarning):
    """A part of the data is not used; the command line prints the warning as one line."""


def looks_like_picture(path: Path) -> bool:
    """Whether the suffix is one that Pillow opens, or would open with a plug-in."""
    return path.suffix.lower() in _suffixes() | _PLUGINS.keys()


def find_images(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name, without hidden files and results of `depthkit predict`.

    A DataWarning names the skipped entries, including folders. Raises DataError if there is no picture.
    """
    entries = sorted(folder.iterdir())
    pictures = (path for path in entries if path.suffix.lower() in _suffixes() and not path.name.startswith("."))
    found = [path for path in pictures if path.is_file() and not is_result(path)]
    skipped = sorted(set(entries) - set(found))
    if not found:
        raise DataError(
            f"{folder} has no pictures{_list(skipped, ', only ')}; add some (.jpg, .png, .tif, .webp or another format "
            "that Pillow opens)"
        )
    warn_skipped(folder, skipped, len(entries))
    return found


def is_result(path: Path) -> bool:
    """Whether a file is one of the three that `depthkit predict` writes per picture, and the other two exist."""
    stems = [path.name.removesuffix(ending) for ending in RESULTS if path.name.endswith(ending)]
    return any(all(path.with_name(stem + ending).is_file() for ending in RESULTS) for stem in stems)


def warn_skipped(where: object, skipped: Sequence[Path], total: int) -> None:
    """Warn by DataWarning of skipped files, if there are any, with their number and names."""
    if skipped:
        warnings.warn(f"skipped {len(skipped)} of {total} in {where}{_list(skipped, ': ')}", DataWarning, stacklevel=3)


def read_image(path: Picture) -> np.ndarray:
    """Read a picture as H x W x 3 uint8 RGB, turned upright by its EXIF tag; 16-bit grey is scaled to 8 bits.

    Raises:
        DataError: missing, empty, truncated or not an image; or its white level is unknown (32-bit integers, floats).
    """
    picture, _, _ = _read(path)
    return _array(picture)


def read_resized(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image file at `size` (height, width); also return its own height and width.

    Like `resize_image(read_image(path), size)`, but without the full-size array. A JPEG of more than 16 megapixels is
    decoded at 1/2, 1/4 or 1/8 of its size, never below four times `size`. Raises DataError.
    """
    picture, shape, _ = _read(path, size)
    return _array(_resized(picture, size, Image.Resampling.BILINEAR)), shape


def read_pair(image_path: Path, depth_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a picture by `read_image` and its depth by `read_depth`.

    Raises:
        DataError: as both do; or EXIF turns the picture but the depth has the shape before turning. Depth maps are
            never turned, so the two would not match.
    """
    picture, (height, width), orientation = _read(image_path)
    stored = read_depth(depth_path)
    before = (width, height) if orientation >= 5 else (height, width)
    if orientation in _TURNING and stored.shape == before:
        raise DataError(
            f"{image_path} is rotated by its EXIF orientation ({orientation}), but its depth {depth_path} is not; save "
            "the picture upright without that tag (`mogrify -auto-orient`), and rotate the depth if necessary"
        )
    return _array(picture), stored


def read_depth(path: Path) -> np.ndarray:
    """Read the stored values of a one-channel PNG: H x W, uint8 or (16 bit) int32. Raises DataError."""
    with _opened(path) as picture:
        picture.load()
        if picture.mode not in _DEPTH_MODES:
            raise DataError(
                f"{path} is not a depth map (Pillow mode {picture.mode}); one 8- or 16-bit channel is needed"
            )
        stored = np.array(picture) if picture.mode == "L" else np.array(picture, dtype=np.int32)
    if stored.min() < 0:
        raise DataError(f"{path} holds negative depth ({stored.min()}); store 0 where nothing was measured")
    return stored


def read_exif(path: Picture) -> tuple[dict[int, Any], tuple[int, int]]:
    """The EXIF tags of a picture by their numbers, and its height and width as stored, not turned upright.

    Nothing is decoded. Raises DataError.
    """
    with _opened(path) as picture:
        found = picture.getexif()
        size = (picture.height, picture.width)
        if picture.format == "TIFF":  # Pillow turns its size, but not its pixels, when it opens one
            size = (found[ExifTags.Base.ImageLength], found[ExifTags.Base.ImageWidth])
        return {**found, **found.get_ifd(ExifTags.IFD.Exif)}, size


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture when upright; nothing is decoded. Raises DataError."""
    tags, (height, width) = read_exif(path)
    return (width, height) if tags.get(_ORIENTATION, 1) in _SIDEWAYS else (height, width)


def count_pixels(path: Picture) -> int:
    """How many pixels a picture declares; nothing is decoded. Raises DataError."""
    with _opened(path) as picture:
        return picture.width * picture.height


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize H x W x 3 uint8 to `size` (height, width), bilinear with antialiasing; the same array if it already fits.

    Raises:
        FrameError: the array is not H x W x 3 uint8.
    """
    _check_picture(image)
    if image.shape[:2] == size:
        return image
    return _array(_resized(Image.fromarray(image), size, Image.Resampling.BILINEAR))


def fill_image(target: np.ndarray, image: np.ndarray, *, flip: bool = False) -> None:
    """Write H x W x 3 uint8 into `target`, another such array, at its size.

    The pixels are those of `resize_image`, up to a rounding by 1 where the sizes divide: that case is faster here.

    Args:
        target: written.
        image: of any size and memory layout; it may be read-only.
        flip: reverse the order of the channels, from BGR to RGB.

    Raises:
        FrameError: `image` is not H x W x 3 uint8.
    """
    _check_picture(image)
    height, width = target.shape[:2]
    if can_shrink(image.shape[:2], (height, width)):
        shrink(image, target, flip=flip)
    else:
        resized = resize_image(image, (height, width))
        target[...] = resized[..., ::-1] if flip else resized


def _check_picture(image: np.ndarray) -> None:
    """Raise FrameError unless the array is H x W x 3 uint8, and not empty."""
    if not isinstance(image, np.ndarray):
        raise FrameError(f"a picture must be an H x W x 3 uint8 array, not {type(image).__name__}; see numpy.asarray")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    remedy = ""
    if image.ndim == 4:
        remedy = "; pass the pictures of a batch one by one"
    elif image.ndim == 2:
        remedy = "; repeat a grey picture's channel: np.repeat(picture[..., None], 3, axis=2)"
    elif image.ndim == 3 and image.shape[2] == 4:
        remedy = "; drop the fourth channel: picture[..., :3]"
    elif image.size and image.dtype != np.uint8:
        remedy = "; convert it to 8 bits, 0 to 255"
    raise FrameError(f"a picture must be H x W x 3 uint8, not {image.shape} {image.dtype}{remedy}")


def resize_depth(depth: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Resize H x W float32 depth to `size` (height, width); the same array if it already fits.

    Predictions are interpolated (`smooth`). Measured maps are not: nearest neighbour keeps holes, and makes no false
    depth between two surfaces.
    """
    if depth.shape == size:
        return depth
    if smooth and depth.shape[0] <= size[0] and depth.shape[1] <= size[1]:
        return enlarge(depth, size)
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return _array(_resized(Image.fromarray(depth), size, method))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write H x W x 3 uint8 atomically, in the format of the suffix. Raises OutputError."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)


def _read(path: Picture, size: tuple[int, int] | None = None) -> tuple[Image.Image, tuple[int, int], int]:
    """A decoded picture, upright and RGB; its full height and width when upright; its EXIF orientation, 1 to 8.

    With `size`, a large JPEG is decoded smaller than its full height and width.
    """
    with _opened(path) as picture:
        found = picture.getexif().get(_ORIENTATION)
        orientation = int(found) if found is not None and found in _TURNING else 1
        stored = picture.size
        if size is not None and picture.width * picture.height > _LARGE:
            picture.draft(None, (4 * max(size), 4 * max(size)))  # does nothing for formats other than JPEG
        is_smaller = picture.size != stored
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        width, height = stored if is_smaller else picture.size
        shape = (width, height) if is_smaller and orientation in _SIDEWAYS else (height, width)
        shown = _eight_bits(path, picture)
        return (shown if shown.mode == "RGB" else shown.convert("RGB")), shape, orientation


def _eight_bits(path: Picture, picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; 16-bit grey is scaled. Raises DataError for other modes.

    Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    # PPM, and PNG in Pillow before 11, have 16 bits in mode I; a TIFF in that mode is signed or has 32 bits.
    is_known = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in {"PNG", "PPM"})
    if picture.format not in _SIXTEEN_BITS or not is_known:
        kind = "floats" if picture.mode == "F" else "integers of unknown range"
        raise DataError(
            f"{path} holds {kind} (Pillow mode {picture.mode}) without a defined white level; convert it to 8 bits "
            "first: Image.fromarray(np.uint8(np.clip(values / white, 0, 1) * 255))"
        )
    tags = getattr(picture, "tag_v2", {})
    white = 2 ** int(tags.get(_BITS, (16,))[0]) - 1
    levels = (np.arange(white + 1) * 510 + white) // (2 * white)  # 255 * value / white, rounded
    if tags.get(_PHOTOMETRIC) == 0:  # zero is white; Pillow inverts this for 8 bits only
        levels = levels[::-1]
    return Image.fromarray(levels.astype(np.uint8)[np.asarray(picture)])


def _resized(picture: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return picture if picture.size == size[::-1] else picture.resize(size[::-1], method)


def _array(picture: Image.Image) -> np.ndarray:
    """Like `np.array(picture)`, which needs memory for two more copies of the picture."""
    width, height = picture.size
    strips = (picture.crop((0, top, width, min(top + _STRIP, height))) for top in range(0, height, _STRIP))
    first = np.asarray(next(strips))
    whole = np.empty((height, *first.shape[1:]), first.dtype)
    whole[:_STRIP] = first
    for index, strip in enumerate(strips, 1):
        whole[index * _STRIP : (index + 1) * _STRIP] = np.asarray(strip)
    return whole


@cache
def _formats() -> tuple[str, ...]:
    """Formats that the installed Pillow decodes, including HEIF if its plug-in is installed."""
    with suppress(ModuleNotFoundError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@cache
def _suffixes() -> frozenset[str]:
    """The suffixes of `_formats`, in lower case."""
    formats = {*_formats(), "MPO"}  # the JPEG reader opens MPO
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _list(paths: Sequence[Path], before: str) -> str:
    """`before` and the names of `paths`, with the plug-ins that would open some of them; empty without paths."""
    if not paths:
        return ""
    rest = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    needed = {path.suffix.lower() for path in paths} & (_PLUGINS.keys() - _suffixes())
    remedy = "".join(f" ({suffix} needs pip install '{_PLUGINS[suffix]}')" for suffix in sorted(needed))
    return f"{before}{', '.join(path.name for path in paths[:_NAMED])}{rest}{remedy}"


@contextmanager
def _opened(path: Picture) -> Iterator[Image.Image]:
    """Open a picture; every error of Pillow, here or in the block, becomes a DataError."""
    try:
        with quiet, _open(path) as picture:  # Pillow warns before it raises, and of very large pictures
            yield picture
    except UserError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} {_why_unknown(path)}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(f"{path} is too large to decode ({error}); make it smaller, or remove it") from error
    except Exception as error:  # the readers of the formats raise many different errors for damaged bytes
        raise DataError(f"{path} cannot be decoded ({error}); replace or remove it") from error


def _open(path: Picture) -> Image.Image:
    if not isinstance(path, Upload):
        return Image.open(path, formats=_formats())
    picture = Image.open(io.BytesIO(path.content), formats=UPLOAD_FORMATS)
    path.require_fit(*picture.size)
    return picture


def _why_unknown(path: Picture) -> str:
    if isinstance(path, Upload):
        return "is no JPEG, PNG or WebP; send the file itself as the body"
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        return "is empty; replace or remove it"
    if suffix in _PLUGINS.keys() - _suffixes():
        return f"cannot be opened by this Pillow; pip install '{_PLUGINS[suffix]}', or save it as JPEG"
    return "is not an image format that Pillow knows; replace or remove it"
