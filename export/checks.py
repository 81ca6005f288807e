"""The checks between an ONNX graph and its name: each is a function and a line of output, and can stop the export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER
from torch import Tensor, nn

from ..parity import compare, describe_gate, gate_faults
from ..reference import Reference
from ..spec import ModelSpec
from ..tolerances import TOLERANCES, Precision
from ..train.camera import DTYPES
from ..vendors import import_onnxruntime
from .graph import OPSETS, fold, prepare

__all__ = ["Check", "Subject", "run_checks"]

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
    """What is checked: the file, and what it was made from; `kept`: modules that stay in FP32."""

    path: Path
    network: nn.Module
    spec: ModelSpec
    precision: Precision
    reference: Reference
    kept: tuple[str, ...] = ()


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks' outcomes one by one; the caller stops at the first that failed."""
    checks: list[Callable[[Subject], Check]] = [check_onnx, check_graph, check_folding]
    if subject.precision != "bf16":  # Polygraphy's lint does not know it, ONNX Runtime has no CPU kernels for it
        checks += [check_lint, check_parity]
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
    return Check("ONNX checker", passed=True, detail=f"opset {OPSETS[subject.precision]}, full check")


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
    """`polygraphy check lint`, as a process of its own, because Polygraphy offers it as a tool only."""
    report = subject.path.with_suffix(".lint.json")
    tool = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", "check", "lint"]
    done = subprocess.run([*tool, str(subject.path), "-o", str(report)], capture_output=True, text=True, check=False)
    if not report.is_file():
        return Check("Polygraphy lint", passed=False, detail=(done.stderr or done.stdout).strip()[-300:])
    entries = json.loads(report.read_text())["lint_entries"]
    faults = [entry["message"] for entry in entries if entry["level"] == "exception"]
    if faults or done.returncode:
        return Check("Polygraphy lint", passed=False, detail="; ".join(faults) or done.stderr.strip()[-300:])
    return Check("Polygraphy lint", passed=True, detail=f"no fault, {len(entries)} warnings")


def check_parity(subject: Subject) -> Check:
    """Polygraphy's ONNX Runtime on the CPU against torch in FP32, on the reference frames."""
    feeds = list(_batches(subject.reference.images, subject.spec))
    import_onnxruntime()  # before Polygraphy does
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results: RunResults = Comparator.run(
                [OnnxrtRunner(SessionFromOnnx(str(subject.path), providers=["cpu"]))],
                data_loader=[{subject.spec.input.name: feed} for feed in feeds],
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base but Exception
            return Check("ONNX Runtime vs torch", passed=False, detail=str(error).strip())
    found = np.concatenate([iteration[subject.spec.output.name] for iteration in results[0][1]])
    return _judge("ONNX Runtime vs torch", found[: len(subject.reference.images)], subject)


def check_half(subject: Subject) -> Check:
    """Torch in real FP16 or BF16: every layer stays finite, and depth stays similar to FP32.

    ONNX Runtime's CPU provider computes FP16 graphs in FP32 and would hide an overflow, and BF16 graphs not at all.
    """
    precision = subject.precision
    images = subject.reference.images
    frames = int(np.clip(HALF_BUDGET // subject.spec.macs, 1, len(images)))
    name = f"torch {precision.upper()} vs FP32"
    try:
        found, watch = compute_half(subject, images[:frames])
    except RuntimeError as error:  # an operator without a half-precision kernel, or a constant that stayed FP32
        detail = f"torch does not compute this network in {precision.upper()} ({str(error).strip()}); keep it in FP32"
        return Check(name, passed=False, detail=detail)
    most = float(torch.finfo(DTYPES[precision]).max)
    if watch.overflowed is not None:
        detail = f"{watch.overflowed} leaves the range of {precision.upper()} ({most:g}) and gives NaN or Inf; "
        return Check(name, passed=False, detail=f"{detail}`--keep auto` leaves such layers in FP32")
    return _judge(name, found, subject, f"largest activation {watch.largest:.4g} of {most:g}; ")


def find_overflows(subject: Subject) -> tuple[str, ...]:
    """The layers that have to stay in FP32, so that no activation leaves the range of FP16, in the order of the graph.

    A layer that is kept answers in FP32, so the next one may be the first that overflows then.
    """
    kept: tuple[str, ...] = ()
    while True:
        _, watch = compute_half(replace(subject, kept=kept), subject.reference.images)
        layer = None if watch.overflowed is None else watch.overflowed.removesuffix(".layer")
        if layer is None or layer in kept:
            return kept
        kept = (*kept, layer)


def compute_half(subject: Subject, images: np.ndarray) -> tuple[np.ndarray, _RangeWatch]:
    """Torch's answers to N x H x W x 3 frames in the subject's precision, and what its activations were."""
    camera = prepare(subject.network, subject.spec, subject.precision, subject.kept)
    watch = _RangeWatch(camera.network)
    with torch.inference_mode():
        return np.concatenate([camera(torch.from_numpy(image[None])).numpy() for image in images]), watch


def _judge(name: str, found: np.ndarray, subject: Subject, before: str = "") -> Check:
    """Answers to the first frames of the reference, against the gate of the subject's precision."""
    parity = compare(found, subject.reference)
    worse = "" if parity.abs_rel_loss is None else f", AbsRel {parity.abs_rel_loss:+.4f}"
    if parity.delta1_loss is not None and TOLERANCES[subject.precision].max_delta1_loss is not None:
        worse += f", δ1 {0 - parity.delta1_loss:+.4f}"
    of = f"{parity.frames} frames"
    if parity.frames < len(subject.reference.images):
        of = f"{parity.frames} of {len(subject.reference.images)} frames"
    return Check(
        name,
        passed=not gate_faults(parity, subject.precision),
        detail=f"{before}max |Δ| {parity.max_abs_mm:.3g} mm, worst SSIM {parity.worst_ssim:.5f}{worse} on {of}; "
        f"gate {describe_gate(subject.precision)}",
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
