"""`depthkit bench --server`: a served model against the same engine here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from depthkit.bench import load as loads
from depthkit.engines.manifest import manifest_path
from depthkit.errors import BackendError
from depthkit.pipeline import served as pipeline
from depthkit.pipeline.proven import Proven, prove
from depthkit.pipeline.served import find_served
from depthkit.runtime.remote import RemoteModel

from ..serve.services import PARITY, Served, fake, serving
from ..support import STEM, Cli, Recorded

FAST = ("--duration", "0.15", "--concurrency", "1:2")


@pytest.fixture
def engine(exports: Path) -> Path:
    return exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def served(engine: Path) -> Iterator[Served]:
    with serving({"a": partial(prove, engine, 1)}) as server:
        yield server


def test_load_gate_and_accuracy_over_the_wire(served: Served, engine: Path, pairs: Path, cli: Cli) -> None:
    out = engine.parent / "server.json"
    files = ("--json", out, "--markdown", out.with_suffix(".md"))
    printed = cli("bench", "--server", served.address, "--engine", engine, "--data", pairs, *FAST, *files).out
    assert "in this process, 1 session" in printed
    assert "parity over the wire on 8 frames: max |Δ| 0.00" in printed
    found = json.loads(out.read_text())
    assert (found["model"], found["version"], found["same_engine"], found["faults"]) == ("a", "1", True, [])
    assert [(load["kind"], load["level"]) for load in found["loads"][:2]] == [("closed", 1), ("closed", 2)]
    assert [load["kind"] for load in found["loads"][2:]] == ["open"] * 3
    assert not any(load["others"] or load["wrong"] for load in found["loads"])
    assert all(load["answers"] for load in found["loads"][:2])
    assert found["parity"]["frames"] == 8
    over_the_wire, here = found["accuracy"]
    assert over_the_wire == here
    assert out.with_suffix(".md").read_text().startswith("| load | answers/s | p50 ms | p99 ms | 503 |")


def test_the_engine_is_found_by_its_hash(served: Served, exports: Path) -> None:
    model = RemoteModel.find(served.address, None)
    assert find_served(model, exports.parent) == exports / f"{STEM}.fp32.ort.onnx"


def test_an_engine_that_is_damaged_while_it_is_looked_for_is_skipped(
    served: Served, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, damaged = exports / f"{STEM}.fp32.ort.onnx", exports / "a.ort.onnx"
    shutil.copyfile(good, damaged)
    manifest_path(damaged).write_text("{")
    monkeypatch.setattr(pipeline, "find_engines", lambda *_: [damaged, good])
    assert find_served(RemoteModel.find(served.address, None), exports.parent) == good


def test_an_engine_that_is_not_here_is_asked_for(served: Served, tmp_path: Path, cli: Cli) -> None:
    message = cli("bench", "--server", served.address, "--runs", tmp_path, *FAST, code=2).message
    assert "the engine of model a is neither in" in message
    assert "name a copy of it with --engine" in message


def test_built_in_weights_are_found_by_their_hash() -> None:
    with serving({"x": partial(prove, Path("nano"), 1)}) as served:
        assert find_served(RemoteModel.find(served.address, None), Path("nowhere")) == Path("nano")


def worse(engine: Path, add: float) -> Proven:
    """The engine, but all of its depth is farther: as a server that does not check what it serves."""
    with_gate = prove(engine, 1)
    (session,) = with_gate.sessions
    spec = session.spec
    answering = Recorded([], answer=lambda frame: session(frame[None])[0] + np.float32(add))
    answering.spec = spec
    return Proven((answering,), "fake", "fp32", with_gate.reference, PARITY, {"engine": "f" * 64, "onnx": "0" * 64})


def test_an_answer_beyond_the_gate_fails(engine: Path, cli: Cli) -> None:
    with serving({"a": partial(worse, engine, 0.5)}) as served:
        printed = cli("bench", "--server", served.address, "--engine", engine, *FAST, code=3)
    assert "max |Δ| 500 mm > 1 mm" in printed.message
    assert "the server serves another file than" in printed.message


def test_answers_that_change_under_load_fail(engine: Path, cli: Cli) -> None:
    """Right when asked alone, and wrong later: what one check at the start would not see."""
    whole = worse(engine, 0.0)
    (session,) = whole.sessions
    assert isinstance(session, Recorded)
    honest = session.answer
    assert honest is not None
    session.answer = lambda frame: honest(frame) + np.float32(len(session.log) > 20)
    with serving({"a": whole}) as served:
        message = cli("bench", "--server", served.address, "--engine", engine, *FAST, code=3).message
    assert "answers under load differ from the first ones" in message


def test_a_server_that_fails_under_load_ends_the_bench(engine: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_PATIENCE_S", 0.2)
    whole = worse(engine, 0.0)
    (session,) = whole.sessions
    assert isinstance(session, Recorded)
    honest = session.answer
    assert honest is not None

    def fail_later(frame: np.ndarray) -> np.ndarray:
        if len(session.log) > 12:
            raise BackendError("the device was removed")
        return honest(frame)

    session.answer = fail_later
    with serving({"a": whole}) as served:
        message = cli("bench", "--server", served.address, "--engine", engine, *FAST, code=2).message
    assert "no request was answered in 0 s" in message
    assert "It said: the engine of model a has failed" in message


def test_depth_without_metres_has_no_millimetres(inverse: Path, cli: Cli) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    out = inverse.parent / "server.json"
    with serving({"a": partial(prove, inverse, 1)}) as served:
        printed = cli("bench", "--server", served.address, "--engine", inverse, *FAST, "--json", out).out
    assert " %, worst SSIM" in printed
    assert "nan" not in printed
    assert json.loads(out.read_text(), parse_constant=refuse)["parity"]["max_abs_mm"] is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--server http://127.0.0.1:1", "Connection refused"),
        ("--server localhost:8000", "is not http://HOST:PORT"),
        ("--server http://127.0.0.1:1 --concurrency 0", "is not a number of clients"),
        ("--server http://127.0.0.1:1 --concurrency 8:2", "write 8, or 1:16 for 1 to 16"),
        ("--server http://127.0.0.1:1 --streams 2", "--streams has no effect with --server"),
        ("--server http://127.0.0.1:1 --engine a --engine b", "name the one that it serves"),
    ],
)
def test_what_is_refused(line: str, words: str, here: Path, cli: Cli) -> None:
    assert words in cli("bench", *line.split(), code=2).message


def test_a_server_of_another_model_is_refused(engine: Path, cli: Cli) -> None:
    with serving({"a": fake()}) as served:
        message = cli("bench", "--server", served.address, "--engine", engine, *FAST, code=2).message
    assert "has other tensors than the engine" in message


@pytest.mark.parametrize(("text", "expected"), [("1:16", (1, 2, 4, 8, 16)), ("8", (8,)), ("3:20", (3, 6, 12, 20))])
def test_clients_are_doubled(text: str, expected: tuple[int, ...]) -> None:
    from depthkit.commands.options import ClientsType

    assert ClientsType().convert(text, None, None) == expected
