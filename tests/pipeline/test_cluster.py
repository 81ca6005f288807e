"""What `depthkit predict --ray` decides before Ray starts: pictures, engine, workers, addresses."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depthkit.errors import BackendError, DataError, UserError
from depthkit.pipeline.cluster import Cluster, connected, find_pictures, pack_engine, start_record
from depthkit.pipeline.picture_worker import Engine
from depthkit.pipeline.prediction import Options

from ..support import STEM, save_noise

ENGINE = Engine("e.ov.blob", {}, 0, False, "1")


@pytest.fixture(scope="module")
def ray() -> Any:
    """The package, which sets a variable of the environment when it is imported."""
    return pytest.importorskip("ray", reason="pip install 'depthkit[ray]'")


def on(threads: int) -> Engine:
    return Engine("e.ov.blob", {}, threads, False, "1")


@pytest.mark.parametrize(
    ("machines", "engine", "expected"),
    [
        ([(8, 0)], on(1), (8, 1)),
        ([(8, 0)], on(3), (2, 3)),
        ([(8, 0), (4, 0), (2, 0)], on(4), (3, 4)),
        ([(8, 0)], on(0), (1, 8)),
        ([(8, 0), (4, 0)], on(0), (3, 4)),
        ([(8, 2), (8, 1)], Engine("e.plan", {}, 0, True, "1"), (3, 1)),
    ],
)
def test_as_many_workers_as_there_is_room_for(
    machines: list[tuple[int, int]], engine: Engine, expected: tuple[int, int]
) -> None:
    assert Cluster(tuple(machines)).workers(engine) == expected


@pytest.mark.parametrize(
    ("machines", "engine", "words"),
    [
        ([(2, 0)], on(4), "has 4 cores, one for each thread of e.ov.blob"),
        ([(8, 0)], Engine("e.plan", {}, 0, True, "1"), "has a GPU"),
        ([], on(0), "no machine of the Ray cluster has 1 cores"),
    ],
)
def test_no_room_is_refused(machines: list[tuple[int, int]], engine: Engine, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        Cluster(tuple(machines)).workers(engine)


def test_pictures_of_disk_and_store_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here/a.png", "here/b.png", "store/a.png"):
        save_noise(tmp_path / name, 20, 30)
    found = find_pictures(["here", f"file://{tmp_path}/store/*.png", "here/b.png"], ())
    assert {each.place: each.name for each in found} == {
        str(tmp_path / "here" / "a.png"): "here_a.png",
        str(tmp_path / "here" / "b.png"): "b",
        f"file://{tmp_path}/store/a.png": "store_a.png",
    }


def save_one(folder: Path) -> Path:
    """A picture."""
    save_noise(folder / "a.png", 20, 30)
    return folder / "a.png"


def test_clips_and_missing_pictures_are_refused(tmp_path: Path) -> None:
    save_noise(tmp_path / "a.png", 20, 30)
    with pytest.raises(UserError, match="is a clip"):
        find_pictures([str(tmp_path)], ("color-video",))
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"clip\.mp4 is a clip; predict it without --ray"):
        find_pictures([str(tmp_path / "a.png"), str(tmp_path / "clip.mp4")], ())
    with pytest.raises(DataError, match="no such file"):
        find_pictures([str(tmp_path / "gone.png")], ())


def test_engines_travel_whole(exports: Path) -> None:
    packed = pack_engine(exports / f"{STEM}.fp32.ort.onnx")
    assert set(packed.files) == {f"{STEM}.fp32.ort.onnx", f"{STEM}.fp32.ort.onnx.json"}
    with packed.open() as predictor:
        assert predictor.size == (32, 48)
    assert pack_engine(Path("compact")).files == {}
    onnx = pack_engine(exports / f"{STEM}.fp32.onnx")
    with onnx.open() as predictor:
        assert predictor.size == (32, 48)
    assert len({packed.identity, onnx.identity, pack_engine(Path("compact")).identity}) == 3


def test_runs_do_not_travel(exports: Path) -> None:
    with pytest.raises(UserError, match="is a run, which PyTorch computes; with --ray, name an engine of it"):
        pack_engine(exports)


def test_record_is_new_where_something_else_is_asked(tmp_path: Path) -> None:
    camera = tmp_path / "K.json"
    camera.write_text("{}")
    wishes = Options(tmp_path / "depth", ("npy",), intrinsics=str(camera))
    record = start_record(ENGINE, wishes)
    first = record.stat().st_mtime_ns
    assert start_record(ENGINE, wishes).stat().st_mtime_ns == first
    camera.write_text('{"fx": 1}')
    assert start_record(ENGINE, wishes).stat().st_mtime_ns > first


def test_address_that_nobody_has_is_refused_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with (
            pytest.raises(BackendError, match=f"nothing answers at 127.0.0.1:{port}"),
            connected(f"127.0.0.1:{port}", 5),
        ):
            pass
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("local", r"Ray did not start on this machine \(The current node timed out during startup\.\)"),
        ("auto", r"no Ray cluster takes us at auto \(The current node timed out during startup\.\)"),
    ],
)
@pytest.mark.parametrize("kind", [Exception, TypeError, TimeoutError, "RayError", "AuthenticationError"])
def test_whatever_ray_raises_at_its_start_is_one_sentence(
    ray: Any, monkeypatch: pytest.MonkeyPatch, address: str, words: str, kind: type[Exception] | str
) -> None:
    error = getattr(ray.exceptions, kind) if isinstance(kind, str) else kind

    def fail(*_: object, **__: object) -> None:
        raise error("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.setattr(ray, "init", fail)
    before = dict(os.environ)
    with pytest.raises(BackendError, match=words), connected(address, 5):
        pass
    assert dict(os.environ) == before


def test_workers_that_ray_cannot_start_are_one_sentence(
    ray: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray's error is the traceback of the worker."""

    def rows(*_: object) -> Iterator[Any]:
        traceback = "The actor died because of …\n  File …\nModuleNotFoundError: No module named 'depthkit'\n\n"
        raise ray.exceptions.RayError(traceback)

    monkeypatch.setattr(Cluster, "_rows", rows)
    predicting = Cluster(((1, 0),)).predict(
        find_pictures([str(save_one(tmp_path))], ()), ENGINE, Options(tmp_path, ("npy",)), tmp_path / "record"
    )
    with pytest.raises(BackendError, match=r"ended \(ModuleNotFoundError: No module named 'depthkit'\); check that"):
        list(predicting)


def test_address_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:6379")
    with pytest.raises(BackendError, match=r"nothing answers at nowhere\.invalid:6379"), connected(None, 5):
        pass
