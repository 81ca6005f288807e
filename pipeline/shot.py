"""What outputs of `depthkit predict` get: what holds for all frames, and each frame with its depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.colours import Span, oriented
from ..errors import OutputError
from ..files import MOST_NAME_BYTES
from ..runtime.cameras import Intrinsics
from ..runtime.clouds import Axes
from ..runtime.source import Sound
from .stream import Result

if TYPE_CHECKING:
    from ..spec import Answers, ModelSpec

__all__ = ["Job", "Shot", "percentiles"]


@dataclass(frozen=True)
class Job:
    """What outputs know before the first frame.

    Attributes:
        out: folder of the files.
        name: what files of the whole clip begin with.
        size: height and width of the frames.
        spec: of the model, with what its depth means; see `Predictor.spec`.
        fps: frames a second that the clip states; None: unknown.
        sound: of the clip.
        colormap: see `data.colours.colour`.
        axes: of clouds.
        inputs: files that must not be replaced, resolved.
        engine: its name, for files that say where depth without metres comes from.
    """

    out: Path
    name: str
    size: tuple[int, int]
    spec: ModelSpec
    fps: float | None = None
    sound: Sound | None = None
    colormap: str = "turbo"
    axes: Axes = "opencv"
    inputs: frozenset[Path] = frozenset()
    engine: str = ""

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
        answers: what depth is, see `ModelSpec`.
        intrinsics: of its camera; None: unknown.
    """

    def __init__(
        self,
        name: str,
        result: Result,
        time: float,
        span: Span | None = None,
        intrinsics: Intrinsics | None = None,
        answers: Answers = "metres",
        ends: tuple[float, float] | None = None,
    ) -> None:
        self.name, self.result, self.time, self.intrinsics, self._span = name, result, time, intrinsics, span
        self.answers, self._ends = answers, ends

    @property
    def depth(self) -> np.ndarray:
        """Float32 at the frame's own size."""
        return self.result.depth

    @cached_property
    def image(self) -> np.ndarray:
        """H x W x 3 uint8 RGB."""
        return self.result.frame.image(exact=False)

    @cached_property
    def span(self) -> Span:
        """The depth from which to which colours reach: the clip's, or of this frame the 2nd and 98th percentile."""
        return self._span or oriented(percentiles([self.depth], self.result.small.shape), self.answers)

    @property
    def ends(self) -> tuple[float, float]:
        """From which to which value 16-bit files without metres reach.

        Of a clip beyond its colours, because nothing may be cut off when more comes into view; of a picture, to its own
        smallest and largest value; if the user chose the span, as far as that.
        """
        low, high = self._ends or self._span or (float(self.depth.min()), float(self.depth.max()))
        return min(low, high), max(low, high)


def percentiles(depths: list[np.ndarray], size: tuple[int, ...]) -> tuple[float, float]:
    """The 2nd and 98th percentile of depth, of about `size` values each: those of a large picture are slow."""
    sampled = []
    for depth in depths:
        down, across = (max(1, have // want) for have, want in zip(depth.shape, size, strict=True))
        sampled.append(depth[::down, ::across].ravel())
    low, high = np.percentile(np.concatenate(sampled), (2, 98))
    return float(low), float(high)
