"""The page of `depthkit serve` in a browser: pictures, the camera, models, the token, and what goes wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.data.images import read_image
from depthkit.pipeline.predictor import Predictor
from depthkit.pipeline.proven import prove

from ..support import STEM, save_array
from .services import fake, serving

PLACES = [(0.02, 0.03), (0.31, 0.72), (0.5, 0.5), (0.77, 0.12), (0.995, 0.99)]
NOW = "document.getElementById('status').dataset.now"


def text(tab: Any, name: str) -> str:
    return str(tab.value(f"document.getElementById('{name}').textContent"))


def ready(tab: Any, name: str = "ready") -> None:
    tab.wait(f"{NOW} === 'still' && document.getElementById('status').textContent === '{name}'")


def drop(tab: Any, path: Path) -> None:
    """Drop a file on the page, as a file manager does."""
    content = base64.b64encode(path.read_bytes()).decode()
    tab.value(f"""(() => {{
      const bytes = Uint8Array.from(atob("{content}"), (letter) => letter.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], "{path.name}", {{ type: "image/{path.suffix[1:]}" }}));
      for (const kind of ["dragover", "drop"]) {{
        document.body.dispatchEvent(new DragEvent(kind, {{ dataTransfer, bubbles: true }}));
      }}
    }})()""")


def test_the_number_under_the_pointer_is_that_of_predict(tab: Any, pristine_exports: Path, photo: Path) -> None:
    engine = pristine_exports / f"{STEM}.fp32.ort.onnx"
    with Predictor(engine) as predictor:
        expected = predictor(read_image(photo))
    with serving({"a": partial(prove, engine, 1)}) as served:
        tab.open(served.address)
        ready(tab)
        assert "within" in text(tab, "about")
        for give in (drop, lambda tab, path: tab.choose("#file", path)):
            give(tab, photo)
            ready(tab, "photo.png")
            for x, y in PLACES:
                tab.point("#measured", x, y)
                column, row = map(int, re.findall(r"\d+", text(tab, "where")))
                assert abs(row - y * 97) <= 1
                assert abs(column - x * 141) <= 1
                metres = float(text(tab, "metres").removesuffix(" m"))
                assert metres == pytest.approx(expected[row, column], rel=0.01, abs=0.005)
            for figure in ("trip", "server", "engine"):
                assert text(tab, figure).endswith(" ms")
        assert text(tab, "frame") == "141 × 97"


def test_the_camera_is_shown_until_it_is_stopped(tab: Any) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        tab.value("document.getElementById('camera').click()")
        tab.wait("parseFloat(document.getElementById('fps').textContent) > 0")
        assert text(tab, "status") == "camera"
        assert text(tab, "frame") == "640 × 480"
        tab.point("#measured", 0.5, 0.5)
        tab.wait("parseFloat(document.getElementById('metres').textContent) >= 0")
        tab.value("document.getElementById('camera').click()")
        assert text(tab, "camera") == "Use the camera"
        time.sleep(2)  # for the last frame, also where the cores are busy
        count = len(served.lines)
        time.sleep(0.5)
        assert len(served.lines) == count  # nothing is sent any more


def test_another_model_answers_the_same_picture(tab: Any, photo: Path) -> None:
    def constant(metres: float) -> Any:
        return fake(answer=lambda frame: np.full(frame.shape[:2], metres, np.float32))

    with serving({"a": constant(1.5), "a=2": constant(2.5), "b": constant(3.5)}) as served:
        tab.open(served.address)
        ready(tab)
        names = tab.value("[...document.getElementById('model').options].map((option) => option.textContent)")
        assert names == ["a, version 1", "a, version 2", "b"]
        drop(tab, photo)
        ready(tab, "photo.png")
        tab.value("document.getElementById('measured').focus()")
        assert text(tab, "metres") == "1.50 m"
        tab.value("model.selectedIndex = 2; model.dispatchEvent(new Event('change'))")
        tab.wait("document.getElementById('metres').textContent === '3.50 m'")
        tab.press("ArrowRight")
        assert text(tab, "where") == "column 72, row 48"
        assert tab.wait("document.getElementById('spoken').textContent") == "3.50 m, column 72, row 48"


def test_what_is_no_picture_is_said(tab: Any, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        drop(tab, tmp_path / "notes.png")
        tab.wait("!document.getElementById('error').hidden")
        assert text(tab, "error") == "notes.png is no picture that this browser opens; take a JPEG, PNG or WebP"
        drop(tab, photo)
        ready(tab, "photo.png")
        assert tab.value("document.getElementById('error').hidden")


def test_a_refusal_is_said_in_the_servers_words(tab: Any, photo: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        next(iter(served.repository.models())).most = 0
        drop(tab, photo)
        tab.wait("!document.getElementById('error').hidden")
        assert text(tab, "error") == "model a has 0 requests, as many as it accepts; try again"
        assert tab.value(NOW) == "failed"
        assert tab.errors
        tab.errors.clear()  # the browser notes every 503


def test_a_server_with_a_token_asks_for_it(tab: Any, photo: Path) -> None:
    with serving({"a": fake()}, token="s3cret", name=None) as served:
        tab.open(served.address)
        for key, said in [("wrong", "this server wants its token"), ("s3cret", "this is not the token of this server")]:
            tab.wait(f"document.getElementById('error').textContent === '{said}'")
            assert not tab.value("document.getElementById('key').hidden")
            tab.value(f"token.value = '{key}'; document.getElementById('key').requestSubmit()")
        tab.value("1")
        tab.errors.clear()  # the browser notes every 401
        ready(tab)
        assert tab.value("document.getElementById('key').hidden")
        assert tab.value("document.activeElement.id") == "file"
        drop(tab, photo)
        ready(tab, "photo.png")
        tab.open(served.address)  # it is remembered until the tab is closed
        ready(tab)
        tab.value("sessionStorage.clear()")


@pytest.mark.parametrize("width", [360, 700, 1280])
@pytest.mark.parametrize("size", [(97, 141), (400, 200)])
def test_nothing_is_wider_than_the_window(tab: Any, tmp_path: Path, width: int, size: tuple[int, int]) -> None:
    photo = save_array(tmp_path / "a_rather_long_name_of_a_picture_from_a_camera.png", np.zeros((*size, 3), np.uint8))
    engines = {"a-rather-long-name-of-a-model": fake(), "a-rather-long-name-of-a-model=2": fake()}
    with serving(engines) as served:
        tab.open(served.address, width=width)
        ready(tab)
        assert tab.value("document.documentElement.scrollWidth") == width
        drop(tab, photo)
        ready(tab, photo.name)
        tab.point("#measured", 0.9, 0.5)
        assert tab.value("document.documentElement.scrollWidth") == width
        box = tab.value("document.getElementById('depth').getBoundingClientRect().toJSON()")
        assert box["width"] / box["height"] == pytest.approx(size[1] / size[0], rel=0.02)


def test_everything_has_a_name_for_a_screen_reader(tab: Any, photo: Path) -> None:
    with serving({"a": fake()}) as served:
        tab.open(served.address)
        ready(tab)
        drop(tab, photo)
        ready(tab, "photo.png")
        assert tab.value("document.querySelectorAll('[title]').length") == 0, "which only a mouse shows"
        nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if node.get("name", {}).get("value") and not node["ignored"]
    }
    assert {("heading", "Depth of a picture"), ("button", "Use the camera"), ("image", "The depth map")} <= found
    for role in ("button", "combobox", "spinbutton", "checkbox", "image", "application"):
        for node in nodes:
            if not node["ignored"] and node["role"]["value"] == role:
                assert node.get("name", {}).get("value"), json.dumps(node)
