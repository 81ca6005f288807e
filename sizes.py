"""Heights and widths: which ones networks and cameras may have, and how they are named."""

from __future__ import annotations

from typing import Final

from .errors import SpecError

__all__ = ["SIZE_MULTIPLE", "by", "check_camera", "check_size", "describe_sizes", "smaller_size"]

SIZE_MULTIPLE: Final = 16
"""Height and width must be divisible by this: the built-in networks halve them four times."""


def check_size(height: int, width: int) -> None:
    """Raise SpecError, naming the nearest sizes, unless both are positive multiples of 16.

    >>> check_size(240, 320)
    >>> check_size(250, 320)
    Traceback (most recent call last):
    depthkit.errors.SpecError: size 250x320 (HxW) is not divisible by 16; the nearest are 240x320 and 256x320
    """
    if height > 0 and width > 0 and height % SIZE_MULTIPLE == 0 and width % SIZE_MULTIPLE == 0:
        return
    heights, widths = _neighbours(height), _neighbours(width)
    nearest = dict.fromkeys((f"{heights[0]}x{widths[0]}", f"{heights[1]}x{widths[1]}"))
    raise SpecError(
        f"size {height}x{width} (HxW) is not divisible by {SIZE_MULTIPLE}; "
        f"the nearest {'are' if len(nearest) > 1 else 'is'} {' and '.join(nearest)}"
    )


def check_camera(camera: tuple[int, int], network: tuple[int, int]) -> None:
    """Raise SpecError if a camera's frames are lower or narrower than the network's input (height, width).

    >>> check_camera((480, 640), (96, 128))
    >>> check_camera((480, 100), (96, 128))
    Traceback (most recent call last):
    depthkit.errors.SpecError: camera 480x100 (HxW) is smaller than the network's 96x128; choose a smaller --size
    """
    if any(given < needed for given, needed in zip(camera, network, strict=True)):
        raise SpecError(
            f"camera {by(camera)} (HxW) is smaller than the network's {by(network)}; choose a smaller --size"
        )


def describe_sizes(frames: tuple[int, int], network: tuple[int, int]) -> str:
    """The network's height and width; and those of the frames, if the graph resizes them.

    >>> describe_sizes((96, 128), (96, 128)), describe_sizes((480, 640), (96, 128))
    ('96x128', '96x128 from 480x640')
    """
    return by(network) + ("" if frames == network else f" from {by(frames)}")


def by(size: tuple[int, ...]) -> str:
    """A height and width as the command line writes them.

    >>> by((96, 128))
    '96x128'
    """
    return "x".join(map(str, size))


def _neighbours(length: int) -> tuple[int, int]:
    below = max(length // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
    return below, max(-(-length // SIZE_MULTIPLE), 1) * SIZE_MULTIPLE


def smaller_size(full: tuple[int, int], scale: float, least_rows: int = SIZE_MULTIPLE) -> tuple[int, int]:
    """`full` (height, width) times `scale`, in multiples of 16 and close to the same aspect ratio.

    The height does not fall below `least_rows`; sizes with no more rows than that stay as they are.

    >>> smaller_size((96, 128), 0.5), smaller_size((240, 320), 0.5), smaller_size((48, 64), 1)
    ((48, 64), (144, 192), (48, 64))
    >>> smaller_size((64, 96), 0.5, least_rows=48), smaller_size((48, 64), 0.5, least_rows=48)
    ((48, 64), (48, 64))
    """
    if scale == 1 or full[0] <= least_rows:
        return full

    def fit(length: float) -> int:
        return max(round(length / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE

    goal, aspect = full[0] * scale, full[1] / full[0]
    middle = fit(goal)
    heights = (middle - SIZE_MULTIPLE, middle, middle + SIZE_MULTIPLE)
    sizes = [(height, fit(height * aspect)) for height in heights if least_rows <= height < full[0]]
    return min(sizes or [full], key=lambda size: (round(abs(size[1] / size[0] - aspect), 2), abs(size[0] - goal)))
