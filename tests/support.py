"""Helpers that several test folders share."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

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
from depthkit.onnx_graph import METADATA, describe_onnx, graph_sha256
from depthkit.reference import read_reference, reference_path, write_reference
from depthkit.runtime.null import NullSession
from depthkit.spec import Answers, Dim, ModelSpec, Preprocessing, camera_ready

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

Place: TypeAlias = tuple[str | int, ...]
"""The keys and indices that lead to a node of a JSON document."""


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let the operating system refuse files of more bytes than this, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def places(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every place in a JSON document with its node, root first."""
    yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def at(document: Any, path: Place) -> Any:
    """The node at a place."""
    for key in path:
        document = document[key]
    return document


def save_array(path: Path, array: np.ndarray) -> Path:
    """Write an array as a picture in the format of its suffix, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def run_python(*arguments: str | Path, **options: Any) -> str:
    """Run Python in a process of its own, which must succeed; its standard output."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return str(done.stdout)


class Recorded(NullSession):
    """A session for frames of 16 x 32: `answer` makes their depth, and every run logs the name and the first pixels."""

    def __init__(
        self,
        log: list[str],
        name: str = "a",
        batch: int | Dim = 1,
        answer: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        spec = ModelSpec(name, (8,), *camera_ready(16, 32, batch), Preprocessing(), (0.0, 10.0), 123, 456, None)
        super().__init__(spec, 2.5)
        self.log, self.name, self.answer = log, name, answer
        self.seen: list[np.ndarray] = []

    def run(self) -> None:
        image, depth = self._buffers()
        self.log.append(self.name)
        self.seen.append(image[:, 0, 0, 0].copy())
        depth[...] = 2.5 if self.answer is None else np.stack([self.answer(frame) for frame in image])


def model_spec(height: int, width: int, batch: int | Dim = 1) -> ModelSpec:
    """A spec of a network that need not exist."""
    return ModelSpec(
        "compact", (8,), *camera_ready(height, width, batch), Preprocessing(), (0.0, 10.0), 100, 1000, 0.75
    )


def before_focal(text: str) -> dict[str, Any]:
    """A ModelSpec's JSON as it was before it had a focal length, in version 1."""
    return {key: value for key, value in before_camera(text).items() if key != "focal"} | {"schema_version": 1}


def before_camera(text: str) -> dict[str, Any]:
    """A ModelSpec's JSON as it was before graphs could resize, in version 2."""
    return {key: value for key, value in before_answers(text).items() if key != "resized_to"} | {"schema_version": 2}


def before_answers(text: str) -> dict[str, Any]:
    """A ModelSpec's JSON as it was when all networks answered shares of a range, in version 3."""
    document = {key: value for key, value in json.loads(text).items() if key not in {"answers", "network_output"}}
    document["schema_version"] = 3
    del document["preprocessing"]["scale"]
    return document


def run_code(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a new Python process, which must succeed; its standard output."""
    return run_python("-c", code, *map(str, arguments), env=os.environ | environment)


CHROMIUM_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
"""Of a browser without a window, that asks nothing of the network by itself."""

INTERRUPTIBLE: Final = (
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from depthkit.cli import main; main(sys.argv[1:])",
)
"""`depthkit` in a process that SIGINT interrupts; a shell's background job ignores it, and so would its children."""


def run_cli_alone(*arguments: object) -> tuple[str, set[str]]:
    """Run `depthkit` in a process of its own; standard output, and the packages that were imported."""
    code = (
        "import sys; from depthkit.cli import run; code = run(sys.argv[1:]);"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    printed, _, loaded = run_code(code, *arguments).partition("LOADED")
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


def without_metres(onnx_file: Path, folder: Path, answers: Answers, factor: float = 2.0) -> Path:
    """Let a copy of an exported FP32 model answer without metres, and build its ONNX Runtime engine.

    Args:
        onnx_file: with its reference beside it.
        folder: of the copy.
        answers: "inverse": factor / metres + 1; "relative": factor * metres.
        factor: of the answers.

    Returns:
        The engine's path.
    """
    from depthkit.export.finish import Origin, sign

    made, model = describe_onnx(onnx_file), onnx.load(onnx_file)
    graph = model.graph
    last = next(node for node in graph.node if "depth" in node.output)
    last.output[:] = ["metres" if name == "depth" else name for name in last.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    if answers == "inverse":
        graph.node.append(onnx.helper.make_node("Div", ["factor", "metres"], ["scaled"]))
        graph.node.append(onnx.helper.make_node("Add", ["scaled", "one"], ["depth"]))
    else:
        graph.node.append(onnx.helper.make_node("Mul", ["factor", "metres"], ["depth"]))
    reference = read_reference(reference_path(onnx_file))
    depths = factor / reference.depths + 1 if answers == "inverse" else factor * reference.depths
    low, high = (float(each) for each in np.percentile(depths, (2, 98)))
    spec = replace(made.model, answers=answers, depth_range=(low, high), focal=None)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(sign(model, spec, "fp32", Origin(made.weights_sha256, made.recipe)), folder / onnx_file.name)
    write_reference(reference_path(folder / onnx_file.name), replace(reference, depths=depths, is_metric=False))
    return build(folder / onnx_file.name, BuildOptions("onnxruntime")).path


def save_noise(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Write a picture of random pixels; the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels
