"""What `depthkit predict` writes: one class for each name of `--save`, and the table `OUTPUTS`.

A new output is a class here and a line in the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final

import numpy as np
from typing_extensions import Self

from ..data.colours import Span, colour, colour_planes
from ..data.images import millimetres, write_depth_png, write_image
from ..data.side_by_side import side_by_side, side_size
from ..errors import OutputError, UserError
from ..files import MOST_NAME_BYTES, atomic_write
from ..packages import require_packages
from ..runtime.cameras import Intrinsics
from ..runtime.clouds import Axes, Cloud, cloud, write_pcd, write_ply
from ..runtime.exr import write_exr
from ..runtime.source import Sound
from ..runtime.video_writer import COLOUR, DEPTH, Coding, VideoWriter, frame_of, frame_of_rgb
from .stream import Result

__all__ = ["FOR_CLIPS", "FOR_PICTURES", "OUTPUTS", "Job", "Output", "Shot", "parse_outputs"]


@dataclass(frozen=True)
class Job:
    """What outputs know before the first frame.

    Attributes:
        out: folder of the files.
        name: what files of the whole clip begin with.
        size: height and width of the frames.
        engine_size: those of the depth before it was resized.
        fps: frames a second that the clip states; None: unknown.
        sound: of the clip.
        colormap: see `data.colours.colour`.
        axes: of clouds.
        inputs: files that must not be replaced, resolved.
    """

    out: Path
    name: str
    size: tuple[int, int]
    engine_size: tuple[int, int]
    fps: float | None = None
    sound: Sound | None = None
    colormap: str = "turbo"
    axes: Axes = "opencv"
    inputs: frozenset[Path] = frozenset()

    def goal(self, stem: str, ending: str) -> Path:
        """The file of this name. Raises OutputError: it would replace an input, or its name is too long."""
        goal = self.out / f"{stem}{ending}"
        if self._folder / goal.name in self.inputs:
            raise OutputError(f"{goal} would replace an input; choose another folder with --out")
        if len(goal.name.encode(errors="surrogateescape")) > MOST_NAME_BYTES:
            raise OutputError(f"{goal.name} would exceed {MOST_NAME_BYTES} bytes; shorten the input's name")
        return goal

    @cached_property
    def _folder(self) -> Path:
        return self.out.resolve()


class Shot:
    """A frame with its depth, as outputs get it. What several of them need is computed once.

    Attributes:
        name: what its files begin with.
        result: frame and depth; metres are corrected for the camera's focal length.
        time: when it is shown, in seconds from the first frame that is written.
        intrinsics: of its camera; None: unknown.
    """

    def __init__(
        self, name: str, result: Result, time: float, span: Span | None = None, intrinsics: Intrinsics | None = None
    ) -> None:
        self.name, self.result, self.time, self.intrinsics, self._span = name, result, time, intrinsics, span

    @property
    def depth(self) -> np.ndarray:
        """Float32 metres at the frame's own size."""
        return self.result.depth

    @cached_property
    def image(self) -> np.ndarray:
        """H x W x 3 uint8 RGB."""
        return self.result.frame.image(exact=False)

    @cached_property
    def span(self) -> Span:
        """The depth from which to which colours reach: the clip's, or of this frame the 2nd and 98th percentile."""
        return self._span or percentiles([self.depth], self.result.small.shape)


def percentiles(depths: list[np.ndarray], size: tuple[int, ...]) -> Span:
    """The 2nd and 98th percentile of metres, of about `size` values each: those of a large picture are slow."""
    sampled = []
    for depth in depths:
        down, across = (max(1, have // want) for have, want in zip(depth.shape, size, strict=True))
        sampled.append(depth[::down, ::across].ravel())
    low, high = np.percentile(np.concatenate(sampled), (2, 98))
    return float(low), float(high)


class Output(ABC):
    """Writes one kind of file. A context manager, which is used by one thread after the other.

    Attributes:
        ending: what its files' names end with.
        about: what they hold, in a few words.
        is_clip: whether a whole clip becomes one file; otherwise every frame is one.
        needs_camera: whether it needs intrinsics.
        needs: modules of `packages.EXTRAS`.
        notes: what was left out, one sentence each.
    """

    ending: ClassVar[str]
    about: ClassVar[str]
    is_clip: ClassVar[bool] = False
    needs_camera: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Without an error, files get their names; otherwise a clip's file is removed."""
        return

    @abstractmethod
    def write(self, shot: Shot) -> None:
        """Write a frame, or add it. Raises OutputError."""

    def finish(self, *, whole: bool) -> None:
        """After the last frame; `whole`: the clip was written to its end. Raises OutputError."""
        return


class _FramePart(Output):
    """One file for each frame."""

    def write(self, shot: Shot) -> None:
        self._save(self.job.goal(shot.name, self.ending), shot)

    @abstractmethod
    def _save(self, path: Path, shot: Shot) -> None: ...


class Colour(_FramePart):
    """The depth of a frame in colours."""

    ending, about = "_depth.png", "colours"

    def _save(self, path: Path, shot: Shot) -> None:
        write_image(path, colour(shot.depth, shot.span, self.job.colormap))


class Depth16(_FramePart):
    """The depth of a frame in whole millimetres."""

    ending, about = "_depth16.png", "16-bit PNG in millimetres"

    def _save(self, path: Path, shot: Shot) -> None:
        write_depth_png(path, shot.depth)


class Npy(_FramePart):
    """The depth of a frame for NumPy."""

    ending, about = "_depth.npy", "float32 metres, for NumPy"

    def _save(self, path: Path, shot: Shot) -> None:
        depth = np.ascontiguousarray(shot.depth)
        # Not by np.save, which tells a full disk by an OSError without a number.
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(depth))
            stream.write(depth.data)


class Npz(_FramePart):
    """The depth of a frame for NumPy, with its time and camera."""

    ending, about = "_depth.npz", "the same, compressed, with time in seconds and K"

    def _save(self, path: Path, shot: Shot) -> None:
        values: dict[str, Any] = {"depth": shot.depth, "time": np.float64(shot.time)}
        if (camera := shot.intrinsics) is not None:
            values["K"] = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **values)


