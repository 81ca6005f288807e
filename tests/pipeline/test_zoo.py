"""Architectures of others with random weights: adopted, exported, built by every backend, gated and benched.

`export_run` raises GateError if a file or an engine misses its gate, so that what returns has passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import onnx
import pytest
from onnx import numpy_helper

from depthkit.cli import run as depthkit
from depthkit.engines.build import runnable
from depthkit.engines.manifest import read_manifest
from depthkit.export.recipe import ExportOptions
from depthkit.pipeline.adopt import AdoptOptions, adopt_file
from depthkit.pipeline.calibration import PrecisionOptions
from depthkit.pipeline.export import EngineOptions, export_run
from depthkit.pipeline.tell import silent
from depthkit.precisions import Precision
from depthkit.spec import Answers, Preprocessing
from depthkit.train.document import read_document

from ..support import STEM

HALF: Final = Preprocessing("RGB", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN: Final = Preprocessing("RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

NETWORKS: Final[dict[str, tuple[Answers, Preprocessing, tuple[int, int] | None]]] = {
    "dav2s-small": ("inverse", Preprocessing(), (56, 70)),
    "dpt-small": ("inverse", HALF, None),
    "glpn-small": ("metres", PLAIN, (64, 96)),
    "fastdepth-small": ("metres", Preprocessing(), (64, 96)),
    "dav2s": ("inverse", Preprocessing(), (252, 336)),
    "dpt": ("inverse", HALF, None),
    "glpn": ("metres", PLAIN, (240, 320)),
    "fastdepth": ("metres", Preprocessing(), (224, 224)),
}
"""Networks of `tests/zoo.py`: what they answer, how they take pixels, and the size if the file has none."""


SMALL: Final = [name for name in NETWORKS if name.endswith("-small")]
PUBLISHED: Final = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in SMALL]

Adopted = Callable[[str], Path]


@pytest.fixture
def adopted(foreign: Adopted, photos: Path, tmp_path: Path) -> Adopted:
    """The run of an adopted network, by its name."""

    def adopt(name: str) -> Path:
        answers, preprocessing, size = NETWORKS[name]
        adopt_file(foreign(name), tmp_path / name, AdoptOptions(str(photos), answers, preprocessing, size=size), silent)
        return tmp_path / name

    return adopt


def _export(run: Path, precision: Precision, backends: tuple[str, ...]) -> list[Path]:
    chosen = PrecisionOptions(() if precision == "fp32" else (precision,))
    keep: Literal["auto"] | None = "auto" if precision == "int8" else None
    options = ExportOptions(precision, calibration=chosen.calibration(read_document(run), None), keep=keep)
    return export_run(run, options, EngineOptions(backends), silent)


@pytest.mark.parametrize("name", [*SMALL, *PUBLISHED])
def test_every_precision_is_built_by_every_backend_and_passes_its_gate(adopted: Adopted, name: str) -> None:
    """TensorRT-RTX builds for other machines: its parser takes the graph, and layers have the types asked for."""
    run, here = adopted(name), tuple(each for each in runnable() if each != "null")
    built = (*here, *(["tensorrt-rtx"] if find_spec("tensorrt_rtx") and "tensorrt-rtx" not in here else []))
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    manifests = [read_manifest(engine) for precision in precisions for engine in _export(run, precision, built)]
    found = {(made.backend, made.precision_asked) for made in manifests}
    assert found == {(backend, precision) for backend in built for precision in precisions}
    assert all(made.precision_found == made.precision_asked for made in manifests if made.backend == "tensorrt-rtx")


@pytest.mark.parametrize("name", ["dav2s-small", *PUBLISHED])
def test_engines_are_benched_beside_their_gate(adopted: Adopted, name: str) -> None:
    run = adopted(name)
    engines = _export(run, "fp32", tuple(each for each in runnable() if each != "null"))
    named = [word for engine in engines for word in ("--engine", str(engine))]
    bench = ["bench", *named, "--duration", "0.05", "--no-memory", "--no-roofline", "--json", str(run / "bench.json")]
    assert depthkit(bench) == 0
    rows: list[dict[str, Any]] = json.loads((run / "bench.json").read_text())["rows"]
    assert len(rows) == len(engines)
    assert not any(row["faults"] or row["error"] for row in rows)


def test_torch_beside_an_adopted_file_is_skipped_for_that_alone(
    adopted: Adopted, pristine_exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine,) = _export(adopted("fastdepth-small"), "fp32", ("onnxruntime",))
    bench = ["bench", "--no-torch", "--duration", "0.05", "--no-memory", "--no-roofline", "--vs", "torch"]
    one, other = ["--engine", str(engine)], ["--engine", str(pristine_exports / f"{STEM}.fp32.ort.onnx")]
    assert depthkit([*bench, *one, *other, "--json", str(tmp_path / "bench.json")]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert sorted(row["backend"] for row in rows) == ["onnxruntime", "onnxruntime", "torch (vendor)"]
    told = " ".join(capsys.readouterr().err.split())
    assert "fastdepth-small: it is an ONNX file, which torch does not compute" in told
    assert depthkit([*bench, *one]) == 2
    assert "leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dav2s-small", "fastdepth-small"])
def test_bench_finds_one_changed_weight(adopted: Adopted, name: str) -> None:
    run = adopted(name)
    (engine,) = _export(run, "fp32", ("onnxruntime",))
    (made,) = run.glob("*.fp32.onnx")
    model = onnx.load(made)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] += 0.01
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, made)
    for target in (engine, made):
        assert depthkit(["bench", "--engine", str(target), "--duration", "0.05", "--no-memory", "--no-roofline"]) == 3
