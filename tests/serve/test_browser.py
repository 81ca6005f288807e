"""The live page in a browser: metres under the pointer, colours, controls, and a console without complaints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.data.colours import colour
from depthkit.data.images import read_image, resize_depth
from depthkit.errors import DataError
from depthkit.pipeline.predictor import Predictor
from depthkit.runtime.sources import open_source
from depthkit.spec import Answers

from ..support import STEM, save_array
from .pages import SIZE, Look, Serve, a_file, served

PLACES = [(0.02, 0.03), (0.31, 0.72), (0.5, 0.5), (0.77, 0.12), (0.995, 0.99)]
STILL = 'document.getElementById("status").dataset.now === "still" && document.getElementById("frame").textContent'


def text(tab: Any, name: str) -> str:
    return str(tab.value(f"document.getElementById('{name}').textContent"))


def measured(tab: Any) -> tuple[float, int, int]:
    """Metres, row and column that the page states."""
    column, row = map(int, re.findall(r"\d+", text(tab, "where")))
    return float(text(tab, "metres").removesuffix(" m")), row, column


def test_the_number_under_the_pointer_is_that_of_predict(tab: Any, exports: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0, 255, (6, 9)).astype(np.float32)
    channels = [resize_depth(np.roll(coarse, shift), (97, 141), smooth=True) for shift in range(3)]
    photo = save_array(tmp_path / "photo.png", np.stack(channels, axis=-1).astype(np.uint8))
    with Predictor(exports / f"{STEM}.fp32.ort.onnx") as predictor:
        expected = predictor(read_image(photo))
        with served(open_source(photo), stream=predictor.stream) as page:
            tab.open(page.address)
            tab.wait(STILL)
            found = []
            for x, y in PLACES:
                tab.point("#measured", x, y)
                found.append(measured(tab))
    for (x, y), (metres, row, column) in zip(PLACES, found, strict=True):
        assert abs(row - y * 97) <= 1
        assert abs(column - x * 141) <= 1
        assert metres == pytest.approx(expected[row, column], rel=0.01, abs=0.005)
    assert len({metres for metres, _, _ in found}) == len(PLACES)


def test_the_number_under_the_pointer_of_a_clip(tab: Any, samples: Path) -> None:
    clip = samples / "video" / "indoor_tum_fr1_rpy_640x480.mp4"
    with Predictor("compact") as predictor, served(open_source(clip), stream=predictor.stream) as page:
        tab.open(page.address)
        tab.wait("parseFloat(document.getElementById('fps').textContent) > 0")
        tab.value("document.getElementById('pause').click()")
        tab.wait("document.getElementById('status').dataset.now === 'paused'")
        tab.value("new Promise((done) => setTimeout(done, 1000))")
        index = int(re.findall(r"\d+", text(tab, "frame"))[0])
        found = []
        for x, y in PLACES:
            tab.point("#measured", x, y)
            found.append(measured(tab))
        assert int(re.findall(r"\d+", text(tab, "frame"))[0]) == index
        with open_source(clip) as source:
            frame = next(frame for frame in source if frame.index == index)
            expected = predictor(frame.image(predictor.size), frame.size)
    for metres, row, column in found:
        assert metres == pytest.approx(expected[row, column], rel=0.01, abs=0.005)


def test_colours_are_those_of_predict(tab: Any, serve: Serve) -> None:
    depth = np.random.default_rng(2).uniform(0.5, 6, SIZE).astype(np.float32)
    page = serve(a_file(1), engine=lambda _: depth, look=Look((1.0, 5.0), "viridis"))
    tab.open(page.address)
    tab.wait(STILL)
    pixels = """(() => {
      const copy = new OffscreenCanvas(64, 48).getContext("2d", { willReadFrequently: true });
      copy.drawImage(document.getElementById("depth"), 0, 0);
      return [...copy.getImageData(0, 0, 64, 48).data];
    })()"""

    def drawn() -> np.ndarray:
        return np.array(tab.value(pixels), np.uint8).reshape(48, 64, 4)[..., :3]

    full = resize_depth(depth, (48, 64), smooth=True)
    # Depth travels in millimetres, and a range of 4 m has 256 levels: few pixels are on the other side of a level.
    assert (drawn() == colour(full, (1, 5), "viridis")).all(axis=-1).mean() > 0.9
    assert np.abs(drawn().astype(int) - colour(full, (1, 5), "viridis")).max() <= 8
    tab.value("""for (const [id, value] of [["low", "0.5"], ["high", "3"]]) {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("input"));
    }""")
    tab.value("""colormap.value = "gray"; colormap.dispatchEvent(new Event("change"))""")
    assert np.abs(drawn().astype(int) - colour(full, (0.5, 3), "gray")).max() <= 2
    ticks = tab.value("[...document.querySelectorAll('#ticks li')].map((tick) => [tick.textContent, tick.style.left])")
    assert ticks[0] == ["0.5 m", "0%"]
    assert ticks[-1] == ["3.0 m", "100%"]


@pytest.mark.parametrize("answers", ["inverse", "relative"])
def test_without_metres_there_is_no_unit(tab: Any, serve: Serve, answers: Answers) -> None:
    """Near is blue and on the left, although inverse depth is larger there; the numbers are those of the model."""
    depth = np.linspace(-3, 30, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    span = (30.0, -3.0) if answers == "inverse" else (-3.0, 30.0)
    page = serve(a_file(1, size=SIZE), engine=lambda _: depth, unit=None, look=Look(span, answers=answers))
    tab.open(page.address)
    tab.wait(STILL)
    tab.point("#measured", 0.5, 0.5)
    row, column = 12, 16
    assert float(text(tab, "metres")) == pytest.approx(depth[row, column], rel=1e-3)
    pixels = """(() => {
      const copy = new OffscreenCanvas(32, 24).getContext("2d", { willReadFrequently: true });
      copy.drawImage(document.getElementById("depth"), 0, 0);
      return [...copy.getImageData(0, 0, 32, 24).data];
    })()"""
    drawn = np.array(tab.value(pixels), np.uint8).reshape(24, 32, 4)[..., :3]
    assert np.abs(drawn.astype(int) - colour(depth, span)).max() <= 8
    assert tab.value("[...document.querySelectorAll('#ticks li')].map((tick) => tick.textContent)") == ["near", "far"]
    shown = tab.value("document.body.innerText")
    assert not re.search(r"\d m\b|metres", shown), shown
    tab.value("""document.getElementById("auto").click()""")
    low, high = (float(tab.value(f"document.getElementById('{name}').value")) for name in ("low", "high"))
    assert (low > high) == (answers == "inverse")
    tab.value("""for (const [id, value] of [["low", low.value], ["high", "-50"]]) {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("input"));
    }""")
    assert tab.value("document.getElementById('high').matches(':invalid')") == (answers == "relative")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("7", "The nearest depth must be below the farthest."),
        ("", "The range needs two numbers."),
        ("-1", "Give depths from 0 to 1000 m."),
    ],
)
def test_a_range_that_is_none_is_not_taken_and_why_is_said(tab: Any, serve: Serve, typed: str, said: str) -> None:
    tab.open(serve(a_file(1), look=Look((1.0, 5.0))).address)
    tab.wait(STILL)
    before = tab.value("document.getElementById('ticks').textContent")
    tab.value(f"""low.focus(); low.value = "{typed}"; low.dispatchEvent(new Event("input"))""")
    assert tab.value("document.getElementById('high').matches(':invalid')")
    assert tab.value("document.getElementById('ticks').textContent") == before
    assert tab.value("document.getElementById('wrong').innerText") == said
    assert tab.value("document.activeElement.id") == "low"
    tab.value("""low.value = "2"; low.dispatchEvent(new Event("input"))""")
    assert text(tab, "wrong") == ""
    assert not tab.value("document.getElementById('high').matches(':invalid')")
    assert tab.value("document.getElementById('ticks').textContent") != before


def test_what_the_figures_mean_is_reached_by_key(tab: Any, serve: Serve) -> None:
    tab.open(serve(a_file(1000, fps=10)).address)
    tab.wait("document.getElementById('status').dataset.now === 'playing'")
    assert tab.value("document.querySelectorAll('[title]').length") == 0, "which only a mouse shows"
    tab.value("document.querySelector('summary').focus()")
    tab.press(" ")
    tab.wait("document.querySelector('details').open")
    assert "Frame age: from decoding" in tab.value("document.querySelector('details').innerText")
    assert tab.value("document.getElementById('status').dataset.now") == "playing"


def test_keys_move_the_point_and_a_screen_reader_hears_it(tab: Any, serve: Serve) -> None:
    tab.open(serve(a_file(1)).address)
    tab.wait(STILL)
    tab.value("document.getElementById('measured').focus()")
    assert text(tab, "where") == "column 32, row 24"
    tab.press("ArrowRight")
    tab.press("ArrowUp", shift=True)
    assert text(tab, "where") == "column 34, row 4"
    for _ in range(3):
        tab.press("ArrowUp", shift=True)
    assert text(tab, "where") == "column 34, row 0"
    heard = tab.wait("document.getElementById('spoken').textContent")
    assert heard == f"{text(tab, 'metres')}, column 34, row 0"


def test_pause_smooth_and_the_end(tab: Any, serve: Serve) -> None:
    page = serve(a_file(30, fps=10), reopen=lambda: a_file(30, fps=10))
    tab.open(page.address)
    now = "document.getElementById('status').dataset.now"
    tab.wait(f"{now} === 'playing'")
    tab.press(" ")
    tab.wait(f"{now} === 'paused' && document.getElementById('pause').textContent === 'Continue'")
    tab.value("document.getElementById('smooth').click()")
    tab.press(" ")
    tab.wait(f"{now} === 'playing' && document.getElementById('smooth').checked")
    assert page.view.player.state()["smooth"]
    tab.wait(f"{now} === 'ended' && document.getElementById('pause').textContent === 'Play again'")
    tab.value("document.getElementById('pause').click()")
    tab.wait(f"{now} === 'playing'")
    tab.wait("parseFloat(document.getElementById('fps').textContent) > 5")
    assert text(tab, "engine").endswith(" ms")
    assert text(tab, "age").endswith(" ms")
    assert int(text(tab, "dropped")) >= 0


def test_a_source_that_fails_is_said(tab: Any, serve: Serve) -> None:
    tab.open(serve(a_file(3, failure=DataError("/home/me/clips/clip.mp4 is damaged"))).address)
    tab.wait("!document.getElementById('error').hidden")
    assert text(tab, "error") == "clip.mp4 is damaged"
    assert tab.value("document.getElementById('pause').disabled")


def test_a_page_finds_a_server_that_comes_back(tab: Any) -> None:
    with served(a_file()) as page:
        port = int(page.address.rstrip("/").rpartition(":")[2])
        tab.open(page.address)
        tab.wait("document.getElementById('status').dataset.now === 'playing'")
    tab.wait("document.getElementById('status').dataset.now === 'connecting'")
    with served(a_file(), port=port):
        tab.wait("document.getElementById('status').dataset.now === 'playing'")
    tab.value("1")
    tab.errors.clear()  # that nobody answered


@pytest.mark.parametrize("width", [360, 700, 1280])
@pytest.mark.parametrize("size", [(48, 64), (1080, 1920), (640, 360)])
def test_nothing_is_wider_than_the_window(tab: Any, serve: Serve, width: int, size: tuple[int, int]) -> None:
    tab.open(serve(a_file(1, size=size, name="a_rather_long_name_of_a_clip_from_a_camera.mp4")).address, width=width)
    tab.wait(STILL)
    tab.point("#measured", 0.9, 0.5)
    assert tab.value("document.documentElement.scrollWidth") == width
    boxes = tab.value("['picture', 'depth'].map((id) => document.getElementById(id).getBoundingClientRect().toJSON())")
    for box in boxes:
        assert box["width"] > 100
        assert box["width"] / box["height"] == pytest.approx(size[1] / size[0], rel=0.02)


def test_the_automatic_range_is_calm(tab: Any, serve: Serve) -> None:
    """It is round, follows the scene, and does not move when one frame does."""
    tab.open(serve(a_file(1)).address)
    script = """import("./depth.js").then(({ AutoRange, ticksOf }) => {
      const even = (near, far) => Uint16Array.from({ length: 7000 }, (_, i) => near + (far - near) * i / 7000);
      let clock = 0;
      performance.now = () => clock;
      const follow = (auto, frames) => frames.map((ends) => {
        clock += 33;
        return auto.follow({ levels: even(...ends), unit: 0.001, offset: 0 }).join();
      });
      const auto = new AutoRange(0.05);
      const trembling = Array.from({ length: 60 }, (_, i) => [900 + 30 * (i % 2), 4100 - 50 * (i % 3)]);
      const calm = follow(auto, trembling);
      const jump = follow(auto, [[900, 9000], [900, 4100], [900, 4100]]);
      const away = follow(auto, Array.from({ length: 200 }, () => [3000, 9000]));
      const still = (values) => new AutoRange().follow({ levels: Float32Array.from(values), unit: 1, offset: 0 });
      const tiny = still(Array.from({ length: 700 }, (_, i) => 0.001 * i / 700)), flat = still(Array(700).fill(0));
      const holes = still(Array.from({ length: 700 }, (_, i) => [NaN, Infinity, -Infinity, 1 + i / 700][i % 4]));
      return { tiny, flat, holes,
        calm: [...new Set(calm)], jump: [...new Set(jump)], away: away.at(-1), changes: new Set(away).size,
        ticks: ticksOf(0.3, 2.05, 5).map(({ text }) => text), far: ticksOf(0, 120, 5).map(({ text }) => text) };
    })"""
    found = tab.value(script)
    assert found["calm"] == found["jump"] == ["0.5,4.5"]
    low, high = map(float, found["away"].split(","))
    assert 2 <= low <= 3.1
    assert 8.8 <= high <= 10
    assert found["changes"] <= 8
    assert found["tiny"] == [0, 0.001]
    assert found["flat"][0] <= 0 < found["flat"][1]
    assert 0.9 <= found["holes"][0] < found["holes"][1] <= 2.1
    assert found["ticks"] == ["0.5", "1.0", "1.5", "2.0"]
    assert found["far"] == ["0", "50", "100"]
