"""`depthkit bench`: peers, batches, failed rows, interruption, comparison."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from depthkit.bench.results import read_result
from depthkit.commands.bench_output import _shown
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.names import PEERS
from depthkit.pipeline.runs import open_source
from depthkit.report.tables import TABLES
from depthkit.spec import Dim

from ..support import STEM, Cli, RunBench, edit_json, save_noise, truncate

ENGINE = f"{STEM}.fp32.ort.onnx"


def test_peers_are_rows_beside_the_engine(exports: Path, bench: RunBench) -> None:
    names = [name for name in PEERS if name != "torch-compile"]
    result, out, _ = bench("--engine", exports / ENGINE, "--vs", ",".join(names))
    assert [row.backend for row in result.rows] == ["torch", "onnxruntime", *(f"{name} (vendor)" for name in names)]
    assert [row.kind for row in result.rows] == ["engine"] * 2 + ["peer"] * 3
    peers = result.rows[2:]
    assert all(row.parity and row.parity.worst_ssim > 0.99 for row in peers)
    assert all(row.passed for row in peers)
    assert "onnxruntime (vendor)" in out


def test_peers_need_the_fp32_file(exports: Path, cli: Cli) -> None:
    engine = exports / f"{STEM}.fp16.ort.onnx"
    (exports / f"{STEM}.fp32.onnx").unlink()
    for peer, words in (("onnxruntime", f"{STEM}.fp32.onnx is missing"), ("caffe", "'caffe': no such peer")):
        assert words in cli("bench", "--engine", engine, "--vs", peer, code=2).err


def test_dynamic_engine_is_benched_at_the_requested_batch(exports: Path, cli: Cli, bench: RunBench) -> None:
    made = export_onnx(open_source(exports), ExportOptions(batch=Dim("batch", 1, 2, 4)))
    dynamic = build(made.path, BuildOptions("onnxruntime")).path
    engines = ["--engine", dynamic, "--engine", exports / ENGINE]
    result, _, err = bench(*engines, "--batch", "3", "--streams", "2", "--no-torch")
    (row,) = result.rows
    assert row.batch == 3
    assert row.throughput is not None
    assert (row.throughput.streams, row.throughput.batch) == (2, 3)
    assert f"skipped {exports / ENGINE}" in err
    assert "no engine takes 9 frames per run" in cli("bench", *engines, "--batch", "9", code=2).err


def test_damaged_engine_is_a_failed_row(exports: Path, tmp_path: Path, bench: RunBench) -> None:
    broken, table = exports / f"{STEM}.fp16.ort.onnx", tmp_path / "bench.csv"
    truncate(broken)
    engines = ["--engine", broken, "--engine", exports / ENGINE]
    result, out, err = bench(*engines, "--no-torch", "--csv", table, "--html", tmp_path / "bench.html", code=3)
    first, second = result.rows
    assert "SHA-256 differs" in first.error
    assert second.passed
    assert second.wall_ms
    assert "1 of 2 rows failed" in err
    assert "ERROR" in out
    with table.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert rows[0]["p50_ms"] == ""
    assert float(rows[1]["p50_ms"]) == pytest.approx(second.p50_ms, rel=0.01)


def test_bisection_names_the_layer(exports: Path, bench: RunBench) -> None:
    path = exports / f"{STEM}.fp16.onnx"
    model = onnx.load(path)
    wrong = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    wrong.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(wrong) * np.float16(3), wrong.name))
    onnx.save(model, path)
    (layer,) = [node.name for node in model.graph.node if wrong.name in node.input]
    result, _, err = bench("--engine", path, "--bisect", "--no-torch", code=3)
    assert layer in result.rows[0].diverges
    assert "the ONNX file itself is wrong" in err
    path.with_name(f"{STEM}.fp32.onnx").unlink()
    result, _, _ = bench("--engine", path, "--bisect", "--no-torch", code=3)
    assert "fp32.onnx is missing, so faults of the ONNX file itself are not seen" in result.rows[0].diverges


def test_pictures_without_depth_leave_accuracy_empty(exports: Path, tmp_path: Path, cli: Cli, bench: RunBench) -> None:
    save_noise(tmp_path / "pictures" / "a.png", 48, 64)
    engine = ["--engine", exports / ENGINE, "--no-torch"]
    result, _, err = bench(*engine, "--data", tmp_path / "pictures")
    assert result.rows[0].accuracy is None
    assert "have no measured depth" in result.notes[0]
    assert "have no measured depth" in err
    (tmp_path / "empty").mkdir()
    assert "none of the known layouts" in cli("bench", *engine, "--data", tmp_path / "empty", code=2).err


def test_several_models_are_grouped(exports: Path, bench: RunBench) -> None:
    made = export_onnx(open_source(exports), ExportOptions(size=(48, 64)))
    other = build(made.path, BuildOptions("onnxruntime")).path
    result, _, err = bench("--engine", exports / ENGINE, "--engine", other)
    assert "2 models" in err
    assert [len(group) for group in result.groups] == [2, 2]


@pytest.mark.parametrize("other", ["compact-pretrained", pytest.param("elsewhere/compact", marks=pytest.mark.slow)])
def test_runs_of_one_network_are_separate_groups(exports: Path, tmp_path: Path, other: str, bench: RunBench) -> None:
    copy = Path(shutil.copytree(exports, tmp_path / "runs" / other))
    engines = ["--engine", exports / ENGINE, "--engine", copy / ENGINE]
    result, out, _ = bench(*engines, "--vs", "onnxruntime", "--duration", "0.6")
    backends = [[row.backend for row in group] for group in result.groups]
    assert backends == 2 * [["torch", "onnxruntime", "onnxruntime (vendor)"]]
    assert len({row.name for row in result.rows}) == 6
    assert len(result.speedups) == 4
    for group, folder in zip(result.groups, (exports, copy), strict=True):
        assert all(result.baseline(row) is group[0] for row in group)
        assert group[0].target == str(folder)
    assert f"of {other}" in " ".join(out.split())


def test_engines_of_other_options_are_other_rows(exports: Path, bench: RunBench) -> None:
    other = build(exports / f"{STEM}.fp32.onnx", BuildOptions("onnxruntime", {"threads": "1"})).path
    engines = [word for path in (other, other, exports / ENGINE) for word in ("--engine", path)]
    result, *_ = bench(*engines, "--no-torch")
    assert [row.backend for row in result.rows] == ["onnxruntime, threads=1", "onnxruntime"]


def test_engine_of_other_weights_fails_without_a_torch_row(exports: Path, bench: RunBench) -> None:
    weights = exports / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    result, _, err = bench("--engine", exports / ENGINE, code=3)
    (row,) = result.rows
    assert "other weights than model.safetensors" in row.faults[0]
    assert "other weights than model.safetensors" in err


def test_protocol_and_table_of_the_paper(exports: Path, bench: RunBench) -> None:
    result, out, _ = bench("--engine", exports / ENGINE, "--protocol", "paper", "--table", "paper")
    assert all(len(row.wall_ms) == 10 for row in result.rows)
    words = " ".join(out.split())
    assert "163.45 ms" in words
    assert "proposed" in words


def test_trtexec_has_a_row(exports: Path, tmp_path: Path, cli: Cli, bench: RunBench) -> None:
    trace = tmp_path / "times.json"
    runs = [
        {
            "startEnqMs": 10.0 * n, "endEnqMs": 10 * n + 0.2, "startH2dMs": 10.0 * n, "endH2dMs": 10 * n + 0.5,
            "startComputeMs": 10 * n + 0.5, "endComputeMs": 10 * n + 2.5, "startD2hMs": 10 * n + 2.5,
            "endD2hMs": 10 * n + 3.0, "h2dMs": 0.5, "computeMs": 2.0, "d2hMs": 0.5, "latencyMs": 3.0,
        }
        for n in range(20)
    ]  # fmt: skip
    trace.write_text(json.dumps(runs))
    engine = ["--engine", exports / ENGINE, "--no-torch"]
    result, *_ = bench(*engine, "--trtexec", trace, "--html", tmp_path / "b.html")
    row = result.rows[-1]
    assert (row.kind, row.backend, row.p50_ms) == ("trtexec", "trtexec", 3.0)
    assert row.phases["device"] == (2.0,) * 20
    assert "gone.json" in cli("bench", *engine, "--trtexec", "gone.json", code=2).err


def test_ctrl_c_writes_the_measured_rows(exports: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), "--duration", "300", "--no-memory", "--no-torch"]
    # A shell's background job ignores SIGINT, and so would its children.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from depthkit.bench import suite; measure = suite.time_steady;"
        "suite.time_steady = lambda *a, **k: (print('timing', flush=True), measure(*a, **k))[1];"
        "from depthkit.cli import main; main(sys.argv[1:])"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--json", str(report)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "timing\n"
    time.sleep(2)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert "Traceback" not in said
    result = read_result(report)
    assert not result.complete
    assert result.rows[0].wall_ms
    assert result.rows[0].passed


def test_two_files_are_compared(exports: Path, tmp_path: Path, cli: Cli) -> None:
    old, new, note = (tmp_path / name for name in ("old.json", "new.json", "comment.md"))
    bench = ["bench", "--engine", exports / ENGINE, "--duration", "1.5", "--no-torch", "--no-memory", "--no-roofline"]
    cli(*bench, "--json", old)
    rows = [row | {"wall_ms": [3 * ms for ms in row["wall_ms"]]} for row in json.loads(old.read_text())["rows"]]
    shutil.copy(old, new)
    edit_json(new, rows=rows)
    cli("bench", "--compare", old, old)
    assert "onnxruntime" in cli("bench", "--compare", old, new, "--markdown", note, code=3).err
    assert "onnxruntime" in note.read_text()
    assert "depthkit bench --json" in cli("bench", "--compare", old, tmp_path / "gone.json", code=2).err
    edit_json(new, schema_version=3)
    assert "schema version 3" in cli("bench", "--compare", old, new, code=2).err
    shutil.copy(exports / "model.json", new)
    cli("bench", "--compare", old, new, code=2)


def test_no_figure_is_cut_at_80_columns() -> None:
    result = read_result(Path(__file__).parents[2] / "docs" / "results" / "bench.json.gz")
    console = Console(width=80, record=True, file=StringIO())
    for table in TABLES:
        for group in result.groups if table.wanted(result) else ():
            console.print(_shown(table, result, group))
            words = console.export_text().split()
            cells = {column.cell(row) for row in group for column in table.columns if column.number}
            figures = {word for cell in cells for word in cell.split()}
            assert figures <= set(words), table.title
