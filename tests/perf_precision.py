"""`make perf`: what precision is worth in time, and how fast `tune` finds out.

Ratios are of times taken in turns, in one run.

The shipped weights of compact; unet with random ones, since only its speed is asked for. Calibrated on built-in scenes:
how fast INT8 is does not depend on its ranges. Whether gates hold on real frames: docs/results/precision.md.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

from depthkit.bench.replay import measure_parity
from depthkit.bench.timing import Steady, time_steady
from depthkit.cli import run as depthkit
from depthkit.documents import from_json
from depthkit.engines.build import BuildOptions, build
from depthkit.errors import BackendError, GateError
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.parity import gate_faults
from depthkit.pipeline import search as search_module
from depthkit.pipeline.budget import Tuning
from depthkit.pipeline.calibration import read_calibration
from depthkit.pipeline.runs import open_source
from depthkit.precisions import Precision
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load
from depthkit.session import Session
from depthkit.tests.perf import FAILED, VENDORS, lacks, noise, report, workspace
from depthkit.tests.perf_bars import RAW, engine_bars, has_bf16, here, is_plain, least_fps
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.peers import open_torch_peer
from depthkit.train.shipped import shipped_run


def onnx_file(run: Path, precision: Precision, size: tuple[int, int]) -> Path:
    """The run's ONNX file."""
    calibration = read_calibration("scenes", size) if precision == "int8" else None
    keep = "auto" if precision == "int8" else None
    return export_onnx(open_source(run), ExportOptions(precision, size, 1, calibration, keep)).path  # type: ignore[arg-type]


def engines(run: Path, size: tuple[int, int]) -> dict[str, Path]:
    """The engines of a run that this CPU can build and that hold their gate; a line for each of the others."""
    found: dict[str, Path] = {}
    cpu = here()
    for precision in ("fp32", "bf16", "int8"):
        for backend, label in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")):
            name = f"{label} {precision}"
            if precision == "bf16" and (backend == "onnxruntime" or not has_bf16(cpu)):
                lacks(name, f"no BF16 on {cpu.name}" if backend == "openvino" else "it has no kernels for it")
                continue
            try:
                onnx = onnx_file(run, precision, size)
                engine = build(onnx, BuildOptions(backend)).path
                with load(engine) as session:
                    parity, _ = measure_parity(session, read_reference(reference_path(onnx)))
            except (BackendError, GateError) as error:
                lacks(name, str(error))
                continue
            if faults := gate_faults(parity, precision):
                lacks(name, f"its gate fails: {'; '.join(faults)}")
            else:
                found[name] = engine
    return found


def perf_int8(run: Path) -> None:
    """Compact in every precision that this CPU computes in, against torch eager and the vendors' FP32."""
    for size in ((240, 320), (480, 640)):
        plain, ours = onnx_file(run, "fp32", size), engines(run, size)
        with ExitStack() as stack:
            sessions: dict[str, Session] = {"torch eager": stack.enter_context(open_torch_peer(run, size))}
            for name, vendor in VENDORS.items():
                sessions[f"{name}'s own fp32"] = stack.enter_context(vendor(plain))
            for name, path in ours.items():
                sessions[name] = stack.enter_context(load(path))
            times = time_steady(list(sessions.values()), [noise(size)] * len(sessions), Steady(duration_s=6))
        p50 = {name: median(samples) for name, samples in zip(sessions, times, strict=True)}
        where = f"{size[0]}x{size[1]}"
        print(f"      {where}, p50 ms: {', '.join(f'{name} {ms:.1f}' for name, ms in p50.items())}")
        best = min(ours, key=p50.__getitem__)
        p50["ONNX Runtime fp32"] = p50["onnxruntime's own fp32"]
        p50[RAW] = min(p50[f"{name}'s own fp32"] for name in VENDORS)
        for bar in engine_bars(here(), size):
            gain = p50[bar.over] / p50[best]
            what = f"{best} over {bar.over}, {where}"
            report(what, gain, "times as fast", f">= {bar.times}", holds=gain >= bar.times)
        if (least := least_fps(here(), size)) is not None:
            fps = 1000 / p50[best]
            report(f"{best}, {where}, at p50", fps, "FPS", f">= {least:g}", holds=fps >= least)


