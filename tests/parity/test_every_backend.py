"""What holds for every backend that this machine can run: in threads, over ten thousand runs, and without torch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.errors import EngineError
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load

from ..support import run_python

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

    at_once(work)
    for index, found in answers.items():
        assert len(found) == 5
        for depths in found:
            np.testing.assert_array_equal(depths[:: 1 - 2 * index], alone)


def test_one_session_in_two_threads_answers_rightly_or_refuses(name: str, networks: Exports) -> None:
    """By calls on arrays, and by memory that each thread binds; afterwards any thread may use it again."""
    engine = build(networks.smallest(), BuildOptions(name)).path
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3), np.uint8)
    answered, refused, wrong = [0, 0], [0, 0], [0, 0]
    with load(engine) as session:
        expected = [session(image) for image in images]

        def work(index: int) -> None:
            depth = np.empty_like(expected[index])
            for number in range(300):
                try:
                    if number % 2:
                        found = session(images[index])
                    else:
                        depth.fill(-1)
                        session.bind(image=images[index], depth=depth)
                        session.run()
                        found = depth
                except EngineError as error:
                    assert "thread" in str(error)
                    refused[index] += 1
                else:
                    answered[index] += 1
                    wrong[index] += not np.array_equal(found, expected[index])

        at_once(work)
        assert wrong == [0, 0]
        assert sum(answered) > 0
        assert [a + r for a, r in zip(answered, refused, strict=True)] == [300, 300], "no other error ends a thread"
        np.testing.assert_array_equal(session(images[1]), expected[1])


def at_once(work: Callable[[int], None]) -> None:
    """Run `work(0)` and `work(1)` in threads that change places as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.slow
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
    assert run_python("-c", TORCH_FREE, onnx, reference_path(onnx), name).split() == ["8"]
