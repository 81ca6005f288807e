"""An input of `depthkit predict` with its options: checked, then opened with a plan of what to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.colours import Span
from ..data.images import read_resized
from ..runtime.cameras import Intrinsics, describe_correction, read_intrinsics
from ..runtime.clouds import Axes
from ..runtime.source import Frame, Source
from .clip import Plan
from .inputs import Input
from .outputs import require_metres
from .predictor import Predictor
from .shot import Job

__all__ = ["Options", "Prediction"]


@dataclass(frozen=True)
class Options:
    """What holds for all inputs.

    Attributes:
        out: folder of the results.
        chosen: keys of `OUTPUTS`; empty: the default of each kind of input.
        span: the depth from which to which colours reach; None: by the depth itself.
        colormap: see `data.colours.colour`.
        smooth: whether clips are smoothed.
        seconds: after which a clip or live source is ended.
        intrinsics: see `read_intrinsics`.
        axes: of point clouds.
        input_size: see `open_source`.
        fps: see `open_source`.
        timeout: see `open_source`.
        read: files that must not be replaced.
    """

    out: Path
    chosen: tuple[str, ...] = ()
    span: Span | None = None
    colormap: str = "turbo"
    smooth: bool = False
    seconds: float | None = None
    intrinsics: str | None = None
    axes: Axes = "opencv"
    input_size: tuple[int, int] | None = None
    fps: float | None = None
    timeout: float = 10.0
    read: frozenset[Path] = frozenset()


class Prediction:
    """One input and what is written of it.

    Attributes:
        input: its frames.
        outputs: keys of `OUTPUTS`.
        corrections: what `--intrinsics` does to depth, one sentence for each camera.
    """

    def __init__(self, given: Input, options: Options, predictor: Predictor) -> None:
        self.input, self._options, self._predictor = given, options, predictor
        self.outputs = given.outputs(options.chosen)
        self.corrections: list[str] = []
        self._cameras: list[Intrinsics] = []

    def check(self, *, alone: bool) -> None:
        """Read what can be read twice, so that nothing of all inputs is written if one is broken.

        Args:
            alone: whether this is the only input; a video is then opened only once.

        Raises:
            DataError, UserError: a picture or video cannot be read, intrinsics do not fit, or an output needs metres
                which the model does not answer.
        """
        require_metres(self.outputs, self._predictor.spec)
        if self.input.kind == "pictures":
            for picture in self.input.pictures:
                _, size = read_resized(picture, self._predictor.size)
                self._add_camera(size, picture)
        elif not alone and (self.input.pictures or Path(self.input.place).is_file()):
            with self._opened() as source:
                self._add_camera(source.size)

    def open(self) -> tuple[Source, Plan]:
        """The frames, and what to write of them. Raises DataError, UserError, OutputError."""
        source, options = self._opened(), self._options
        try:
            if self.input.kind != "pictures":
                self._cameras.clear()
                self._add_camera(source.size)
            job = Job(
                options.out,
                self.input.name,
                source.size,
                self._predictor.spec,
                source.fps,
                source.audio,
                options.colormap,
                options.axes,
                options.read,
                self._predictor.engine.name,
            )
        except BaseException:
            source.close()
            raise
        is_clip = self.input.kind != "pictures"
        plan = Plan(
            self.outputs,
            job,
            span=options.span,
            one_span=is_clip,
            smooth=options.smooth and is_clip,
            seconds=options.seconds if is_clip else None,
            name=self._name,
            camera=self._camera,
        )
        return source, plan

    def _opened(self) -> Source:
        options = self._options
        return self.input.open(input_size=options.input_size, fps=options.fps, timeout=options.timeout)

    def _name(self, frame: Frame) -> str:
        """What a frame's files begin with."""
        if self.input.kind == "pictures":
            return self.input.names[frame.index]
        return f"{self.input.name}_{frame.name if self.input.pictures else format(frame.index, '06d')}"

    def _camera(self, frame: Frame) -> Intrinsics | None:
        if not self._cameras:
            return None
        return self._cameras[frame.index if self.input.kind == "pictures" else 0]

    def _add_camera(self, size: tuple[int, int], picture: Path | None = None) -> None:
        """The intrinsics of the next picture, or of the clip."""
        if self._options.intrinsics is None:
            return
        camera = read_intrinsics(self._options.intrinsics, size, picture=picture)
        self._cameras.append(camera)
        sentence = describe_correction(camera, self._predictor.spec.focal)
        # Without metres nothing is corrected, and a scale is of the camera itself.
        if self._predictor.spec.is_metric and self._predictor.scale is None and sentence not in self.corrections:
            self.corrections.append(sentence)
