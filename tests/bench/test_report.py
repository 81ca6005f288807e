"""The report: one file that opens offline, says what failed, and shows what each engine sees."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.bench.report import write_report
from depthkit.bench.results import BenchResult
from depthkit.bench.suite import Contender
from depthkit.bench.table import TABLES
from depthkit.errors import OutputError

Benched = tuple[BenchResult, list[np.ndarray]]


class _Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(benched: Benched, contenders: list[Contender], tmp_path_factory: pytest.TempPathFactory) -> _Page:
    """The report of the whole bench."""
    path = tmp_path_factory.mktemp("report") / "bench.html"
    write_report(path, benched[0], [contender.reference for contender in contenders], benched[1])
    return _Page(path.read_text(encoding="utf-8"))


def test_page_loads_nothing_from_anywhere(page: _Page) -> None:
    links = [value or "" for _, attributes in page.tags for key, value in attributes.items() if key in {"src", "href"}]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not page.of("script")
    styles = " ".join(page.words)
    assert "url(" not in styles
    assert "@import" not in styles


def test_page_is_well_formed_and_says_its_language(page: _Page) -> None:
    assert page.open == []
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("title")) == len(page.of("h1")) == len(page.of("main")) == 1


def test_every_picture_is_described_and_decodes(page: _Page, benched: Benched) -> None:
    pictures = page.of("img")
    assert len(pictures) == 4 * len(benched[0].rows)
    for picture in pictures:
        assert (picture["alt"] or "").strip()
        content = base64.b64decode((picture["src"] or "").removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(BytesIO(content)) as image:
            image.load()
            assert image.mode == "RGB"
            assert image.width / image.height == 48 / 32
            assert image.width >= 256
    described = [picture["alt"] for picture in pictures if "predict" in (picture["alt"] or "")]
    assert len(set(described)) == len(described), "each prediction is told apart"


def test_page_tells_what_failed_and_shows_every_row(page: _Page, benched: Benched) -> None:
    text = " ".join(page.words)
    assert "1 of 4 rows fail" in text
    assert "PASS" in text
    assert "FAIL" in text
    assert "depthkit bench <all>" in text, "escaped in the file, read as it was typed"
    assert benched[0].environment.cpu.name in text
    tables = sum(table.wanted(benched[0]) for table in TABLES)
    assert tables
    assert len(page.of("tr")) == tables * (1 + len(benched[0].rows))
    widths = [
        float(found[1]) for tag in page.of("span") if (found := re.search(r"width: ([\d.]+)%", tag.get("style") or ""))
    ]
    assert len(widths) == len(benched[0].rows)
    assert max(widths) == 100


def test_bench_that_passes_says_so(benched: Benched, contenders: list[Contender], tmp_path: Path) -> None:
    result = replace(benched[0], rows=benched[0].rows[:1])
    write_report(tmp_path / "b.html", result, [contenders[0].reference], benched[1][:1])
    text = (tmp_path / "b.html").read_text()
    assert "All 1 rows pass" in text
    assert 'class="fail"' not in text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_engine_that_answers_no_numbers_still_gets_its_report(
    benched: Benched, contenders: list[Contender], tmp_path: Path, bad: float
) -> None:
    """The report that is needed most: of an engine that is broken."""
    row = replace(benched[0].rows[0], faults=("NaN or Inf in the output",))
    depths = benched[1][0].copy()
    depths[:, ::2] = bad
    reference = contenders[0].reference
    unmeasured = replace(reference, truths=np.zeros_like(reference.truths))
    result = replace(benched[0], rows=(row, row))
    write_report(tmp_path / "b.html", result, [reference, unmeasured], [depths, depths])
    assert "NaN or Inf" in (tmp_path / "b.html").read_text()


def test_names_are_escaped(benched: Benched, contenders: list[Contender], tmp_path: Path) -> None:
    row = replace(benched[0].rows[0], network='<script>alert("x")</script>')
    write_report(tmp_path / "b.html", replace(benched[0], rows=(row,)), [contenders[0].reference], benched[1][:1])
    page = _Page((tmp_path / "b.html").read_text())
    assert not page.of("script")
    assert "alert" in " ".join(page.words)


def test_report_that_cannot_be_written_is_an_output_error(
    benched: Benched, contenders: list[Contender], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_report(tmp_path / "file" / "b.html", benched[0], [c.reference for c in contenders], benched[1])
