"""The checks of an exported ONNX file. Each is a function and a line of output, and can stop the export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import onnx
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER
from polygraphy.tools import main as polygraphy_tool
from torch import Tensor, nn

from ..errors import GateError
from ..parity import compare, describe_gate, describe_parity, gate_faults
from ..precisions import PRECISIONS, Precision
from ..reference import Reference
from ..spec import ModelSpec
from ..train.camera_ready import DTYPES
from ..vendors import import_onnxruntime
from .graph import fold, prepare

__all__ = ["Check", "Subject", "run_checks"]

_LINTING: Final = Lock()

HALF_BUDGET: Final = 400e9
"""Most multiply-accumulates of the half-precision check, because torch is slow in FP16 on a CPU without FP16
arithmetic. Large networks are checked on fewer reference frames, and the output states how many."""


@dataclass(frozen=True)
class Check:
    """One line of the export's output."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Subject:
    """The file to check, and what it was made from.

    Attributes:
        kept: modules that stay in FP32.
        held_out: frames that were not used for calibration; None if there are none besides the reference's.
    """

    path: Path
    network: nn.Module
    spec: ModelSpec
    precision: Precision
    reference: Reference
    kept: tuple[str, ...] = ()
    held_out: Reference | None = None


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the result of each check as soon as it is done, so that the caller can stop at the first failure."""
    checks: list[Callable[[Subject], Check]] = [check_onnx, check_graph, check_folding]
    if subject.precision != "bf16":  # Polygraphy's lint does not support BF16, ONNX Runtime has no CPU kernels for it
        checks += [check_lint, check_parity]
    if subject.held_out is not None:
        checks.append(check_held_out)
    if subject.precision in {"fp16", "bf16"}:
        checks.append(check_half)
    for check in checks:
        yield check(subject)


def check_onnx(subject: Subject) -> Check:
    """Run ONNX's own checker with full shape inference."""
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("ONNX checker", passed=False, detail=str(error).strip().splitlines()[0])
    return Check("ONNX checker", passed=True, detail=f"opset {PRECISIONS[subject.precision].opset}, full check")


def check_graph(subject: Subject) -> Check:
    """Check that the input is a uint8 image, the output float32 metres, and that no batch norm is left."""
    graph = onnx.load(subject.path).graph
    name_of = onnx.TensorProto.DataType.Name
    ends = [(v.name, name_of(v.type.tensor_type.elem_type)) for v in (*graph.input, *graph.output)]
    expected = [(subject.spec.input.name, "UINT8"), (subject.spec.output.name, "FLOAT")]
    if ends != expected:
        return Check("camera-ready graph", passed=False, detail=f"input and output are {ends} instead of {expected}")
    norms = [node.name for node in graph.node if node.op_type == "BatchNormalization"]
    if norms:
        detail = (
            f"batch norm was not folded: {', '.join(norms)}; use nn.BatchNorm2d itself, or put it after a convolution"
        )
        return Check("camera-ready graph", passed=False, detail=detail)
    return Check("camera-ready graph", passed=True, detail="uint8 image in, float32 metres out, batch norm folded")


def check_folding(subject: Subject) -> Check:
    """Check that Polygraphy's constant folding finds nothing more than `build_graph` has folded."""
    model = onnx.load(subject.path)
    left = len(model.graph.node) - len(fold(model).graph.node)
    detail = f"{len(model.graph.node)} nodes, nothing left to fold" if left == 0 else f"{left} nodes could be folded"
    return Check("Polygraphy constant folding", passed=left == 0, detail=detail)


def check_lint(subject: Subject) -> Check:
    """Run `polygraphy check lint`, which Polygraphy offers only as a command-line tool.

    It runs in this process, because a new process takes 1.6 s and ONNX Runtime would send telemetry there (see
    `vendors`). It redirects this process's stdout and stderr, so only one runs at a time.
    """
    import_onnxruntime()
    report = subject.path.with_suffix(".lint.json")
    with _LINTING, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        status = polygraphy_tool(["check", "lint", str(subject.path), "-o", str(report)])
    if not report.is_file():
        return Check("Polygraphy lint", passed=False, detail="the file cannot be read")
    entries = json.loads(report.read_text())["lint_entries"]
    faults = [entry["message"] for entry in entries if entry["level"] == "exception"]
    if faults or status:
        return Check("Polygraphy lint", passed=False, detail="; ".join(faults) or f"exit code {status}")
    return Check("Polygraphy lint", passed=True, detail=f"no fault, {len(entries)} warnings")


def check_parity(subject: Subject) -> Check:
    """Compare Polygraphy's ONNX Runtime on the CPU with PyTorch FP32, on the reference frames."""
    return _check_file("ONNX Runtime vs torch", subject, subject.reference)


def check_held_out(subject: Subject) -> Check:
    """Make the same comparison on frames that were not used for calibration, method, bias or kept layers."""
    assert subject.held_out is not None, "run_checks makes sure"
    return _check_file("held-out frames", subject, subject.held_out)


