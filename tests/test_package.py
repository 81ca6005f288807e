"""What `pip install` gives, what an import costs, and that running needs no torch."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import depthkit
from depthkit.cli import COMMANDS, EXTRAS

from .support import run_python

ROOT = Path(depthkit.__file__).resolve().parent
TRAINING = ("torch", "lightning", "kornia", "polygraphy", "onnxscript", "safetensors", "huggingface_hub", "h5py")
VENDORS = ("av", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda")
SERVING = ("prometheus_client", "starlette", "uvicorn", "websockets")
HEAVY = (*TRAINING, *VENDORS, *SERVING, "scipy", "skimage", "matplotlib", "torchmetrics", "psutil")
DATA_FILES = {
    "depthkit/py.typed",
    "depthkit/report/report.css",
    "depthkit/report/report.html.j2",
    "depthkit/report/report.js",
    "depthkit/serve/depth.js",
    "depthkit/serve/serve.css",
    "depthkit/serve/serve.html",
    "depthkit/serve/serve.js",
    "depthkit/serve/stage.js",
    "depthkit/serve/view.css",
    "depthkit/serve/view.html",
    "depthkit/serve/view.js",
    "depthkit/data/nyu_test_frames.txt",
}


def _python(code: str, *arguments: str) -> str:
    """What this code prints in a Python of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_python("-W", "error::ImportWarning", "-c", code, *arguments, env=environment)


def _own_files() -> list[Path]:
    """Files of the checkout, relative: tracked, and new ones that are not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are ours cannot be told")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _shipped(files: list[Path]) -> set[str]:
    """What of the checkout belongs into a wheel."""
    code = [path for path in files if path.suffix == ".py" and path.parts[0] not in {"tests", "docs", ".ci"}]
    weights = [path for path in files if path.parts[0] == "weights"]
    return {f"depthkit/{path}" for path in code + weights} | DATA_FILES


def test_import_loads_no_vendor_library() -> None:
    loaded = _python("import sys, depthkit; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert "depthkit" in loaded
    assert not set(loaded) & {*HEAVY, "numpy", "pydantic", "PIL"}


def test_help_loads_no_vendor_library() -> None:
    """The real command line, as `-X importtime` saw it load."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "depthkit", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"depthkit", "click"} <= loaded
    assert not loaded & set(HEAVY)
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("name", depthkit.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(depthkit, name) is not None
    assert name in dir(depthkit)


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = depthkit.no_such_name


def test_version_is_said_once() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', project, re.MULTILINE)
    assert found
    assert found[1] == depthkit.__version__
    citation = ROOT / "CITATION.cff"
    if citation.is_file():
        assert re.search(rf"^version: [\"']?{re.escape(found[1])}[\"']?$", citation.read_text(), re.MULTILINE)


def test_running_half_imports_in_any_order_and_without_torch() -> None:
    """Every module of the running half first in its turn, so that none leans on another's having been imported."""
    names = [
        ".".join(("depthkit", *path.relative_to(ROOT).with_suffix("").parts))
        for folder in ("engines", "runtime", "bench")
        for path in sorted((ROOT / folder).glob("*.py"))
    ]
    assert len(names) > 15
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "depthkit"]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    loaded = set(_python(code, *names).split())
    assert not loaded & {*TRAINING, "click", *VENDORS}


def test_exported_engine_loads_runs_and_benches_where_torch_cannot_be_imported(exports: Path) -> None:
    code = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from functools import partial
from pathlib import Path
import numpy as np
import depthkit
from depthkit.bench.contender import Contender
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.engines.manifest import read_manifest
from depthkit.reference import read_reference

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    contenders = []
    for path in sorted(folder.glob("*.ort.onnx")):
        manifest = read_manifest(path)
        reference = read_reference(folder / manifest.reference)
        with depthkit.load(path) as session:
            assert np.isfinite(session(reference.images)).all()
        contenders.append(Contender(
            str(path), manifest.backend, partial(depthkit.load, path), manifest.precision_asked, reference, 1))
    result, _ = run_suite(contenders, None, SuiteOptions(steady=Steady(0, 0, 2), memory=False))
    assert not result.failed, [row.faults for row in result.rows]
    print(len(result.rows), *sorted({row.provider for row in result.rows}))
