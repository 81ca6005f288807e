"""The report: one file that opens offline, says what failed, and shows what each engine sees."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from depthkit.bench.contender import Contender
from depthkit.bench.results import BenchResult, Peaks, Roofline
from depthkit.errors import OutputError
from depthkit.report.html import write_report
from depthkit.report.tables import TABLES
from depthkit.session import LayerTime

from .conftest import FULL, Benched, timed


class _Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.inner: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br", "input", "source"}:
            self.open.append(tag)
            self.inner.append([])
            self.texts.append((tag, dict(attrs), self.inner[-1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inner.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
        for words in self.inner:
            words.append(data)

    @property
    def text(self) -> str:
        """What is read."""
        return " ".join(self.words)

    def inside(self, tag: str) -> list[str]:
        """The text directly or deeper in each element of that kind."""
        return ["".join(words) for name, _, words in self.texts if name == tag]

    @property
    def charts(self) -> list[ET.Element]:
        """The charts, each for a desk and for a phone."""
        sources = [tag.get("srcset") or tag.get("src") or "" for name, tag in self.tags if name in {"img", "source"}]
        texts = [source.partition("data:image/svg+xml;base64,")[2] for source in sources]
        return [ET.fromstring(base64.b64decode(text, validate=True)) for text in texts if text]

    @property
    def told(self) -> list[str]:
        """What the charts show, in words."""
        return [tag["alt"] or "" for tag in self.of("img") if tag.get("class") == "chart"]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def rich_page(rich: BenchResult, benched: Benched, contenders: list[Contender], tmp_path: Path) -> _Page:
    answers = [*benched[1][:2], None, None]
    write_report(tmp_path / "rich.html", rich, [contender.reference for contender in contenders], answers)
    return _Page((tmp_path / "rich.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(benched: Benched, contenders: list[Contender], tmp_path_factory: pytest.TempPathFactory) -> _Page:
    """The report of the whole bench."""
    path = tmp_path_factory.mktemp("report") / "bench.html"
    write_report(path, benched[0], [contender.reference for contender in contenders], benched[1])
    return _Page(path.read_text(encoding="utf-8"))


def test_page_loads_nothing_from_anywhere(page: _Page) -> None:
    links = [value or "" for _, attributes in page.tags for key, value in attributes.items() if key in {"src", "href"}]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    names = {attributes.get("id") for _, attributes in page.tags}
    assert all(link[1:] in names for link in links if link.startswith("#")), "every section that is linked is there"
    (style,) = page.inside("style")
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style + page.inside("script")[0]


def test_policy_allows_this_page_and_nothing_else(page: _Page) -> None:
    (policy,) = [tag["content"] or "" for tag in page.of("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (content,) = page.inside(tag)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [key for _, attributes in page.tags for key in attributes if key == "style" or key.startswith("on")]


def test_page_is_well_formed_and_says_its_language(page: _Page) -> None:
    assert page.open == []
    assert page.of("html") == [{"lang": "en"}]
    assert page.inside("title")[0].startswith("depthkit bench")
    assert len(page.of("h1")) == len(page.of("main")) == len(page.of("nav")) == 1


def test_headings_follow_each_other(page: _Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_every_picture_is_described_and_decodes(page: _Page) -> None:
    assert all(told.strip() for told in page.told)
    pictures = [picture for picture in page.of("img") if picture.get("class") != "chart"]
    assert pictures
    for picture in pictures:
        assert (picture["alt"] or "").strip()
        content = base64.b64decode((picture["src"] or "").partition(";base64,")[2], validate=True)
        with Image.open(BytesIO(content)) as image:
            image.load()
            assert image.size in {(48, 32), (255, 2)}, "a picture, or a scale"
    described = [alt for picture in pictures if "predict" in (alt := picture["alt"] or "")]
    assert described
    assert len(set(described)) == len(described), "each prediction is told apart"


def test_every_frame_shows_camera_truth_and_all_engines(page: _Page, benched: Benched) -> None:
    shown = [picture["data-name"] for picture in page.of("img") if "data-name" in picture]
    names = ["camera", "measured depth", "reference", *(f"{row.backend}, {row.precision}" for row in benched[0].rows)]
    assert len(shown) >= len(names)
    assert shown == names * (len(shown) // len(names))
    options = page.inside("option")
    assert options.count("camera") == 2, "left and right"


def test_pictures_are_there_without_the_script(page: _Page) -> None:
    viewers = [attributes for _, attributes in page.tags if "data-viewer" in attributes]
    assert viewers
    assert all("hidden" in viewer for viewer in viewers), "what only the script can fill"
    assert all("open" in folded for folded in page.of("details"))


def test_charts_are_drawn_twice_and_told(rich_page: _Page, rich: BenchResult) -> None:
    ran = [row for row in rich.rows if row.wall_ms]
    models = {row.model for row in ran}
    assert len(rich_page.told) == 1 + len(models) + 1 + 1, "Pareto, latencies of each model, phases, roofline"
    assert all(rich_page.told)
    assert len(rich_page.charts) == 2 * len(rich_page.told), "for a desk and for a phone"
    assert {chart.attrib["width"] for chart in rich_page.charts} == {"645pt", "270pt"}
    assert all(tag.get("aria-hidden") == "true" for tag in rich_page.of("meter")), "the figure stands beside it"
    assert not rich_page.of("svg")


def test_same_result_gives_the_same_file(rich: BenchResult, contenders: list[Contender], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, rich, [contender.reference for contender in contenders], [None] * 4)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_page_tells_what_failed_and_shows_every_row(page: _Page, benched: Benched) -> None:
    text = page.text
    assert "1 of 4 rows fail" in text
    assert "PASS" in text
    assert "FAIL" in text
    assert "depthkit bench <all>" in text, "escaped in the file, read as it was typed"
    assert benched[0].environment.cpu.name in text
    tables = sum(table.wanted(benched[0]) for table in TABLES)
    assert tables
    assert len(page.of("tr")) == (tables + 1) * (1 + len(benched[0].rows)), "one more: latencies and speedups"
    assert "interrupted" not in text


def test_bench_that_passes_says_so(benched: Benched, contenders: list[Contender], tmp_path: Path) -> None:
    result = replace(benched[0], rows=benched[0].rows[:2])
    write_report(tmp_path / "b.html", result, [contender.reference for contender in contenders[:2]], benched[1][:2])
    text = _Page((tmp_path / "b.html").read_text()).text
    assert "2 of 2 pass (largest error " in text
    assert "FAIL" not in text
    assert "Failures" not in text


def test_summary_names_verdicts_fastest_and_doubts(rich_page: _Page, rich: BenchResult) -> None:
    text = rich_page.text
    assert "incomplete: interrupted" in text
    assert "2 of 3 rows fail" in text
    assert "1 more without a gate" in text
    assert "ERROR: no such provider" in text
    assert "FAIL: SSIM 0.5 < 0.98" in text
    assert "it was warm" in text
    assert "the clock moved" in text
    cards = [words for words in rich_page.inside("b") if words.endswith(" ms")]
    assert cards[0] == f"{rich.rows[0].p50_ms:.2f} ms", "the fastest is the one that passes, not the one that fails"


def test_row_that_did_not_run_is_nowhere_a_zero(rich_page: _Page, rich: BenchResult) -> None:
    broken = rich.rows[2]
    drawn = [text for chart in rich_page.charts for text in chart.itertext()]
    assert not [told for told in (*rich_page.told, *drawn) if f"{broken.backend}, {broken.precision}" in told]
    assert f"is missing: {broken.name}" in " ".join(rich_page.text.split())
    first = next(table for table in TABLES if table.wanted(rich))
    cells = {column.heading: column.cell(broken) for column in first.columns if column.number}
    assert set(cells.values()) == {""}


def test_phases_that_were_not_measured_are_not_drawn(rich_page: _Page, rich: BenchResult) -> None:
    (stacks,) = [told for told in rich_page.told if " device " in told]
    full, other = (f"{row.backend}, {row.precision}" for row in rich.rows[:2])
    assert stacks == (
        f"{full}: preprocess 1.25 ms, h2d 0.25 ms, device 7 ms, d2h 0.125 ms, postprocess 0.5 ms, enqueue 0.75 ms; "
        f"{other}: device 9 ms"
    )


def test_intervals_speedups_roofline_and_layers_are_told(rich_page: _Page, rich: BenchResult) -> None:
    text = " ".join(rich_page.text.split())
    row, other = rich.rows[:2]
    assert row.p50_interval is not None
    assert f"{row.p50_interval.low:.2f} to {row.p50_interval.high:.2f} ms" in text
    assert f"{rich.speedups[other.name].middle:.2f}×" in text
    assert "10% of roofline" in text, "2 ms at the least by the arithmetic, of 20 ms"
    assert "layer9" in text
    assert "layer10" not in text, "only ten"
    assert "2 more take" in text
    assert "1.00 ms" not in text
    assert "32.2%" in text, "of the first layer: 1 / (1 + 1/2 + … + 1/12)"


def test_rows_are_held_against_truth_where_it_was_measured(
    rich_page: _Page, page: _Page, rich: BenchResult, benched: Benched
) -> None:
    assert "AbsRel" in rich_page.told[0]
    assert rich.rows[0].backend in rich_page.told[0].partition("front: ")[2]
    assert rich.rows[1].precision + "." not in rich_page.told[0].partition("front: ")[2], "what fails is on no front"
    assert "SSIM" in page.told[0]


def test_small_figures_do_not_read_as_zero(rich: BenchResult, contenders: list[Contender], tmp_path: Path) -> None:
    row = replace(timed(rich.rows[0], 0.0017), phases={"device": (0.0012,)}, roofline=None)
    write_report(tmp_path / "b.html", replace(rich, rows=(row,)), [contenders[0].reference], [None])
    page = _Page((tmp_path / "b.html").read_text())
    said = page.text.partition("All figures")[0] + "".join(page.told)
    drawn = " ".join(text for chart in page.charts for text in chart.itertext())
    for text in (said, drawn):
        assert "0.0017 ms" in text
        assert "0.0012 ms" in text
        assert not re.search(r"\b0\.0+ ms", text)


def test_rows_without_a_run_still_get_a_report(rich: BenchResult, contenders: list[Contender], tmp_path: Path) -> None:
    result = replace(rich, rows=rich.rows[2:3])
    write_report(tmp_path / "b.html", result, [contenders[2].reference], [None])
    page = _Page((tmp_path / "b.html").read_text())
    assert "1 of 1 rows fail" in page.text
    assert not page.of("img")


def test_runs_beyond_the_axis_are_counted(rich: BenchResult, contenders: list[Contender], tmp_path: Path) -> None:
    row = timed(rich.rows[0], 3.0)
    row = replace(row, wall_ms=(*row.wall_ms[:-1], 300.0))
    write_report(tmp_path / "b.html", replace(rich, rows=(row,)), [contenders[0].reference], [None])
    drawn = [text for chart in _Page((tmp_path / "b.html").read_text()).charts for text in chart.itertext()]
    assert drawn.count("3.00 ms, 1 beyond") == 2, "for a desk and for a phone"


def figures_below(chart: ET.Element) -> list[str]:
    """Of a chart's x axis."""
    (axis,) = chart.findall(".//*[@id='matplotlib.axis_1']")
    texts = ["".join(group.itertext()).strip() for group in axis if (group.get("id") or "").startswith("xtick")]
    return [text for text in texts if text]


