"""Helpers that several test folders share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from PIL import Image

from depthkit.bench.results import BenchResult
from depthkit.engines.build import BuildOptions, BuiltEngine, build
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import Gpu
from depthkit.engines.manifest import Layer, Manifest
from depthkit.engines.store import Entry, Store
from depthkit.onnx_graph import METADATA, graph_sha256
from depthkit.spec import Dim, ModelSpec, Preprocessing, camera_ready

NO_GPU = "there is none in this test"
L4 = Gpu("NVIDIA L4", (8, 9), integrated=False, driver="13.0")
FindGpu = Callable[[Gpu | str], None]

STEM = "compact-32x48"
"""How the names of the exported files begin."""

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'depthkit[tensorrt-rtx]'"
)


class Printed(NamedTuple):
    """What a command wrote to standard output and standard error."""

    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error as one line."""
        return " ".join(self.err.split())


class Bench(NamedTuple):
    """A bench, and what it printed."""

    result: BenchResult
    out: str
    err: str


Cli = Callable[..., Printed]
RunBench = Callable[..., Bench]
Pretend = Callable[..., None]
"""The fixture that sets which backends are available."""


def model_spec(height: int, width: int, batch: int | Dim = 1) -> ModelSpec:
    """A spec of a network that need not exist."""
    return ModelSpec("compact", (8,), *camera_ready(height, width, batch), Preprocessing(), (0.0, 10.0), 100, 1000)


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """Standard output of a new Python process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def run_cli_alone(*arguments: object) -> tuple[str, set[str]]:
    """Run `depthkit` in a process of its own; standard output, and the packages that were imported."""
    code = (
        "import sys; from depthkit.cli import run; code = run(sys.argv[1:]);"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    printed, _, loaded = run_python(code, *arguments).partition("LOADED")
    return printed, set(loaded.split())


def build_null(path: Path, **options: Any) -> BuiltEngine:
    """Build a null engine, which takes no time."""
    return build(path, BuildOptions("null", **options))


def only_entry(store: Store) -> Entry:
    """The one entry of a store."""
    (entry,) = store.entries()
    return entry


def sample_manifest() -> Manifest:
    """A sealed manifest of a machine that does not exist."""
    return Manifest(
        model=model_spec(32, 48),
        backend="onnxruntime",
        backend_version="1.0.0",
        device=Fingerprint("cpu", "Imaginary 9000", "x86_64", ("avx", "avx2", "f16c")),
        precision_asked="fp16",
        precision_found="fp16→fp32",
        layers=(Layer("conv", "FusedConv", "fp32", "winograd"), Layer("cast", "Cast", "fp16")),
        layers_from="engine",
        engine_sha256="0" * 64,
        onnx_sha256="1" * 64,
        weights_sha256="2" * 64,
        onnx=f"{STEM}.fp16.onnx",
        reference=f"{STEM}.reference.npz",
        options={"threads": 2},
        build_seconds=0.25,
        created="2026-01-02T03:04:05+00:00",
    ).sealed()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON document."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def invent_operator(path: Path, *, seal: bool = False) -> None:
    """Give one node of an ONNX file an operator that does not exist; `seal`: as if it had been exported so."""
    model = onnx.load(path)
    model.graph.node[5].op_type = "Teleport"
    if seal:
        seal_graph(model)
    path.write_bytes(model.SerializeToString())


def seal_graph(model: onnx.ModelProto) -> None:
    """Write the hash of a changed graph into its metadata, as an export does."""
    next(entry for entry in model.metadata_props if entry.key == METADATA.graph_sha256).value = graph_sha256(model)


def save_noise(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Write a picture of random pixels; the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels
