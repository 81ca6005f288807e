"""Sources that need no video library: pictures, folders, globs, numbered sequences, and raw frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from ..data.images import (
    find_images,
    is_result,
    looks_like_picture,
    picture_size,
    read_image,
    read_resized,
    resize_image,
)
from ..errors import DataError, UserError
from .source import Frame, Source, Tally

__all__ = ["FPS", "open_folder", "open_pictures", "open_raw", "open_sequence", "sequence_pattern"]

FPS: Final = 30.0
"""Frames a second of pictures and raw frames, which carry no times, unless another rate is given."""

_NUMBER: Final = re.compile(r"%(0\d+)?d")
_SMALL: Final = (16, 16)


def open_pictures(name: str, paths: Sequence[Path], *, fps: float | None = None) -> Source:
    """Pictures in this order, each of its own size; each is read when its `image` is asked for. Raises DataError."""
    _, size = read_resized(paths[0], _SMALL)
    rate = fps or FPS
    stems = _stems(paths)
    frames = (
        Frame(picture_size(path), index / rate, index, stems[index], partial(_picture, path))
        for index, path in enumerate(paths)
    )
    return Source(name, frames, size, fps=rate if len(paths) > 1 else None, count=len(paths))


def open_folder(folder: Path, *, fps: float | None = None) -> Source:
    """The pictures in a folder, by name. Raises DataError: there are none, or the first cannot be read."""
    return open_pictures(str(folder), find_images(folder), fps=fps)


def sequence_pattern(place: str) -> re.Match[str] | None:
    """The number, such as `%05d`, in the file name of a numbered sequence."""
    found = _NUMBER.search(Path(place).name)
    return found if found and len(_NUMBER.findall(Path(place).name)) == 1 else None


def open_sequence(place: str, *, fps: float | None = None) -> Source:
    """The pictures whose names are `place` with a number in place of `%d` or `%05d`, all of one size.

    A number that is missing leaves a gap in time, and is reported. A picture that cannot be read is skipped and
    counted.

    Raises:
        DataError: there is none, none can be read, or (when it is read) their size changes.
    """
    numbered = _numbered(place)
    if not numbered:
        raise DataError(f"no files are named like {place}; check the folder and the number of digits")
    tally, rate, begin = Tally(), fps or FPS, numbered[0][0]
    lacking = numbered[-1][0] - begin + 1 - len(numbered)
    if lacking:
        numbers = "1 number is" if lacking == 1 else f"{lacking} numbers are"
        tally.say(f"{numbers} missing between {numbered[0][1].name} and {numbered[-1][1].name}")
    _, size = read_resized(numbered[0][1], _SMALL)

    def frames() -> Iterator[Frame]:
        for number, path in numbered:
            try:
                image = read_image(path)
            except DataError:
                tally.count("picture could not be read and was skipped", "pictures could not be read and were skipped")
                continue
            if image.shape[:2] != size:
                raise DataError(
                    f"{place} changes its size from {size[0]}x{size[1]} to {image.shape[0]}x{image.shape[1]} (HxW) at "
                    f"{path.name}; scale its pictures to one size first"
                )
            index = number - begin
            yield Frame(size, index / rate, index, path.stem, partial(_resized, image))

    return Source(place, frames(), size, fps=rate, count=len(numbered), tally=tally)


def open_raw(stream: BinaryIO, size: tuple[int, int], *, fps: float | None = None) -> Source:
    """Frames of H x W x 3 bytes (FFmpeg's rgb24), one after the other. A partial last one is not used, and reported.

    Raises:
        DataError: it holds less than one frame.
    """
    height, width = size
    if min(size) < 1:
        raise UserError(f"--input-size {height}x{width}: height and width must be at least 1")
    tally, rate, length = Tally(), fps or FPS, height * width * 3
    first = _filled(stream, length)
    if len(first) < length:
        raise DataError(
            f"standard input ended after {len(first)} bytes, less than one frame of {height}x{width} (HxW) rgb24 "
            f"({length} bytes); check --input-size and the program that writes"
        )

    def frames() -> Iterator[Frame]:
        data, index = first, 0
        while len(data) == length:
            image = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            yield Frame(size, index / rate, index, f"{index:06d}", partial(_resized, image))
            data, index = _filled(stream, length), index + 1
        if data:
            tally.end_early(f"the last frame was incomplete ({len(data)} of {length} bytes) and is not used")

    return Source("standard input", frames(), size, fps=rate, tally=tally)


def matching(place: str) -> list[Path]:
    """The files that a glob matches, by name, without results of `depthkit predict`. Raises DataError for none."""
    from glob import glob

    found = sorted(Path(each) for each in glob(place, recursive=True))  # noqa: PTH207 - of a pattern that is absolute or not
    files = [path for path in found if path.is_file() and not is_result(path)]
    if not files:
        raise DataError(f"nothing matches {place}; check the pattern, and quote it so that the shell leaves it alone")
    return files


def open_glob(place: str, *, fps: float | None = None) -> Source:
    """The pictures that a glob matches; other files are skipped and counted. Raises DataError."""
    files = matching(place)
    pictures = [path for path in files if looks_like_picture(path)]
    if not pictures:
        raise DataError(f"{place} matches {len(files)} files and no picture; name one video at a time")
    source = open_pictures(place, pictures, fps=fps)
    if skipped := len(files) - len(pictures):
        source.tally.say(f"skipped {skipped} of {len(files)} files, which are not pictures")
    return source


def _picture(path: Path, size: tuple[int, int] | None, exact: bool) -> np.ndarray:  # noqa: ARG001 - see source.Image
    return read_image(path) if size is None else read_resized(path, size)[0]


def _resized(image: np.ndarray, size: tuple[int, int] | None, exact: bool) -> np.ndarray:  # noqa: ARG001
    made = image if size is None else resize_image(image, size)
    return made.copy() if made is image else made


def _stems(paths: Sequence[Path]) -> list[str]:
    """A name for each: its stem, or its name if stems repeat, or with a number before it if names repeat."""
    stems, names = Counter(path.stem for path in paths), Counter(path.name for path in paths)
    if max(names.values()) > 1:
        return [f"{index:06d}_{path.stem}" for index, path in enumerate(paths)]
    return [path.stem if stems[path.stem] == 1 else path.name for path in paths]


def _numbered(place: str) -> list[tuple[int, Path]]:
    """The files of a sequence with their numbers, in order."""
    pattern = Path(place)
    found = sequence_pattern(place)
    assert found is not None
    before, after, form = pattern.name[: found.start()], pattern.name[found.end() :], found[0]
    name = re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")
    matches = ((name.fullmatch(path.name), path) for path in pattern.parent.glob("*"))
    numbers = ((int(match[1]), match[1], path) for match, path in matches if match)
    return sorted((number, path) for number, digits, path in numbers if form % number == digits)


def _filled(stream: BinaryIO, length: int) -> bytes:
    """`length` bytes, fewer only at the end. A pipe gives them in parts."""
    parts, missing = [], length
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
