"""The page of `depthkit serve` when answers are late, lost, refused or changed, and when its camera does not come."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.pipeline.proven import Proven
from depthkit.runtime.scale import MetricScale
from depthkit.spec import Answers

from ..support import Recorded, save_array
from .services import fake, proven, serving
from .test_serve_page import NOW, drop, ready, text

ERROR = "!document.getElementById('error').hidden && document.getElementById('error').textContent"
ENDS = "[low.value, high.value].map(Number)"

# A camera that comes when the test says so: `grant()`; its track is `track`.
CAMERA = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
  setInterval(() => canvas.getContext("2d").fillRect(0, 0, 64, 48), 30);
  window.tracks = [];
  navigator.mediaDevices.getUserMedia = () => new Promise((done, refuse) => {
    window.refuse = refuse;
    window.grant = () => {
      const stream = canvas.captureStream(30);
      tracks.push(...stream.getTracks());
      done(stream);
    };
  });
})()"""


def without_metres(answers: Answers, depth: np.ndarray, scale: float | None = None) -> Proven:
    """A model that answers so; with `scale`, its run has a scale.json."""
    session = Recorded([], answer=lambda _: depth)
    session.spec = replace(session.spec, answers=answers)
    found = proven(session)
    if scale is None:
        return found
    assert answers in {"inverse", "relative"}
    fitted = MetricScale(answers, scale, 0.0, (0.1, 100.0), "0" * 64, (16, 32), 2, 0.0, "photo.png", "2026-01-01")
    return replace(found, scale=fitted)


def grey(folder: Path, level: int) -> Path:
    """A grey picture, of which the fake engine makes a tenth of its level in metres."""
    return save_array(folder / f"grey{level}.png", np.full((24, 48, 3), level, np.uint8))


def wrap_depth(tab: Any, script: str) -> None:
    """Let `answer`, an async function of a function that asks the server, answer requests for depth."""
    tab.value(f"""(() => {{
      const ask = fetch, answer = {script};
      window.fetch = (path, options) => {{
        return path.startsWith("v1/depth") ? answer(() => ask(path, options)) : ask(path, options);
      }};
    }})()""")


def test_a_scale_of_the_run_gives_the_page_metres(tab: Any, photo: Path) -> None:
    """Also if the engine gets its scale while the page is open."""
    depth = np.tile(np.linspace(0.2, 1.0, 32, dtype=np.float32), (16, 1))  # inverse: the left is far
    versions = [without_metres("inverse", depth), without_metres("inverse", depth, 0.5)]
    with serving({"a": lambda: versions.pop(0)}) as served:
        tab.open(served.address)
        ready(tab)
        for unit, near, ticks in [("", 1.0, ["near", "far"]), (" m", 2.0, ["2 m", "3 m"])]:
            drop(tab, photo)
            ready(tab, "photo.png")
            tab.point("#measured", 0.999, 0.5)
            assert text(tab, "metres").endswith(unit)
            assert float(text(tab, "metres").removesuffix(" m")) == pytest.approx(near, rel=0.02)
            found = tab.value("[...document.querySelectorAll('#ticks li')].map((tick) => tick.textContent)")
            assert found[:2] == ticks
            assert float(tab.value("document.getElementById('marker').style.left.slice(0, -1)")) < 10, "near is left"
            if versions:
                reload = served.repository.reload(changed=False)
                asyncio.run_coroutine_threadsafe(reload, served.loop).result(20)
        about = served.client().get("/v2/models/a").json["parameters"]
        assert (about["unit"], about["answers"]) == ("inverse depth without unit", "inverse")
        assert about["v1_depth"] == {"unit": "metres", "answers": "metres"}


@pytest.mark.parametrize(("answers", "shown"), [("relative", "0"), ("inverse", "0"), ("share", "no depth")])
def test_zero_is_depth_unless_it_is_metres(tab: Any, photo: Path, answers: Answers, shown: str) -> None:
    depth = np.zeros((16, 32), np.float32)
    depth[:, 16:] = 2
    with serving({"a": without_metres(answers, depth)}) as served:
        tab.open(served.address)
        ready(tab)
        drop(tab, photo)
        ready(tab, "photo.png")
        tab.point("#measured", 0.1, 0.5)
        assert text(tab, "metres") == shown
        assert (0 in tab.value(ENDS)) == (shown == "0"), "the range that follows the scene"