def _check_file(name: str, subject: Subject, reference: Reference) -> Check:
    feeds = list(_batches(reference.images, subject.spec))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results: RunResults = Comparator.run(
                [OnnxrtRunner(partial(_open, subject))],
                data_loader=[{subject.spec.input.name: feed} for feed in feeds],
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base but Exception
            return Check(name, passed=False, detail=str(error).strip())
    found = np.concatenate([iteration[subject.spec.output.name] for iteration in results[0][1]])
    return _judge(name, found[: len(reference.images)], reference, subject.precision)


def _open(subject: Subject) -> Any:
    """A session of the file. INT8 runs without graph optimisation, because the fast kernels differ between CPUs."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if subject.precision == "int8":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"])


def check_half(subject: Subject) -> Check:
    """Run PyTorch in real FP16 or BF16; every layer must stay finite, and depth must pass the gate.

    ONNX Runtime's CPU provider computes FP16 graphs in FP32, which would hide an overflow, and cannot run BF16 graphs.
    """
    precision = subject.precision
    images = subject.reference.images
    frames = half_frames(subject.spec, len(images))
    name = f"torch {precision.upper()} vs FP32"
    try:
        found, watch = compute_half(subject, images[:frames])
    except GateError as error:
        return Check(name, passed=False, detail=str(error))
    most = float(torch.finfo(DTYPES[precision]).max)
    if watch.overflowed is not None:
        detail = f"{watch.overflowed} exceeds the range of {precision.upper()} ({most:g}) and gives NaN or Inf; "
        return Check(name, passed=False, detail=f"{detail}`--keep auto` keeps such layers in FP32")
    return _judge(name, found, subject.reference, precision, f"largest activation {watch.largest:.4g} of {most:g}; ")


def half_frames(spec: ModelSpec, there: int) -> int:
    """How many of `there` frames `HALF_BUDGET` allows; all if the network's work is unknown."""
    return int(np.clip(HALF_BUDGET // spec.macs, 1, there)) if spec.macs else there


def find_overflows(subject: Subject, images: Sequence[np.ndarray]) -> tuple[str, ...]:
    """The layers that must stay in FP32 so that no activation exceeds the range of FP16, in the order of the graph.

    A kept layer's output is FP32, so the next layer may then be the first that overflows.

    Args:
        subject: what is exported.
        images: frames of its size, H x W x 3 uint8; `HALF_BUDGET` limits how many are used.

    Raises:
        GateError: torch does not compute this network in FP16.
    """
    frames = np.stack(images[: half_frames(subject.spec, len(images))])
    kept: tuple[str, ...] = ()
    while True:
        _, watch = compute_half(replace(subject, kept=kept), frames)
        layer = None if watch.overflowed is None else watch.overflowed.removesuffix(".layer")
        if layer is None or layer in kept:
            return kept
        kept = (*kept, layer)


def compute_half(subject: Subject, images: np.ndarray) -> tuple[np.ndarray, _RangeWatch]:
    """PyTorch's depth for N x H x W x 3 frames in the subject's precision, and the range of its activations.

    Raises:
        GateError: an operator has no kernel in this precision, or a constant of the network stayed FP32.
    """
    camera = prepare(subject.network, subject.spec, subject.precision, subject.kept)
    watch = _RangeWatch(camera.network)
    try:
        with torch.inference_mode():
            return np.concatenate([camera(torch.from_numpy(image[None])).numpy() for image in images]), watch
    except RuntimeError as error:
        name = subject.precision.upper()
        raise GateError(f"torch cannot run this network in {name} ({str(error).strip()}); export it in FP32") from error


def _judge(name: str, found: np.ndarray, reference: Reference, precision: Precision, before: str = "") -> Check:
    """Check depths for the first frames of a reference against the gate of a precision."""
    parity = compare(found, reference)
    of = f"{parity.frames} frames"
    if parity.frames < len(reference.images):
        of = f"{parity.frames} of {len(reference.images)} frames"
    return Check(
        name,
        passed=not gate_faults(parity, precision),
        detail=f"{before}{describe_parity(parity, precision)} on {of}; gate {describe_gate(precision)}",
    )


class _RangeWatch:
    """Records the largest activation, and the first layer whose output is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.largest = 0.0
        self.overflowed: str | None = None
        for name, module in model.named_modules():
            if not any(module.children()) and not isinstance(module, nn.Identity):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def look(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            if self.overflowed is None and isinstance(output, Tensor) and output.is_floating_point():
                largest = float(output.abs().max())
                if np.isfinite(largest):
                    self.largest = max(self.largest, largest)
                else:
                    self.overflowed = name

        return look


def _batches(frames: np.ndarray, spec: ModelSpec) -> Iterator[np.ndarray]:
    """Frames in batches of the spec's size; the last batch is filled with the first frames."""
    size = spec.opt_batch
    for start in range(0, len(frames), size):
        yield np.take(frames, range(start, start + size), axis=0, mode="wrap")
