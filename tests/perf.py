"""`make perf`: speed of the parts that an issue put a figure on. Ratios are of times taken in turns, in one run.

Figures are printed, and a failed bound exits 1; nothing here is part of `make test`, since a shared machine is noisy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from depthkit.bench.roofline import find_roofline
from depthkit.bench.timing import Steady, allocate, time_steady
from depthkit.data.scenes.render import render_scenes
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.pipeline.runs import open_source
from depthkit.runtime import ort, ov
from depthkit.runtime.load import load
from depthkit.session import Peer, Session
from depthkit.tests.perf_bars import fp32_bars, has_bf16, here, session_bound
from depthkit.tests.support import run_python
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.peers import open_torch_peer
from depthkit.train.torch_session import TorchSession

SIZE = (96, 128)
FAILED: list[str] = []
VENDORS: dict[str, Callable[[Path], Peer]] = {
    "onnxruntime": ort.open_peer,
    "openvino": partial(ov.open_peer, precision_hint="f32"),
}
"""Each vendor's own call in FP32, by the name of the backend."""


def report(what: str, figure: float, unit: str, bound: str, *, holds: bool) -> None:
    """Print one line."""
    print(f"{'ok  ' if holds else 'MISS'}  {what}: {figure:.3g} {unit} (wanted {bound})")
    if not holds:
        FAILED.append(what)


def lacks(what: str, why: str) -> None:
    """Print what this machine cannot do; that is no miss."""
    print(f"none  {what}: {why}")


def perf_help() -> None:
    """`depthkit --help`, and how much of it is Python itself."""
    bare: list[float] = []
    whole: list[float] = []
    for _ in range(9):
        for times, arguments in ((bare, ["-c", "pass"]), (whole, ["-m", "depthkit", "--help"])):
            start = perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(perf_counter() - start)
    seconds = median(whole)
    report("depthkit --help", seconds, f"s, of which Python {median(bare):.3f}", "<= 0.25", holds=seconds <= 0.25)


def perf_scenes() -> None:
    """Built-in scenes at 96x128, batches of 16."""
    render_scenes(range(16), SIZE)
    times = []
    for first in range(16, 112, 16):
        start = perf_counter()
        render_scenes(range(first, first + 16), SIZE)
        times.append(perf_counter() - start)
    speed = 16 / median(times)
    report("scenes at 96x128", speed, "images/s", ">= 40", holds=speed >= 40)


def perf_run(run: Path) -> None:
    """What `session.run()` adds to the vendor's own best call on the same memory."""
    for size in ((96, 128), (240, 320)):
        bound = session_bound(here(), size)
        onnx = export_onnx(open_source(run), ExportOptions(size=size)).path
        frames = noise(size)
        for backend, vendor in VENDORS.items():
            with load(build(onnx, BuildOptions(backend)).path) as session, vendor(onnx) as theirs:
                ours, bare = time_steady([session, theirs], [frames] * 2, Steady(duration_s=5))
            ratio = median(ours) / median(bare)
            what = f"session.run over {backend}'s own call, {size[0]}x{size[1]}"
            report(what, ratio, "", f"<= {bound}", holds=ratio <= bound)


def perf_large(run: Path) -> None:
    """Compact at 480x640: engines against each other, against torch, and against what the processor can multiply."""
    size = (480, 640)
    onnx = export_onnx(open_source(run), ExportOptions(size=size)).path
    frames = noise(size)
    options = {"OpenVINO f32": BuildOptions("openvino")}
    if has_bf16(here()):
        options["OpenVINO bf16"] = BuildOptions("openvino", {"inference_precision": "bf16"})
    else:
        lacks("OpenVINO bf16, 480x640", f"{here().name} has no BF16 arithmetic")
    with ExitStack() as stack:
        sessions: dict[str, Session] = {"TorchSession": stack.enter_context(TorchSession(run, size))}
        sessions["ONNX Runtime"] = stack.enter_context(ort.open_peer(onnx))
        sessions["torch, N x 3 x H x W"] = stack.enter_context(open_torch_peer(run, size))
        for name, how in options.items():
            sessions[name] = stack.enter_context(load(build(onnx, how).path))
        times = time_steady(list(sessions.values()), [frames] * len(sessions), Steady(duration_s=5))
        p50 = {name: median(samples) for name, samples in zip(sessions, times, strict=True)}
        limits = {name: find_roofline(sessions[name], onnx) for name in options}
        perf_call(sessions["OpenVINO f32"], frames[0])
    print(f"      480x640, p50 ms: {', '.join(f'{name} {ms:.1f}' for name, ms in p50.items())}")
    for bar in fp32_bars(here()):
        gain = p50[bar.over] / p50[bar.fast]
        what = f"{bar.fast} over {bar.over}, 480x640"
        report(what, gain, "times as fast", f">= {bar.times}", holds=gain >= bar.times)
    for name, limit in limits.items():
        if limit is not None:
            floor, peaks = limit.floor_ms, limit.peaks
            print(
                f"      {name}: {floor / p50[name]:.0%} of what {peaks.gmacs:.0f} GMAC/s ({peaks.by}) and "
                f"{peaks.gbytes:.0f} GB/s allow"
            )


def perf_call(session: Session, frame: np.ndarray) -> None:
    """What `session(frame)` adds to `run()`."""
    image, _ = allocate(session)
    image[0] = frame
    called, ran = [], []
    for _ in range(30):
        start = perf_counter()
        session(frame)
        called.append(perf_counter() - start)
        allocate(session)[0][0] = frame
        start = perf_counter()
        session.run()
        ran.append(perf_counter() - start)
    ratio = median(called) / median(ran)
    report("session(frame) over session.run(), 480x640", ratio, "", "<= 1.02", holds=ratio <= 1.02)


def perf_first_depth(run: Path) -> None:
    """From nothing to the first depth, in a process of its own."""
    engine = build(export_onnx(open_source(run), ExportOptions(size=(240, 320))).path, BuildOptions("openvino")).path
    program = (
        "import sys, time; start = time.perf_counter(); import depthkit, numpy as np\n"
        "with depthkit.load(sys.argv[1]) as session: session(np.zeros((240, 320, 3), np.uint8))\n"
        "print(time.perf_counter() - start)"
    )
    seconds = median(float(run_python("-c", program, engine)) for _ in range(5))
    report("import and load to first depth, OpenVINO", seconds, "s", "<= 1.5", holds=seconds <= 1.5)


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8)


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for runs, with an engine store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEPTHKIT_STORE"] = f"{folder}/store"
        yield Path(folder)


def perf_engines() -> None:
    """Everything that needs a run."""
    with workspace() as folder:
        run = fit(TrainOptions("compact", size=SIZE, epochs=1, steps=2, batch=2, out=folder))
        assert run is not None
        for part in (perf_run, perf_large, perf_first_depth):
            part(run)


def main() -> int:
    """Run all."""
    print(f"torch threads {torch.get_num_threads()}")
    for part in (perf_help, perf_scenes, perf_engines):
        part()
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