class Exr(_FramePart):
    """The depth of a frame for compositing programs."""

    ending, about, needs = "_depth.exr", "OpenEXR: float32 metres in channel Y", ("av",)

    def _save(self, path: Path, shot: Shot) -> None:
        write_exr(path, shot.depth)


class _Points(_FramePart):
    """The coloured points of a frame."""

    needs_camera = True
    put: ClassVar[Callable[..., None]]

    def _save(self, path: Path, shot: Shot) -> None:
        type(self).put(path, self._cloud(shot), axes=self.job.axes)

    def _cloud(self, shot: Shot) -> Cloud:
        assert shot.intrinsics is not None
        return cloud(shot.depth, shot.image, shot.intrinsics, engine_size=self.job.engine_size)


class Ply(_Points):
    """The coloured points of a frame as PLY."""

    ending, about, put = "_depth.ply", "coloured points, binary PLY", write_ply


class Pcd(_Points):
    """The coloured points of a frame as PCD."""

    ending, about, put = "_depth.pcd", "coloured points, binary PCD", write_pcd


class _ClipPart(Output):
    """One video for the whole clip."""

    is_clip, needs = True, ("av",)
    coding: ClassVar[Coding]

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        sound = job.sound if self.coding.is_colour else None
        path = job.goal(job.name, self.ending)
        self._video = VideoWriter(path, self.coding, self._size(), fps=job.fps, sound=sound)

    def __enter__(self) -> Self:
        self._video.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._video.__exit__(kind, error, at)

    def finish(self, *, whole: bool) -> None:
        self._video.finish(whole=whole)
        self.notes += self._video.notes

    def _size(self) -> tuple[int, int]:
        """Height and width of the video."""
        height, width = self.job.size
        return height + height % 2, width + width % 2


class ColourVideo(_ClipPart):
    """A clip's depth in colours."""

    ending, about, coding = "_depth.mp4", "H.264 in colours, with the sound", COLOUR

    def write(self, shot: Shot) -> None:
        planes = colour_planes(shot.depth, shot.span, self.job.colormap)
        self._video.write(frame_of(planes, self.coding.pixels), shot.time)


class SideVideo(_ClipPart):
    """A clip beside its depth in colours."""

    ending, about, coding = "_side.mp4", "the clip beside its colours and a bar in metres, with the sound", COLOUR

    def write(self, shot: Shot) -> None:
        picture = side_by_side(shot.image, shot.depth, shot.span, self.job.colormap)
        self._video.write(frame_of_rgb(picture), shot.time)

    def _size(self) -> tuple[int, int]:
        return side_size(self.job.size)


class DepthVideo(_ClipPart):
    """A clip's depth without loss."""

    ending, about, coding = "_depth.mkv", "lossless FFV1, 16-bit grey in millimetres", DEPTH

    def write(self, shot: Shot) -> None:
        self._video.write(frame_of([millimetres(shot.depth)], self.coding.pixels), shot.time)

    def _size(self) -> tuple[int, int]:
        return self.job.size


OUTPUTS: Final[dict[str, type[Output]]] = {
    "color": Colour,
    "depth16": Depth16,
    "npy": Npy,
    "npz": Npz,
    "exr": Exr,
    "ply": Ply,
    "pcd": Pcd,
    "color-video": ColourVideo,
    "side-video": SideVideo,
    "depth-video": DepthVideo,
}
"""The names of `--save`."""

FOR_PICTURES: Final = ("color", "depth16", "npy")
FOR_CLIPS: Final = ("color-video",)
"""What is written without `--save`."""


def parse_outputs(text: str, *, has_camera: bool) -> tuple[str, ...]:
    """The names in `color,npy`, each once.

    Args:
        text: names separated by commas.
        has_camera: whether intrinsics are given.

    Raises:
        UserError: a name is unknown, needs intrinsics or a package that is not installed.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in OUTPUTS:
            raise UserError(f"--save {name or repr(text)}: choose from {', '.join(OUTPUTS)}")
        if OUTPUTS[name].needs_camera and not has_camera:
            raise UserError(f"--save {name} needs the camera: add --intrinsics fx,fy,cx,cy or fov=DEGREES")
        require_packages(*OUTPUTS[name].needs)
    return names
