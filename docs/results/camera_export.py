"""Resizing in the engine (`depthkit export --camera`) against resizing on the host: time and accuracy, for
camera_export.md.

    python docs/results/camera_export.py path/to/nyu

Both paths go from a frame of 480x640 to depth of 480x640, with compact in FP32 on one thread. Times are CPU times, the
smallest of many runs in turns, because other processes may run. Accuracy is on the validation split.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import process_time
from typing import Final

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from depthkit.bench.accuracy import measure_accuracy
from depthkit.data.sources import open_dataset
from depthkit.engines.build import BuildOptions, build
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.export.torch_source import TorchSource
from depthkit.frames import AnySize
from depthkit.pipeline.targets import open_torch
from depthkit.runtime.contract import Graph
from depthkit.runtime.load import load
from depthkit.runtime.runner import open_graph
from depthkit.train.bundle import read_bundle
from depthkit.train.resize import Filter, Resample, shrinking
from depthkit.train.shipped import shipped_run

CAMERA: Final = (480, 640)
SIZES: Final = ((96, 128), (240, 320), (208, 272))
"""Sizes of the network: the last one does not divide the camera's."""
BACKENDS: Final = ("openvino", "onnxruntime")
ROUNDS, RUNS = 10, 6


class Pool(nn.Module):
    """One pooling of both directions."""

    def forward(self, image: Tensor) -> Tensor:
        """Shrink frames to 96x128."""
        return avg_pool2d(image.float().permute(0, 3, 1, 2), 5)


class Resize(nn.Module):
    """ONNX's Resize."""

    def forward(self, depth: Tensor) -> Tensor:
        """Enlarge depth."""
        return interpolate(depth[:, None], size=CAMERA, mode="bilinear")[:, 0]


@click.command()
@click.argument("nyu", type=click.Path(exists=True))
def main(nyu: str) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not used
    click.echo(f"{cpu_fingerprint().name}\n")
    _print_paths()
    _print_ways()
    _print_accuracy(nyu)


def _print_paths() -> None:
    click.echo("| network | backend | resized on the host, ms | in the engine, ms | engine without resizing, ms |")
    click.echo("|---|---|---:|---:|---:|")
    bundle = read_bundle(shipped_run("compact"))
    frame = np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for size in SIZES:
            files = [
                export_onnx(TorchSource(bundle), ExportOptions(size=size, camera=camera, out=Path(folder))).path
                for camera in (None, CAMERA)
            ]
            for name in BACKENDS:
                host, inside = (
                    AnySize(stack.enter_context(load(build(path, BuildOptions(name, {"threads": "1"})).path)))
                    for path in files
                )
                times = _turns(
                    [lambda m=host: list(m.run([frame])), lambda m=inside: list(m.run([frame])), host.session.run]
                )
                cells = " | ".join(f"{each:.2f}" for each in times)
                click.echo(f"| {size[0]}x{size[1]} | {name} | {cells} |")


def _print_ways() -> None:
    """The resizes alone, and what they were chosen over."""
    frame = np.random.default_rng(0).integers(0, 256, (1, *CAMERA, 3), np.uint8)
    click.echo("\n| resize | OpenVINO, ms | ONNX Runtime, ms |\n|---|---:|---:|")
    for size in SIZES:
        depth = np.random.default_rng(0).uniform(0, 10, (1, *size)).astype(np.float32)
        down = shrinking(CAMERA, size)
        ways: list[tuple[str, nn.Module, np.ndarray]] = [(f"frames, {type(down).__name__}", down, frame)]
        if not isinstance(down, Filter):
            ways += [("frames, Filter", Filter(CAMERA, size), frame)]
        if size == SIZES[0]:
            ways += [("frames, one AveragePool", Pool(), frame)]
        ways += [("depth, Resample", Resample(size, CAMERA), depth), ("depth, ONNX's Resize", Resize(), depth)]
        for name, module, example in ways:
            graph = _graph(module, example)
            runs = [_open(backend, graph) for backend in BACKENDS]
            times = _turns([lambda g=run, x=example: g.run(x) for run in runs])
            click.echo(f"| {size[0]}x{size[1]}: {name} | {times[0]:.2f} | {times[1]:.2f} |")


def _graph(module: nn.Module, example: np.ndarray) -> bytes:
    program = torch.onnx.export(
        module.eval(), (torch.from_numpy(example),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _open(backend: str, graph: bytes) -> Graph:
    return open_graph(backend, graph, "fp32", {"threads": 1})


def _print_accuracy(nyu: str) -> None:
    data = open_dataset(nyu, "val")
    click.echo(
        "\n| network | δ1, host | δ1, in the graph | AbsRel, host | AbsRel, in the graph |\n|---|---:|---:|---:|---:|"
    )
    for size in SIZES:
        found = []
        for camera in (None, CAMERA):
            with open_torch(shipped_run("compact"), size, camera=camera) as session:
                samples = ((data[index].image, data[index].depth) for index in range(len(data)))
                found.append(measure_accuracy(session, samples, data.crop).pooled)
        host, inside = found
        click.echo(
            f"| {size[0]}x{size[1]} | {host.delta1:.5f} | {inside.delta1:.5f}, {inside.delta1 - host.delta1:+.5f} | "
            f"{host.abs_rel:.5f} | {inside.abs_rel:.5f}, {inside.abs_rel - host.abs_rel:+.5f} |"
        )


def _turns(calls: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of CPU time of the fastest run of each; they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            call()
            for _ in range(RUNS):
                start = process_time()
                call()
                best[index] = min(best[index], (process_time() - start) * 1000)
    return best


if __name__ == "__main__":
    sys.exit(main())
