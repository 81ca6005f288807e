"""`depthkit bench`: peers, batches, what cannot be benched, interruption, comparison."""

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
from PIL import Image
from rich.console import Console

from depthkit.bench.compare import compare
from depthkit.bench.results import read_result
from depthkit.cli import run as depthkit
from depthkit.commands.bench_output import _shown
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.names import PEERS
from depthkit.report.tables import TABLES
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle

Captured = pytest.CaptureFixture[str]
QUICK = ["--duration", "0.02", "--no-memory", "--no-roofline"]
ENGINE = "compact-32x48.fp32.ort.onnx"


def test_peers_stand_beside_the_engines_of_their_model(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    report = tmp_path / "bench.json"
    names = [name for name in PEERS if name != "torch-compile"]
    arguments = ["bench", "--engine", str(exports / ENGINE), "--vs", ",".join(names), *QUICK, "--json", str(report)]
    assert depthkit(arguments) == 0
    result = read_result(report)
    assert [row.backend for row in result.rows] == ["torch", "onnxruntime", *(f"{name} (vendor)" for name in names)]
    assert [row.kind for row in result.rows] == ["engine"] * 2 + ["peer"] * 3
    peers = result.rows[2:]
    assert all(row.parity and row.parity.worst_ssim > 0.99 for row in peers)
    assert all(row.passed for row in peers)
    assert "onnxruntime (vendor)" in capsys.readouterr().out


def test_peers_need_the_fp32_file(exports: Path, capsys: Captured) -> None:
    engine = exports / "compact-32x48.fp16.ort.onnx"
    (exports / "compact-32x48.fp32.onnx").unlink()
    assert depthkit(["bench", "--engine", str(engine), "--vs", "onnxruntime", *QUICK]) == 2
    assert "compact-32x48.fp32.onnx is not there" in capsys.readouterr().err
    assert depthkit(["bench", "--engine", str(engine), "--vs", "caffe", *QUICK]) == 2
    assert "'caffe': no such peer" in capsys.readouterr().err


def test_a_dynamic_engine_is_benched_at_the_batch_that_was_asked_for(
    exports: Path, tmp_path: Path, capsys: Captured
) -> None:
    made = export_onnx(read_bundle(exports), ExportOptions(batch=Dim("batch", 1, 2, 4)))
    dynamic = build(made.path, BuildOptions("onnxruntime")).path
    report = tmp_path / "bench.json"
    engines = ["--engine", str(dynamic), "--engine", str(exports / ENGINE)]
    arguments = ["bench", *engines, "--batch", "3", "--streams", "2", *QUICK, "--no-torch", "--json", str(report)]
    assert depthkit(arguments) == 0
    (row,) = read_result(report).rows
    assert row.batch == 3
    assert row.throughput is not None
    assert (row.throughput.streams, row.throughput.batch) == (2, 3)
    assert f"skipped {exports / ENGINE}" in capsys.readouterr().err
    assert depthkit(["bench", *engines, "--batch", "9", *QUICK]) == 2
    assert "no engine takes 9 frames a run" in capsys.readouterr().err


def test_an_engine_that_cannot_be_opened_is_a_row_and_the_others_finish(
    exports: Path, tmp_path: Path, capsys: Captured
) -> None:
    broken = exports / "compact-32x48.fp16.ort.onnx"
    broken.write_bytes(broken.read_bytes()[:1000])
    report, table = tmp_path / "bench.json", tmp_path / "bench.csv"
    engines = ["--engine", str(broken), "--engine", str(exports / ENGINE)]
    files = ["--json", str(report), "--csv", str(table), "--html", str(tmp_path / "bench.html")]
    assert depthkit(["bench", *engines, *QUICK, "--no-torch", *files]) == 3
    first, second = read_result(report).rows
    assert "SHA-256 differs" in first.error
    assert second.passed
    assert second.wall_ms
    said = capsys.readouterr()
    assert "1 of 2 rows failed" in said.err
    assert "ERROR" in said.out
    with table.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert rows[0]["p50_ms"] == ""
    assert float(rows[1]["p50_ms"]) == pytest.approx(second.p50_ms, rel=0.01)


def test_the_layer_where_an_engine_goes_wrong_is_named(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    path = exports / "compact-32x48.fp16.onnx"
    model = onnx.load(path)
    wrong = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    wrong.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(wrong) * np.float16(3), wrong.name))
    onnx.save(model, path)
    (layer,) = [node.name for node in model.graph.node if wrong.name in node.input]
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(path), "--bisect", *QUICK, "--no-torch", "--json", str(report)]
    assert depthkit(arguments) == 3
    assert layer in read_result(report).rows[0].diverges
    assert "the ONNX file itself is wrong" in capsys.readouterr().err


def test_pictures_without_depth_leave_accuracy_empty_and_say_why(
    exports: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), *QUICK, "--no-torch", "--json", str(report)]
    assert depthkit([*arguments, "--data", str(tmp_path / "pictures")]) == 0
    result = read_result(report)
    assert result.rows[0].accuracy is None
    assert "have no measured depth" in result.notes[0]
    assert "have no measured depth" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert depthkit([*arguments, "--data", str(tmp_path / "empty")]) == 2
    assert "none of the known layouts" in capsys.readouterr().err


