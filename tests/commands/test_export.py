"""`depthkit export`, and which engines `depthkit bench` takes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from depthkit.engines.backend import Availability
from depthkit.engines.build import backend, fastest, runnable
from depthkit.engines.manifest import read_manifest, write_manifest
from depthkit.engines.store import Store
from depthkit.errors import GateError
from depthkit.files import sha256
from depthkit.pipeline.targets import find_engines
from depthkit.pipeline.tell import silent

from ..support import STEM, Cli, Pretend, RunBench, edit_json, run_cli_alone, truncate

QUICK = ["--seconds", "0", "--no-torch", "--no-memory", "--no-roofline"]


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_second_export_reuses_everything_without_torch(run: Path, store: Store, cli: Cli) -> None:
    export = ["export", run, "--backend", "onnxruntime"]
    first = cli(*export).out
    assert all(word in first for word in ("wrote", "built", "pass"))
    before = _stamps(run)
    said, loaded = run_cli_alone(*export)
    assert all(word in said for word in ("kept", "found", "in the store"))
    assert not [word for word in ("wrote", "built") if word in said.split()]
    assert "onnxruntime vs reference" in said, "an engine from the store runs on the reference, too"
    assert "onnx" in loaded
    assert not {"torch", "lightning", "polygraphy"} & loaded
    assert _stamps(run) == before
    assert len(store.entries()) == 1


@pytest.mark.parametrize("target", ["compact", "runs/compact"])
def test_what_is_current_needs_no_torch(
    target: str, exports: Path, store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run was trained here, or is a copy of built-in weights."""
    monkeypatch.chdir(exports.parents[1])
    export = ["export", target, "--backend", "null"]
    cli(*export)
    for package in ("torch", "onnxscript", "polygraphy"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "kept" in cli(*export).out


def test_resizing_graph_needs_torch_before_anything_is_copied(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ONNX file in the package does not resize."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "depthkit[train]" in cli("export", "compact", "--camera", "480x640", "--backend", "null", code=2).err
    assert not list(here.iterdir())


def test_onnx_file_is_refused_for_another_camera(exports: Path, cli: Cli) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    assert "--camera cannot change it" in cli("export", path, "--camera", "64x96", "--backend", "null", code=2).err
    cli("export", path, "--camera", "32x48", "--backend", "null")


def test_rebuild_replaces_file_and_engine(exports: Path, store: Store, cli: Cli) -> None:
    export = ["export", exports, "--backend", "null"]
    assert "kept" in cli(*export).out
    before = _stamps(exports)
    said = cli(*export, "--rebuild").out
    assert all(word in said for word in ("pass", "wrote", "built"))
    after = _stamps(exports)
    for name in (f"{STEM}.fp32.onnx", f"{STEM}.reference.npz"):
        assert after[name] != before[name]
    assert after[f"{STEM}.fp16.onnx"] == before[f"{STEM}.fp16.onnx"]
    assert len(store.entries()) == 1


def _change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).flat[0] += 1
    save_file(weights, path)
    edit_json(folder / "model.json", weights_sha256=sha256(path))


def _change_frames(folder: Path) -> None:
    with np.load(folder / "frames.npz") as content:
        images, depths = content["images"], content["depths"]
    np.savez_compressed(folder / "frames.npz", images=images[::-1], depths=depths[::-1])


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        (_change_weights, []),
        (_change_frames, []),
        (lambda folder: truncate(folder / f"{STEM}.fp32.onnx"), []),
        (lambda folder: truncate(folder / f"{STEM}.reference.npz"), []),
        (lambda _: None, ["--size", "48x64"]),
        (lambda _: None, ["--batch", "2"]),
        (lambda _: None, ["--batch", "1,2,4"]),
        (lambda _: None, ["--rebuild"]),
        (None, []),
        (None, ["--fp16"]),
        (None, ["--size", "32x48", "--batch", "1,1,1"]),
    ],
    ids=[
        *("weights", "frames", "ONNX file", "reference", "size", "batch", "dynamic batch", "rebuild"),
        *("nothing", "nothing, fp16", "nothing, defaults"),
    ],
)
def test_only_changed_exports_are_made_again(
    exports: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, change: Change | None, arguments: list[str]
) -> None:
    def make(*_: object) -> None:
        raise GateError("it is made again")

    if change is not None:
        change(exports)
    monkeypatch.setattr("depthkit.export.onnx_file.export_onnx", make)
    printed = cli("export", exports, "--backend", "null", *arguments, code=0 if change is None else 3)
    assert ("kept" in printed.out) == (change is None)
    assert ("it is made again" in printed.err) == (change is not None)


