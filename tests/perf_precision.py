"""`make perf`: what precision is worth in time, and how fast `tune` finds out.

Ratios are of times taken in turns, in one run.

The shipped weights of compact; unet with random ones, since only its speed is asked for. Calibrated on built-in scenes:
how fast INT8 is does not depend on its ranges. Whether gates hold on real frames: docs/results/precision.md.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

from depthkit.bench import search as search_module
from depthkit.bench.peers import open_onnxruntime
from depthkit.bench.timing import Steady, time_steady
from depthkit.bench.tune import Tuning
from depthkit.cli import run as depthkit
from depthkit.commands.precision import read_calibration
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.runtime.load import load
from depthkit.session import Session
from depthkit.spec import from_json
from depthkit.tests.perf import FAILED, noise, report
from depthkit.tolerances import Precision
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import fit
from depthkit.train.options import TrainOptions
from depthkit.train.peers import open_torch_peer
from depthkit.train.shipped import shipped_run


def onnx_file(run: Path, precision: Precision, size: tuple[int, int]) -> Path:
    """The run's ONNX file."""
    calibration = read_calibration("scenes", size) if precision == "int8" else None
    keep = "auto" if precision == "int8" else None
    return export_onnx(read_bundle(run), ExportOptions(precision, size, 1, calibration, keep)).path  # type: ignore[arg-type]


def perf_int8(run: Path) -> None:
    """Compact in every precision that this CPU computes in, against torch eager and plain ONNX Runtime in FP32."""
    for size in ((240, 320), (480, 640)):
        plain = onnx_file(run, "fp32", size)
        files = {precision: onnx_file(run, precision, size) for precision in ("bf16", "int8")}
        with ExitStack() as stack:
            sessions: dict[str, Session] = {
                "torch eager": stack.enter_context(open_torch_peer(run, size)),
                "ONNX Runtime fp32": stack.enter_context(open_onnxruntime(plain)),
                "ONNX Runtime int8": stack.enter_context(load(build(files["int8"], BuildOptions("onnxruntime")).path)),
                "OpenVINO bf16": stack.enter_context(load(build(files["bf16"], BuildOptions("openvino")).path)),
                "OpenVINO int8": stack.enter_context(load(build(files["int8"], BuildOptions("openvino")).path)),
            }
            times = time_steady(list(sessions.values()), [noise(size)] * len(sessions), Steady(duration_s=6))
        p50 = {name: median(samples) for name, samples in zip(sessions, times, strict=True)}
        where = f"{size[0]}x{size[1]}"
        print(f"      {where}, p50 ms: {', '.join(f'{name} {ms:.1f}' for name, ms in p50.items())}")
        best = min(("OpenVINO int8", "ONNX Runtime int8", "OpenVINO bf16"), key=p50.__getitem__)
        if size == (240, 320):
            fps = 1000 / p50[best]
            report(f"{best}, {where}, at p50", fps, "FPS", ">= 30", holds=fps >= 30)
            continue
        for over, bound in (("torch eager", 8.0), ("ONNX Runtime fp32", 3.5)):
            gain = p50[over] / p50[best]
            report(f"{best} over {over}, {where}", gain, "times as fast", f">= {bound}", holds=gain >= bound)


def perf_networks(compact: Path, unet: Path) -> None:
    """Compact against unet in the same engine and precision."""
    size = (96, 128)
    for precision in ("fp32", "bf16", "int8"):
        files = [onnx_file(run, precision, size) for run in (compact, unet)]
        with ExitStack() as stack:
            sessions = [stack.enter_context(load(build(file, BuildOptions("openvino")).path)) for file in files]
            small, large = time_steady(sessions, [noise(size)] * 2, Steady(duration_s=5))
        gain = median(large) / median(small)
        few, many = (session.spec.macs / 1e6 for session in sessions)
        print(
            f"      {precision}, 96x128, p50 ms: compact {median(small):.2f}, unet {median(large):.2f}; GMAC/s: "
            f"{few / median(small):.0f}, {many / median(large):.0f}; MACs {many / few:.2f}:1"
        )
        what = f"compact over unet, OpenVINO {precision}, 96x128"
        report(what, gain, "times as fast", ">= 5", holds=gain >= 5)


def perf_tune(run: Path) -> None:
    """How long a search takes, and how far its choice is from the best when every candidate is measured for long."""

    def search() -> Tuning:
        assert depthkit(["tune", str(run), "--minutes", "20"]) == 0
        return from_json(Tuning, (run / "tune.json").read_bytes(), source="tune.json")

    start = perf_counter()
    found = search()
    seconds = perf_counter() - start
    (run / "tune.json").unlink()
    with patch.object(search_module, "could_win", lambda trial, *_: trial.quality is not None and not trial.faults):
        every = search()
    p50 = {trial.candidate.name: trial.p50_ms for trial in every.trials if trial.state == "measured"}
    far = p50[found.chosen] / p50[every.chosen]
    print(f"      tune chose {found.chosen}, of {len(p50)} measured for long the best is {every.chosen}")
    report(f"tune over {len(found.trials)} candidates", seconds, "s", "<= 300", holds=seconds <= 300)
    report("what tune chose over the best of all", far, "times its p50", "<= 1.03", holds=far <= 1.03)


def main() -> int:
    """Run all, or what is named: int8, networks, tune."""
    wanted = set(sys.argv[1:]) or {"int8", "networks", "tune"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEPTHKIT_STORE"] = f"{folder}/store"
        compact = Path(shutil.copytree(shipped_run("compact"), Path(folder) / "compact"))
        if "int8" in wanted:
            perf_int8(compact)
        if "networks" in wanted:
            unet = fit(TrainOptions("unet", size=(96, 128), epochs=1, steps=2, batch=2, out=Path(folder)))
            assert unet is not None
            perf_networks(compact, unet)
        if "tune" in wanted:
            perf_tune(compact)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
