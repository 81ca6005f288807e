"""A source written: all frames, one range for a clip, metres of its camera; and what is kept when it ends early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from depthkit.data.colours import Span
from depthkit.errors import DataError, OutputError
from depthkit.pipeline.clip import Plan, Written, write_source
from depthkit.pipeline.outputs import OUTPUTS, Output
from depthkit.pipeline.recorder import Recorder
from depthkit.pipeline.shot import Job, Shot
from depthkit.pipeline.stream import Result, stream
from depthkit.runtime.cameras import Intrinsics
from depthkit.runtime.source import Frame, Source
from depthkit.runtime.sources import open_source, paced

from ..runtime.clips import numbered, write_clip
from ..support import files_at_most, model_spec

SIZE = (24, 32)
SPEC = replace(model_spec(*SIZE), focal=0.5)


class Grey:
    """A predictor whose metres grow with brightness; of a camera with a focal length of half the picture's width."""

    size = SIZE
    spec = SPEC

    def stream(self, source: Source, *, smooth: bool) -> Iterator[Result]:
        return stream(source, lambda image: image.mean(axis=2, dtype=np.float32) / 100 + 1, SIZE)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("depthkit")] == []


def write(source: Source, out: Path, *outputs: str, watch: Any = lambda _: None, **options: Any) -> Written:
    plan = Plan(outputs, Job(out, "x", source.size, SPEC, source.fps, source.audio), **options)
    return write_source(source, Grey(), plan, watch)  # type: ignore[arg-type]


def frames_of(path: Path) -> int:
    with av.open(str(path)) as opened:
        return sum(1 for _ in opened.decode(video=0))


def endless(error: BaseException | None = None, after: int = 5) -> Source:
    """Frames, then an error."""

    def frames() -> Iterator[Frame]:
        for index in range(after):
            yield Frame(
                (48, 64), index / 10, index, str(index), lambda size, _: np.zeros((*(size or (48, 64)), 3), np.uint8)
            )
        if error is not None:
            raise error

    return Source("x", frames(), (48, 64), fps=10)


def test_all_frames_are_in_every_output(tmp_path: Path) -> None:
    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(28)))
    written = write(source, tmp_path, *(name for name in OUTPUTS if not OUTPUTS[name].needs_camera))
    assert (written.frames, written.given, written.whole, written.broken) == (28, 28, True, None)
    assert [path.name for path in written.files] == ["x_depth.mp4", "x_side.mp4", "x_depth.mkv"]
    assert [frames_of(path) for path in written.files] == [28, 28, 28]
    for ending in ("png", "npy", "npz", "exr"):
        assert len(list(tmp_path.glob(f"clip_*_depth.{ending}"))) == 28
    assert len(list(tmp_path.glob("clip_*_depth16.png"))) == 28
    metres = np.load(tmp_path / "clip_000007_depth.npy")
    with np.load(tmp_path / "clip_000007_depth.npz") as stored:
        np.testing.assert_array_equal(stored["depth"], metres)
        assert stored["time"] == pytest.approx(0.7)
        assert set(stored) == {"depth", "time"}
    with av.open(str(tmp_path / "x_depth.mkv")) as opened:
        millimetres = [frame.to_ndarray() for frame in opened.decode(video=0)][7]
    np.testing.assert_array_equal(millimetres, np.rint(metres * np.float32(1000)).astype(np.uint16))


@pytest.mark.parametrize(("span", "expected"), [((0.5, 9.0), (0.5, 9.0)), (None, None)])
def test_a_clip_has_one_range(tmp_path: Path, span: Span | None, expected: Span | None) -> None:
    """Of its first 2 seconds, though all of it becomes brighter."""
    seen: list[Span] = []
    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(28)))
    written = write(source, tmp_path, "color-video", watch=lambda shot: seen.append(shot.span), span=span)
    assert len(seen) == 28
    assert set(seen) == {written.span}
    if expected:
        assert written.span == expected
    else:
        assert written.span is not None
        near, far = written.span
        assert near == pytest.approx(1 / 1.2, rel=0.02)
        assert far == pytest.approx((1 + 1.8) * 1.2, rel=0.02)


def test_pictures_have_a_range_each(tmp_path: Path) -> None:
    seen: list[Span] = []
    source = open_source(write_clip(tmp_path / "clip.mkv", numbered(5)))
    written = write(source, tmp_path, "color", watch=lambda shot: seen.append(shot.span), one_span=False)
    assert written.span is None
    assert len(set(seen)) == 5


