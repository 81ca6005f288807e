"""`make perf`: speed of the parts that an issue put a figure on. Ratios are of times taken in turns, in one run.

Figures are printed, and a failed bound exits 1; nothing here is part of `make test`, since a shared machine is noisy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from depthkit.bench.timing import Steady, allocate, time_steady
from depthkit.engines.build import build
from depthkit.export.onnx_file import ExportOptions, export_onnx
from depthkit.runtime.load import load
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import TrainOptions, fit
from depthkit.train.scenes import render_scenes
from depthkit.train.session import TorchSession

SIZE = (96, 128)
FAILED: list[str] = []


def report(what: str, figure: float, unit: str, bound: str, *, holds: bool) -> None:
    """Print one line."""
    print(f"{'ok  ' if holds else 'MISS'}  {what}: {figure:.3g} {unit} (wanted {bound})")
    if not holds:
        FAILED.append(what)


def perf_help() -> None:
    """`depthkit --help`, and how much of it is Python itself."""
    bare: list[float] = []
    whole: list[float] = []
    for _ in range(9):
        for times, arguments in ((bare, ["-c", "pass"]), (whole, ["-m", "depthkit", "--help"])):
            start = perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(perf_counter() - start)
    report(
        "depthkit --help",
        median(whole),
        f"s, of which Python {median(bare):.3f}",
        "<= 0.25",
        holds=median(whole) <= 0.25,
    )


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


def perf_session() -> None:
    """What our session adds to the vendor's own call, and what the engine gains over torch."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        run = fit(TrainOptions("compact", size=SIZE, epochs=1, steps=2, batch=2, out=Path(folder)))
        assert run is not None
        made = export_onnx(read_bundle(run), ExportOptions())
        engine = build(made.path)
        frames = np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), np.uint8)
        bare = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
        with load(engine) as session, load(engine) as vendor, TorchSession(run) as eager:
            image, depth = allocate(vendor)
            binding = bare.io_binding()
            binding.bind_input("image", "cpu", 0, image.dtype, image.shape, image.ctypes.data)
            binding.bind_output("depth", "cpu", 0, depth.dtype, depth.shape, depth.ctypes.data)
            # The same harness times the vendor's own call: a session whose run() is nothing else.
            vendor.run = lambda: bare.run_with_iobinding(binding)  # type: ignore[method-assign]
            ours, theirs, torchs = time_steady([session, vendor, eager], [frames] * 3, Steady(duration_s=6))
        ratio = median(ours) / median(theirs)
        report("session.run over ONNX Runtime's own call, 96x128", ratio, "", "<= 1.03", holds=ratio <= 1.03)
        gain = median(torchs) / median(ours)
        report("engine over torch eager, 96x128", gain, "times as fast", "> 1", holds=gain > 1)


def main() -> int:
    """Run all."""
    print(f"torch threads {torch.get_num_threads()}")
    for part in (perf_help, perf_scenes, perf_session):
        part()
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
