"""The checks between an ONNX graph and its name: each is a function and a line of output, and can stop the export."""

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
"""Multiply-accumulates that the half-precision check may spend, since torch is slow in FP16 on a CPU without FP16
arithmetic. A large network at a large size is checked on some of the reference frames, and the line says how many."""


@dataclass(frozen=True)
class Check:
    """One line of the export's output."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Subject:
    """What is checked: the file, and what it was made from.

    Attributes:
        kept: modules that stay in FP32.
        held_out: frames that nothing was chosen by; None: there are none but the reference's.
    """

    path: Path
    network: nn.Module
    spec: ModelSpec
    precision: Precision
    reference: Reference
    kept: tuple[str, ...] = ()
    held_out: Reference | None = None


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks' outcomes one by one; the caller stops at the first that failed."""
    checks: list[Callable[[Subject], Check]] = [check_onnx, check_graph, check_folding]
    if subject.precision != "bf16":  # Polygraphy's lint does not know it, ONNX Runtime has no CPU kernels for it
        checks += [check_lint, check_parity]
    if subject.held_out is not None:
        checks.append(check_held_out)
    if subject.precision in {"fp16", "bf16"}:
        checks.append(check_half)
    for check in checks:
        yield check(subject)


def check_onnx(subject: Subject) -> Check:
    """ONNX's own checker with full shape inference."""
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("ONNX checker", passed=False, detail=str(error).strip().splitlines()[0])
    return Check("ONNX checker", passed=True, detail=f"opset {PRECISIONS[subject.precision].opset}, full check")


def check_graph(subject: Subject) -> Check:
    """The graph's ends are a camera's bytes and metres, and no batch norm is left in it."""
    graph = onnx.load(subject.path).graph
    name_of = onnx.TensorProto.DataType.Name
    ends = [(v.name, name_of(v.type.tensor_type.elem_type)) for v in (*graph.input, *graph.output)]
    expected = [(subject.spec.input.name, "UINT8"), (subject.spec.output.name, "FLOAT")]
    if ends != expected:
        return Check("camera-ready graph", passed=False, detail=f"its ends are {ends} instead of {expected}")
    norms = [node.name for node in graph.node if node.op_type == "BatchNormalization"]
    if norms:
        detail = (
            f"batch norm was not folded: {', '.join(norms)}; use nn.BatchNorm2d itself, or put it behind a convolution"
        )
        return Check("camera-ready graph", passed=False, detail=detail)
    return Check("camera-ready graph", passed=True, detail="uint8 image in, float32 metres out, batch norm folded")


def check_folding(subject: Subject) -> Check:
    """Polygraphy's constant folding finds nothing that `build_graph` has not folded already."""
    model = onnx.load(subject.path)
    left = len(model.graph.node) - len(fold(model).graph.node)
    detail = f"{len(model.graph.node)} nodes, nothing left to fold" if left == 0 else f"{left} nodes could be folded"
    return Check("Polygraphy constant folding", passed=left == 0, detail=detail)


def check_lint(subject: Subject) -> Check:
    """`polygraphy check lint`, which Polygraphy offers as a tool only.

    In this process: one of its own takes 1.6 s, and there ONNX Runtime would report to Microsoft (`vendors`). While the
    tool runs ONNX Runtime it redirects this process's stdout and stderr, so one at a time.
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
        return Check("Polygraphy lint", passed=False, detail="; ".join(faults) or f"it ended with {status}")
    return Check("Polygraphy lint", passed=True, detail=f"no fault, {len(entries)} warnings")


def check_parity(subject: Subject) -> Check:
    """Polygraphy's ONNX Runtime on the CPU against torch in FP32, on the reference frames."""
    return _check_file("ONNX Runtime vs torch", subject, subject.reference)


def check_held_out(subject: Subject) -> Check:
    """The same on frames that no calibration, method, bias or layer was chosen by."""
    assert subject.held_out is not None, "run_checks asks"
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
    """A session of the file. INT8 is computed as it is written: the fast kernels differ from one CPU to the next."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if subject.precision == "int8":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"])


def check_half(subject: Subject) -> Check:
    """Torch in real FP16 or BF16: every layer stays finite, and depth stays similar to FP32.

    ONNX Runtime's CPU provider computes FP16 graphs in FP32 and would hide an overflow, and BF16 graphs not at all.
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
        detail = f"{watch.overflowed} leaves the range of {precision.upper()} ({most:g}) and gives NaN or Inf; "
        return Check(name, passed=False, detail=f"{detail}`--keep auto` leaves such layers in FP32")
    return _judge(name, found, subject.reference, precision, f"largest activation {watch.largest:.4g} of {most:g}; ")


def half_frames(spec: ModelSpec, there: int) -> int:
    """How many of `there` frames `HALF_BUDGET` allows; all where a network's work is not known."""
    return int(np.clip(HALF_BUDGET // spec.macs, 1, there)) if spec.macs else there


def find_overflows(subject: Subject, images: Sequence[np.ndarray]) -> tuple[str, ...]:
    """The layers that have to stay in FP32, so that no activation leaves the range of FP16, in the order of the graph.

    A layer that is kept answers in FP32, so the next one may be the first that overflows then.

    Args:
        subject: what is exported.
        images: frames of its size, H x W x 3 uint8, to look at; as many as `HALF_BUDGET` allows.

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
    """Torch's answers to N x H x W x 3 frames in the subject's precision, and what its activations were.

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
        raise GateError(
            f"torch does not compute this network in {name} ({str(error).strip()}); keep it in FP32"
        ) from error


def _judge(name: str, found: np.ndarray, reference: Reference, precision: Precision, before: str = "") -> Check:
    """Answers to the first frames of a reference, against the gate of a precision."""
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
    """Remembers the largest activation, and the first layer whose output was not finite."""

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
    """Frames in runs of the spec's batch; the last one is filled up from the front."""
    size = spec.opt_batch
    for start in range(0, len(frames), size):
        yield np.take(frames, range(start, start + size), axis=0, mode="wrap")
