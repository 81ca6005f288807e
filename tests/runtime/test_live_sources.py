"""Cameras and streams: the newest frame, counted drops, reconnection, and a `close` that does not wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.errors import DataError, UserError
from depthkit.runtime.source import Frame, Slot, Source, Tally

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'depthkit[video]'")

from depthkit.runtime import live as live_module  # noqa: E402
from depthkit.runtime.http_stream import open_http, shown  # noqa: E402
from depthkit.runtime.live import Opened, open_live, require_camera  # noqa: E402
from depthkit.runtime.sources import open_source, paced  # noqa: E402
from depthkit.runtime.video import open_container  # noqa: E402

from .clips import SIZE, number, numbered, write_clip  # noqa: E402
from .servers import MjpegServer, RtspServer, jpeg  # noqa: E402


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    made = MjpegServer()
    yield made
    made.close()


def stream_of(camera: MjpegServer, images: list[np.ndarray], *, pause: float, then: float = 0.0) -> None:
    """Let the camera send these pictures, and then wait."""
    parts = [jpeg(image) for image in images]

    def play(send: Callable[[bytes], None], _: int) -> None:
        for part in parts:
            send(part)
            if camera.stopping.wait(pause):
                return
        camera.stopping.wait(then)

    camera.play = play


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_FIRST_WAIT", 0.02)


def test_a_slow_reader_gets_the_newest_frames_and_the_rest_is_counted(camera: MjpegServer) -> None:
    stream_of(camera, numbered(28), pause=0.02, then=5)
    with open_source(f"{camera.address}/video", timeout=3) as source:
        assert (source.size, source.live, source.count, source.fps) == (SIZE, True, None, None)
        taken: list[Frame] = []
        for frame in source:
            taken.append(frame)
            if number(frame.image()) == 27:
                break
            time.sleep(0.1)
        given = taken[-1].index + 1
        assert len(taken) + source.dropped == given
        assert source.dropped > 10
    shown_numbers = [number(frame.image()) for frame in taken]
    assert shown_numbers == sorted(set(shown_numbers))
    assert all(before.time < after.time for before, after in pairwise(taken))
    assert all(0 <= time.perf_counter() - frame.arrived < 60 for frame in taken)


def test_a_lost_stream_comes_back_and_its_last_picture_is_not_given_again(camera: MjpegServer) -> None:
    parts = [jpeg(image) for image in numbered(8)]

    def play(send: Callable[[bytes], None], connection: int) -> None:
        for part in parts[:4] if connection == 1 else parts[3:]:
            send(part)
            time.sleep(0.05)
        camera.stopping.wait(0 if connection == 1 else 5)

    camera.play = play
    with open_source(f"{camera.address}/video", timeout=3) as source:
        taken = []
        for frame in source:
            taken.append(number(frame.image()))
            if taken[-1] == 7:
                break
        assert source.faults == ["1 time the stream was lost and came back"]
    assert taken == sorted(set(taken)), taken
    assert {2, 5, 6, 7} <= {*taken}


def test_a_stream_that_stays_lost_is_an_error_after_a_bound(camera: MjpegServer) -> None:
    stream_of(camera, numbered(3), pause=0.02)
    with open_http(f"{camera.address}/video", timeout=1, retries=2) as source:
        first = camera.connections
        frames = iter(source)
        next(frames)
        camera.play = lambda *_: None
        with pytest.raises(DataError, match=r"was lost after \d frames and did not come back in 2 tries"):
            list(frames)
    assert camera.connections - first == 2


def test_a_stream_that_comes_back_with_another_size_is_refused(camera: MjpegServer) -> None:
    def play(send: Callable[[bytes], None], connection: int) -> None:
        for image in numbered(3, SIZE if connection == 1 else (64, 96)):
            send(jpeg(image))
            time.sleep(0.02)

    camera.play = play
    with (
        open_source(f"{camera.address}/video", timeout=3) as source,
        pytest.raises(DataError, match="with the size 64x96 instead of 48x64"),
    ):
        list(source)


def test_a_stream_that_changes_its_size_is_refused(camera: MjpegServer) -> None:
    stream_of(camera, [*numbered(3), *numbered(3, (64, 96))], pause=0.02, then=5)
    with (
        open_source(f"{camera.address}/video", timeout=3) as source,
        pytest.raises(DataError, match="changes its size from 48x64 to 64x96"),
    ):
        list(source)


def test_close_does_not_wait_for_a_stream_that_is_silent(camera: MjpegServer) -> None:
    stream_of(camera, numbered(3), pause=0.01, then=30)
    source = open_source(f"{camera.address}/video", timeout=20)
    frames = iter(source)
    next(frames)
    before = time.perf_counter()
    threading.Timer(0.3, source.close).start()
    rest = list(frames)
    assert time.perf_counter() - before < 2
    assert len(rest) < 3
    time.sleep(0.2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthkit")]


def test_a_source_that_is_never_read_can_be_closed(camera: MjpegServer) -> None:
    stream_of(camera, numbered(3), pause=0.01, then=5)
    open_source(f"{camera.address}/video", timeout=3).close()


@pytest.mark.parametrize(
    ("path", "message"),
    [("/nothing", "answers 404"), ("/private", "answers 401.*USER:PASSWORD"), ("/page", "web page")],
)
def test_addresses_that_give_no_stream_are_refused(camera: MjpegServer, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(f"{camera.address}{path}", timeout=3)


def test_an_address_that_does_not_answer_in_time_is_refused(camera: MjpegServer) -> None:
    before = time.perf_counter()
    with pytest.raises(DataError, match=r"did not answer within 0\.3 s"):
        open_source(f"{camera.address}/silent", timeout=0.3)
    assert time.perf_counter() - before < 2


def test_a_port_that_nobody_listens_at_is_refused() -> None:
    with pytest.raises(DataError, match="does not answer: Connection refused"):
        open_source("http://127.0.0.1:9/video", timeout=3)
    with pytest.raises(DataError, match=r"rtsp://127\.0\.0\.1:9/x cannot be opened: Connection refused"):
        open_source("rtsp://me:secret@127.0.0.1:9/x", timeout=3)
    with pytest.raises(UserError, match="above 0"):
        open_source("http://127.0.0.1:9/video", timeout=0)


@pytest.mark.parametrize(
    "address", ["http://[::1/x", "rtsp://me:secret@[::1/x", "https://[camera]/x", "http://me:secret@\u2100/"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(DataError, match=r"^(http|https|rtsp):// is not followed by a valid host") as error:
        open_source(address)
    assert "secret" not in str(error.value)


def test_a_password_is_used_and_never_shown(camera: MjpegServer) -> None:
    stream_of(camera, numbered(3), pause=0.02, then=5)
    address = camera.address.replace("//", "//me:secret@")
    with open_source(f"{address}/private", timeout=3) as source:
        assert number(next(iter(source)).image()) in range(3)
        assert "secret" not in repr(source)
    assert shown("rtsp://a:b@host/x?key=1") == "rtsp://host/x"


def test_a_file_on_a_web_server_is_read_whole(tmp_path: Path) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    write_clip(tmp_path / "clip.mkv", numbered(12))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with open_source(f"http://127.0.0.1:{server.server_port}/clip.mkv", timeout=3) as source:
            assert not source.live
            assert [number(frame.image()) for frame in source] == list(range(12))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def rtsp(tmp_path: Path) -> Iterator[RtspServer]:
    noise = np.random.default_rng(0)
    images = [image + noise.integers(0, 2, image.shape, np.uint8) for image in numbered(28)]
    path = write_clip(tmp_path / "clip.ts", images, options={"g": "5", "bf": "0", "tune": "zerolatency"})
    server = RtspServer(path.read_bytes())
    yield server
    server.close()


def test_rtsp_gives_frames_and_closes_while_it_waits(rtsp: RtspServer) -> None:
    source = open_source(rtsp.address, timeout=5)
    assert (source.size, source.live) == (SIZE, True)
    closing = threading.Timer(2.0, source.close)
    closing.start()
    taken = [(frame.index, number(frame.image())) for frame in source]
    closing.join()
    assert len(taken) + source.dropped >= 20
    assert taken == sorted(set(taken))
    time.sleep(1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthkit")]


def test_rtsp_that_falls_silent_is_lost_and_comes_back(rtsp: RtspServer) -> None:
    with open_source(rtsp.address, timeout=1) as source:
        for _ in source:
            if rtsp.connections > 1 and source.faults[-1:] == ["1 time the stream was lost and came back"]:
                break
    assert rtsp.connections == 2
    assert any("stopped answering" in fault for fault in source.faults)


def test_cameras_are_asked_for_by_number_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a file in the camera's place, since no machine of ours has one."""
    clip = write_clip(tmp_path / "clip.mkv", numbered(6))
    asked: list[Any] = []

    def opened(place: str, name: str, *, container: str, options: dict[str, str], timeout: float) -> Any:
        asked.append((place, name, container, options))
        return open_container(str(clip), name)

    monkeypatch.setattr(live_module, "open_container", opened)
    monkeypatch.setattr(live_module, "require_camera", lambda _: None)
    for place in ("3", "/dev/video3"):
        with open_source(place, input_size=(480, 640), fps=15) as source:
            assert source.live
            next(iter(source))
    expected = ("/dev/video3", "camera /dev/video3", "v4l2", {"video_size": "640x480", "framerate": "15"})
    assert asked[0] == expected
    assert asked.count(expected) >= 2