"""
    assert _python(code, str(exports), ",".join(TRAINING)).split() == ["2", "CPUExecutionProvider"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, built from a copy of its own files, so that no leftover of earlier builds is in it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for path in _own_files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy / path)
    run_python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", out, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_package_and_data_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    information = {name for name in held if name.partition("/")[0].endswith(".dist-info")}
    assert held - information == _shipped(_own_files())
    assert any(name.endswith("licenses/LICENSE") for name in information)


def test_wheel_runs_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, without the checkout: the command line and the data files are found."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import depthkit
assert depthkit.__file__.startswith(sys.argv[1]), depthkit.__file__
from importlib.resources import files
from depthkit.cli import run
from depthkit.data.nyu import official_test_frames
from depthkit.train.document import read_document
from depthkit.train.shipped import shipped_run
assert len(official_test_frames()) == 654
assert read_document(shipped_run("compact")).model.network == "compact"
assert "<html" in files("depthkit.report").joinpath("report.html.j2").read_text()
sys.exit(run(["--version"]))
"""
    assert depthkit.__version__ in _python(code, str(tmp_path))


def test_wheels_base_needs_neither_torch_nor_a_runtime(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = [line for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist:")]
    base = {
        re.split(r"[^\w.-]", line.removeprefix("Requires-Dist:").strip())[0] for line in lines if "extra ==" not in line
    }
    assert base
    vendors = {"onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-python"}
    assert not base & {"torch", "lightning", "kornia", *vendors}
    extras = {found[1] for line in lines if (found := re.search(r"extra == [\"']([\w-]+)[\"']", line))}
    gpus = {"gpu", "tensorrt", "tensorrt-rtx", "pycuda"}
    assert extras == gpus | {"adopt", "cpu", "docs", "openvino", "ray", "serve", "test", "train", "video"}


def test_every_package_of_the_extras_has_its_hint_and_no_other() -> None:
    """So that none that is missing ends in a traceback. depthkit itself imports nothing of `test`, `docs`, `pycuda`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    modules = {"onnxruntime-gpu": "onnxruntime", "cuda-python": "cuda"}
    found: dict[str, set[str]] = {}
    for extra, packages in re.findall(r"^([\w-]+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"\"([\w-]+)", packages):
            found.setdefault(modules.get(name, name.replace("-", "_")), set()).add(extra)
    expected = {module: extras for module, extras in found.items() if not extras <= {"test", "docs", "pycuda"}}
    assert EXTRAS.keys() == expected.keys()
    assert all(EXTRAS[module] in extras for module, extras in expected.items())


def test_no_file_is_over_400_lines_without_a_reason() -> None:
    """A longer file says in its docstring why it is over 400 lines, in these words."""
    unexplained = []
    for path in _own_files():
        if path.suffix != ".py":
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        if text.count("\n") > 400 and "over 400 lines" not in " ".join(docstring.split()):
            unexplained.append(f"{path}: {text.count(chr(10))} lines")
    assert not unexplained


def test_package_folders_are_all_listed() -> None:
    """A new folder that pyproject.toml does not list would be missing from the wheel."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(depthkit(?:\.\w+)*)",$', project, re.MULTILINE))
    found = {".".join(("depthkit", *path.parent.parts)) for path in _own_files() if path.name == "__init__.py"}
    assert listed == {name for name in found if not name.startswith("depthkit.tests")}


def test_public_objects_are_documented() -> None:
    assert all(inspect.getdoc(getattr(depthkit, name)) for name in depthkit.__all__ if not name.startswith("__"))
