"""What the arguments of `depthkit predict` mean: an engine, and inputs that are pictures, clips or live."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Final, Literal

from ..data.images import find_images, is_result, looks_like_picture, picture_size, warn_skipped
from ..engines.build import backend
from ..errors import DataError, OutputError, UserError
from ..files import MOST_NAME_BYTES, require_writable
from ..names import BACKENDS
from ..runtime.load import is_onnx_file
from ..runtime.pictures import open_pictures, sequence_pattern
from ..runtime.sources import Source, is_address, is_camera, open_source
from .outputs import FOR_CLIPS, FOR_PICTURES, OUTPUTS
from .targets import is_run

__all__ = [
    "Input",
    "picture_names",
    "plan_inputs",
    "require_fitting",
    "require_folder",
    "require_goals",
    "split_arguments",
]

Kind = Literal["pictures", "clip"]

_VIDEOS: Final = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
_NUMBER: Final = "000000"  # of a clip's first frame
_UNSAFE: Final = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Input:
    """One source of frames.

    Attributes:
        place: for `open_source`; of pictures, what messages call them.
        kind: pictures have nothing to do with each other; the frames of a clip, camera or stream follow each other.
        name: what the results of a clip are called.
        pictures: the files, of pictures and of a clip that is a folder or a pattern.
        names: what the results of each picture are called; of a clip's, that follows `name` and `_`.
    """

    place: str
    kind: Kind
    name: str
    pictures: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()

    def outputs(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """The keys of `OUTPUTS` that were chosen, or the default for this kind."""
        return tuple(chosen) or (FOR_PICTURES if self.kind == "pictures" else FOR_CLIPS)

    def open(
        self, *, input_size: tuple[int, int] | None = None, fps: float | None = None, timeout: float = 10.0
    ) -> Source:
        """Its frames. Raises DataError, UserError: see `open_source`; or the pictures of a clip differ in size."""
        if not self.pictures:
            return open_source(self.place, input_size=input_size, fps=fps, timeout=timeout)
        if self.kind == "clip":
            _require_one_size(self.pictures)
        return open_pictures(self.place, self.pictures, fps=fps)


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, tuple[str, ...]]:
    """The engine, if the first argument is one, and the inputs. Raises UserError for an engine alone."""
    first, *rest = arguments
    if _is_input(first):
        return None, tuple(arguments)
    if not rest:
        raise UserError(
            f"{first} is not a picture, folder, video, camera or address; name an INPUT after the engine: "
            "`depthkit predict [ENGINE] INPUT...`"
        )
    return Path(first), tuple(rest)


def plan_inputs(places: Sequence[str], outputs: Sequence[str]) -> list[Input]:
    """The inputs, in order; all pictures together are one, unless an output makes a clip of a folder.

    Args:
        places: pictures, folders, patterns, videos, cameras, addresses, `-`.
        outputs: keys of `OUTPUTS`; none: the default of each kind.

    Raises:
        DataError: something does not exist, or holds no picture.
        UserError: pictures cannot become a clip.
    """
    found: list[Input] = []
    pictures: list[Path] = []
    at = 0
    wants_clip = any(OUTPUTS[name].is_clip for name in outputs)
    expanded = [each for place in places for each in _expanded(place, wants_clip)]
    _require_existing(expanded)
    results = [Path(each) for each in expanded if _is_file(each) and is_result(Path(each))]
    for place in expanded:
        path = Path(place)
        if path in results:
            continue
        if not _is_moving(place) and (path.is_dir() or _is_pattern(place) or looks_like_picture(path)):
            files = _files(place)
            if not wants_clip:
                at = at if pictures else len(found)
                pictures += files
                continue
            if files == [path]:
                raise UserError(_no_clip(path, [name for name in outputs if OUTPUTS[name].is_clip]))
            found.append(Input(place, "clip", _name(place), tuple(files), tuple(path.stem for path in files)))
        else:
            found.append(Input(place, "clip", _name(place)))
    if pictures:
        files = list(dict.fromkeys(pictures))
        found.insert(at, Input("the pictures", "pictures", "", tuple(files), tuple(picture_names(files))))
    if not found:
        raise DataError(f"{results[0]} is a result of `depthkit predict`; name pictures")
    warn_skipped("the arguments", results, len(expanded))
    return _told_apart(found)


def require_fitting(
    inputs: Sequence[Input], *, input_size: tuple[int, int] | None, fps: float | None, smooth: bool
) -> None:
    """Raise UserError for an option that has no effect on any of the inputs."""
    moving = [each.place for each in inputs if _is_moving(each.place)]
    asked = any(place == "-" or is_camera(place) for place in moving)
    if input_size is not None and not asked:
        raise UserError("--input-size is for raw frames from standard input (-) and for cameras; leave it out")
    if fps is not None and not (asked or any(each.pictures for each in inputs) or any(map(sequence_pattern, moving))):
        raise UserError("--fps is for pictures, raw frames and cameras; a video has times of its own: leave it out")
    if smooth and all(each.kind == "pictures" for each in inputs):
        raise UserError("--smooth is for clips; pictures have nothing to do with each other: leave it out")


def require_folder(out: Path) -> None:
    """Raise OutputError if `--out` looks like the name of a file."""
    suffix = out.suffix.lower()
    if not out.is_dir() and (suffix in _VIDEOS or looks_like_picture(out) or suffix in {".npy", ".ply", ".exr"}):
        raise OutputError(
            f"--out {out} is the folder of all results, and that is the name of a file; name a folder, and what to "
            "write with --save"
        )


def require_goals(inputs: Iterable[Input], outputs: Sequence[str], out: Path) -> frozenset[Path]:
    """The files that are read, resolved.

    Raises OutputError: `out` cannot be written; a result would replace an input or another result, or has too long a
    name.
    """
    require_writable(out / "x")
    inputs = list(inputs)
    files = [Path(each.place) for each in inputs if not each.pictures and _is_file(each.place)]
    read = frozenset(path.resolve() for path in [*files, *(path for each in inputs for path in each.pictures)])
    made: dict[Path, Input] = {}
    for each in inputs:
        before = f"{each.name}_" if each.kind == "clip" else ""
        stems: list[tuple[object, str]] = list(zip(each.pictures, each.names, strict=True)) or [(each.place, _NUMBER)]
        for what, stem in stems:
            for part in (OUTPUTS[name] for name in each.outputs(outputs)):
                goal = out / f"{each.name if part.is_clip else before + stem}{part.ending}"
                if len(os.fsencode(goal.name)) > MOST_NAME_BYTES:
                    raise OutputError(
                        f"{what}: its results' names would exceed {MOST_NAME_BYTES} bytes; shorten its name"
                    )
                if made.setdefault(goal, each) is not each:
                    raise OutputError(f"{made[goal].place} and {what} would both be written to {goal}; rename one")
                if goal.resolve() in read:
                    kind = "picture" if each.pictures else "input"
                    raise OutputError(
                        f"the results of {what} would replace the {kind} {goal}; choose another folder with --out"
                    )
    return read


def _require_one_size(pictures: Sequence[Path]) -> None:
    size = picture_size(pictures[0])
    for path in pictures[1:]:
        if (other := picture_size(path)) != size:
            raise DataError(
                f"the pictures of a clip need one size: {pictures[0]} has {size[0]}x{size[1]}, and {path} "
                f"{other[0]}x{other[1]} (HxW); scale them first"
            )


def _is_input(word: str) -> bool:
    """Whether it is a source of frames, and not a run, an ONNX file, an engine, or a name that is unknown."""
    path = Path(word)
    if is_run(path):
        return False
    if _is_moving(word) or path.is_dir() or looks_like_picture(path) or path.suffix.lower() in _VIDEOS:
        return True
    if not _is_file(word):
        return glob.has_magic(word)
    kinds = tuple(f".{backend(name).extension}" for name in BACKENDS)
    return not (is_onnx_file(path) or word.endswith(kinds) or path.with_name(f"{path.name}.json").is_file())


def _is_moving(place: str) -> bool:
    """Whether it is no path on the disk: a camera, address, numbered sequence or standard input."""
    if os.path.lexists(place):
        return is_camera(place) and not place.isdigit()
    return place == "-" or is_address(place) or is_camera(place) or sequence_pattern(place) is not None


def _is_pattern(place: str) -> bool:
    return glob.has_magic(place) and not os.path.lexists(place)


def _is_file(place: str) -> bool:
    return os.path.isfile(place)  # noqa: PTH113 - pathlib raises for names that are no paths


def _expanded(place: str, wants_clip: bool) -> list[str]:
    """The files that a pattern matches, which the shell did not expand; a clip is made of a pattern of pictures."""
    if _is_moving(place) or not _is_pattern(place):
        return [place]
    matching = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 - takes absolute patterns too
    if not matching:
        raise DataError(f"no file or folder matches {place}")
    return [place] if wants_clip and all(looks_like_picture(Path(each)) for each in matching) else matching


def _require_existing(places: Sequence[str]) -> None:
    plain = [place for place in places if not _is_moving(place) and not _is_pattern(place)]
    missing = [place for place in places if place in plain and not os.path.exists(place)]  # noqa: PTH110 - see above
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    # A run has pictures of its own, which are no inputs.
    if runs := [place for place in plain if is_run(Path(place))]:
        raise DataError(
            f"{', '.join(runs)} is a run, not a folder of pictures; name the engine first, or with --engine"
        )


def _files(place: str) -> list[Path]:
    """The pictures of a folder or pattern, or the picture itself. Raises DataError."""
    path = Path(place)
    if path.is_dir():
        return find_images(path)
    if os.path.lexists(place):
        return [path]
    found = (Path(each) for each in sorted(glob.glob(place, recursive=True)))  # noqa: PTH207 - see above
    return [each for each in found if not is_result(each)]


def _no_clip(path: Path, outputs: Sequence[str]) -> str:
    return (
        f"--save {','.join(outputs)} is for clips, and {path} is a picture; name a video, a folder or a quoted pattern "
        'of pictures ("frames/*.png"), or leave it out'
    )


def _name(place: str) -> str:
    """What the results of a clip are called.

    >>> [_name(each) for each in ("a/clip.mp4", "0", "rtsp://me:pw@cam.local/1", "-", "shots/%05d.png", "x/*.png")]
    ['clip', 'camera0', 'cam.local_1', 'stdin', 'shots', 'x']
    """
    path, is_moving = Path(place), _is_moving(place)
    if place == "-":
        return "stdin"
    if is_moving and is_camera(place):
        return "camera" + re.sub(r"\D", "", place)
    if is_moving and is_address(place):
        address = place.partition("://")[2].partition("?")[0].rpartition("@")[2]
        return _UNSAFE.sub("_", address).strip("._") or "stream"
    if path.is_dir() or is_moving or _is_pattern(place):
        folder = path if path.is_dir() else path.parent
        return _UNSAFE.sub("_", folder.resolve().name) or "frames"
    return path.stem


def _told_apart(inputs: list[Input]) -> list[Input]:
    """The same, with a number after a clip's name that is another's too."""
    used: set[str] = set()
    found = []
    for each in inputs:
        name = next(n for n in chain([each.name], (f"{each.name}_{k}" for k in count(2))) if n not in used)
        used.add(name)
        found.append(replace(each, name=name))
    return found


def picture_names(pictures: Sequence[Path]) -> list[str]:
    """A name for each picture's results: its stem, preceded by its folder's name if stems repeat."""
    stems = Counter(picture.stem for picture in pictures)
    names = [p.stem if stems[p.stem] == 1 else f"{p.parent.resolve().name}_{p.name}" for p in pictures]
    if len(set(names)) < len(names):
        names = [f"{index:05d}_{picture.stem}" for index, picture in enumerate(pictures)]
    return names