def test_cameras_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such camera: /dev/video99"):
        open_source("99")
    (tmp_path / "video0").write_bytes(b"")
    with pytest.raises(DataError, match="is not a camera"):
        require_camera(tmp_path / "video0")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=r"no permission .* usermod -aG video"):
        require_camera(Path("/dev/null"))
    monkeypatch.undo()
    with pytest.raises(DataError, match="camera cannot be opened"):
        open_container("/dev/null", "camera", container="v4l2")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UserError, match="Linux"):
        open_source("0")


def test_a_paced_file_drops_what_is_not_taken(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(28))
    with paced(open_source(path), 100) as source:
        assert (source.live, source.fps, source.size) == (True, 100, SIZE)
        taken = []
        for frame in source:
            taken.append(frame)
            time.sleep(0.03)
    indices = [frame.index for frame in taken]
    assert indices == sorted(set(indices))
    assert indices[-1] == 27  # the last one waits until it is taken
    assert len(taken) + source.dropped == 28
    assert source.dropped > 0
    assert [number(frame.image()) for frame in taken] == indices
    assert [frame.time for frame in taken] == pytest.approx([index / 100 for index in indices])


def test_a_paced_file_that_is_read_fast_enough_drops_nothing(tmp_path: Path) -> None:
    before = time.perf_counter()
    with paced(open_source(write_clip(tmp_path / "clip.mkv", numbered(10))), 20) as source:
        ages = [time.perf_counter() - frame.arrived for frame in source]
    assert len(ages) + source.dropped == 10
    assert time.perf_counter() - before > 0.45
    assert min(ages) < 0.05