@pytest.mark.parametrize("middle", [1e-3, 0.3, 0.5, 1.0, 3.0, 9.99, 4444.0])
def test_every_plot_has_figures_on_its_axes(
    benched: Benched, contenders: list[Contender], tmp_path: Path, middle: float
) -> None:
    rows = (timed(benched[0].rows[0], middle), timed(benched[0].rows[1], 1.001 * middle))
    result = replace(benched[0], rows=rows)
    write_report(tmp_path / "b.html", result, [contender.reference for contender in contenders[:2]], benched[1][:2])
    page = _Page((tmp_path / "b.html").read_text())
    assert len(page.charts) == 2 * len(page.told)
    for chart in page.charts:
        ticks = figures_below(chart)
        assert len(ticks) >= 2
        assert len(set(ticks)) == len(ticks), "two ticks that read the same"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_engine_that_answers_no_numbers_still_gets_its_report(
    benched: Benched, contenders: list[Contender], tmp_path: Path, bad: float
) -> None:
    """The report that is needed most: of an engine that is broken."""
    row = replace(benched[0].rows[0], faults=("NaN or Inf in the output",))
    assert benched[1][0] is not None
    depths = benched[1][0].copy()
    depths[:, ::2] = bad
    reference = contenders[0].reference
    unmeasured = replace(reference, truths=np.zeros_like(reference.truths))
    result = replace(benched[0], rows=(row, row))
    write_report(tmp_path / "b.html", result, [reference, unmeasured], [depths, depths])
    assert "NaN or Inf" in (tmp_path / "b.html").read_text()


def test_names_are_escaped(benched: Benched, contenders: list[Contender], tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script> $\\frac$ 深'  # and what matplotlib could take for mathematics
    row = replace(
        timed(benched[0].rows[0], 3.0),
        network=hostile,
        backend=f"{hostile}'\"",
        target=hostile,
        precision=hostile,
        provider=hostile,
        faults=(hostile,),
        notes=(hostile,),
        phases=FULL,
        layers=(LayerTime(hostile, f'" onload="{hostile}', 1.0),),
        roofline=Roofline(10**9, 10**7, Peaks(hostile, 500.0, 20.0, hostile)),
    )
    write_report(tmp_path / "b.html", replace(benched[0], rows=(row,)), [contenders[0].reference], benched[1][:1])
    page = _Page((tmp_path / "b.html").read_text())
    assert page.open == []
    assert len(page.of("script")) == 1, "the page's own"
    assert "alert" not in page.inside("script")[0]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count(hostile) > 5
    assert any(hostile in text for chart in page.charts for text in chart.itertext())


def test_report_that_cannot_be_written_is_an_output_error(
    benched: Benched, contenders: list[Contender], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_report(tmp_path / "file" / "b.html", benched[0], [c.reference for c in contenders], benched[1])
