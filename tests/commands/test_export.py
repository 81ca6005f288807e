"""`depthkit export` and the engines of `depthkit bench`: nothing is made twice, and a choice is said aloud."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from depthkit.cli import run as depthkit
from depthkit.engines.backend import Availability
from depthkit.engines.build import backend, fastest, runnable
from depthkit.engines.manifest import read_manifest, write_manifest
from depthkit.engines.store import Store
from depthkit.errors import GateError
from depthkit.files import sha256
from depthkit.pipeline.targets import find_engines
from depthkit.pipeline.tell import silent

Captured = pytest.CaptureFixture[str]
STEM = "compact-32x48"
QUICK = ["--seconds", "0", "--no-torch", "--no-memory", "--no-roofline"]


def _printed(arguments: list[str], capsys: Captured) -> str:
    """Run, require success, and return standard output."""
    capsys.readouterr()
    assert depthkit(arguments) == 0
    return capsys.readouterr().out


def _refused(arguments: list[str], capsys: Captured) -> str:
    """Run, require exit code 2, and return the message."""
    capsys.readouterr()
    assert depthkit(arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file from one that was written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_second_export_keeps_and_finds_without_torch(run: Path, store: Store, capsys: Captured) -> None:
    export = ["export", str(run), "--backend", "onnxruntime"]
    first = _printed(export, capsys)
    assert all(word in first for word in ("wrote", "built", "pass"))
    before = _stamps(run)
    program = (
        "import sys; from depthkit.cli import run; code = run(sys.argv[1:]);"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *export], capture_output=True, text=True, check=True)
    said, _, loaded = done.stdout.partition("LOADED")
    assert all(word in said for word in ("kept", "found", "in the store"))
    assert not [word for word in ("wrote", "built") if word in said.split()]
    assert "onnxruntime vs torch" in said, "an engine from the store runs on the reference, too"
    assert "onnx" in loaded.split()
    assert not {"torch", "lightning", "polygraphy"} & set(loaded.split())
    assert _stamps(run) == before
    assert len(store.entries()) == 1


def test_rebuild_makes_file_and_engine_anew(exports: Path, store: Store, capsys: Captured) -> None:
    export = ["export", str(exports), "--backend", "null"]
    assert "kept" in _printed(export, capsys)
    before = _stamps(exports)
    said = _printed([*export, "--rebuild"], capsys)
    assert all(word in said for word in ("pass", "wrote", "built"))
    after = _stamps(exports)
    for name in (f"{STEM}.fp32.onnx", f"{STEM}.reference.npz"):
        assert after[name] != before[name]
    assert after[f"{STEM}.fp16.onnx"] == before[f"{STEM}.fp16.onnx"]
    assert len(store.entries()) == 1


def _change_weights(folder: Path) -> None:
    """Train a little more, so to speak."""
    path, document = folder / "model.safetensors", json.loads((folder / "model.json").read_text())
    weights = load_file(path)
    next(iter(weights.values())).flat[0] += 1
    save_file(weights, path)
    (folder / "model.json").write_text(json.dumps({**document, "weights_sha256": sha256(path)}))


def _change_frames(folder: Path) -> None:
    with np.load(folder / "frames.npz") as content:
        images, depths = content["images"], content["depths"]
    np.savez_compressed(folder / "frames.npz", images=images[::-1], depths=depths[::-1])


def _truncate(name: str) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return truncate


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        (_change_weights, []),
        (_change_frames, []),
        (_truncate(f"{STEM}.fp32.onnx"), []),
        (_truncate(f"{STEM}.reference.npz"), []),
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
        *("nothing", "nothing, fp16", "nothing, said aloud"),
    ],
)
def test_what_has_changed_is_exported_anew_and_nothing_else(
    exports: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object] | None,
    arguments: list[str],
) -> None:
    def make(*_: object) -> None:
        raise GateError("it is made anew")

    if change is not None:
        change(exports)
    monkeypatch.setattr("depthkit.export.onnx_file.export_onnx", make)
    code = depthkit(["export", str(exports), "--backend", "null", *arguments])
    said = capsys.readouterr()
    if change is None:
        assert code == 0
        assert "kept" in said.out
    else:
        assert code == 3
        assert "it is made anew" in said.err
        assert "kept" not in said.out


def test_another_version_of_depthkit_makes_anew(
    exports: Path, store: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_file = str(exports / f"{STEM}.fp32.onnx")
    null = ["export", onnx_file, "--backend", "null"]
    assert "built" in _printed(null, capsys)
    assert "found" in _printed(null, capsys)
    monkeypatch.setattr(backend("null"), "availability", lambda: Availability("9.9.9", "is here"))
    assert "null 9.9.9" in _printed(null, capsys)
    assert {entry.manifest.backend_version for entry in store.entries()} > {"9.9.9"}


def test_auto_takes_the_fastest_and_says_so(exports: Path, capsys: Captured, pretend: Callable[..., None]) -> None:
    onnx_file = str(exports / f"{STEM}.fp32.onnx")
    assert f"{fastest()} {backend(fastest()).availability().version} (chosen by auto)" in _printed(
        ["export", onnx_file], capsys
    )
    cannot_run = Availability("1", "has no GPU", "use one", runs=False)
    pretend({"onnxruntime": backend("onnxruntime").availability(), "tensorrt": cannot_run})
    said = _printed(["export", onnx_file], capsys)
    assert "onnxruntime" in said
    assert "(chosen by auto)" in said


def test_all_builds_by_every_backend_that_can_run_here_and_each_once(exports: Path, capsys: Captured) -> None:
    for path in exports.glob(f"{STEM}.fp32.*.onnx"):
        path.unlink()
    said = _printed(
        ["export", str(exports / f"{STEM}.fp32.onnx"), "--backend", "all", "--backend", "auto", "--backend", "null"],
        capsys,
    )
    names = [*runnable(), "null"]
    assert len([line for line in said.splitlines() if "precision" in line]) == len(names)
    for name in names:
        engine = exports / f"{STEM}.fp32.{backend(name).extension}"
        assert read_manifest(engine).backend == name
        assert f"{engine.name}: {name} " in said


def test_nothing_to_choose_from_says_what_to_install(
    exports: Path, capsys: Captured, pretend: Callable[..., None]
) -> None:
    pretend({"null": Availability("1", "is here")})
    for choice in ("auto", "all"):
        message = _refused(["export", str(exports / f"{STEM}.fp32.onnx"), "--backend", choice], capsys)
        assert "pip install 'depthkit[" in message


def test_backend_that_is_not_here_says_why_and_how_to_get_it(
    exports: Path, capsys: Captured, pretend: Callable[..., None]
) -> None:
    before = _stamps(exports)
    pretend({"tensorrt": Availability(None, "no driver is here", "install one")})
    message = _refused(["export", str(exports / f"{STEM}.fp32.onnx"), "--backend", "tensorrt"], capsys)
    assert "tensorrt cannot be used here: no driver is here; install one" in message
    assert _stamps(exports) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "tensorrt"], "is not here; pip install it"),
        (["--backend", "onnxruntime", "--backend", "tensorrt"], "is not here; pip install it"),
        (["--backend", "onnxruntime", "-o", "threds=2"], "threds"),
    ],
    ids=["backend", "second backend", "option"],
)
def test_what_cannot_be_built_is_refused_before_anything_is_exported(
    run: Path, capsys: Captured, pretend: Callable[..., None], arguments: list[str], words: str
) -> None:
    """An export takes a minute; what is missing or mistyped is known before."""
    pretend({"onnxruntime": backend("onnxruntime").availability()})
    assert words in _refused(["export", str(run), *arguments], capsys)
    assert not list(run.glob("*.onnx"))


def test_options_of_the_backend_reach_it_and_are_kept(exports: Path, capsys: Captured) -> None:
    export = ["export", str(exports / f"{STEM}.fp32.onnx"), "--backend", "onnxruntime"]
    for option, value in (("-o", 1), ("--option", 2)):
        _printed([*export, option, f"threads={value}"], capsys)
        assert read_manifest(exports / f"{STEM}.fp32.threads={value}.ort.onnx").options == {"threads": value}
    assert read_manifest(exports / f"{STEM}.fp32.ort.onnx").options == {"threads": 0}
    assert len([path for path in find_engines(exports.parent, silent) if "threads=" in path.name]) == 2


def test_renamed_onnx_file_is_built_and_gated(exports: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copyfile(exports / f"{STEM}.fp32.onnx", tmp_path / "foo.onnx")
    shutil.copyfile(exports / f"{STEM}.reference.npz", tmp_path / f"{STEM}.reference.npz")
    _printed(["export", str(tmp_path / "foo.onnx"), "--backend", "onnxruntime"], capsys)
    for name in ("foo.fp32.ort.onnx", "foo.onnx"):
        assert "PASS" in _printed(["bench", "--engine", str(tmp_path / name), *QUICK], capsys)
    vendor = ["bench", "--engine", str(tmp_path / "foo.fp32.ort.onnx"), "--vs", "onnxruntime", *QUICK]
    assert "onnxruntime (vendor)" in _printed(vendor, capsys)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("threads", ["KEY=VALUE", "'threads'"]),
        ("=2", ["KEY=VALUE"]),
        ("threds=2", ["onnxruntime", "threds", "threads=0"]),
        ("threads=many", ["onnxruntime", "threads", "integer", "threads=0"]),
        ("threads=-1", ["onnxruntime", "threads", "threads=0"]),
        ("threads=", ["onnxruntime", "threads", "threads=0"]),
    ],
)
def test_option_that_means_nothing_names_those_that_there_are(
    exports: Path, capsys: Captured, option: str, words: list[str]
) -> None:
    before = _stamps(exports)
    export = ["export", str(exports / f"{STEM}.fp32.onnx"), "--backend", "onnxruntime"]
    message = _refused([*export, "-o", option], capsys)
    assert all(word in message for word in words), message
    assert _stamps(exports) == before


def test_onnx_only_builds_no_engine_and_still_misses_what_is_not_there(exports: Path, capsys: Captured) -> None:
    before = _stamps(exports)
    said = _printed(["export", str(exports), "--onnx-only"], capsys)
    assert "kept" in said
    assert "found" not in said
    assert _stamps(exports) == before
    assert "nowhere.onnx" in _refused(["export", "nowhere.onnx", "--onnx-only"], capsys)


def test_bench_leaves_out_what_cannot_run_here_and_says_so(
    exports: Path, capsys: Captured, pretend: Callable[..., None]
) -> None:
    pretend({"onnxruntime": backend("onnxruntime").availability()})
    report = exports.parent / "bench.json"
    capsys.readouterr()
    assert depthkit(["bench", "--runs", str(exports.parent), *QUICK, "--json", str(report)]) == 0
    said = capsys.readouterr().err
    for precision in ("fp32", "fp16"):
        assert f"{STEM}.{precision}.null: null cannot run here: is not here" in said.replace("\n", "")
    assert {row["backend"] for row in json.loads(report.read_text())["rows"]} == {"onnxruntime"}


def test_bench_of_an_engine_that_cannot_run_here_is_refused_where_it_was_named(
    exports: Path, capsys: Captured, pretend: Callable[..., None]
) -> None:
    pretend({"onnxruntime": Availability("1", "no GPU is here", "use another machine", runs=False)})
    engine = str(exports / f"{STEM}.fp32.ort.onnx")
    message = _refused(["bench", "--engine", engine, *QUICK], capsys)
    assert "onnxruntime cannot run here: no GPU is here; use another machine" in message


def test_bench_where_nothing_can_run_is_refused(exports: Path, capsys: Captured, pretend: Callable[..., None]) -> None:
    pretend({})
    message = _refused(["bench", "--runs", str(exports.parent), *QUICK], capsys)
    assert "depthkit export" in message
    assert message.count("skipped") == 4


def test_bench_of_an_engine_of_a_backend_that_nobody_knows_is_not_left_out_in_silence(
    exports: Path, capsys: Captured
) -> None:
    engine = exports / f"{STEM}.fp32.ort.onnx"
    write_manifest(engine, replace(read_manifest(engine), backend="abacus"))
    assert depthkit(["bench", "--runs", str(exports.parent), *QUICK, "--no-gate"]) == 0
    message = capsys.readouterr().err.replace("\n", "")
    assert all(word in message for word in ("skipped", engine.name, "abacus", "upgrade"))
    assert "abacus" in _refused(["bench", "--engine", str(engine), *QUICK], capsys)


def test_bench_leaves_out_an_engine_of_another_depthkit_and_says_so(exports: Path, capsys: Captured) -> None:
    sidecar = exports / f"{STEM}.fp32.ort.onnx.json"
    sidecar.write_text(sidecar.read_text().replace('"schema_version": 4', '"schema_version": 1'))
    assert depthkit(["bench", "--runs", str(exports.parent), *QUICK, "--no-gate"]) == 0
    assert "schema version 1" in capsys.readouterr().err.replace("\n", " ")


def test_bench_fails_for_an_engine_that_was_altered_also_where_it_was_not_named(
    exports: Path, capsys: Captured
) -> None:
    engine = exports / f"{STEM}.fp32.ort.onnx"
    engine.write_bytes(engine.read_bytes()[:1000])
    assert depthkit(["bench", "--runs", str(exports.parent), *QUICK]) == 3
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fp16"], "--fp16"),
        (["--size", "48x64"], "--size"),
        (["--batch", "2"], "--batch"),
        (["--onnx-only"], "--onnx-only"),
    ],
)
def test_options_of_an_export_are_refused_for_a_file_that_is_exported_otherwise(
    exports: Path, capsys: Captured, options: list[str], words: str
) -> None:
    message = _refused(["export", str(exports / f"{STEM}.fp32.onnx"), *options], capsys)
    assert words in message
    assert "exported already" in message
