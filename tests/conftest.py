"""What all tests share: real bundles and engines, made once a session, and a watch for what a test leaves behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import settings

from depthkit.bench.contender import Contender
from depthkit.bench.results import BenchResult
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.data.scenes.render import render_scenes, scene_seed
from depthkit.engines.backend import Availability
from depthkit.engines.build import BuildOptions, backend, build
from depthkit.engines.store import Store, locked
from depthkit.names import BACKENDS
from depthkit.pipeline.runs import open_source
from depthkit.precisions import Precision
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.train.document import read_frames
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.shipped import shipped_run

from .support import without_metres

if os.environ.get("CI"):  # the same examples every time: what CI says must not depend on luck
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")

SIZE = (32, 48)
"""Height and width of the frames that tests train and run on: small, and not square."""
STEM = "compact-32x48"
"""What its files are called."""
PAIRS: Final = {"train": 10, "val": 3, "test": 2}
"""Samples in each split of `pairs`."""


def pytest_configure(config: pytest.Config) -> None:
    """Tests neither use nor fill the user's own engine store."""
    store = tempfile.TemporaryDirectory(prefix="depthkit-store-")
    config.add_cleanup(store.cleanup)
    os.environ["DEPTHKIT_STORE"] = store.name


@pytest.fixture(scope="session")
def nyu() -> Path:
    """The NYU frames that DEPTHKIT_NYU names; the test is skipped where there are none."""
    folder = os.environ.get("DEPTHKIT_NYU")
    if not folder:
        pytest.skip("DEPTHKIT_NYU does not name a folder with NYU Depth v2 in DenseDepth's layout")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def samples() -> Path:
    """The real clips and photos that DEPTHKIT_SAMPLES names; the test is skipped where there are none."""
    folder = os.environ.get("DEPTHKIT_SAMPLES")
    if not folder:
        pytest.skip("DEPTHKIT_SAMPLES does not name a folder with photos/ and video/")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder of this name that all workers of a test run have in common; whoever asks first fills it. Read only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        place, whole = root / name, root / f"{name}.whole"
        with locked(root / name):
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)  # of a worker that failed halfway
                place.mkdir()
                fill(place)
                whole.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def pristine_run(shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run of `compact`, trained for a few steps on the built-in scenes. Read only: take `run` to change it."""
    options = TrainOptions("compact", size=SIZE, epochs=1, steps=4, batch=4)
    return shared("pristine-run", lambda out: fit(replace(options, out=out))) / "compact"


@pytest.fixture(scope="session")
def pristine_exports(pristine_run: Path, shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A copy of that run with FP32 and FP16 ONNX files, and an ONNX Runtime and a null engine of each. Read only."""
    from depthkit.export.onnx_file import export_onnx
    from depthkit.export.recipe import ExportOptions

    def export(out: Path) -> None:
        folder = shutil.copytree(pristine_run, out / "compact")
        for precision in ("fp32", "fp16"):
            made = export_onnx(open_source(folder), ExportOptions(precision))
            for name in ("onnxruntime", "null"):
                build(made.path, BuildOptions(name))

    return shared("pristine-exports", export) / "compact"


@pytest.fixture(scope="session")
def foreign(shared: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """The ONNX file of a network of `zoo.ZOO`, by name. Read only."""
    from depthkit.tests.zoo import write

    return lambda name: shared(f"foreign-{name}", lambda out: write(name, out / f"{name}.onnx")) / f"{name}.onnx"


@pytest.fixture(scope="session")
def photos(shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder of pictures of rooms in different sizes. Read only."""
    from depthkit.tests.foreign import write_photos

    images = read_frames(shipped_run("compact")).images
    return shared("photos", lambda out: write_photos(out / "photos", images)) / "photos"


@pytest.fixture(scope="session")
def pristine_answers(pristine_exports: Path, shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Folders `inverse` and `relative`, each with an ONNX Runtime engine whose answers have no metres. Read only."""

    def fill(out: Path) -> None:
        for answers in ("inverse", "relative"):
            without_metres(pristine_exports / f"{STEM}.fp32.onnx", out / answers, answers)

    return shared("pristine-answers", fill)


@pytest.fixture
def inverse(pristine_answers: Path, tmp_path: Path) -> Path:
    """An engine that answers 2 / metres + 1, in a folder of the test's own: `tmp_path/runs/inverse`."""
    return Path(shutil.copytree(pristine_answers / "inverse", tmp_path / "runs" / "inverse")) / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def relative(pristine_answers: Path, tmp_path: Path) -> Path:
    """An engine that answers 2 * metres, in a folder of the test's own: `tmp_path/runs/relative`."""
    folder = Path(shutil.copytree(pristine_answers / "relative", tmp_path / "runs" / "relative"))
    return folder / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own, at `tmp_path/runs/compact`."""
    return Path(shutil.copytree(pristine_run, tmp_path / "runs" / "compact"))


@pytest.fixture(scope="session")
def contenders(pristine_exports: Path) -> list[Contender]:
    """Both ONNX Runtime engines, the FP32 ONNX file, and the null engine, which cannot pass."""
    reference = read_reference(pristine_exports / f"{STEM}.reference.npz")
    chosen: list[tuple[str, str, Precision]] = [
        ("fp32.ort.onnx", "onnxruntime", "fp32"),
        ("fp16.ort.onnx", "onnxruntime", "fp16"),
        ("fp32.onnx", "onnxruntime (ONNX file)", "fp32"),
        ("fp32.null", "null", "fp32"),
    ]
    paths = [pristine_exports / f"{STEM}.{name}" for name, _, _ in chosen]
    return [
        Contender(str(path), backend, partial(load, path), precision, reference, path.stat().st_size)
        for path, (_, backend, precision) in zip(paths, chosen, strict=True)
    ]


@pytest.fixture(scope="session")
def benched(contenders: list[Contender]) -> tuple[BenchResult, list[np.ndarray | None]]:
    """A bench of them all."""
    options = SuiteOptions(steady=Steady(0.0, 0.0, 5), memory=False, roofline=False, command="depthkit bench <all>")
    return run_suite(contenders, None, options)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `pairs` data set of rooms at 40x56, larger than what tests train at. Read only."""
    root = tmp_path_factory.mktemp("pairs")
    for split, count in PAIRS.items():
        seeds = [scene_seed(split, index) for index in range(count)]  # type: ignore[arg-type]
        images, depths = render_scenes(seeds, (40, 56))
        depths[:, 10:20, 30:40] = 0  # not measured
        for index in range(count):
            write_image(root / "images" / split / f"{index}.png", images[index].numpy())
            write_depth_png(root / "depth" / split / f"{index}.png", depths[index].numpy())
    return root


@pytest.fixture
def exports(pristine_exports: Path, tmp_path: Path) -> Path:
    """An exported run folder of the test's own, at `tmp_path/runs/compact`."""
    return Path(shutil.copytree(pristine_exports, tmp_path / "runs" / "compact"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty engine store, which is used from now on, also in processes that the test starts."""
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Availability]], None]:
    """Lets backends be available so, by name; those that are not named are not installed."""

    def set_availability(found: Mapping[str, Availability]) -> None:
        for name in BACKENDS:
            here = found.get(name, Availability(None, "is not here", "pip install it"))
            monkeypatch.setitem(vars(backend(name)), "availability", lambda here=here: here)

    return set_availability


_SET_BY_OTHERS = {
    "PYTEST_CURRENT_TEST",
    "CUDA_DEVICE_ORDER",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "TORCHINDUCTOR_CACHE_DIR",
}
"""By pytest, by ONNX Runtime where it loads CUDA (1.31, seen on an H200), by torch.compile."""


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a changed environment, another working directory or a running thread of its own."""
    variables, folder, threads = dict(os.environ), Path.cwd(), set(threading.enumerate())
    yield
    changed = {
        name
        for name in {*variables, *os.environ}
        if variables.get(name) != os.environ.get(name) and name not in _SET_BY_OTHERS
    }
    assert not changed, f"environment variables were left changed: {sorted(changed)}"
    assert Path.cwd() == folder, "the working directory was left changed"
    left = {thread for thread in threading.enumerate() if thread not in threads and not thread.daemon}
    assert not left, f"threads were left running: {left}"
