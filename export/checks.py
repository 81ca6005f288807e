"""The checks between an ONNX graph and its name: each is a function and a line of output, and can stop the export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER
from torch import Tensor, nn

from ..metrics import scaled_ssim
from ..reference import Reference
from ..spec import ModelSpec
from ..tolerances import TOLERANCES, Precision
from ..train.camera import CameraReady
from ..vendors import import_onnxruntime
from .graph import DTYPES, OPSET, fold, fold_batch_norm

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
    """What is checked: the file, and what it was made from."""

    path: Path
    network: nn.Module
    spec: ModelSpec
    precision: Precision
    reference: Reference


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks' outcomes one by one; the caller stops at the first that failed."""
    checks: list[Callable[[Subject], Check]] = [check_onnx, check_graph, check_folding, check_lint, check_parity]
    if subject.precision == "fp16":
        checks.append(check_half_range)
    for check in checks:
        yield check(subject)


def check_onnx(subject: Subject) -> Check:
    """ONNX's own checker with full shape inference."""
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("ONNX checker", passed=False, detail=str(error).strip().splitlines()[0])
    return Check("ONNX checker", passed=True, detail=f"opset {OPSET}, full check")


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
    tolerance = TOLERANCES[subject.precision]
    limit = np.inf if tolerance.max_abs_mm is None else tolerance.max_abs_mm / 1000
    feeds = list(_batches(subject.reference.images, subject.spec))
    answers = list(_batches(subject.reference.depths, subject.spec))
    name = subject.spec.output.name
    import_onnxruntime()  # before Polygraphy does
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results: RunResults = Comparator.run(
                [OnnxrtRunner(SessionFromOnnx(str(subject.path), providers=["cpu"]))],
                data_loader=[{subject.spec.input.name: feed} for feed in feeds],
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base but Exception
            return Check("ONNX Runtime vs torch", passed=False, detail=str(error).strip())
        results.add([IterationResult({name: answer}) for answer in answers], runner_name="torch")
        compare = SimpleCompareFunc(rtol=0.0, atol=float(limit), check_error_stat="max")
        agrees = bool(Comparator.compare_accuracy(results, compare_func=compare))
    found = np.concatenate([iteration[name] for iteration in results[0][1]])
    expected = np.concatenate(answers)
    distance = float(np.abs(found - expected).max()) * 1000
    similarity = min(_ssim(p, t) for p, t in zip(found, expected, strict=True))
    similar = tolerance.min_ssim is None or similarity >= tolerance.min_ssim
    return Check(
        "ONNX Runtime vs torch",
        passed=agrees and similar and bool(np.isfinite(found).all()),
        detail=f"max |Δ| {distance:.3g} mm, worst SSIM {similarity:.5f} on {len(subject.reference.images)} frames; "
        f"gate {_gate(subject.precision)}",
    )


def check_half_range(subject: Subject) -> Check:
    """Torch in real half precision: every layer stays finite, and depth stays similar to FP32.

    ONNX Runtime's CPU provider computes FP16 graphs in FP32 and would hide an overflow.
    """
    images, depths = subject.reference.images, subject.reference.depths
    frames = int(np.clip(HALF_BUDGET // subject.spec.macs, 1, len(images)))
    camera = CameraReady(fold_batch_norm(subject.network), subject.spec, DTYPES["fp16"]).eval()
    watch = _RangeWatch(camera)
    try:
        with torch.inference_mode():
            found = np.concatenate([camera(torch.from_numpy(image[None])).numpy() for image in images[:frames]])
    except RuntimeError as error:  # an operator without a half-precision kernel, or a constant that stayed FP32
        detail = f"torch does not compute this network in FP16 ({str(error).strip()}); keep it in FP32"
        return Check("FP16 range", passed=False, detail=detail)
    if watch.overflowed is not None:
        detail = f"{watch.overflowed} leaves FP16's range (65504) and gives NaN or Inf; keep this network in FP32"
        return Check("FP16 range", passed=False, detail=detail)
    similarity = min(_ssim(p, t) for p, t in zip(found, depths, strict=False))
    least = TOLERANCES["fp16"].min_ssim
    assert least is not None
    return Check(
        "FP16 range",
        passed=bool(similarity >= least),
        detail=f"largest activation {watch.largest:.4g} of 65504; torch half: worst SSIM {similarity:.5f} "
        f"on {frames} of {len(images)} frames; gate {_gate('fp16')}",
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


def _ssim(found: np.ndarray, expected: np.ndarray) -> float:
    return scaled_ssim(found, expected, np.ones(expected.shape, bool))


def _gate(precision: Precision) -> str:
    tolerance = TOLERANCES[precision]
    limits = []
    if tolerance.max_abs_mm is not None:
        limits.append(f"max |Δ| ≤ {tolerance.max_abs_mm:g} mm")
    if tolerance.min_ssim is not None:
        limits.append(f"SSIM ≥ {tolerance.min_ssim:g}")
    return ", ".join(limits)
