"""`make perf`: what `depthkit predict CLIP` costs beside its engine, and that memory does not grow with length.

`DEPTHKIT_SAMPLES` names a folder with `video/*.mp4`; without it a clip of noise and boxes is made, of the same size.
CPU times are of the whole process, so that a busy machine changes them little; rates are ratios of the same run.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil

from depthkit.engines.build import BuildOptions, build, fastest
from depthkit.pipeline.clip import Plan, write_source
from depthkit.pipeline.predictor import Predictor
from depthkit.pipeline.shot import Job
from depthkit.pipeline.stream import Result, stream
from depthkit.runtime.source import Frame, Source
from depthkit.runtime.sources import open_source
from depthkit.tests.perf import FAILED, report, workspace
from depthkit.tests.runtime.clips import write_clip
from depthkit.tests.support import model_spec, run_python
from depthkit.train.shipped import shipped_run

CLIP = "indoor_tum_fr1_rpy_640x480.mp4"
SIZE = (240, 320)
SPEC = replace(model_spec(*SIZE), focal=None)
FRAMES = 240
ROUNDS = 3
LONG = 10_000
CPU_MS, SHARE, FPS, SLOPE, START = 8.0, 0.8, 30.0, 100.0, 2.0


class Replay:
    """A predictor that answers the depths of `real` once more, without computing."""

    def __init__(self, depths: list[np.ndarray]) -> None:
        self.size, self.spec = SIZE, SPEC
        self._depths = depths

    def stream(self, source: Source, *, smooth: bool) -> Iterator[Result]:
        """As `Predictor.stream`."""
        assert not smooth
        given = iter(range(sys.maxsize))
        return stream(source, lambda _: self._depths[next(given) % len(self._depths)], SIZE)


def plan(out: Path, source: Source, *outputs: str) -> Plan:
    """What to write of a source."""
    return Plan(outputs, Job(out, "x", source.size, SPEC, source.fps), seconds=FRAMES / 30)


def perf_beside_the_engine(clip: Path, out: Path, depths: list[np.ndarray]) -> None:
    """CPU of decode, resize, colours and encoding, a frame."""
    for outputs in (("color-video",), ("side-video",), ("depth-video",)):
        spent = []
        for _ in range(ROUNDS):
            source, begin = open_source(clip), process_time()
            written = write_source(source, Replay(depths), plan(out, source, *outputs))  # type: ignore[arg-type]
            spent.append((process_time() - begin) / written.frames * 1000)
        bound = CPU_MS if outputs == ("color-video",) else None
        say(f"CPU a frame of 640x480 beside the engine, {outputs[0]}", median(spent), "ms", bound, at_most=True)


def perf_end_to_end(clip: Path, out: Path, compact: Path, nano: Path) -> None:
    """Frames a second from file to file, over those that the engine alone computes, round by round.

    An engine that takes all cores leaves none for the rest: with nano, whose frame costs 14 ms of CPU, the 8 ms beside
    it allow no more than 0.64 of its rate.
    """
    for engine, output, share, fps in ((compact, "color-video", SHARE, None), (nano, "depth-video", None, FPS)):
        ratios, rates = [], []
        with Predictor(engine) as predictor:
            image = np.random.default_rng(0).integers(0, 256, (*predictor.size, 3), np.uint8)
            for _ in range(ROUNDS):
                alone = rate(partial(predictor, image, predictor.size), FRAMES)
                source, begin = open_source(clip), perf_counter()
                written = write_source(source, predictor, plan(out, source, output))
                rates.append(written.frames / (perf_counter() - begin))
                ratios.append(rates[-1] / alone)
        say(f"file to {output} over the engine alone, {engine.name}", median(ratios), "times", share)
        say(f"file to {output}, {engine.name}", median(rates), "fps", fps)


def perf_memory(out: Path, depths: list[np.ndarray]) -> None:
    """Memory over 10,000 frames, from the 2,000th on."""
    process, sizes = psutil.Process(), []
    image, large = (np.full((*size, 3), 99, np.uint8) for size in ((48, 64), SIZE))

    def frames() -> Iterator[Frame]:
        for index in range(LONG):
            if index % 500 == 0:
                sizes.append((index, process.memory_info().rss))
            yield Frame((48, 64), index / 30, index, f"{index:06d}", lambda size, _: large if size else image)

    for outputs, bound in ((("color-video",), SLOPE), (("color-video", "side-video", "depth-video"), None)):
        sizes.clear()
        source = Source("long", frames(), (48, 64), fps=30)
        whole = Plan(outputs, Job(out, "long", (48, 64), SPEC, 30))
        write_source(source, Replay(depths), whole)  # type: ignore[arg-type]
        index, used = np.array([each for each in sizes if each[0] >= 2000]).T
        slope = float(np.polyfit(index, used, 1)[0])
        say(f"memory over {LONG} frames, {', '.join(outputs)}", slope, "bytes a frame", bound, at_most=True)


def perf_start(clip: Path, out: Path, engine: Path) -> None:
    """From the start of `depthkit predict` to the end of a clip of one frame, by an engine."""
    command = ("-m", "depthkit", "predict", engine, clip, "--seconds", "0.001", "--out", out)
    run_python(*command)
    spent = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        run_python(*command)
        spent.append(perf_counter() - begin)
    say(f"from start to the first depth, {engine.name}", min(spent), "s", START, at_most=True)


def rate(call: Callable[[], Any], count: int) -> float:
    """Calls a second."""
    begin = perf_counter()
    for _ in range(count):
        call()
    return count / (perf_counter() - begin)


def say(what: str, value: float, unit: str, bound: float | None, *, at_most: bool = False) -> None:
    """Report a figure and its bound."""
    if bound is None:
        print(f"      {what}: {value:.2f} {unit}")
        return
    word = "at most" if at_most else "at least"
    report(what, value, unit, f"{word} {bound:g}", holds=value <= bound if at_most else value >= bound)


def made_clip(folder: Path) -> Path:
    """The real clip, or one of noise and boxes."""
    if samples := os.environ.get("DEPTHKIT_SAMPLES"):
        return Path(samples) / "video" / CLIP
    rng = np.random.default_rng(0)
    room = rng.integers(0, 256, (480, 640, 3), np.uint8)
    images = (np.roll(room, 3 * index, axis=1) for index in range(FRAMES))
    return write_clip(folder / "clip.mp4", images, times=[index / 30 for index in range(FRAMES)])


def main() -> int:
    """Run all, or the named parts."""
    parts = sys.argv[1:] or ["cost", "end", "memory", "start"]
    with workspace() as folder:
        clip, out = made_clip(folder), folder / "out"
        engine, compact = (
            build(Path(shutil.copytree(shipped_run(name), folder / name)) / onnx, BuildOptions(fastest())).path
            for name, onnx in (("nano", "nano-240x320.fp32.onnx"), ("compact", "compact-96x128.fp32.onnx"))
        )
        with Predictor(engine) as predictor, open_source(clip) as source:
            depths = [result.small for result, _ in zip(predictor.stream(source), range(60), strict=False)]
        if "cost" in parts:
            perf_beside_the_engine(clip, out, depths)
        if "memory" in parts:
            perf_memory(out, depths)
        if "end" in parts:
            perf_end_to_end(clip, out, compact, engine)
        if "start" in parts:
            perf_start(clip, out, engine)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