def test_the_range_follows_each_picture(tab: Any, tmp_path: Path) -> None:
    def slope(frame: np.ndarray) -> np.ndarray:
        return (frame[..., 0] / 10 * np.linspace(0.5, 1, 32)).astype(np.float32)

    with serving({"a": fake(answer=slope)}) as served:
        tab.open(served.address)
        ready(tab)
        for level, near, far in [(40, 2, 4), (200, 10, 20)]:
            drop(tab, grey(tmp_path, level))
            ready(tab, f"grey{level}.png")
            low, high = tab.value(ENDS)
            assert near - 0.15 * near <= low <= near
            assert far <= high <= far + 0.15 * far


def test_a_range_that_was_typed_is_not_for_a_model_with_other_numbers(tab: Any, photo: Path) -> None:
    depth = np.tile(np.linspace(1, 9, 32, dtype=np.float32), (16, 1))
    with serving({"a": fake(), "b": without_metres("inverse", depth)}) as served:
        tab.open(served.address)
        ready(tab)
        drop(tab, photo)
        ready(tab, "photo.png")
        tab.value("""low.value = "2000"; low.dispatchEvent(new Event("input"))""")
        assert text(tab, "wrong") == "Give depths from 0 to 1000 m."
        tab.value("model.selectedIndex = 1; model.dispatchEvent(new Event('change'))")
        tab.wait("document.getElementById('unit').hidden")
        ready(tab, "photo.png")
        assert text(tab, "wrong") == ""
        assert tab.value("auto.checked")
        assert tab.value(ENDS) == [9, 1]


def test_a_picture_has_no_depth_of_the_last_one(tab: Any, photo: Path, tmp_path: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value("document.getElementById('measured').focus()")
        assert tab.wait("document.getElementById('spoken').textContent") == "no depth yet"
        drop(tab, photo)
        ready(tab, "photo.png")
        tab.value("document.getElementById('measured').focus()")
        next(iter(served.repository.models())).most = 0
        drop(tab, grey(tmp_path, 40))
        tab.wait(ERROR)
        tab.point("#measured", 0.3, 0.3)
        tab.press("ArrowRight")
        assert text(tab, "frame") == "48 × 24"
        assert [text(tab, name) for name in ("metres", "where", "engine", "trip")] == ["–", "", "–", "–"]
        for selector in ("#depth", ".point", "#bar", "#ticks"):
            assert tab.value(f"getComputedStyle(document.querySelector('{selector}')).visibility") == "hidden"
        tab.errors.clear()  # the browser notes every 503


def test_an_older_picture_replaces_no_newer_one(tab: Any, photo: Path, tmp_path: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value("""(() => {
          const open = createImageBitmap, held = new Promise((done) => (window.release = done));
          window.createImageBitmap = async (file) => {
            if (file.name === "photo.png") await held;
            return open(file);
          };
        })()""")
        drop(tab, photo)
        drop(tab, grey(tmp_path, 40))
        ready(tab, "grey40.png")
        count = len(served.lines)
        tab.value("release(); new Promise((done) => setTimeout(done, 500))")
        ready(tab, "grey40.png")
        assert text(tab, "frame") == "48 × 24"
        assert len(served.lines) == count


@pytest.mark.parametrize("timing", [None, "cdn;dur=3", "run;desc=x, queue", "decode;dur=1,queue;dur=2,x;dur=9"])
def test_a_proxy_may_strip_or_change_headers(tab: Any, photo: Path, timing: str | None) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        headers = "{}" if timing is None else f'{{ "Server-Timing": "{timing}" }}'
        wrap_depth(tab, f"async (ask) => new Response(await (await ask()).blob(), {{ headers: {headers} }})")
        drop(tab, photo)
        ready(tab, "photo.png")
        assert text(tab, "trip").endswith(" ms")
        assert (text(tab, "server"), text(tab, "engine")) == ("–", "–")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("new Response('<html>Sign in</html>')", "another form than this page expects"),
        ("new Response('<html>Bad gateway</html>', { status: 502 })", "the server answered 502"),
        ("new Response('null', { status: 500 })", "the server answered 500"),
        ("Promise.reject(new TypeError('Failed to fetch'))", "the server does not answer"),
        ("new Response(new ReadableStream({ start: (it) => it.error(new TypeError('reset')) }))", "does not answer"),
    ],
)
def test_an_answer_that_is_none_is_said(tab: Any, photo: Path, answer: str, said: str) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        wrap_depth(tab, f"async () => {answer}")
        drop(tab, photo)
        assert said in tab.wait(ERROR)
        assert tab.value(NOW) == "failed"
    tab.value("1")
    tab.errors.clear()  # the console has the error itself


