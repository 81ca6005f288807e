"""What `make gpu-check` does about all that can be missing or fail on its way; none of it needs a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthkit.bench.contender import Contender
from depthkit.bench.environment import environment
from depthkit.bench.results import BenchResult
from depthkit.bench.suite import SuiteOptions
from depthkit.bench.timing import Steady
from depthkit.engines.gpu import Gpu, find_gpu
from depthkit.errors import EngineError
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.session import Session, SessionBase
from depthkit.spec import ModelSpec, Preprocessing, camera_ready

from . import gpu_check
from .gpu_check import ON_GPU, OnGpu, PytestRun, Report, bench, check, find_contenders, main, run_pytest

STEM = "compact-32x48"
QUICK = SuiteOptions(steady=Steady(0.0, 0.0, 5), phases=False, memory=False, roofline=False)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "results", "gpu", "Imaginary 9000", BenchResult(environment("check"), "steady", ()))


@pytest.fixture
def engine(pristine_exports: Path) -> Contender:
    """A real engine of the CPU, which passes its gate."""
    path = pristine_exports / f"{STEM}.fp32.ort.onnx"
    reference = read_reference(pristine_exports / f"{STEM}.reference.npz")
    return Contender(str(path), "good", partial(load, path), "fp32", reference, path.stat().st_size)


class Failing(SessionBase):
    """The session of an engine that fails at its n-th run."""

    def __init__(self, path: str, runs: int) -> None:
        with load(path) as session:
            self.spec, self.provider, self.precision = session.spec, "failing", "fp32"
        self._left = runs

    def run(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("an illegal memory\naccess was encountered")
        _, depth = self._buffers()
        depth.fill(1)


def refuse() -> Session:
    raise AssertionError("Torch not compiled with CUDA enabled")


def written(report: Report) -> tuple[str, Any]:
    """Both files, as they are read."""
    report.write()
    return (report.folder / "gpu.md").read_text(), json.loads((report.folder / "gpu.json").read_text())


@pytest.mark.parametrize("runs", [0, 10])
def test_what_fails_is_left_out_with_its_reason_and_the_rest_is_measured(
    report: Report, engine: Contender, runs: int
) -> None:
    group = [
        replace(engine, backend="refuses", open=refuse),
        engine,
        replace(engine, backend="fails", open=partial(Failing, engine.target, runs)),
        replace(engine, backend="also good"),
    ]
    report.add(bench(group, QUICK, report.leave_out))
    text, document = written(report)
    assert [row["backend"] for row in document["rows"]] == ["good", "also good"]
    assert all(len(row["wall_ms"]) >= 5 for row in document["rows"])
    assert f"- refuses, fp32, batch 1, {engine.target}: AssertionError: Torch not compiled with CUDA enabled\n" in text
    assert f"- fails, fp32, batch 1, {engine.target}: RuntimeError: an illegal memory access was encountered\n" in text
    assert len(report.left_out) == 2, "the others took turns"
    assert text.startswith("# Imaginary 9000\n")
    assert "| compact 32x48 | also good | fp32 |" in text
    assert report.exit_code == 0


def test_what_does_not_fit_together_is_timed_alone(report: Report, engine: Contender) -> None:
    opened: list[Session] = []

    def open_alone() -> Session:
        if opened and not opened[-1]._closed:  # type: ignore[attr-defined]
            raise RuntimeError("CUDA out of memory")
        opened.append(load(engine.target))
        return opened[-1]

    group = [replace(engine, backend=name, open=open_alone) for name in ("first", "second")]
    report.add(bench(group, QUICK, report.leave_out))
    assert [row.backend for row in report.result.rows] == ["first", "second"]
    what = f"second, fp32, batch 1, {engine.target}, taking turns (it was timed alone)"
    assert report.left_out == [f"{what}: RuntimeError: CUDA out of memory"]


def test_groups_add_up_and_a_failed_gate_or_test_fails_the_check(report: Report, engine: Contender) -> None:
    for batch in (engine, replace(engine, backend="wrong", open=partial(Failing, engine.target, 1000))):
        report.add(bench([batch], QUICK, report.leave_out))
    assert [row.backend for row in report.result.rows] == ["good", "wrong"]
    assert report.exit_code == 1
    report.result = replace(report.result, rows=report.result.rows[:1])
    assert report.exit_code == 0
    report.tests.append(PytestRun("pytest", passed=False, summary="1 failed in 2.00s", details=("FAILED a.py::b",)))
    assert "- `pytest`: 1 failed in 2.00s\n  - FAILED a.py::b\n" in report.text
    assert report.exit_code == 1


def test_nothing_measured_is_written_with_the_reasons(report: Report, tmp_path: Path) -> None:
    check([tmp_path / "absent"], (32, 48), ON_GPU, QUICK, report)
    text, document = written(report)
    assert document["rows"] == []
    assert "Nothing was measured." in text
    assert text.count("there is no run folder") == len(report.left_out) == 4
    assert report.exit_code == 1


def test_the_command_writes_files_named_by_gpu_and_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("Imaginary 9000 (PCIe)", (9, 0), False, "13.0")
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: gpu)
    monkeypatch.setattr(gpu_check, "TESTS", ())
    arguments = ["--out", str(tmp_path), "--size", "32x48", str(tmp_path / "absent")]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    assert main() == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[: -len("2026-01-31.json")] for name in names[:1]] == ["imaginary-9000-pcie-"]
    assert [Path(name).suffix for name in names] == [".json", ".md"]
    assert "Imaginary 9000 (PCIe), sm_90" in (tmp_path / names[1]).read_text()


def test_onnx_files_serve_where_nothing_can_be_exported(
    report: Report, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 1 was exported, batch 16 was not; an engine of the CPU stands for one of the GPU."""
    for name in ("depthkit.export.onnx_file", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(gpu_check, "_open_torch", lambda *_, **__: refuse())
    check([exports], (32, 48), ["onnxruntime", "openvino"], QUICK, report)
    text, document = written(report)
    assert [(row["backend"], row["batch"], row["precision_asked"]) for row in document["rows"]] == [
        ("onnxruntime, no CUDA graph", 1, "fp32"),
        ("onnxruntime, no CUDA graph", 1, "fp16"),
    ]
    for precision in ("fp32", "fp16"):
        missing = exports / f"{STEM}-b16.{precision}.onnx"
        assert f"- {exports}, {precision}, batch 16: there is no {missing}, and it cannot be exported here" in text
        for what in ("torch", "torch compile", "onnxruntime, pinned", "onnxruntime, arrays on the GPU"):
            assert f"- {what}, {precision}, batch 1, " in text
        assert f"- openvino, {STEM}.{precision}.onnx: openvino cannot" in text


@pytest.mark.skipif(not isinstance(find_gpu(), str), reason="there is a GPU")
def test_torch_and_all_backends_are_left_out_where_there_is_no_gpu(report: Report, pristine_exports: Path) -> None:
    contenders = find_contenders(pristine_exports, (32, 48), 1, "fp32", ON_GPU, report.leave_out)
    assert [line.partition(",")[0] for line in report.left_out] == ON_GPU
    assert [contender.backend for contender in contenders] == ["torch", "torch compile"]
    assert bench(contenders, QUICK, report.leave_out) == ()
    assert all("CUDA" in line or "NVIDIA" in line for line in report.left_out[len(ON_GPU) :])


# Arrays on the GPU.

SPEC = ModelSpec("a", (1,), *camera_ready(16, 32, 2), Preprocessing(), (0.0, 10.0), parameters=1, macs=1, focal=None)


class Halving(SessionBase):
    """Takes torch's tensors, as sessions on the GPU do, and keeps them. Depth is half of the first channel."""

    spec, provider, precision = SPEC, "halving", "fp32"

    def __init__(self) -> None:
        self.bound: list[tuple[Any, Any]] = []

    def bind(self, *, image: Any, depth: Any) -> None:
        self.bound.append((image, depth))

    def run(self) -> None:
        self._require_open()
        image, depth = self.bound[-1]
        depth.copy_(image[..., 0] / 2)


def test_arrays_on_the_gpu_are_bound_once_and_runs_copy_nothing() -> None:
    inner = Halving()
    with OnGpu(lambda: inner, device="cpu") as session:
        frames = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
        first, second = session(frames), session(255 - frames)
        np.testing.assert_array_equal(first, frames[..., 0] / 2)
        np.testing.assert_array_equal(second, (255 - frames)[..., 0] / 2)
        depth = np.full((2, 16, 32), -1, np.float32)
        session.bind(image=frames, depth=depth)
        session.run()
        assert (depth == -1).all()
        with pytest.raises(EngineError, match="image must have shape"):
            session(frames[:1])
    assert [(image.dtype, depth.dtype) for image, depth in inner.bound] == [(torch.uint8, torch.float32)]
    assert inner._closed


def test_a_session_that_takes_no_such_arrays_is_closed_again() -> None:
    inner = Halving()

    def deny(**_: Any) -> None:
        raise EngineError("no")

    inner.bind = deny  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no"):
        OnGpu(lambda: inner, device="cpu")
    assert inner._closed


# pytest.


@pytest.fixture
def tests(tmp_path: Path) -> Callable[..., Path]:
    """Writes files into a folder of tests."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return write


def test_skips_and_failures_are_kept_with_their_reasons(tests: Callable[..., Path]) -> None:
    folder = tests(
        test_a="import pytest\ndef test_it(): pass\n@pytest.mark.skip(reason='no TensorRT')\ndef test_no(): pass\n",
        test_b="import not_installed\n",
    )
    done = run_pytest("-ra", str(folder))
    assert not done.passed
    assert done.summary.startswith("1 passed, 1 skipped, 1 error in ")
    assert len(done.details) == 2
    assert any("no TensorRT" in line for line in done.details)
    assert any(line.startswith("ERROR ") and "test_b.py" in line for line in done.details)
    assert run_pytest(f"{folder}/test_a.py").passed


def test_pytest_that_cannot_begin_says_what_is_missing(tests: Callable[..., Path]) -> None:
    folder = tests(conftest="import not_installed\n", test_a="def test_it(): pass\n")
    done = run_pytest(str(folder))
    assert not done.passed
    assert "exit status 4" in done.summary
    assert "No module named 'not_installed'" in done.summary
    assert done.details == ()