def perf_networks(compact: Path, unet: Path) -> None:
    """Compact against unet in the same engine and precision."""
    size = (96, 128)
    for precision in ("fp32", "bf16", "int8"):
        what = f"compact over unet, OpenVINO {precision}, 96x128"
        with ExitStack() as stack:
            try:
                files = [onnx_file(run, precision, size) for run in (compact, unet)]
                sessions = [stack.enter_context(load(build(file, BuildOptions("openvino")).path)) for file in files]
            except (BackendError, GateError) as error:  # no BF16 here, or random weights that cannot be INT8
                lacks(what, str(error))
                continue
            small, large = time_steady(sessions, [noise(size)] * 2, Steady(duration_s=5))
        gain = median(large) / median(small)
        few, many = (session.spec.macs / 1e6 for session in sessions)
        print(
            f"      {precision}, 96x128, p50 ms: compact {median(small):.2f}, unet {median(large):.2f}; GMAC/s: "
            f"{few / median(small):.0f}, {many / median(large):.0f}; MACs {many / few:.2f}:1"
        )
        report(what, gain, "times as fast", ">= 5", holds=gain >= 5)


def perf_nano(nano: Path, compact: Path) -> None:
    """Nano at 240x320 against compact in the same engine and precision, its frames a second, and what INT8 is worth."""
    size = (240, 320)
    small, large = engines(nano, size), engines(compact, size)
    with ExitStack() as stack:
        sessions = [stack.enter_context(load(path)) for path in (*small.values(), *large.values())]
        times = time_steady(sessions, [noise(size)] * len(sessions), Steady(duration_s=4))
        p50 = [median(samples) for samples in times]
        ours, theirs = (
            dict(zip(names, p50[start:], strict=False)) for names, start in ((small, 0), (large, len(small)))
        )
        work = sessions[0].spec.macs / 1e9
        report("nano, 240x320", work, "GMAC", "<= 0.7", holds=work <= 0.7)
        for name in ours.keys() & theirs.keys():
            gain = theirs[name] / ours[name]
            print(f"      {name}, 240x320, p50 ms: nano {ours[name]:.2f}, compact {theirs[name]:.2f}")
            report(f"nano over compact, {name}, 240x320", gain, "times as fast", ">= 8", holds=gain >= 8)
        plain = min((name for name in ours if name.endswith("fp32")), key=ours.__getitem__)
        session, frame, called = sessions[list(small).index(plain)], noise(size)[0], []
        for _ in range(200):
            start = perf_counter()
            session(frame)
            called.append(perf_counter() - start)
    fps = 1 / median(called)
    report(f"nano, a frame in memory to depth, {plain}, 240x320, at p50", fps, "FPS", ">= 60", holds=fps >= 60)
    if is_plain(here()):
        lacks("nano's INT8 over FP32", f"{here().name} has no arithmetic that is faster than FP32")
    elif eight := [ms for name, ms in ours.items() if name.endswith("int8")]:
        gain = ours[plain] / min(eight)
        report("nano's INT8 over FP32, 240x320", gain, "times as fast", ">= 1.5", holds=gain >= 1.5)


def perf_tune(run: Path) -> None:
    """How long a search takes, and how far its choice is from the best when every candidate is measured for long."""

    def search() -> Tuning:
        assert depthkit(["tune", str(run), "--minutes", "10"]) == 0
        return from_json(Tuning, (run / "tune.json").read_bytes(), source="tune.json")

    start = perf_counter()
    found = search()
    seconds = perf_counter() - start
    report(f"tune over {len(found.trials)} candidates", seconds, "s", "<= 300", holds=seconds <= 300)
    (run / "tune.json").unlink()
    with patch.object(search_module, "could_win", lambda trial, *_: trial.quality is not None and not trial.faults):
        every = search()
    p50 = {trial.candidate.name: trial.p50_ms for trial in every.trials if trial.state == "measured"}
    if found.chosen in every.untried:
        lacks("what tune chose over the best of all", f"ten minutes ended before {found.chosen} was tried again")
        return
    far = p50[found.chosen] / p50[every.chosen]
    print(f"      tune chose {found.chosen}, of {len(p50)} measured for long the best is {every.chosen}")
    report("what tune chose over the best of all", far, "times its p50", "<= 1.03", holds=far <= 1.03)


def main() -> int:
    """Run all, or what is named: int8, networks, nano, tune."""
    wanted = set(sys.argv[1:]) or {"int8", "networks", "nano", "tune"}
    with workspace() as folder:
        compact = Path(shutil.copytree(shipped_run("compact"), folder / "compact"))
        if "int8" in wanted:
            perf_int8(compact)
        if "networks" in wanted:
            unet = fit(TrainOptions("unet", size=(96, 128), epochs=1, steps=2, batch=2, out=folder))
            assert unet is not None
            perf_networks(compact, unet)
        if "nano" in wanted:
            perf_nano(Path(shutil.copytree(shipped_run("nano"), folder / "nano")), compact)
        if "tune" in wanted:
            perf_tune(compact)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
