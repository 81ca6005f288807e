"""A changed engine replaces the old one behind the gate, or does not; names and versions."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.engines.build import BuildOptions, build
from depthkit.engines.manifest import manifest_path
from depthkit.errors import BackendError, GateError, UserError
from depthkit.pipeline.proven import prove
from depthkit.runtime.load import load
from depthkit.serve.repository import Entry, Repository, entries_of, signature

from ..pipeline.test_proven import change_one_weight
from ..support import STEM, Recorded
from .services import Answered, Served, fake, proven, serving

FRAME = np.random.default_rng(4).integers(0, 256, (1, 32, 48, 3), np.uint8)


@pytest.fixture
def engine(exports: Path) -> Path:
    return exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def served(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that looks at its files more often than others."""
    monkeypatch.setattr("depthkit.serve.repository._LOOK_S", 0.4)
    with serving({f"a={engine}": partial(prove, engine, 1)}) as server:
        yield server


def infer(served: Served) -> np.ndarray:
    """Depth of FRAME, over the wire."""
    from depthkit.runtime import kserve
    from depthkit.spec import camera_ready

    image, depth = camera_ready(32, 48)
    length, parts = kserve.write_request(FRAME, image, depth)
    answer: Answered = served.client().post(
        "/v2/models/a/infer", b"".join(parts), **{kserve.HEADER_LENGTH: str(length)}
    )
    assert answer.status == 200, answer.body
    return kserve.read_response(answer.body, int(answer.headers[kserve.HEADER_LENGTH]), depth)


def until_reloaded(served: Served, result: str, count: int = 1) -> None:
    end = time.monotonic() + 30
    while served.metric("depthkit_reloads_total", result=result) < count:
        assert time.monotonic() < end
        time.sleep(0.1)


def replace(engine: Path, other: Path) -> None:
    """Put another engine in the place of one, as a deployment does: first one file, then the other."""
    shutil.copyfile(manifest_path(other), manifest_path(engine))
    time.sleep(0.3)
    shutil.copyfile(other, engine)


def sha(served: Served) -> str:
    return str(served.client().get("/v2/models/a").json["parameters"]["sha256"]["engine"])


def test_a_changed_file_replaces_the_engine(served: Served, engine: Path) -> None:
    before, old = infer(served), sha(served)
    other = engine.with_name(f"{STEM}.fp16.ort.onnx")
    with load(other) as session:
        expected = session(FRAME)
    replace(engine, other)
    until_reloaded(served, "replaced")
    assert infer(served).tobytes() == expected.tobytes() != before.tobytes()
    assert sha(served) != old
    assert served.client().get("/v2/models/a").json["parameters"]["precision_asked"] == "fp16"


def test_an_engine_of_one_changed_weight_is_refused_and_the_old_one_goes_on(served: Served, engine: Path) -> None:
    before, old = infer(served), sha(served)
    worse = engine.parent / "worse" / f"{STEM}.fp32.onnx"
    worse.parent.mkdir()
    for name in (worse.name, f"{STEM}.reference.npz"):
        shutil.copyfile(engine.parent / name, worse.parent / name)
    change_one_weight(worse)
    replace(engine, build(worse, BuildOptions("onnxruntime")).path)
    until_reloaded(served, "refused")
    assert infer(served).tobytes() == before.tobytes()
    assert sha(served) == old
    assert served.client().get("/v2/health/ready").status == 200


def test_half_a_file_is_refused_and_the_whole_one_taken(served: Served, engine: Path) -> None:
    whole = engine.read_bytes()
    engine.write_bytes(whole[: len(whole) // 2])
    until_reloaded(served, "refused")
    infer(served)
    engine.write_bytes(whole)
    until_reloaded(served, "replaced")
    infer(served)


def test_a_file_that_disappears_changes_nothing(served: Served, engine: Path) -> None:
    engine.unlink()
    manifest_path(engine).unlink()
    time.sleep(1.2)  # several looks
    infer(served)
    assert served.metric("depthkit_reloads_total") == 0


def test_requests_in_flight_are_answered_by_the_engine_that_accepted_them() -> None:
    """Hundreds of requests while engines are replaced again and again: none fails."""
    from concurrent.futures import ThreadPoolExecutor

    from .services import depth_of, first_channel, images

    opened: list[Any] = []

    def open_engine() -> Any:
        opened.append(fake(2))
        return opened[-1]

    with serving({"a": open_engine}) as served, ThreadPoolExecutor(4) as pool:

        def ask(seed: int) -> None:
            client = served.client()
            for _ in range(50):
                np.testing.assert_array_equal(
                    depth_of(client.infer(images(seed=seed)))[0], first_channel(images(seed=seed)[0])
                )

        asked = [pool.submit(ask, seed) for seed in range(4)]
        loop = served.loop
        while not all(each.done() for each in asked):
            asyncio.run_coroutine_threadsafe(served.repository.reload(changed=False), loop).result(20)
        for each in asked:
            each.result()
    assert len(opened) > 2


def test_an_engine_that_cannot_be_closed_is_told_and_reloading_goes_on() -> None:
    class Stuck(Recorded):
        def close(self) -> None:
            raise BackendError("the device was lost")

    told: list[str] = []
    with serving({"a": lambda: proven(Stuck([]))}, tell=lambda _, text: told.append(text)) as served:
        for _ in range(2):
            asyncio.run_coroutine_threadsafe(served.repository.reload(changed=False), served.loop).result(20)
        assert served.metric("depthkit_reloads_total", result="replaced") == 2
    assert told.count("a 1 was not closed: the device was lost") == 3


def test_loading_fails_whole() -> None:
    opened: list[Any] = []

    def open_engine(target: Path) -> Any:
        if target.name == "bad":
            raise GateError("bad: max |Δ| 3 mm > 1 mm")
        opened.append(fake())
        return opened[-1]

    repository = Repository(entries_of(["good", "bad"]), open_engine, 1, lambda *_: None)
    with pytest.raises(GateError):
        repository.load()
    assert opened[0].sessions[0]._closed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nano"], [("nano", "1", "nano")]),
        (["a/b-96x128.int8.ov.blob"], [("b-96x128", "1", "a/b-96x128.int8.ov.blob")]),
        (["x=a.onnx", "y=a.onnx", "x=b.onnx"], [("x", "1", "a.onnx"), ("y", "1", "a.onnx"), ("x", "2", "b.onnx")]),
        (["runs/compact/"], [("compact", "1", "runs/compact")]),
        (["dir/a=b.onnx"], None),
        (["a b.onnx"], None),
        (["=a.onnx"], None),
        ([".hidden"], None),
    ],
)
def test_names_and_versions(words: list[str], expected: list[tuple[str, str, str]] | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match="cannot be the name of a model"):
            entries_of(words)
        return
    assert entries_of(words) == [Entry(name, version, Path(target)) for name, version, target in expected]


def test_a_signature_changes_with_each_file(exports: Path, engine: Path) -> None:
    first, folder = signature(engine), signature(exports)
    assert len(first) == 2
    os.utime(manifest_path(engine), (1, 1))
    assert signature(engine) != first
    assert signature(exports) != folder
    assert signature(exports / "nowhere") == ()
