"""The live page's server: what pages are sent, and who may ask."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from depthkit.errors import DataError, EngineError
from depthkit.runtime.source import Frame, Slot, Source, Tally

from ..support import run_code
from .pages import FRAME, SIZE, Client, Closed, Look, Serve, Shown, a_file, connect, grey_frames, metres


def test_a_page_is_greeted_and_gets_frames(serve: Serve) -> None:
    page = serve(a_file(), look=Look((0.5, 5.0), "magma", "compact at 32 × 24"), smooth=True)
    client = page.open()
    hello = client.hello
    assert (hello["title"], hello["model"], hello["range"]) == ("clip.mp4", "compact at 32 × 24", [0.5, 5.0])
    assert (hello["colormap"], hello["live"], hello["still"], hello["metric"]) == ("magma", False, False, True)
    assert next(iter(hello["palettes"])) == "magma"
    assert client.text("state") == {
        "kind": "state", "paused": False, "smooth": True, "ended": False, "again": False, "faults": [],
    }  # fmt: skip
    shown = client.frame()
    assert shown.header["size"] == list(FRAME)
    assert shown.depth.shape == SIZE
    assert {"index", "time", "engine", "age", "dropped", "shown", "skipped"} <= shown.header.keys()
    assert 0 <= shown.header["age"] < 5000
    assert Image.open(io.BytesIO(shown.jpeg)).size == FRAME[::-1]


def test_depth_is_exact_to_half_a_millimetre(serve: Serve) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 20, SIZE).astype(np.float32)
    depth[0, :3] = np.nan, np.inf, 100
    shown = serve(a_file(), engine=lambda _: depth).open().frame()
    assert np.abs(shown.depth[1:] / 1000 - depth[1:]).max() <= 0.00051
    assert list(shown.depth[0, :3]) == [0, 65535, 65535]


def test_depth_of_a_frame_that_is_smaller_than_the_engine_has_its_size(serve: Serve) -> None:
    shown = serve(a_file(size=(20, 40))).open().frame()
    assert shown.depth.shape == (20, 40)
    assert shown.depth[0, 0] == (shown.header["index"] + 1) * 100


def test_far_depth_has_a_coarser_unit(serve: Serve) -> None:
    client = serve(a_file(), engine=lambda image: metres(image) * 0 + 120, unit=0.002).open()
    shown = client.frame()
    assert (shown.header["unit"], shown.header["offset"], shown.depth[0, 0]) == (0.002, 0, 60000)


def test_a_large_picture_is_sent_smaller(serve: Serve) -> None:
    shown = serve(a_file(size=(1080, 1920))).open().frame()
    assert Image.open(io.BytesIO(shown.jpeg)).size == (960, 540)
    assert shown.header["size"] == [1080, 1920]


def test_a_slow_page_gets_the_newest_frame_and_slows_no_other(serve: Serve) -> None:
    page = serve(a_file())
    slow, fast = page.open(), page.open()
    first = slow.frame(drawn=False)
    seen = [fast.frame().header["index"] for _ in range(40)]
    assert seen == sorted(set(seen))
    assert not slow.has_frame(0.05)
    slow.ask("drawn")
    second = slow.frame(drawn=False)
    assert second.header["index"] >= seen[-1] - 1
    assert (
        second.header["skipped"] >= second.header["index"] - first.header["index"] - second.header["dropped"] - 1 > 20
    )


def test_a_page_that_reads_nothing_slows_no_other(serve: Serve) -> None:
    page = serve(a_file(size=(480, 640)), engine=metres, size=(480, 640))
    with connect(page.socket, max_size=None) as silent:
        for _ in range(1000):
            silent.send('{"do": "drawn"}')
        client = page.open()
        seen = [client.frame().header["index"] for _ in range(20)]
    assert seen == sorted(set(seen))


def test_frames_that_the_engine_is_too_slow_for_are_dropped(serve: Serve) -> None:
    def slow(image: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return metres(image)

    client = serve(a_file(), engine=slow).open()
    shown = [client.frame() for _ in range(8)]
    last = shown[-1].header
    assert last["dropped"] >= last["index"] - 8 - 3 > 8
    assert last["shown"] == 8
    assert all(frame.header["engine"] >= 50 for frame in shown)
    assert sorted(frame.header["age"] for frame in shown)[4] < 250


def test_pause_holds_a_file_for_all_pages(serve: Serve) -> None:
    page = serve(a_file())
    client, other = page.open(), page.open()
    client.frame()
    other.ask("pause", on=True)
    client.text("state", paused=True)
    last = 0
    while client.has_frame(0.3):
        last += 1
    assert last < 5
    client.ask("drawn")
    begin = time.monotonic()
    other.ask("pause", on=False)
    client.text("state", paused=False)
    index = client.frame().header["index"]
    following = client.frame().header["index"]
    assert following - index < 100 * (time.monotonic() - begin) + 10  # and not as many as fit into the pause


def live(tally: Tally, stopped: threading.Event) -> tuple[Source, Slot]:
    """A camera whose frames the test gives."""
    slot = Slot(tally)

    def close() -> None:
        stopped.set()
        slot.end(discard=True)

    return Source("camera /dev/video0", slot.frames(), FRAME, live=True, tally=tally, close=close), slot


def test_after_a_pause_a_camera_shows_what_is_new_and_counts_no_drops(serve: Serve) -> None:
    stopped = threading.Event()
    source, slot = live(Tally(), stopped)

    def film() -> None:
        for frame in grey_frames(100_000):
            slot.put(frame.at(frame.index / 100, frame.index))
            if stopped.wait(0.01):
                return

    filming = threading.Thread(target=film)
    client = serve(source).open()
    filming.start()
    assert (client.hello["title"], client.hello["live"]) == ("camera video0", True)
    before = client.frame().header
    client.ask("pause", on=True)
    client.text("state", paused=True)
    time.sleep(1)
    while client.has_frame(0.1):
        client.ask("drawn")
    client.ask("pause", on=False)
    after = client.frame().header
    assert after["index"] > before["index"] + 50
    assert after["age"] < 500
    assert after["dropped"] - before["dropped"] < 40
    stopped.set()
    filming.join()


def test_a_hidden_page_gets_nothing_and_the_engine_rests(serve: Serve) -> None:
    computed: list[int] = []

    def count(image: np.ndarray) -> np.ndarray:
        computed.append(1)
        return metres(image)

    page = serve(a_file(), engine=count)
    time.sleep(0.2)
    assert not computed  # nobody watches
    client = page.open()
    client.frame()
    client.ask("watch", on=False)
    while client.has_frame(0.3):
        client.ask("drawn")
    done = len(computed)
    time.sleep(0.2)
    assert len(computed) == done
    client.ask("watch", on=True)
    client.frame()


def test_smoothing_is_set_for_all_pages(serve: Serve) -> None:
    flicker = iter(range(10**9))

    def tremble(image: np.ndarray) -> np.ndarray:
        return np.full(SIZE, 2 + 0.2 * (next(flicker) % 2), np.float32)

    page = serve(Source("x", (f.at(f.time, f.index) for f in _same(500)), FRAME, fps=100), engine=tremble)
    client, other = page.open(), page.open()
    assert {client.frame().depth[0, 0] for _ in range(6)} == {2000, 2200}
    other.ask("smooth", on=True)
    client.text("state", smooth=True)
    for _ in range(20):
        client.frame()
    calm = [int(client.frame().depth[0, 0]) for _ in range(6)]
    assert max(calm) - min(calm) < 80


def _same(count: int) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(FRAME, index / 100, index, str(index), lambda at, _: np.full((*(at or FRAME), 3), 90, np.uint8))


def test_a_file_stops_at_its_end_and_plays_again(serve: Serve) -> None:
    client = serve(a_file(5), reopen=lambda: a_file(5)).open()
    assert client.text("state", ended=True)["again"]
    client.ask("again")
    client.text("state", ended=False)
    client.text("state", ended=True)


def test_a_file_in_a_loop_does_not_stop(serve: Serve) -> None:
    client = serve(a_file(5), reopen=lambda: a_file(5), loop=True).open()
    seen = [client.frame().header["index"] for _ in range(15)]
    assert sum(after < before for before, after in pairwise(seen)) >= 2
    assert not any(text.get("ended") for text in client.texts)


def test_one_picture_is_shown_to_whoever_comes_later(serve: Serve) -> None:
    page = serve(a_file(1))
    first = page.open()
    assert first.hello["still"]
    assert first.text("state", ended=True)["again"] is False
    assert page.open().frame().header["index"] == 0


@pytest.mark.parametrize("name", ["/home/me/clips/clip.mp4", "clips/clip.mp4"])
def test_a_source_that_fails_tells_the_page_without_its_folder(serve: Serve, name: str) -> None:
    page = serve(a_file(5, name=name, failure=DataError(f"{name} is damaged; see /var/log/it.txt")))
    client = page.open()
    assert client.text("error")["text"] == "clip.mp4 is damaged; see it.txt"
    with pytest.raises(Closed):
        while True:  # a frame from before the failure may still come
            client.next()
    assert page.wait(5)
    assert isinstance(page.error, DataError)
    assert name in str(page.error)


def test_an_engine_that_fails_ends_the_page(serve: Serve) -> None:
    def broken(image: np.ndarray) -> np.ndarray:
        raise EngineError("the device was lost")

    page = serve(a_file(), engine=broken)
    assert page.open().text("error")["text"] == "the device was lost"
    assert page.wait(5)
    assert isinstance(page.error, EngineError)


def test_stopping_closes_pages_source_and_threads_within_a_second(serve: Serve) -> None:
    before = set(threading.enumerate())
    source = a_file()
    page = serve(source)
    client = page.open()
    client.frame()
    begin = time.monotonic()
    page.view.stop()
    assert page.wait(1)
    assert time.monotonic() - begin < 1
    with pytest.raises(Closed):
        while True:
            client.next()
    with pytest.raises(DataError, match="closed"):
        iter(source)
    page.close()  # and the client's own thread
    assert {thread for thread in set(threading.enumerate()) - before if "depthkit" in thread.name} == set()


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "1", "{}", '{"do": "fly"}', '{"do": "pause"}', '{"do": "smooth", "on": 1}', "x" * 5000]
)
def test_nonsense_closes_the_page_that_sends_it(serve: Serve, text: str) -> None:
    page = serve(a_file())
    other, client = page.open(), page.open()
    client.connection.send(text)
    with pytest.raises(Closed) as closed:
        while True:
            client.next()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in {1008, 1009}
    other.frame()
    other.frame()


def test_bytes_close_the_page_that_sends_them(serve: Serve) -> None:
    client = serve(a_file()).open()
    client.connection.send(b"drawn")
    with pytest.raises(Closed):
        while True:
            client.next()


def test_serving_loads_no_torch_and_no_vendor_library() -> None:
    code = "import sys, depthkit.serve.view; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run_code(code).split())
    assert "starlette" in loaded
    assert not loaded & {"torch", "lightning", "rich", "av", "matplotlib", "onnxruntime", "openvino"}


def test_the_page_that_comes_back_sees_the_newest_frame_at_once(serve: Serve) -> None:
    page = serve(a_file())
    first = page.open()
    index = first.frame().header["index"]
    first.ask("pause", on=True)
    first.text("state", paused=True)
    late: Client = page.open()
    shown = late.next()
    while not isinstance(shown, Shown):
        shown = late.next()
    assert shown.header["index"] >= index
