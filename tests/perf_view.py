"""`make perf`: what the server of `depthkit view` costs, beside the engine: CPU of its process, one run.

    python tests/perf_view.py [CLIP]

The engine is a stand-in at 96x128 that answers at once, and the page is a process of its own that reads every frame.
CLIP is 640x480; without it, the TUM clip of DEPTHKIT_SAMPLES, or one that is made here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import process_time, thread_time

import numpy as np
import psutil

from depthkit.pipeline.stream import Result, stream
from depthkit.runtime.source import Frame, Source
from depthkit.runtime.sources import open_source
from depthkit.serve import wire
from depthkit.serve.player import Playlist
from depthkit.serve.server import listen
from depthkit.serve.view import View
from depthkit.tests.perf import FAILED, report
from depthkit.tests.perf_sources import processor

ENGINE = (96, 128)
FRAMES = 250
FPS = 30.0
PASSES = 3
BOUND_MS = 3.0


def main() -> int:
    """Print all figures."""
    with clip() as path:
        print(f"CPU: {processor()}; load {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores; {path.name}")
        with open_source(path) as source:
            frames = list(islice(source, FRAMES))
        depth = np.linspace(0.5, 8, ENGINE[0] * ENGINE[1], dtype=np.float32).reshape(ENGINE)
        parts(path, frames, depth)
        runs = [serve(path, depth) for _ in range(PASSES)]
        for run in runs:
            print(
                f"      {run.drawn} of {FRAMES} frames drawn: {run.cpu:.2f} ms of CPU a frame, JPEG {run.encoding:.2f}"
            )
        bare = median(run.cpu - run.encoding for run in runs)
        report("view without engine and encoding, CPU a frame", bare, "ms", f"<= {BOUND_MS}", holds=bare <= BOUND_MS)
    return 1 if FAILED else 0


@contextmanager
def clip() -> Iterator[Path]:
    """The clip to measure with."""
    samples = os.environ.get("DEPTHKIT_SAMPLES")
    if len(sys.argv) > 1 or samples:
        yield Path(sys.argv[1] if len(sys.argv) > 1 else f"{samples}/video/indoor_tum_fr1_rpy_640x480.mp4")
        return
    from depthkit.tests.runtime.clips import write_clip

    rows, columns = np.mgrid[:480, :640]
    noise = np.random.default_rng(0).integers(0, 40, (480, 640))

    def picture(index: int) -> np.ndarray:
        grey = np.roll((rows // 3 + columns // 4 + noise) % 256, 3 * index, axis=1)
        return np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1).astype(np.uint8)

    with tempfile.TemporaryDirectory() as folder:
        yield write_clip(Path(folder) / "made.mp4", (picture(index) for index in range(FRAMES)))


def cost(frames: list[Frame], use: Callable[[Frame], object]) -> float:
    """CPU milliseconds a frame, the median of three passes."""

    def once() -> float:
        begin = process_time()
        for frame in frames:
            use(frame)
        return (process_time() - begin) / len(frames) * 1000

    return median(once() for _ in range(PASSES))


def parts(path: Path, frames: list[Frame], depth: np.ndarray) -> None:
    """What each step takes by itself."""

    def decode() -> float:
        begin = process_time()
        with open_source(path) as source:
            count = sum(1 for _ in islice(source, FRAMES))
        return (process_time() - begin) / count * 1000

    result = Result(frames[0], np.zeros((*ENGINE, 3), np.uint8), depth, {"engine": 0.0})
    steps = {
        "decode": median(decode() for _ in range(PASSES)),
        "resize to the engine": cost(frames, lambda frame: frame.image(ENGINE)),
        "RGB": cost(frames, wire.visible),
        "RGB and JPEG": cost(frames, lambda frame: wire.encode(wire.visible(frame))),
        "RGB, JPEG and depth": cost(frames, lambda _: wire.pack(result, 0.001, dropped=0, shown=1)),
    }
    for name, spent in steps.items():
        print(f"      {name:22s} {spent:5.2f} ms of CPU a frame")


@dataclass
class Run:
    """A page was shown FRAMES frames.

    Attributes:
        cpu: milliseconds a frame, of all threads of this process.
        encoding: of them, in encoding JPEG.
        drawn: frames that the page got.
    """

    cpu: float
    encoding: float
    drawn: int


@contextmanager
def encoding_timed() -> Iterator[list[float]]:
    """CPU seconds of each call of `wire.encode`."""
    spent: list[float] = []
    encode = wire.encode

    def timed(image: np.ndarray) -> bytes:
        begin = thread_time()
        encoded = encode(image)
        spent.append(thread_time() - begin)
        return encoded

    wire.encode = timed
    try:
        yield spent
    finally:
        wire.encode = encode


def serve(path: Path, depth: np.ndarray) -> Run:
    """Show the clip to a page in another process."""

    def first_frames(source: Source) -> Iterator[Result]:
        return islice(stream(source, lambda _: depth, ENGINE), FRAMES)

    view = View(Playlist(open_source(path), None, first_frames, fps=FPS), listen("127.0.0.1", 0, 0))
    thread = threading.Thread(target=view.run)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    page = context.Process(target=partial(read, view.address.replace("http", "ws", 1), theirs))
    page.start()
    ours.recv()  # it has been imported
    thread.start()
    with encoding_timed() as encoding:
        begin = process_time()
        ours.send("go")
        drawn: int = ours.recv()
        spent = process_time() - begin
    view.stop()
    thread.join()
    page.join()
    return Run(spent / FRAMES * 1000, sum(encoding) / FRAMES * 1000, drawn)


def read(address: str, pipe: object) -> None:
    """A page that draws nothing."""
    from multiprocessing.connection import Connection

    from websockets.sync.client import connect

    assert isinstance(pipe, Connection)
    pipe.send("ready")
    pipe.recv()
    drawn = 0
    with connect(f"{address}frames", max_size=None, compression=None) as connection:
        while True:
            message = connection.recv()
            if isinstance(message, bytes):
                drawn += 1
                connection.send('{"do": "drawn"}')
            elif json.loads(message).get("ended"):
                break
    pipe.send(drawn)


if __name__ == "__main__":
    sys.exit(main())