def test_pacing_ends_with_close_and_passes_errors_on(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(28))
    source = paced(open_source(path), 0.5)
    frames = iter(source)
    next(frames)
    closing = threading.Timer(0.2, source.close)
    closing.start()
    before = time.perf_counter()
    assert list(frames) == []
    assert time.perf_counter() - before < 1.5
    closing.join()

    def broken() -> Iterator[Frame]:
        raise DataError("the disk is gone")
        yield

    with paced(Source("x", broken(), SIZE), 10) as failing, pytest.raises(DataError, match="disk is gone"):
        list(failing)
    with open_source(path) as file, pytest.raises(UserError, match="paced at 0"):
        paced(file, 0)


def test_a_slot_gives_each_frame_once() -> None:
    tally = Tally()
    slot = Slot(tally)
    count, taken = 2000, []
    image = np.zeros((1, 1, 3), np.uint8)

    def give() -> None:
        for index in range(count):
            slot.put(Frame(SIZE, float(index), index, str(index), lambda *_: image))
        slot.end()

    thread = threading.Thread(target=give)
    thread.start()
    taken = [frame.index for frame in slot.frames()]
    thread.join()
    assert taken == sorted(set(taken))
    assert taken[-1] == count - 1
    assert len(taken) + tally.dropped == count


def test_faults_are_bounded() -> None:
    tally = Tally()
    for index in range(100):
        tally.say(f"fault {index}")
        tally.count("thing", "things")
    assert len(tally.faults()) == 21
    assert tally.faults()[-1] == "100 things"


def test_an_unreadable_stream_is_an_error_not_a_hang(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", numbered(3))

    def connect() -> Opened:
        return Opened(open_container(str(clip), "x"))

    with open_live(connect, "x", patience=1, retries=0) as source, pytest.raises(DataError, match="in 0 tries"):
        list(source)
