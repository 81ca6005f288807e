"""Depth of all frames of a source, written: computing and writing overlap, and memory does not grow with length."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, cast

from ..data.colours import Span, oriented
from ..errors import DataError
from ..runtime.cameras import Intrinsics, corrected
from ..runtime.source import Frame, Source
from .outputs import OUTPUTS, Output
from .predictor import Predictor
from .recorder import Recorder
from .shot import Job, Shot, percentiles
from .stream import Result

__all__ = ["Plan", "Watch", "Written", "write_source"]

_LOOK: Final = 2.0  # seconds of a clip that its range is taken from
_WIDER: Final = 1.2  # times as near and as far, because more of the scene comes into view
_MOST_HELD: Final = 256 << 20  # bytes of frames that are held meanwhile
_BYTES_A_PIXEL: Final = 1.5  # of a decoded frame, yuv420p

Name = Callable[[Frame], str]
Camera = Callable[[Frame], "Intrinsics | None"]
Watch = Callable[[Shot], None]
"""Called after each frame that was written, by the thread that writes."""


@dataclass(frozen=True)
class Plan:
    """What to write of a source.

    Attributes:
        outputs: keys of `OUTPUTS`.
        job: what outputs know before the first frame.
        span: the nearest and farthest depth that colours reach; None: by the depth itself.
        one_span: whether that is the same for all frames: the 2nd to 98th percentile of the first 2 seconds (less where
            their frames need more than 256 MiB), widened. Otherwise each frame has its own.
        smooth: see `runtime.smooth`.
        seconds: after which time nothing more is taken; None: to the end.
        name: of a frame's files.
        camera: the intrinsics of a frame.
    """

    outputs: tuple[str, ...]
    job: Job
    span: Span | None = None
    one_span: bool = True
    smooth: bool = False
    seconds: float | None = None
    name: Name = field(default=lambda frame: frame.name)
    camera: Camera = field(default=lambda _: None)


@dataclass
class Written:
    """What became of a source.

    Attributes:
        frames: that were written.
        given: that the source gave, with those it dropped.
        seconds: when the last one is shown.
        interrupted: by KeyboardInterrupt.
        broken: why it could not be read to its end.
        whole: whether it was written to its end.
        span: of the colours; None: each frame has its own.
        files: of the whole clip.
        notes: what outputs left out, one sentence each.
    """

    frames: int = 0
    given: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    broken: DataError | None = None
    whole: bool = False
    span: Span | None = None
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_source(source: Source, predictor: Predictor, plan: Plan, watch: Watch = lambda _: None) -> Written:
    """Write the depth of all frames of `source`, which is closed at the end.

    If it cannot be read to its end, or a KeyboardInterrupt comes, the frames so far are kept in whole files. Any other
    error, a second KeyboardInterrupt, or a source without a frame leaves no file of the clip; files of single frames
    stay.

    Raises:
        DataError: the source could not be read at all.
        OutputError: a file cannot be written.
        KeyboardInterrupt: it came before the first frame was written, or twice.
    """
    written = Written()
    with ExitStack() as held:
        held.enter_context(source)
        outputs = [held.enter_context(OUTPUTS[name](plan.job)) for name in plan.outputs]

        def write(shot: Shot) -> None:
            for output in outputs:
                output.write(shot)
            written.seconds = shot.time
            watch(shot)

        recorder = held.enter_context(Recorder(write))
        try:
            _feed(source, predictor, plan, recorder, written)
        except KeyboardInterrupt:
            written.interrupted = True
        except DataError as error:
            written.broken = error
        recorder.finish()
        written.frames = recorder.done
        written.whole &= not written.interrupted
        _finish(outputs, written)
    written.given = max(written.given, written.frames) + source.dropped
    return written


def _feed(source: Source, predictor: Predictor, plan: Plan, recorder: Recorder[Shot], written: Written) -> None:
    """Put all frames of the source, to its end or to `plan.seconds`."""
    with closing(_shots(source, predictor, plan, written)) as shots:
        for shot in shots:
            if plan.seconds is not None and shot.time >= plan.seconds:
                return
            written.given += 1
            recorder.put(shot)
    written.whole = source.cut is None


def _finish(outputs: Sequence[Output], written: Written) -> None:
    """End the files; raises instead where they would hold no frame."""
    if not written.frames:
        if written.interrupted:
            raise KeyboardInterrupt
        raise written.broken or DataError("no frame was read; nothing is written")
    for output in outputs:
        output.finish(whole=written.whole)
        written.notes += output.notes
        if output.is_clip:
            written.files.append(output.job.goal(output.job.name, output.ending))


def _shots(source: Source, predictor: Predictor, plan: Plan, written: Written) -> Generator[Shot, None, None]:
    """Results (metres are of the frame's camera), with the range of the clip's colours."""
    spec = plan.job.spec
    with closing(_results(source, predictor, plan)) as results:
        first: list[Result] = []
        error: BaseException | None = None
        ends: tuple[float, float] | None = None
        written.span = plan.span
        if plan.span is None and plan.one_span:
            first, error = _first_look(results, source, min(_LOOK, plan.seconds or _LOOK))
            if first:
                low, high = percentiles([result.small for result in first], first[0].small.shape)
                reach = high - low  # answers without metres may begin anywhere
                more = (_WIDER - 1) * reach
                wide = (low / _WIDER, high * _WIDER) if spec.is_metric else (low - more, high + more)
                written.span, ends = oriented(wide, spec.answers), (low - reach, high + reach)
        begin: float | None = None  # of a live source, the first frame that is taken is not its first
        for result in chain(_emptied(first), results):
            frame = result.frame
            begin = frame.time if begin is None else begin
            time, camera = frame.time - begin, plan.camera(frame)
            yield Shot(plan.name(frame), result, time, written.span, camera, spec.answers, ends)
        if error is not None:
            raise error


def _results(source: Source, predictor: Predictor, plan: Plan) -> Generator[Result, None, None]:
    """The predictor's results. This is the one place where metres are corrected for the focal length."""
    stream = cast("Generator[Result, None, None]", predictor.stream(source, smooth=plan.smooth))
    with closing(stream) as results:
        for result in results:
            camera = plan.camera(result.frame)
            if camera is not None and plan.job.spec.is_metric:
                result.small = corrected(result.small, camera, plan.job.spec.focal)
            yield result


def _first_look(results: Iterator[Result], source: Source, seconds: float) -> tuple[list[Result], BaseException | None]:
    """The results of the first seconds, as far as their frames may be held; and the error that ended them."""
    most = max(int(_MOST_HELD / (_BYTES_A_PIXEL * source.size[0] * source.size[1])), 1)
    found: list[Result] = []
    try:
        for result in results:
            found.append(result)
            if result.frame.time - found[0].frame.time >= seconds or len(found) >= most:
                break
    except (DataError, KeyboardInterrupt) as error:
        return found, error
    return found, None


def _emptied(results: list[Result]) -> Iterator[Result]:
    """The results, each forgotten when it was given."""
    results.reverse()
    while results:
        yield results.pop()