def test_other_backend_version_is_built_again(
    exports: Path, store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_file = exports / f"{STEM}.fp32.onnx"
    null = ["export", onnx_file, "--backend", "null"]
    first = cli(*null).out
    assert "built" in first
    assert "wrote" not in first
    assert "found" in cli(*null).out
    monkeypatch.setattr(backend("null"), "availability", lambda: Availability("9.9.9", "is here"))
    assert "null 9.9.9" in cli(*null).out
    assert {entry.manifest.backend_version for entry in store.entries()} > {"9.9.9"}


def test_auto_chooses_the_fastest_backend(exports: Path, cli: Cli, pretend: Pretend) -> None:
    onnx_file = exports / f"{STEM}.fp32.onnx"
    assert f"{fastest()} {backend(fastest()).availability().version} (chosen by auto)" in cli("export", onnx_file).out
    cannot_run = Availability("1", "has no GPU", "use one", runs=False)
    pretend({"onnxruntime": backend("onnxruntime").availability(), "tensorrt": cannot_run})
    said = cli("export", onnx_file).out
    assert "onnxruntime" in said
    assert "(chosen by auto)" in said


def test_all_builds_with_every_backend_once(exports: Path, cli: Cli) -> None:
    for path in exports.glob(f"{STEM}.fp32.*.onnx"):
        path.unlink()
    backends = [word for choice in ("all", "auto", "null") for word in ("--backend", choice)]
    said = cli("export", exports / f"{STEM}.fp32.onnx", *backends).out
    names = [*runnable(), "null"]
    assert len([line for line in said.splitlines() if "precision" in line]) == len(names)
    for name in names:
        engine = exports / f"{STEM}.fp32.{backend(name).extension}"
        assert read_manifest(engine).backend == name
        assert f"{engine.name}: {name} " in said


def test_no_backend_has_a_remedy(exports: Path, cli: Cli, pretend: Pretend) -> None:
    pretend({"null": Availability("1", "is here")})
    for choice in ("auto", "all"):
        message = cli("export", exports / f"{STEM}.fp32.onnx", "--backend", choice, code=2).err
        assert "pip install 'depthkit[" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "tensorrt"], "is not here; pip install it"),
        (["--backend", "onnxruntime", "--backend", "tensorrt"], "is not here; pip install it"),
        (["--backend", "onnxruntime", "-o", "threds=2"], "threds"),
    ],
    ids=["backend", "second backend", "option"],
)
def test_impossible_build_is_refused_first(
    run: Path, cli: Cli, pretend: Pretend, arguments: list[str], words: str
) -> None:
    pretend({"onnxruntime": backend("onnxruntime").availability()})
    assert words in cli("export", run, *arguments, code=2).err
    assert not list(run.glob("*.onnx"))


def test_backend_options_are_stored_in_the_manifest(exports: Path, cli: Cli) -> None:
    export = ["export", exports / f"{STEM}.fp32.onnx", "--backend", "onnxruntime"]
    for option, value in (("-o", 1), ("--option", 2)):
        cli(*export, option, f"threads={value}")
        assert read_manifest(exports / f"{STEM}.fp32.threads={value}.ort.onnx").options == {"threads": value}
    assert read_manifest(exports / f"{STEM}.fp32.ort.onnx").options == {"threads": 0}
    assert len([path for path in find_engines(exports.parent, silent) if "threads=" in path.name]) == 2