def test_several_models_are_grouped_aloud(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    made = export_onnx(read_bundle(exports), ExportOptions(size=(48, 64)))
    other = build(made.path, BuildOptions("onnxruntime")).path
    report = tmp_path / "bench.json"
    engines = ["--engine", str(exports / ENGINE), "--engine", str(other)]
    assert depthkit(["bench", *engines, *QUICK, "--json", str(report)]) == 0
    assert "2 models" in capsys.readouterr().err
    assert [len(group) for group in read_result(report).groups] == [2, 2]


@pytest.mark.parametrize("other", ["compact-pretrained", pytest.param("elsewhere/compact", marks=pytest.mark.slow)])
def test_runs_of_one_network_keep_apart(exports: Path, tmp_path: Path, other: str, capsys: Captured) -> None:
    copy = Path(shutil.copytree(exports, tmp_path / "runs" / other))
    report = tmp_path / "bench.json"
    engines = [argument for folder in (exports, copy) for argument in ("--engine", str(folder / ENGINE))]
    arguments = ["bench", *engines, "--vs", "onnxruntime", *QUICK, "--duration", "0.6", "--json", str(report)]
    assert depthkit(arguments) == 0
    result = read_result(report)
    assert [[row.backend for row in group] for group in result.groups] == 2 * [
        ["torch", "onnxruntime", "onnxruntime (vendor)"]
    ]
    assert len({row.name for row in result.rows}) == 6
    assert len(result.speedups) == 4
    for group, folder in zip(result.groups, (exports, copy), strict=True):
        assert all(result.baseline(row) is group[0] for row in group)
        assert group[0].target == str(folder)
    assert f"of {other}" in " ".join(capsys.readouterr().out.split())
    swapped = tmp_path / "swapped.json"
    document = json.loads(report.read_text())
    swapped.write_text(json.dumps({**document, "rows": document["rows"][3:] + document["rows"][:3]}))
    found = compare(result, read_result(swapped))
    assert [change.old.target for change in found.changes] == [change.new.target for change in found.changes]


def test_engines_of_other_options_are_other_rows(exports: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    other = build(exports / "compact-32x48.fp32.onnx", BuildOptions("onnxruntime", {"threads": "1"})).path
    engines = [word for path in (other, other, exports / ENGINE) for word in ("--engine", str(path))]
    assert depthkit(["bench", *engines, *QUICK, "--no-torch", "--json", str(report)]) == 0
    assert [row.backend for row in read_result(report).rows] == ["onnxruntime, threads=1", "onnxruntime"]


def test_torch_is_benched_only_where_it_has_the_weights_of_the_engine(exports: Path, tmp_path: Path) -> None:
    weights = exports / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    report = tmp_path / "bench.json"
    assert depthkit(["bench", "--engine", str(exports / ENGINE), *QUICK, "--json", str(report)]) == 3
    (row,) = read_result(report).rows
    assert "other weights than model.safetensors" in row.faults[0]


def test_the_papers_table(exports: Path, capsys: Captured) -> None:
    arguments = ["bench", "--engine", str(exports / ENGINE), "--protocol", "paper", "--table", "paper", *QUICK]
    assert depthkit(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "163.45 ms" in said
    assert "proposed" in said


def test_trtexec_has_a_row(exports: Path, tmp_path: Path) -> None:
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
    report = tmp_path / "bench.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), *QUICK, "--no-torch", "--trtexec", str(trace)]
    assert depthkit([*arguments, "--json", str(report), "--html", str(tmp_path / "b.html")]) == 0
    row = read_result(report).rows[-1]
    assert (row.kind, row.backend, row.p50_ms) == ("trtexec", "trtexec", 3.0)
    assert row.phases["device"] == (2.0,) * 20


def test_ctrl_c_writes_what_was_measured(exports: Path, tmp_path: Path) -> None:
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


def test_two_files_are_compared(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    arguments = ["bench", "--engine", str(exports / ENGINE), "--duration", "1.5", "--no-torch", *QUICK[2:]]
    assert depthkit([*arguments, "--json", str(old)]) == 0
    document = json.loads(old.read_text())
    for row in document["rows"]:
        row["wall_ms"] = [3 * ms for ms in row["wall_ms"]]
    new.write_text(json.dumps(document))
    capsys.readouterr()
    assert depthkit(["bench", "--compare", str(old), str(old)]) == 0
    note = tmp_path / "comment.md"
    assert depthkit(["bench", "--compare", str(old), str(new), "--markdown", str(note)]) == 3
    assert "onnxruntime" in capsys.readouterr().err
    assert "onnxruntime" in note.read_text()
    assert depthkit(["bench", "--compare", str(old), str(tmp_path / "gone.json")]) == 2
    assert "depthkit bench --json" in capsys.readouterr().err
    document["schema_version"] = 3
    new.write_text(json.dumps(document))
    assert depthkit(["bench", "--compare", str(old), str(new)]) == 2
    assert "schema version 3" in capsys.readouterr().err
    shutil.copy(exports / "model.json", new)
    assert depthkit(["bench", "--compare", str(old), str(new)]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--until", "0"], "no share between 0 and 100 %"),
        (["--until", "x%"], "no share"),
        (["--fail-above", "150%"], "no share"),
        (["--streams", "0"], "1<=x<=256"),
        (["--batch", "-1"], "1<=x<=4096"),
        (["--compare", "one.json"], "requires 2 arguments"),
        (["--trtexec", "gone.json"], "gone.json"),
    ],
)
def test_what_cannot_be_meant_is_refused(exports: Path, arguments: list[str], words: str, capsys: Captured) -> None:
    assert depthkit(["bench", "--engine", str(exports / ENGINE), *QUICK, *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_no_figure_is_cut_at_80_columns() -> None:
    result = read_result(Path(__file__).parents[2] / "docs" / "results" / "bench.json")
    console = Console(width=80, record=True, file=StringIO())
    for table in TABLES:
        for group in result.groups if table.wanted(result) else ():
            console.print(_shown(table, result, group))
            words = console.export_text().split()
            figures = {column.cell(row) for row in group for column in table.columns if column.number}
            assert figures - {""} <= set(words), table.title
