"""OpenVINO engines: their precision is the requested one, or the build fails; no telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.engines import ov
from depthkit.engines.fingerprint import usable_cores
from depthkit.engines.ov import (
    OPENVINO,
    OpenVinoOptions,
    bf16_without_kernels,
    capabilities,
    core,
    read_layers,
    settings,
)
from depthkit.errors import BackendError
from depthkit.precisions import Precision

from ..support import STEM, invent_operator

OPTIONS = st.builds(
    OpenVinoOptions,
    threads=st.integers(0, 256),
    hint=st.sampled_from(["latency", "throughput"]),
    pinning=st.booleans(),
    inference_precision=st.sampled_from(["", "f32", "bf16", "f16"]),
)
needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no BF16 arithmetic")
lacks_fp16 = pytest.mark.skipif("FP16" in capabilities(), reason="this CPU has FP16 arithmetic")


def _run(code: str, **environment: str) -> str:
    """What a new process prints; without CI's variables, which switch telemetry off."""
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("stored", "options", "asked", "found"),
    [
        ("fp32", {}, "fp32", {"fp32"}),
        ("fp16", {}, "fp16", {"fp16", "fp16→fp32"}),
        pytest.param("fp32", {"inference_precision": "bf16"}, "bf16", {"bf16"}, marks=needs_bf16),
        pytest.param("fp16", {"inference_precision": "bf16"}, "bf16", {"bf16"}, marks=needs_bf16),
    ],
)
def test_precision_is_the_files_unless_an_option_changes_it(
    pristine_exports: Path, tmp_path: Path, stored: Precision, options: dict[str, str], asked: str, found: set[str]
) -> None:
    parsed = OPENVINO.parse_options(options)
    precision = OPENVINO.asked(stored, parsed)
    assert precision == asked
    built = OPENVINO.build(pristine_exports / f"{STEM}.{stored}.onnx", tmp_path / "engine", precision, parsed)
    assert OPENVINO.found_precision(built.layers, precision) in found
    assert built.layers_from == "engine"
    assert (tmp_path / "engine").stat().st_size > 1_000_000


def test_layers_are_read_back_with_their_kernels(pristine_exports: Path, tmp_path: Path) -> None:
    built = OPENVINO.build(pristine_exports / f"{STEM}.fp32.onnx", tmp_path / "engine", "fp32", OpenVinoOptions())
    convolutions = [layer for layer in built.layers if layer.operator == "Convolution"]
    assert len(convolutions) == 19
    assert {layer.precision for layer in convolutions} == {"fp32"}
    assert all(layer.name and layer.tactic.endswith("f32") for layer in convolutions)
    operators = {layer.operator for layer in built.layers}
    assert {"Pooling", "Interpolate", "Concatenation", "Reorder"} <= operators
    assert operators.isdisjoint({"Input", "Output", "Const"})