def test_renamed_onnx_file_is_built_and_gated(exports: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copyfile(exports / f"{STEM}.fp32.onnx", tmp_path / "foo.onnx")
    shutil.copyfile(exports / f"{STEM}.reference.npz", tmp_path / f"{STEM}.reference.npz")
    cli("export", tmp_path / "foo.onnx", "--backend", "onnxruntime")
    for name in ("foo.fp32.ort.onnx", "foo.onnx"):
        assert "PASS" in cli("bench", "--engine", tmp_path / name, *QUICK).out
    vendor = ["bench", "--engine", tmp_path / "foo.fp32.ort.onnx", "--vs", "onnxruntime", *QUICK]
    assert "onnxruntime (vendor)" in cli(*vendor).out


def test_onnx_only_builds_no_engine(exports: Path, cli: Cli) -> None:
    before = _stamps(exports)
    said = cli("export", exports, "--onnx-only").out
    assert "kept" in said
    assert "found" not in said
    assert _stamps(exports) == before
    assert "nowhere.onnx" in cli("export", "nowhere.onnx", "--onnx-only", code=2).err


def test_bench_skips_engines_that_cannot_run_here(exports: Path, bench: RunBench, pretend: Pretend) -> None:
    pretend({"onnxruntime": backend("onnxruntime").availability()})
    result, _, err = bench("--runs", exports.parent, "--no-torch")
    for precision in ("fp32", "fp16"):
        assert f"{STEM}.{precision}.null: null cannot run here: is not here" in err
    assert {row.backend for row in result.rows} == {"onnxruntime"}


def test_bench_refuses_an_engine_that_cannot_run(exports: Path, cli: Cli, pretend: Pretend) -> None:
    pretend({"onnxruntime": Availability("1", "no GPU is here", "use another machine", runs=False)})
    message = cli("bench", "--engine", exports / f"{STEM}.fp32.ort.onnx", "--no-torch", code=2).err
    assert "onnxruntime cannot run here: no GPU is here; use another machine" in message


def test_bench_is_refused_where_no_engine_can_run(exports: Path, cli: Cli, pretend: Pretend) -> None:
    pretend({})
    message = cli("bench", "--runs", exports.parent, code=2).err
    assert "depthkit export" in message
    assert message.count("skipped") == 4


def test_bench_skips_or_refuses_engines_of_an_unknown_backend(exports: Path, cli: Cli, bench: RunBench) -> None:
    engine = exports / f"{STEM}.fp32.ort.onnx"
    write_manifest(engine, replace(read_manifest(engine), backend="abacus"))
    *_, err = bench("--runs", exports.parent, "--no-torch", "--no-gate")
    assert all(word in err for word in ("skipped", engine.name, "abacus", "upgrade"))
    assert "abacus" in cli("bench", "--engine", engine, code=2).err


def test_bench_fails_for_a_damaged_engine_that_it_finds(exports: Path, bench: RunBench) -> None:
    truncate(exports / f"{STEM}.fp32.ort.onnx")
    *_, err = bench("--runs", exports.parent, "--no-torch", code=3)
    assert "SHA-256" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fp16"], "--fp16"),
        (["--size", "48x64"], "--size"),
        (["--batch", "2"], "--batch"),
        (["--onnx-only"], "--onnx-only"),
    ],
)
def test_export_options_are_refused_for_an_onnx_file(exports: Path, cli: Cli, options: list[str], words: str) -> None:
    message = cli("export", exports / f"{STEM}.fp32.onnx", *options, code=2).err
    assert words in message
    assert "already exported" in message


def test_engines_become_models_of_triton(exports: Path, here: Path, cli: Cli) -> None:
    printed = cli("export", exports / f"{STEM}.fp32.onnx", "--backend", "all", "--triton", "models")
    assert f"models/{STEM}.fp32.openvino: version 1, for Triton's backend openvino" in printed.out
    assert f"models/{STEM}.fp32.onnxruntime: version 1" in printed.out
    assert printed.out.count("no setting for FP32") == 1
    assert sorted(path.name for path in Path("models").iterdir()) == [
        f"{STEM}.fp32.onnxruntime",
        f"{STEM}.fp32.openvino",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "null"], "Triton cannot serve engines of null"),
        (["--backend", "openvino", "-o", "inference_precision=f16"], "no setting for inference_precision=f16"),
        (["--onnx-only"], "--triton needs an engine"),
    ],
)
def test_what_triton_cannot_serve_is_refused_before_anything_is_built(
    exports: Path, here: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    before = _stamps(exports)
    assert words in cli("export", exports, *arguments, "--triton", "models", code=2).message
    assert not Path("models").exists()
    assert _stamps(exports) == before
