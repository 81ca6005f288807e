"""The report in a browser: nothing is refused, every picture decodes, the slider works, and a phone need not scroll."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.bench.contender import Contender
from depthkit.bench.results import BenchResult
from depthkit.report.html import write_report

from ..support import CHROMIUM_FLAGS

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; `apt-get install chromium`")

FLAGS = (
    *CHROMIUM_FLAGS,
    "--virtual-time-budget=10000",
    "--window-size=1400,1000",
    "--dump-dom",
)

WATCH = """
window.found = {errors: []};
addEventListener("error", (event) => found.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => found.errors.push(event.violatedDirective + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => found.errors.push(words.join(" "));
"""
PROBE = """
addEventListener("load", () => {
  found.images = [...document.images].map((image) => image.naturalWidth);
  const over = document.querySelector(".over"), range = document.querySelector("input[type=range]");
  const [, left, right] = document.querySelectorAll("[data-viewer] select");
  found.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  found.cuts = ["0", "50", "100"].map((value) => {
    range.value = value;
    range.dispatchEvent(new Event("input", {bubbles: true}));
    return getComputedStyle(over).clipPath;
  });
  found.told = range.getAttribute("aria-valuetext");
  const before = over.src;
  left.value = right.value;
  left.dispatchEvent(new Event("change", {bubbles: true}));
  found.changed = over.src !== before && over.src === document.querySelector(".under").src;
  found.hidden = [...document.querySelectorAll("[data-viewer]")].map((viewer) => viewer.hidden);
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  found.open = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify(found), "*");
});
"""
OUTER = """<!DOCTYPE html>
<body><script>addEventListener("message", (event) => {
  const output = document.createElement("output");
  output.textContent = event.data;
  document.body.append(output);
});</script><iframe width="WIDTH" height="900" style="border: 0" src="probed.html"></iframe></body>
"""
"""Chromium has no window narrower than 500 pixels: a frame stands for the phone."""


@pytest.fixture(scope="module")
def report(
    benched: tuple[BenchResult, list[np.ndarray | None]],
    contenders: list[Contender],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The report of the whole bench."""
    path = tmp_path_factory.mktemp("browser") / "bench.html"
    write_report(path, benched[0], [contender.reference for contender in contenders], benched[1])
    return path


def with_probe(text: str) -> str:
    """The page with two scripts more, which its content security policy is told of."""
    for script, place in ((WATCH, "<link"), (PROBE, "</body>")):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        text = text.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
        text = text.replace(place, f"<script>{script}</script>{place}", 1)
    return text


def probe(report: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """What the probe found in a copy of the report that is `width` pixels wide."""
    assert CHROMIUM is not None
    (folder / "probed.html").write_text(with_probe(report.read_text(encoding="utf-8")), encoding="utf-8")
    outer = folder / "outer.html"
    outer.write_text(OUTER.replace("WIDTH", str(width)), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    written = re.search(r"<output>(.*)</output>", done.stdout)
    assert written, f"the probe did not come to its end: {done.stdout[-500:]}"
    found: dict[str, Any] = json.loads(html.unescape(written[1]))
    return found


@pytest.mark.parametrize("width", [390, 1280])
def test_report_works_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    found = probe(report, tmp_path, width=width)
    assert found["errors"] == []
    assert len(found["images"]) > 10
    assert all(pixels > 0 for pixels in found["images"])
    assert found["hidden"]
    assert not any(found["hidden"]), "the script shows its viewer"
    assert len(set(found["cuts"])) == 3, "the slider changes what is seen of the left picture"
    assert found["told"].startswith("100 %")
    assert found["changed"], "choosing another picture shows it"
    assert found["width"] == [width, width], "nothing is wider than the window"
    assert found["open"] == width


def test_probe_finds_what_is_broken(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    foreign = '<img src="https://example.invalid/a.png" alt="x"><div><table><td>' + "wide" * 300 + "</table></div>"
    damaged = text.replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAAA", 1)
    copy = tmp_path / "broken.html"
    copy.write_text(damaged.replace("</main>", f"{foreign}</main>"), encoding="utf-8")
    found = probe(copy, tmp_path, width=390)
    assert any("img-src" in error for error in found["errors"]), "what comes from elsewhere is refused"
    assert found["images"].count(0) == 2
    assert found["width"][0] > 390
