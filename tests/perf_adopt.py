"""`make perf`: foreign ONNX files of others' sizes, with random weights (`tests/zoo.py`).

What depthkit adds to a vendor's call, what the nodes add that make a graph camera-ready, which lower precision holds
its gate and what it is worth, and what `adopt` takes. Ratios are of times taken in turns, in one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final, Literal

import numpy as np

from depthkit.bench.replay import measure_parity
from depthkit.bench.timing import Steady, time_steady
from depthkit.data.images import write_image
from depthkit.engines.build import BuildOptions, build
from depthkit.errors import BackendError, GateError
from depthkit.export.onnx_file import export_onnx
from depthkit.export.onnx_source import bare_graph
from depthkit.export.recipe import ExportOptions
from depthkit.parity import gate_faults
from depthkit.pipeline.adopt import AdoptOptions, adopt_file
from depthkit.pipeline.calibration import PrecisionOptions
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.tell import silent
from depthkit.precisions import Precision
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.runtime.runner import open_graph
from depthkit.session import Call, Peer, Session
from depthkit.spec import Answers, ModelSpec, Preprocessing
from depthkit.tests.perf import FAILED, VENDORS, lacks, noise, report, workspace
from depthkit.tests.perf_bars import has_bf16, here
from depthkit.tests.zoo import write
from depthkit.train.document import read_document

MODELS: Final[dict[str, tuple[tuple[int, int], Answers]]] = {
    "dav2s": ((252, 336), "inverse"),
    "fastdepth": ((224, 224), "metres"),
}
"""Networks of the zoo: the size they run at, and what they answer."""

TRIED: Final[tuple[Precision, ...]] = ("fp32", "bf16", "int8")

MEGABYTES: Final = 2**20


def pictures(folder: Path) -> str:
    """Where real photographs are; without any, pictures of noise: speed does not depend on them, but gates do."""
    if samples := os.environ.get("DEPTHKIT_SAMPLES"):
        return f"{samples}/photos"
    for index, image in enumerate(noise((480, 640))):
        write_image(folder / f"{index}.png", image)
        write_image(folder / f"{index}b.png", np.ascontiguousarray(image[:, ::-1]))
    return str(folder)


def bare_peer(name: str, run: Path, spec: ModelSpec) -> Peer:
    """The original graph at one size, fed with floats that are ready for it."""
    document = read_document(run)
    assert document.adopted is not None
    graph = bare_graph(run / document.weights, document.adopted, spec.size, 1)
    compiled = open_graph(name, graph.SerializeToString(), "fp32", {})
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, *spec.size)).astype(np.float32)

    def prepare(_image: np.ndarray, _depth: np.ndarray) -> Call:
        return lambda: compiled.run(pixels)

    return Peer(spec, name, "fp32", prepare)


def perf_model(name: str, run: Path) -> None:
    """One adopted model in all precisions, by both vendors."""
    made = export_onnx(open_source(run), ExportOptions())
    spec = load(made.path).spec
    frames = noise(spec.size)[:1]
    where = f"{name}, {spec.size[0]}x{spec.size[1]}"
    for backend, vendor in VENDORS.items():
        with load(build(made.path, BuildOptions(backend)).path) as session, vendor(made.path) as theirs:
            ours, raw, bare = time_steady(
                [session, theirs, bare_peer(backend, run, spec)], [frames] * 3, Steady(duration_s=12)
            )
        ratio = median(ours) / median(raw)
        report(f"session over {backend}'s own call, {where}", ratio, "", "<= 1.03", holds=ratio <= 1.03)
        ratio = median(raw) / median(bare)
        print(f"      {backend}, p50 ms: camera-ready {median(raw):.2f}, bare graph with floats {median(bare):.2f}")
        report(f"camera-ready over bare graph, {backend}, {where}", ratio, "", "<= 1.02", holds=ratio <= 1.02)
        perf_precisions(where, backend, run, spec)


def perf_precisions(where: str, backend: str, run: Path, spec: ModelSpec) -> None:
    """INT8 and BF16 engines beside FP32: whether their gate holds, and what they are worth; no bound is set."""
    document = read_document(run)
    found: dict[str, Session] = {}
    for precision in TRIED:
        what = f"{where}, {backend} {precision}"
        if precision == "bf16" and (backend == "onnxruntime" or not has_bf16(here())):
            lacks(what, f"no BF16 on {here().name}" if backend == "openvino" else "it has no kernels for it")
            continue
        calibration = PrecisionOptions(() if precision == "fp32" else (precision,)).calibration(document, None)
        keep: Literal["auto"] | None = "auto" if precision == "int8" else None
        try:
            made = export_onnx(open_source(run), ExportOptions(precision, None, 1, calibration, keep))
            session = load(build(made.path, BuildOptions(backend)).path)
        except (BackendError, GateError) as error:
            lacks(what, str(error))
            continue
        parity, _ = measure_parity(session, read_reference(made.reference))
        if faults := gate_faults(parity, precision):
            lacks(what, f"its gate fails: {'; '.join(faults)}")
            session.close()
        else:
            found[precision] = session
    times = time_steady(list(found.values()), [noise(spec.size)[:1]] * len(found), Steady(duration_s=8))
    p50 = {name: median(samples) for name, samples in zip(found, times, strict=True)}
    listed = ", ".join(f"{name} {ms:.2f} ms ({p50['fp32'] / ms:.2f} x)" for name, ms in p50.items())
    print(f"      {where}, {backend}, within their gates: {listed}")
    for session in found.values():
        session.close()


def perf_adopt(model: Path, frames: str, folder: Path) -> None:
    """Seconds and memory of the command, on a file of about 100 MB."""
    code = (
        "import resource, sys; from depthkit.cli import run; code = run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    arguments = ["adopt", str(model), "--answers", "inverse", "--size", "252x336", "--frames", frames]
    start = perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(folder / "measured")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds, megabytes = perf_counter() - start, model.stat().st_size / MEGABYTES
    times = int(ran.stdout.split()[-1]) / 1024 / megabytes
    report(f"adopt of {megabytes:.0f} MiB", seconds, "s", "<= 20", holds=seconds <= 20)
    report(f"adopt of {megabytes:.0f} MiB, peak memory", times, "times the file", "<= 3", holds=times <= 3)


def main() -> int:
    """Run all."""
    with workspace() as folder:
        for name, (size, answers) in MODELS.items():
            model = write(name, folder / f"{name}.onnx")
            (folder / f"photos-{name}").mkdir()
            frames = pictures(folder / f"photos-{name}")
            if name == "dav2s":
                perf_adopt(model, frames, folder)
            options = AdoptOptions(frames, answers, Preprocessing(), size=size)
            adopt_file(model, folder / "runs" / name, options, silent)
            perf_model(name, folder / "runs" / name)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