def test_metres_are_of_the_camera_in_every_output(tmp_path: Path) -> None:
    """Twice the focal length: everything is twice as far away."""
    metres = []
    for focal in (32.0, 64.0):
        camera = Intrinsics(focal, focal, 31.5, 23.5, (48, 64))
        source = open_source(write_clip(tmp_path / "clip.mkv", numbered(3)))
        written = write(source, tmp_path, "npy", "npz", "ply", "depth-video", camera=lambda _, camera=camera: camera)
        assert written.frames == 3
        metres.append(np.load(tmp_path / "clip_000001_depth.npy"))
    np.testing.assert_allclose(metres[1], 2 * metres[0], rtol=1e-6)
    with np.load(tmp_path / "clip_000001_depth.npz") as stored:
        assert stored["K"].tolist() == [[64, 0, 31.5], [0, 64, 23.5], [0, 0, 1]]
    assert (tmp_path / "clip_000001_depth.ply").read_bytes().startswith(b"ply\nformat binary")


@pytest.mark.parametrize("after", [1, 12, 40])
def test_what_was_read_before_an_error_is_kept(tmp_path: Path, after: int) -> None:
    written = write(endless(DataError("the disk is gone"), after), tmp_path, "color-video", "depth-video")
    assert "the disk is gone" in str(written.broken)
    assert (written.frames, written.whole) == (after, False)
    assert [frames_of(path) for path in written.files] == [after, after]


def test_a_source_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    for source in (endless(DataError("the disk is gone"), 0), endless(None, 0)):
        with pytest.raises(DataError, match=r"disk is gone|no frame was read"):
            write(source, tmp_path / "out", "color-video")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("after", [1, 12, 40])
def test_an_interrupt_keeps_whole_files(tmp_path: Path, after: int) -> None:
    written = write(endless(KeyboardInterrupt(), after), tmp_path, "color-video", "depth-video")
    assert written.interrupted
    assert not written.whole
    assert written.frames == after
    assert [frames_of(path) for path in written.files] == [after, after]


def test_an_interrupt_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(endless(KeyboardInterrupt(), 0), tmp_path / "out", "color-video")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_fails_is_an_error_and_leaves_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Output):
        ending, about = "_full", "fails"

        def write(self, shot: Shot) -> None:
            if shot.result.frame.index == 3:
                raise OutputError("cannot write x: no space left on device")

    monkeypatch.setitem(OUTPUTS, "full", Full)
    with pytest.raises(OutputError, match="no space left"):
        write(endless(None, 400), tmp_path / "out", "color-video", "full")
    assert list((tmp_path / "out").iterdir()) == []


def test_it_stops_after_so_many_seconds(tmp_path: Path) -> None:
    written = write(open_source(write_clip(tmp_path / "clip.mkv", numbered(28))), tmp_path, "color-video", seconds=1.05)
    assert (written.frames, written.whole, written.interrupted) == (11, False, False)


def test_frames_of_a_live_source_are_written_or_counted(tmp_path: Path) -> None:
    source = paced(open_source(write_clip(tmp_path / "clip.mkv", numbered(28))), 200)
    written = write(source, tmp_path, "side-video")
    assert written.given == 28
    assert written.frames + source.dropped == 28
    assert frames_of(tmp_path / "x_side.mp4") == written.frames


def test_few_frames_wait_to_be_written() -> None:
    begun, room = threading.Event(), threading.Event()
    given: list[int] = []

    def slow(_: int) -> None:
        begun.set()
        room.wait()

    def give(recorder: Recorder[int]) -> None:
        for index in range(50):
            recorder.put(index)
            given.append(index)

    with Recorder(slow) as recorder:
        giver = threading.Thread(target=give, args=(recorder,))
        giver.start()
        begun.wait()
        giver.join(0.3)
        assert len(given) <= 5
        room.set()
        giver.join()
        recorder.finish()
        assert recorder.done == 50


@pytest.mark.parametrize("name", [name for name in OUTPUTS if not OUTPUTS[name].is_clip])
def test_a_full_disk_is_named_by_every_output_of_frames(name: str, tmp_path: Path) -> None:
    depth = np.random.default_rng(0).uniform(1.99, 2.01, (96, 128)).astype(np.float32)
    image = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    camera = Intrinsics(100, 100, 63.5, 47.5, (96, 128))
    shot = SimpleNamespace(name="x", depth=depth, image=image, span=(1.0, 3.0), time=0.0, intrinsics=camera)
    output = OUTPUTS[name](Job(tmp_path, "x", (96, 128), model_spec(96, 128)))
    with files_at_most(3000), pytest.raises(OutputError, match=f"cannot write .*x{output.ending}"):
        output.write(shot)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    output.write(shot)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [f"x{output.ending}"]
