"""What `depthkit predict` writes: one class for each name of `--save`, and the table `OUTPUTS`.

A new output is a class here and a line in the table.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from typing_extensions import Self

from ..data.colours import colour, colour_planes
from ..data.grey16 import levels, millimetres, write_depth_png, write_grey16
from ..data.images import write_image
from ..data.side_by_side import side_by_side, side_size
from ..errors import UserError
from ..files import atomic_write, remove, write_text
from ..packages import require_packages
from ..runtime.clouds import Cloud, cloud, write_pcd, write_ply
from ..runtime.exr import write_exr
from ..runtime.video_writer import COLOUR, DEPTH, Coding, VideoWriter, frame_of, frame_of_rgb
from .shot import Job, Shot

if TYPE_CHECKING:
    from ..spec import ModelSpec

__all__ = ["FOR_CLIPS", "FOR_PICTURES", "OUTPUTS", "Output", "parse_outputs", "require_metres"]


class Output(ABC):
    """Writes one kind of file. A context manager, which is used by one thread after the other.

    Attributes:
        ending: what its files' names end with.
        about: what they hold, in a few words.
        is_clip: whether a whole clip becomes one file; otherwise every frame is one.
        needs_camera: whether it needs intrinsics.
        needs_metres: whether it needs depth in metres.
        needs: modules of `packages.EXTRAS`.
        notes: what was left out, one sentence each.
    """

    ending: ClassVar[str]
    about: ClassVar[str]
    is_clip: ClassVar[bool] = False
    needs_camera: ClassVar[bool] = False
    needs_metres: ClassVar[bool] = False
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
    """The depth of a frame in whole millimetres, or as levels with a file that says what they are."""

    ending, about = "_depth16.png", "16-bit PNG in millimetres*"

    def _save(self, path: Path, shot: Shot) -> None:
        about = path.with_suffix(".json")
        if self.job.spec.is_metric:
            write_depth_png(path, shot.depth)
            remove(about)  # of this picture before it had metres
        else:
            write_text(about, _describe_levels(self.job, shot.ends))
            write_grey16(path, levels(shot.depth, *shot.ends))


class Npy(_FramePart):
    """The depth of a frame for NumPy."""

    ending, about = "_depth.npy", "float32 metres*, for NumPy"

    def _save(self, path: Path, shot: Shot) -> None:
        depth = np.ascontiguousarray(shot.depth)
        # Not by np.save, which tells a full disk by an OSError without a number.
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(depth))
            stream.write(depth.data)


class Npz(_FramePart):
    """The depth of a frame for NumPy, with its time and camera. What has no metres is called by what it is."""

    ending, about = "_depth.npz", "the same, compressed, with time in seconds and K"

    def _save(self, path: Path, shot: Shot) -> None:
        name = "depth" if self.job.spec.is_metric else self.job.spec.answers
        values: dict[str, Any] = {name: shot.depth, "time": np.float64(shot.time)}
        if (camera := shot.intrinsics) is not None:
            values["K"] = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **values)


class Exr(_FramePart):
    """The depth of a frame for compositing programs."""

    ending, about, needs = "_depth.exr", "OpenEXR: float32 metres* in channel Y", ("av",)

    def _save(self, path: Path, shot: Shot) -> None:
        write_exr(path, shot.depth)


class _Points(_FramePart):
    """The coloured points of a frame."""

    needs_camera = needs_metres = True
    put: ClassVar[Callable[..., None]]

    def _save(self, path: Path, shot: Shot) -> None:
        type(self).put(path, self._cloud(shot), axes=self.job.axes)

    def _cloud(self, shot: Shot) -> Cloud:
        assert shot.intrinsics is not None
        return cloud(shot.depth, shot.image, shot.intrinsics, engine_size=self.job.spec.size)


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

    ending, about, coding = "_side.mp4", "the clip beside its colours and a bar in metres*, with the sound", COLOUR

    def write(self, shot: Shot) -> None:
        is_metric = self.job.spec.is_metric
        picture = side_by_side(shot.image, shot.depth, shot.span, self.job.colormap, is_metric=is_metric)
        self._video.write(frame_of_rgb(picture), shot.time)

    def _size(self) -> tuple[int, int]:
        return side_size(self.job.size)


class DepthVideo(_ClipPart):
    """A clip's depth without loss, in whole millimetres, or as levels with a file that says what they are."""

    ending, about, coding = "_depth.mkv", "lossless FFV1, 16-bit grey in millimetres*", DEPTH

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._about = job.goal(job.name, self.ending).with_suffix(".json")
        self._ends: tuple[float, float] | None = None  # of all frames

    def write(self, shot: Shot) -> None:
        if self.job.spec.is_metric:
            grey = millimetres(shot.depth)
        else:
            self._ends = self._ends or shot.ends
            grey = levels(shot.depth, *self._ends)
        self._video.write(frame_of([grey], self.coding.pixels), shot.time)

    def finish(self, *, whole: bool) -> None:
        super().finish(whole=whole)
        if self._ends is None:
            remove(self._about)  # of this clip before it had metres
        else:
            write_text(self._about, _describe_levels(self.job, self._ends))

    def _size(self) -> tuple[int, int]:
        return self.job.size


def _describe_levels(job: Job, ends: tuple[float, float]) -> str:
    """JSON that says what the pixels of a 16-bit file without metres are."""
    low, high = ends
    about = {
        "answers": job.spec.answers,
        "near": "large" if job.spec.answers == "inverse" else "small",
        "low": low,
        "high": high,
        "answer": "low + (high - low) * pixel / 65535; below low it is 0, and above high 65535",
        "engine": job.engine,
    }
    return json.dumps(about, indent=2) + "\n"


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


def require_metres(names: Iterable[str], spec: ModelSpec) -> None:
    """Raise UserError for keys of `OUTPUTS` that need metres which the model does not answer."""
    if not spec.is_metric and (lacking := [name for name in names if OUTPUTS[name].needs_metres]):
        raise UserError(
            f"--save {','.join(lacking)} needs metres, and {spec.network} answers {spec.answers} depth; fit its scale "
            "to measured points with --calibrate-scale"
        )


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
