"""`depthkit bench --source`: what a clip costs from file to video, by stage, and how old frames of a camera are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Final

import numpy as np

from ..cores import usable_cores
from ..data.colours import Span, oriented
from ..errors import UserError
from ..runtime.source import Frame
from ..runtime.sources import open_source, paced
from .clip import Plan, write_source
from .outputs import OUTPUTS
from .predictor import Predictor
from .shot import Job, Shot
from .stream import Result

__all__ = ["STAGES", "EndToEnd", "measure_source"]

STAGES: Final = ("decode", "resize", "engine", "resize back", "colour and encode")
"""In the order in which a frame passes them."""

_OUTPUT: Final = "color-video"
_RATE: Final = 30.0  # frames a second of a clip that does not state its own


@dataclass(frozen=True)
class EndToEnd:
    """An engine on a clip. Times are in milliseconds.

    Attributes:
        engine: as the user named it.
        provider, precision: see `Session`.
        engine_size: height and width of what the engine takes.
        source: the clip.
        size: height and width of its frames.
        frames: that were written from the file.
        stages: medians of each stage of `STAGES`, one after the other, nothing at the same time.
        alone: frames a second that the engine computes when nothing else is done.
        rate: frames a second from file to video, stages overlapping.
        cpu: share of all usable cores' time that this took, 0 to 1.
        paced_rate: frames a second that a camera was played to give.
        answered, dropped: of these frames.
        age_p50, age_p99: of such a frame, from its capture until its depth was written.
    """

    engine: str
    provider: str
    precision: str
    engine_size: tuple[int, int]
    source: str
    size: tuple[int, int]
    frames: int
    stages: dict[str, float]
    alone: float
    rate: float
    cpu: float
    paced_rate: float
    answered: int
    dropped: int
    age_p50: float
    age_p99: float

    @property
    def share(self) -> float:
        """Of the engine's own rate, what is left from file to video."""
        return self.rate / self.alone


def measure_source(place: str, engine: Path, seconds: float) -> EndToEnd:
    """Measure an engine on the first `seconds` of a clip.

    Raises:
        DataError: the clip cannot be read.
        UserError: it is a camera or a stream, or `seconds` is not above 0.
        EngineError: see `Predictor`.
    """
    if not seconds > 0:
        raise UserError(f"--duration {seconds:g} leaves no frame of {place}; name seconds above 0")
    with open_source(place) as source:
        if source.live:
            raise UserError(f"{source.name} is live, so that no two engines get the same frames; name a video file")
        fps, size = source.fps or _RATE, source.size
    with Predictor(engine) as predictor, TemporaryDirectory(prefix="depthkit-") as folder:
        job = Job(Path(folder), "clip", size, predictor.spec, fps)
        span = oriented(predictor.spec.depth_range, predictor.spec.answers)
        stages = _stages(place, predictor, job, span, seconds)
        plan = Plan((_OUTPUT,), job, span, seconds=seconds)
        # Before and after, so that a machine that changes its speed meanwhile changes both.
        alone = [_alone(place, predictor, seconds / 2)]
        with _timed() as spent:
            written = write_source(open_source(place), predictor, plan)
        alone.append(_alone(place, predictor, seconds / 2))
        ages: list[float] = []
        live = paced(open_source(place), fps)
        seen = write_source(live, predictor, plan, lambda shot: ages.append(shot.result.age))
        p50, p99 = np.percentile(ages, (50, 99)) * 1000
        return EndToEnd(
            engine=str(engine),
            provider=predictor.provider,
            precision=predictor.precision,
            engine_size=predictor.size,
            source=place,
            size=size,
            frames=written.frames,
            stages=stages,
            alone=sum(alone) / 2,
            rate=written.frames / spent[0],
            cpu=spent[1] / spent[0] / usable_cores(),
            paced_rate=fps,
            answered=seen.frames,
            dropped=live.dropped,
            age_p50=float(p50),
            age_p99=float(p99),
        )


def _stages(place: str, predictor: Predictor, job: Job, span: Span, seconds: float) -> dict[str, float]:
    """Median milliseconds of each stage, each frame from its decoding to its encoding before the next."""
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with open_source(place) as source, OUTPUTS[_OUTPUT](job) as output:
        begin = perf_counter()
        for frame in _first(source, seconds):
            times = [begin, perf_counter()]
            image = frame.image(predictor.size)
            times.append(perf_counter())
            result = Result(frame, image, predictor(image, predictor.size), {})
            times.append(perf_counter())
            _ = result.depth
            times.append(perf_counter())
            output.write(Shot(frame.name, result, frame.time, span))
            times.append(perf_counter())
            for stage, took in zip(STAGES, np.diff(times), strict=True):
                spent[stage].append(float(took) * 1000)
            begin = perf_counter()
        output.finish(whole=False)
    return {stage: median(taken) for stage, taken in spent.items()}


def _alone(place: str, predictor: Predictor, seconds: float) -> float:
    """Frames a second of the engine on frames of its own size."""
    with open_source(place) as source:
        images = [frame.image(predictor.size) for frame, _ in zip(source, range(8), strict=False)]
    count, begin = 0, perf_counter()
    while not count or perf_counter() - begin < seconds:
        predictor(images[count % len(images)], predictor.size)
        count += 1
    return count / (perf_counter() - begin)


def _first(frames: Iterable[Frame], seconds: float) -> Iterator[Frame]:
    return takewhile(lambda frame: frame.time < seconds, frames)


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Seconds of the clock and of CPU time that the block took, when it has ended."""
    spent: list[float] = []
    begin, used = perf_counter(), process_time()
    yield spent
    spent += [perf_counter() - begin, process_time() - used]
