"""The checks of an exported ONNX file. Each is a function and a line of output, and can stop the export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import onnx
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER
from polygraphy.tools import main as polygraphy_tool

from ..onnx_graph import opset_of
from ..parity import compare, describe_gate, describe_parity, gate_faults
from ..precisions import Precision
from ..reference import Reference
from ..spec import ModelSpec
from ..vendors import import_onnxruntime
from .finish import fold
from .source import Source

__all__ = ["Check", "Subject", "judge", "run_checks"]

_LINTING: Final = Lock()


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
        kept: layers that stay in FP32.
        held_out: frames that were not used for calibration; None if there are none besides the reference's.
    """

    path: Path
    source: Source
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
        checks.append(subject.source.check_half)
    for check in checks:
        yield check(subject)


def check_onnx(subject: Subject) -> Check:
    """Run ONNX's own checker with full shape inference."""
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("ONNX checker", passed=False, detail=str(error).strip().splitlines()[0])
    return Check("ONNX checker", passed=True, detail=f"opset {opset_of(onnx.load(subject.path))}, full check")


def check_graph(subject: Subject) -> Check:
    """Check that the input is a uint8 image and the output float32 depth, and that torch's batch norm was folded."""
    graph = onnx.load(subject.path).graph
    name_of = onnx.TensorProto.DataType.Name
    ends = [(v.name, name_of(v.type.tensor_type.elem_type)) for v in (*graph.input, *graph.output)]
    expected = [(subject.spec.input.name, "UINT8"), (subject.spec.output.name, "FLOAT")]
    if ends != expected:
        return Check("camera-ready graph", passed=False, detail=f"input and output are {ends} instead of {expected}")
    norms = [node.name for node in graph.node if node.op_type == "BatchNormalization"]
    if norms and subject.source.document.adopted is None:
        detail = (
            f"batch norm was not folded: {', '.join(norms)}; use nn.BatchNorm2d itself, or put it after a convolution"
        )
        return Check("camera-ready graph", passed=False, detail=detail)
    unit = "metres" if subject.spec.is_metric else "depth without unit"
    folded = "" if norms else ", batch norm folded"
    return Check("camera-ready graph", passed=True, detail=f"uint8 image in, float32 {unit} out{folded}")


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
    """Compare Polygraphy's ONNX Runtime on the CPU with the reference."""
    return _check_file(f"ONNX Runtime vs {subject.source.name}", subject, subject.reference)


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
    return judge(name, found[: len(reference.images)], reference, subject.precision)


def _open(subject: Subject) -> Any:
    """A session of the file. INT8 runs without graph optimisation, because the fast kernels differ between CPUs."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if subject.precision == "int8":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"])


def judge(name: str, found: np.ndarray, reference: Reference, precision: Precision, before: str = "") -> Check:
    """Check depths for the first frames of a reference against the gate of a precision."""
    parity = compare(found, reference)
    of = f"{parity.frames} frames"
    if parity.frames < len(reference.images):
        of = f"{parity.frames} of {len(reference.images)} frames"
    return Check(
        name,
        passed=not gate_faults(parity, precision),
        detail=f"{before}{describe_parity(parity, precision)} on {of}; "
        f"gate {describe_gate(precision, is_metric=reference.is_metric)}",
    )


def _batches(frames: np.ndarray, spec: ModelSpec) -> Iterator[np.ndarray]:
    """Frames in batches of the spec's size; the last batch is filled with the first frames."""
    size = spec.opt_batch
    for start in range(0, len(frames), size):
        yield np.take(frames, range(start, start + size), axis=0, mode="wrap")
