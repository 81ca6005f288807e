"""Compare ways to quantise a run to INT8, for docs/decisions/0007: by depth on validation frames, and by speed.

    python docs/results/quantise.py runs/compact --data path/to/nyu > docs/results/quantise.md

Every graph is run by ONNX Runtime and OpenVINO, made unsigned as depthkit's engines are, where nothing else is said. A
way is: which ranges, and which convolutions stay in FP32.
Where NNCF is installed (it is no dependency of depthkit), its default is among them, by OpenVINO only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from unittest.mock import patch

import click
import numpy as np
import onnx

from depthkit.data.images import resize_depth, resize_image
from depthkit.engines.cpu_int8 import unsigned
from depthkit.engines.fingerprint import cpu_fingerprint, usable_cores
from depthkit.engines.ov import core
from depthkit.export import quantize
from depthkit.export.graph import Origin, build_graph
from depthkit.export.ranges import METHODS, calibrate
from depthkit.parity import compare
from depthkit.pipeline.calibration import read_calibration
from depthkit.pipeline.pictures import read_pictures
from depthkit.reference import Reference
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.torch_session import TorchSession
from depthkit.vendors import import_onnxruntime, import_openvino

Run = Callable[[np.ndarray], np.ndarray]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Calibrated on its training split, judged on its validation split.")
@click.option("--seconds", default=2.0, show_default=True, help="Of timing, for each row.")
def main(run: Path, data: str, seconds: float) -> None:
    """Print a table in Markdown."""
    bundle = read_bundle(run)
    size = bundle.document.model.size
    plain = build_graph(bundle.network, bundle.spec_at(None), "int8", Origin(bundle.weights_sha256, ""))
    calibration = read_calibration(data, size).frames[0].images
    reference = _reference(bundle, data, size)
    rows: list[tuple[str, str, Run]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for index, (name, model) in enumerate(_ways(plain, calibration)):
            path = scratch / f"{index}.onnx"
            onnx.save(model if "signed" in name else unsigned(model), path)
            rows += [(name, "ONNX Runtime", _onnxruntime(path)), (name, "OpenVINO", _openvino(core().read_model(path)))]
        if find_spec("nncf"):
            rows.append((f"NNCF {version('nncf')}, its default", "OpenVINO", _nncf(scratch / "0.onnx", calibration)))
        times = _times([answer for _, _, answer in rows], reference.images, seconds)
    click.echo("# Ways to quantise to INT8\n")
    click.echo(f"By `{' '.join(['python', *sys.argv])}` on {cpu_fingerprint().name}, {usable_cores()} threads.\n")
    click.echo(
        f"{bundle.document.model.network} at {size[0]}x{size[1]}, calibrated on {len(calibration)} training frames; "
        f"against torch in FP32 on {len(reference.images)} validation frames. SSIM on depth / 10 m. AbsRel and δ1: how "
        "much worse.\n"
    )
    click.echo("| way | by | SSIM | worst frame | AbsRel | δ1 | max m | p50 ms |")
    click.echo("|---|---|---:|---:|---:|---:|---:|---:|")
    for (name, runtime, answer), ms in zip(rows, times, strict=True):
        found = compare(np.concatenate([answer(image[None]) for image in reference.images]), reference)
        assert found.abs_rel_loss is not None
        assert found.delta1_loss is not None
        figures = f"{found.ssim:.4f} | {found.worst_ssim:.4f} | {found.abs_rel_loss:+.4f} | {found.delta1_loss:+.4f}"
        click.echo(f"| {name} | {runtime} | {figures} | {found.max_abs_mm / 1000:.2f} | {ms:.2f} |")


def _ways(plain: onnx.ModelProto, calibration: tuple[np.ndarray, ...]) -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "FP32", plain
    convolutions = [node.name for node in plain.graph.node if node.op_type == "Conv"]
    ranges = {method: calibrate(plain, calibration, method) for method in METHODS}
    for method, found in ranges.items():
        yield f"**depthkit's**, {method}", quantize.place(plain, found, ())
    found = ranges["percentile"]
    yield "percentile, first convolution in FP32", quantize.place(plain, found, convolutions[:1])
    yield "percentile, last convolution in FP32", quantize.place(plain, found, convolutions[-1:])
    with patch.object(quantize, "_answer_in_floats"):
        yield "percentile, answer of the last convolution rounded", quantize.place(plain, found, ())
    yield "percentile, activations signed, as in the file", quantize.place(plain, found, ())
    with patch.object(quantize, "_rectified", return_value=()):
        yield "percentile, a convolution's own range before its ReLU", quantize.place(plain, found, ())


def _reference(bundle: Bundle, data: str, size: tuple[int, int]) -> Reference:
    frames = read_pictures(data, "val", 10_000)
    images = np.stack([resize_image(image, size) for image in frames.images])
    truths = np.stack([resize_depth(depth, size, smooth=False) for depth in frames.depths])
    with TorchSession(bundle, size) as session:
        return Reference(images, session(images), truths, bundle.weights_sha256)


def _onnxruntime(path: Path) -> Run:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: np.asarray(session.run(None, {"image": image})[0])


def _openvino(model: object) -> Run:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": usable_cores()}
    request = core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda image: np.array(request.infer([image])[0])


def _nncf(path: Path, calibration: tuple[np.ndarray, ...]) -> Run:
    import_openvino()
    import nncf

    model = core().read_model(path)
    size = tuple(model.input(0).get_partial_shape().to_shape())[1:3]
    frames = nncf.Dataset([resize_image(image, size)[None] for image in calibration])
    return _openvino(nncf.quantize(model, frames, subset_size=len(calibration)))


def _times(answers: list[Run], images: np.ndarray, seconds: float) -> list[float]:
    """Median milliseconds of each, in turns."""
    samples: list[list[float]] = [[] for _ in answers]
    end = perf_counter() + seconds * len(answers)
    while perf_counter() < end:
        for answer, times in zip(answers, samples, strict=True):
            sleep(0.1)  # ONNX Runtime's threads keep the cores busy for 40 ms after a run
            for repeat in range(4):
                start = perf_counter()
                answer(images[:1])
                if repeat:  # the first finds the caches as the one before it left them
                    times.append((perf_counter() - start) * 1000)
    return [median(times) for times in samples]


if __name__ == "__main__":
    main()
