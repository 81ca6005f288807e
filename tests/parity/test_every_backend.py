"""What holds for every backend that this machine can run: in threads, over ten thousand runs, and without torch."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from depthkit.engines.build import BACKENDS, BuildOptions, backend, build
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load

if TYPE_CHECKING:
    from .conftest import Exports

TORCH_FREE = """
import sys
for name in ("torch", "lightning", "kornia", "onnxscript", "polygraphy"):
    sys.modules[name] = None
import depthkit
from pathlib import Path
from depthkit.engines.build import BuildOptions, build
from depthkit.testing import assert_parity, read_reference
onnx, reference, backend = sys.argv[1:]
engine = build(Path(onnx), BuildOptions(backend, rebuild=True)).path
with depthkit.load(engine) as session:
    print(assert_parity(session, read_reference(reference), precision="fp32").frames)
"""


@pytest.fixture(params=[name for name in BACKENDS if name != "null"])
def name(request: pytest.FixtureRequest) -> str:
    """Each backend that computes and can run here."""
    found = backend(request.param).availability()
    if not found.runnable:
        pytest.skip(f"{request.param}: {found.reason}")
    return str(request.param)


def test_sessions_in_two_threads_answer_as_one_does(name: str, networks: Exports) -> None:
    onnx = networks.onnx("compact", "fp32", "static")
    engine, images = build(onnx, BuildOptions(name)).path, read_reference(reference_path(onnx)).images
    with load(engine) as session:
        alone = session(images)
    answers: dict[int, list[np.ndarray]] = {0: [], 1: []}
    together = threading.Barrier(2)

    def work(index: int) -> None:
        with load(engine) as session:
            together.wait()
            # In opposite order, so that a shared buffer would hold the other thread's frame.
            for _ in range(5):
                answers[index].append(session(images[:: 1 - 2 * index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, found in answers.items():
        assert len(found) == 5
        for depths in found:
            np.testing.assert_array_equal(depths[:: 1 - 2 * index], alone)


def test_ten_thousand_runs_grow_no_memory(name: str, networks: Exports) -> None:
    """A leak grows in every thousand of them; what else this process does to its memory does not."""
    image, depth = np.zeros((1, 16, 16, 3), np.uint8), np.empty((1, 16, 16), np.float32)
    process = psutil.Process()
    with load(build(networks.smallest(), BuildOptions(name)).path) as session:
        session.bind(image=image, depth=depth)
        sizes = []
        for _ in range(11):
            for _ in range(1000):
                session.run()
            sizes.append(process.memory_info().rss)
    growths = [after - before for before, after in pairwise(sizes)]
    assert sorted(growths)[len(growths) // 2] < 100_000, "more than 100 bytes a run"


def test_builds_and_runs_where_torch_is_not(name: str, networks: Exports) -> None:
    onnx = networks.onnx("compact", "fp32", "static")
    command = [sys.executable, "-c", TORCH_FREE, str(onnx), str(reference_path(onnx)), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]
