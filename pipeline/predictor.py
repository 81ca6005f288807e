"""`depthkit.Predictor`: depth of frames of any size, for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from typing_extensions import Self

from ..errors import FrameError, UserError
from ..frames import AnySize
from ..runtime.pool import Pool
from ..runtime.scale import MetricScale, ScaledSession
from ..runtime.smooth import Smoother
from ..runtime.source import Source
from ..runtime.sources import open_source
from .scaling import find_scale
from .stream import Result, stream
from .targets import open_target

__all__ = ["Color", "Predictor"]

Color = Literal["rgb", "bgr"]
_COLORS: Final = get_args(Color)


class Predictor:
    """Depth of frames of any size. Threads may share it.

    It is in metres if `spec.is_metric`, otherwise what the network answers, see `ModelSpec.answers`.

    Args:
        engine: an engine, an ONNX file that depthkit exported, a run folder, or the name of built-in weights. A run is
            computed by torch; built-in weights, and a run without torch, by an engine of their FP32 ONNX file.
        color: order of the frames' channels: "rgb", or "bgr" as OpenCV reads them.
        threads: how many frames are computed at the same time. Each has a session of its own, which is opened when it
            is first needed; the first is opened now. More threads than that wait for each other. Answers do not depend
            on it. The sessions share the processor: on a CPU, several are faster than one only if each engine was built
            for a part of the cores.
        scale: turns answers without metres into metres; None: the run's own `scale.json`, if there is one
            (`depthkit predict --calibrate-scale` writes it).

    Attributes:
        engine: as given.
        scale: in use; None: none.
        spec: the model's tensors, preprocessing and depth range (`ModelSpec`); with a scale, those of metres.
        provider: see `Session`.
        precision: see `Session`.

    Raises:
        UserError: another `color`, or `threads` below 1.
        EngineError: see `depthkit.load`; also BackendError, BundleError and SpecError.

    >>> with Predictor("compact") as predictor:
    ...     predictor(np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64)
    """

    def __init__(
        self, engine: str | Path, color: Color = "rgb", threads: int = 1, *, scale: MetricScale | None = None
    ) -> None:
        if color not in _COLORS:
            raise UserError(f"color must be one of {', '.join(map(repr, _COLORS))}, not {color!r}")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise UserError(f"threads must be a whole number from 1, not {threads!r}")
        self.engine = Path(engine)
        self.scale = scale
        self._color = color
        self._threads = threads
        self._pool = Pool(self._open, threads, "predictor")
        with self._pool.lend() as first:
            session = first.session
            self.spec, self.provider, self.precision = session.spec, session.provider, session.precision

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames that the engine itself takes; those are not resized."""
        return self.spec.size

    def __call__(self, frame: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Depth of one frame: the frame is resized to the engine's size, and the depth back.

        Args:
            frame: H x W x 3 uint8, of any size and memory layout; only read.
            size: height and width of the depth; None: the frame's. `predictor.size` is the fastest.

        Returns:
            float32, H x W or of `size`: a new array, owned by the caller.

        Raises:
            FrameError: `frame` has another shape or dtype, or `size` is not two positive numbers.
            EngineError: the predictor is closed.
        """
        if size is not None and not _is_size(size):
            raise FrameError(f"size must be a height and a width of at least 1, not {size!r}")
        with self._pool.lend() as model:
            (depth,) = model.run([frame], size)
        return depth

    def stream(self, source: str | Path | Source, *, smooth: bool = False) -> Iterator[Result]:
        """The depth of every frame of a source, in order: read, resized and computed at the same time.

        Args:
            source: a place for `open_source`, or what that returned. It is closed at the end, also if you stop early.
            smooth: less flicker from frame to frame (`depthkit.runtime.smooth`).

        Raises:
            DataError: see `open_source`; or the source cannot be read further, after all results before.
            UserError: the predictor's `color` is not "rgb"; see also `open_source`.
            EngineError: the predictor is closed.

        >>> with Predictor("compact") as predictor:
        ...     for result in predictor.stream("clip.mp4"):  # doctest: +SKIP
        ...         print(result.frame.time, result.depth.min())  # seconds, metres
        """
        if self._color != "rgb":
            raise UserError("the frames of a source are RGB; make the predictor without color=")
        opened = source if isinstance(source, Source) else open_source(source)
        return stream(
            opened,
            lambda image: self(image, self.size),
            self.size,
            threads=self._threads,
            smoother=self.smoother() if smooth else None,
        )

    def smoother(self) -> Smoother:
        """A new smoother for what this answers."""
        low, high = self.spec.depth_range
        return Smoother(span=None if self.spec.is_metric else high - low)

    def close(self) -> None:
        """Wait for the calls in flight, and free the sessions; waiting calls and later ones raise EngineError.

        Closing twice is harmless.
        """
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        model = f"{self.spec.network} at {self.spec.describe_sizes()}"
        return (
            f"<Predictor {self.engine}: {model}, {self.precision} by {self.provider}, color={self._color}, "
            f"threads={self._threads}>"
        )

    def _open(self) -> AnySize:
        session = open_target(self.engine)
        try:
            if self.scale is None and not session.spec.is_metric:
                self.scale = find_scale(self.engine)
            if self.scale is not None:
                session = ScaledSession(session, self.scale)
            return AnySize(session, flip=self._color == "bgr")
        except BaseException:
            session.close()
            raise


def _is_size(size: object) -> bool:
    """Whether it is a height and a width in whole numbers, which may be NumPy's."""
    if not isinstance(size, Sequence) or len(size) != 2:
        return False
    return all(isinstance(side, int | np.integer) and side >= 1 for side in size)