def test_precision_is_read_from_the_compiled_model(pristine_exports: Path) -> None:
    """Asked for FP16, OpenVINO takes BF16 without a word where the CPU has that and no FP16."""
    if bf16_without_kernels():
        pytest.skip("under ONEDNN_MAX_CPU_ISA OpenVINO takes BF16 for FP16, which it has no kernels for there")
    path = pristine_exports / f"{STEM}.fp16.onnx"
    layers = read_layers(core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f16"}))
    if "FP16" in capabilities():
        assert OPENVINO.found_precision(layers, "fp16") == "fp16"
    elif "BF16" in capabilities():
        with pytest.raises(BackendError, match=r"fp16 was requested.*bf16"):
            OPENVINO.found_precision(layers, "fp16")
    else:
        assert OPENVINO.found_precision(layers, "fp16") == "fp16→fp32"


def test_fp16_file_cannot_become_an_fp32_engine() -> None:
    with pytest.raises(BackendError, match="stores FP16; build the FP32 file"):
        OPENVINO.asked("fp16", OPENVINO.parse_options({"inference_precision": "f32"}))


@lacks_fp16
def test_explicit_fp16_is_refused_on_a_cpu_without_it(pristine_exports: Path, tmp_path: Path) -> None:
    options = OPENVINO.parse_options({"inference_precision": "f16"})
    with pytest.raises(BackendError, match=r"fp16 was requested.*computes in .*FP32.*omit inference_precision"):
        OPENVINO.build(pristine_exports / f"{STEM}.fp16.onnx", tmp_path / "engine", "fp16", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stored", "hint"), [("fp32", ""), ("bf16", ""), ("fp32", "bf16"), ("fp16", "bf16")])
def test_bf16_is_refused_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch, stored: Precision, hint: str) -> None:
    monkeypatch.setattr(ov, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    options = OPENVINO.parse_options({"inference_precision": hint})
    asked = OPENVINO.asked(stored, options)
    if asked == "bf16":
        with pytest.raises(BackendError, match=r"bf16 was requested.*FP32, INT8;.*omit inference_precision"):
            settings(asked, options)
    else:
        assert settings(asked, options)["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize(("has", "hint"), [({"FP32"}, "f32"), ({"FP32", "BF16"}, "f32"), ({"FP32", "FP16"}, "f16")])
def test_fp16_file_on_a_cpu_without_fp16(monkeypatch: pytest.MonkeyPatch, has: set[str], hint: str) -> None:
    monkeypatch.setattr(ov, "capabilities", lambda: frozenset(has))
    assert settings("fp16", OpenVinoOptions())["INFERENCE_PRECISION_HINT"] == hint


def test_settings_are_explicit() -> None:
    """Its own would be BF16 where the CPU has it, whatever the file stores."""
    assert settings("fp32", OpenVinoOptions()) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cores(),
        "ENABLE_CPU_PINNING": OpenVinoOptions().pinning,
    }


@given(options=OPTIONS)
def test_options_round_trip(options: OpenVinoOptions) -> None:
    recorded = OPENVINO.record(options)
    assert OPENVINO.parse_options(recorded) == options
    assert OPENVINO.parse_options({name: str(value) for name, value in recorded.items()}) == options


@pytest.mark.parametrize(
    "given_options",
    [{"threads": "-1"}, {"threads": "many"}, {"hint": "speed"}, {"inference_precision": "int8"}, {"threds": "1"}],
)
def test_invalid_option_is_refused(given_options: dict[str, str]) -> None:
    with pytest.raises(BackendError, match=r"threads=0, hint=latency"):
        OPENVINO.parse_options(given_options)


def test_unknown_operator_is_named(exports: Path, tmp_path: Path) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    invent_operator(path)
    with pytest.raises(BackendError, match=rf"{STEM}\.fp32\.onnx: OpenVINO says: .*Teleport") as caught:
        OPENVINO.build(path, tmp_path / "engine", "fp32", OpenVinoOptions())
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value), "lines of C++ help nobody"
    assert not (tmp_path / "engine").exists()


def test_version_is_known_without_importing_openvino() -> None:
    found = OPENVINO.availability()
    assert found.runnable
    assert found.version == version("openvino")
    assert found.version in core().get_versions("CPU")["CPU"].build_number, "what a blob is checked against"
    printed = _run(
        "import sys; from depthkit.engines.ov import OPENVINO\n"
        "assert OPENVINO.availability().usable; print('openvino' in sys.modules)"
    )
    assert printed.split() == ["False"]


def test_missing_openvino_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = OPENVINO.availability()
    assert not found.usable
    assert found.remedy == "pip install 'depthkit[openvino]'"


def test_openvino_starts_no_telemetry(tmp_path: Path) -> None:
    """`import openvino` alone starts a process that reports, and leaves an identity in the home folder."""
    printed = _run(
        "import sys, psutil; from depthkit.engines.ov import core, import_openvino\n"
        "core()\n"
        "print(len(psutil.Process().children()), 'openvino_telemetry' in sys.modules)\n"
        "print(callable(import_openvino().convert_model))",
        HOME=str(tmp_path),
    )
    assert printed.split() == ["0", "False", "True"]
    assert list(tmp_path.iterdir()) == []


def test_telemetry_module_of_another_library_is_kept() -> None:
    printed = _run(
        "import sys, types; sys.modules['openvino_telemetry'] = theirs = types.ModuleType('openvino_telemetry')\n"
        "from depthkit.engines.ov import import_openvino; import_openvino()\n"
        "print(sys.modules['openvino_telemetry'] is theirs)"
    )
    assert printed.split() == ["True"]