def test_a_server_that_has_stopped_is_said(tab: Any, photo: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
    drop(tab, photo)
    assert tab.wait(ERROR) == "the server does not answer; it was stopped, or the connection was lost"
    tab.value("1")
    tab.errors.clear()  # that nobody answered


@pytest.mark.parametrize("period", [1, 2])
def test_a_refusal_that_lasts_is_spoken_once(tab: Any, period: int) -> None:
    """Every frame of the camera, or every second one."""
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        refusal = """new Response('{"error": "model a is busy"}', { status: 503 })"""
        wrap_depth(tab, f"(() => {{ let n = 0; return (ask) => (n++ % {period} ? ask() : {refusal}); }})()")
        tab.value("""(() => {
          window.changes = 0; // that a screen reader speaks
          const watch = new MutationObserver((found) => (changes += found.length));
          const options = { attributeFilter: ["hidden"], childList: true, characterData: true, subtree: true };
          document.querySelectorAll("#error, #status").forEach((element) => watch.observe(element, options));
          document.getElementById("camera").click();
        })()""")
        tab.wait(ERROR)
        before = tab.value("changes")
        tab.value("new Promise((done) => setTimeout(done, 1500))")
        assert tab.value("changes") == before
        wrap_depth(tab, "(ask) => ask()")
        tab.value("document.getElementById('camera').click()")


def test_a_camera_that_is_stopped_before_it_comes_does_not_start(tab: Any, photo: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value(CAMERA)
        for stop in (lambda: tab.value("document.getElementById('camera').click()"), lambda: drop(tab, photo)):
            tab.value("document.getElementById('camera').click()")
            assert text(tab, "camera") == "Stop the camera"
            stop()
            assert text(tab, "camera") == "Use the camera"
            tab.value("grant(); new Promise((done) => setTimeout(done, 300))")
            assert tab.value("tracks.map((track) => track.readyState)") == ["ended"] * tab.value("tracks.length")
        ready(tab, "photo.png")
        assert sum(line["path"] == "/v1/depth" for line in served.lines) == 1
        tab.value("document.getElementById('camera').click(); grant()")
        tab.wait(f"{NOW} === 'live'")
        tab.value("document.getElementById('camera').click()")
        assert tab.value("tracks.map((track) => track.readyState)") == ["ended"] * 3


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("grant(); setTimeout(() => tracks[0].dispatchEvent(new Event('ended')), 300)", "is it still connected?"),
        ("HTMLMediaElement.prototype.play = async () => { throw new Error('no codec'); }; grant()", "no codec"),
        ("refuse(new DOMException('x', 'NotAllowedError'))", "the browser does not allow the camera"),
        ("refuse(new DOMException('x', 'NotFoundError'))", "the browser finds no camera"),
    ],
)
def test_a_camera_that_fails_is_said_and_given_back(tab: Any, happens: str, said: str) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value(CAMERA)
        tab.value("document.getElementById('camera').click()")
        tab.value(f"{happens}; 0")
        assert said in tab.wait(ERROR)
        assert tab.value(NOW) == "failed"
        assert text(tab, "camera") == "Use the camera"
        assert tab.value("tracks.every((track) => track.readyState === 'ended')")


def test_another_model_answers_the_cameras_next_frame_and_its_last(tab: Any) -> None:
    def constant(metres: float) -> Proven:
        return fake(answer=lambda frame: np.full(frame.shape[:2], metres, np.float32))

    with serving({"a": constant(1.5), "b": without_metres("relative", np.full((16, 32), 7, np.float32))}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value("document.getElementById('camera').click(); document.getElementById('measured').focus()")
        for index, shown in [(0, "1.50 m"), (1, "7")]:
            tab.value(f"model.selectedIndex = {index}; model.dispatchEvent(new Event('change'))")
            tab.wait(f"document.getElementById('metres').textContent === '{shown}'")
        tab.value("document.getElementById('camera').click()")
        tab.value("model.selectedIndex = 0; model.dispatchEvent(new Event('change'))")
        ready(tab, "a frame of the camera")
        assert text(tab, "metres") == "1.50 m"
