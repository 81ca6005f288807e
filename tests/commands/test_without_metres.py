"""Models whose answers have no metres, through every command: nothing calls them metres, and every figure says so."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from depthkit.data.images import read_image
from depthkit.pipeline.predictor import Predictor
from depthkit.pipeline.scaling import scale_path
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load
from depthkit.testing import assert_parity

from ..runtime.clips import numbered, write_clip
from ..support import Cli, RunBench, edit_json, save_array, save_noise

ENGINE = "compact-32x48.fp32.ort.onnx"


def _scores(cli: Cli, *arguments: object) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(cli("evaluate", *arguments, "--json").out)
    return found


def test_evaluate_aligns_what_has_no_metres_and_says_so(
    cli: Cli, inverse: Path, relative: Path, pristine_exports: Path, pairs: Path
) -> None:
    metric = pristine_exports / ENGINE
    targets = (metric, inverse, relative)
    found = _scores(cli, *targets, "--data", pairs)
    assert [found[str(path)].get("aligned") for path in targets] == [None, "affine", "median"]
    # The three answer the same depth, so that aligned figures are those of the metric engine when it is aligned.
    for path, how in ((inverse, "affine"), (relative, "median")):
        asked = _scores(cli, metric, "--data", pairs, "--align", how)[str(metric)]
        assert asked["pooled"] == pytest.approx(found[str(path)]["pooled"], rel=1e-3)
    shown = " ".join(cli("evaluate", *targets, "--data", pairs).out.split())
    assert (shown.count("aligned (affine)"), shown.count("aligned (median)")) == (1, 1)


@pytest.mark.parametrize(
    ("answers", "how", "sentence"),
    [
        ("inverse", "none", "inverse depth has no metres"),
        ("relative", "none", "relative depth has no metres"),
        ("inverse", "median", "also needs a shift"),
    ],
)
def test_evaluate_refuses_an_alignment_that_is_too_little(
    cli: Cli, request: pytest.FixtureRequest, pairs: Path, answers: str, how: str, sentence: str
) -> None:
    engine = request.getfixturevalue(answers)
    assert sentence in cli("evaluate", engine, "--data", pairs, "--align", how, code=2).message


@pytest.fixture
def picture(here: Path) -> Path:
    """A picture of the engine's size, so that nothing is interpolated, in the working directory."""
    save_noise(here / "a.png", 32, 48)
    return Path("a.png")


@pytest.fixture
def metres(picture: Path, pristine_exports: Path) -> np.ndarray:
    """Of that picture, by the model before its answers lost their metres."""
    with Predictor(pristine_exports / ENGINE) as predictor:
        return predictor(read_image(picture))


def _write_points(path: Path, metres: np.ndarray, places: list[tuple[float, float]]) -> Path:
    lines = [f"{x},{y},{metres[round(y), round(x)]:.9f}" for x, y in places]
    path.write_text("\n".join(["x,y,depth", *lines, ""]))
    return path


def _spread(metres: np.ndarray, count: int = 9) -> list[tuple[float, float]]:
    """Columns and rows of points from the nearest to the farthest."""
    order = np.argsort(metres, axis=None)[np.linspace(0, metres.size - 1, count).astype(int)]
    return [(float(at % metres.shape[1]), float(at // metres.shape[1])) for at in order]


@pytest.mark.parametrize("answers", ["inverse", "relative"])
def test_predict_calls_nothing_metres(
    cli: Cli, request: pytest.FixtureRequest, here: Path, picture: Path, answers: str
) -> None:
    engine = request.getfixturevalue(answers)
    printed = cli("predict", engine, picture, "--save", "color,depth16,npy,npz,exr")
    assert not re.search(r"\d m\b|metres", printed.out), printed.out
    found = re.search(r"(\S+) \(near\) to (\S+) \(far\), no unit", printed.out)
    assert found
    assert (float(found[1]) > float(found[2])) == (answers == "inverse")
    answer = np.load(here / "depth" / "a_depth.npy")
    with np.load(here / "depth" / "a_depth.npz") as stored:
        assert set(stored) == {answers, "time"}
        np.testing.assert_array_equal(stored[answers], answer)
    levels = np.asarray(Image.open(here / "depth" / "a_depth16.png")).astype(float)
    about = json.loads((here / "depth" / "a_depth16.json").read_text())
    assert (about["answers"], about["engine"], about["near"]) == (
        answers, engine.name, "large" if answers == "inverse" else "small",
    )  # fmt: skip
    span = about["high"] - about["low"]
    np.testing.assert_allclose(about["low"] + span * levels / 65535, answer, atol=span / 65535)
    colours = np.asarray(Image.open(here / "depth" / "a_depth.png")).astype(int)
    nearest = np.unravel_index((answer if answers == "inverse" else -answer).argmax(), answer.shape)
    assert colours[nearest][0] < 100 > colours[nearest][1], "near is dark blue"


def test_predict_takes_the_answers_of_range(cli: Cli, inverse: Path, here: Path, picture: Path) -> None:
    cli("predict", inverse, picture, "--save", "color,depth16", "--range", "-1,4")
    about = json.loads((here / "depth" / "a_depth16.json").read_text())
    assert (about["low"], about["high"]) == (-1, 4)
    assert "begin at 0" in cli("predict", "compact", picture, "--range", "-1,4", code=2).message


def test_a_clip_has_one_range_and_its_levels_are_said(cli: Cli, inverse: Path, here: Path) -> None:
    clip = write_clip(here / "clip.mkv", numbered(12))
    printed = cli(
        "predict", inverse, clip, "--save", "side-video,depth-video,npy,color-video", "--smooth", "--out", "d"
    )
    assert "no unit" in printed.out
    about = json.loads((here / "d" / "clip_depth.json").read_text())
    with av.open(str(here / "d" / "clip_depth.mkv")) as opened:
        frames = [frame.to_ndarray() for frame in opened.decode(video=0)]
    assert len(frames) == 12
    span = about["high"] - about["low"]
    for index in (0, 11):
        answer = np.load(here / "d" / f"clip_{index:06d}_depth.npy")
        np.testing.assert_allclose(about["low"] + span * frames[index] / 65535, answer, atol=span / 65535)
        assert about["low"] < answer.min() < answer.max() < about["high"], "nothing is cut off"


def test_points_need_metres(cli: Cli, inverse: Path, here: Path, picture: Path) -> None:
    said = cli("predict", inverse, picture, "--save", "color,ply", "--intrinsics", "fov=63", code=2)
    assert "--calibrate-scale" in said.message
    assert not (here / "depth").exists()


@pytest.mark.parametrize("answers", ["inverse", "relative"])
def test_measured_points_make_metres_for_good(
    cli: Cli, request: pytest.FixtureRequest, here: Path, picture: Path, metres: np.ndarray, answers: str
) -> None:
    engine = request.getfixturevalue(answers)
    cli("predict", engine, picture)  # leaves levels, whose description must not stay beside millimetres
    points = _write_points(here / "points.csv", metres, _spread(metres))
    printed = cli("predict", engine, picture, "--calibrate-scale", points).out
    assert "9 points of a.png" in printed
    assert "for that scene and camera only" in " ".join(printed.split())
    scale = engine.with_name("scale.json")
    assert scale.is_file()
    millimetres = np.asarray(Image.open(here / "depth" / "a_depth16.png"))
    assert np.abs(millimetres / 1000 - metres).max() <= 0.01 * metres.max()
    assert not (here / "depth" / "a_depth16.json").exists()

    later = cli("predict", engine, picture, "--save", "color,ply", "--intrinsics", "fov=63")
    assert "9 points of a.png" in later.out
    assert "multiplied" not in later.out, "the scale is of this camera"
    assert re.search(r"\d m ", later.out)
    with Predictor(engine) as predictor:
        assert predictor.spec.is_metric
        np.testing.assert_allclose(predictor(read_image(picture)), metres, rtol=0.01)
    # A gate and a bench judge what the engine itself answers.
    assert _scores(cli, engine, "--frames", "2")[str(engine)]["aligned"]


def test_a_depth_map_is_measured_points_too(
    cli: Cli, inverse: Path, here: Path, picture: Path, metres: np.ndarray
) -> None:
    measured = np.where(np.random.default_rng(0).uniform(size=metres.shape) < 0.3, np.rint(metres * 5000), 0)
    points = save_array(here / "points.png", measured.astype(np.uint16))
    cli("predict", inverse, picture, "--calibrate-scale", points, "--depth-units", "5000", "--save", "npy")
    np.testing.assert_allclose(np.load(here / "depth" / "a_depth.npy"), metres, rtol=0.01)
    assert "is 32x48 (HxW), but other.png is 20x48" in _refused(cli, inverse, here, "other.png", points)


def _refused(cli: Cli, engine: Path, here: Path, picture: str, points: Path) -> str:
    """The sentence; nothing was written."""
    if not (here / picture).exists():
        save_noise(here / picture, 20, 48)
    message = cli("predict", engine, picture, "--calibrate-scale", points, "--out", "refused", code=2).message
    assert not (here / "refused").exists()
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with the line x,y,depth"),
        ("1,2,3\n4,5,6\n", "must begin with the line x,y,depth"),
        ("x,y,depth\n", "there are 0"),
        ("x,y,depth\n1,1,2\n", "there is 1"),
        ("x,y,depth\n1,1,2\n48,1,3\n", "line 3: pixel 48,1 is outside the picture of 48 columns and 32 rows"),
        ("x,y,depth\n1,1,2\n1,-0.6,3\n", "line 3: pixel 1,-0.6 is outside"),
        ("x,y,depth\n1,1,2\n2,2,0\n", "line 3: depth is 0"),
        ("x,y,depth\n1,1,2\n2,2,nan\n", "line 3: 'nan' is not a number"),
        ("x,y,depth\n1,1,2\n2,2\n", "line 3: None is not a number"),
        ("x,y,depth\n1,1,2\n2,2,2 m\n", "line 3: '2 m' is not a number"),
        ("x,y,depth\n1,1,2\n20,20,2.01\n", "too alike"),
    ],
)
def test_points_that_are_none_are_refused_by_line(
    cli: Cli, inverse: Path, here: Path, picture: Path, text: str, words: str
) -> None:
    points = here / "points.csv"
    points.write_text(text)
    assert words in _refused(cli, inverse, here, str(picture), points)
    assert not inverse.with_name("scale.json").exists()


def test_calibration_is_for_one_picture_and_a_model_without_metres(
    cli: Cli, inverse: Path, here: Path, picture: Path
) -> None:
    points = here / "points.csv"
    points.write_text("x,y,depth\n1,1,2\n")
    save_noise(here / "b.png", 40, 60)
    assert "one picture" in cli("predict", inverse, picture, "b.png", "--calibrate-scale", points, code=2).message
    assert "answers metres already" in _refused(cli, Path("compact"), here, str(picture), points)
    missing = here / "missing.csv"
    assert "missing.csv" in _refused(cli, inverse, here, str(picture), missing)
    assert "leave it out" in cli("predict", inverse, picture, "--depth-units", "5000", code=2).message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "0" * 64}, "fitted to other weights"),
        ({"answers": "relative"}, "fitted to other weights"),
        ({"network_size": [64, 96]}, "fitted at 64x96, and"),
        ({"scale": -1}, "does not fit its schema"),
    ],
)
def test_a_scale_of_another_model_is_refused(
    cli: Cli, inverse: Path, here: Path, picture: Path, metres: np.ndarray, change: dict[str, object], words: str
) -> None:
    points = _write_points(here / "points.csv", metres, _spread(metres))
    again = ("predict", inverse, picture, "--calibrate-scale", points, "--save", "npy")
    cli(*again)
    edit_json(inverse.with_name("scale.json"), **change)
    assert words in cli("predict", inverse, picture, code=2).message
    assert words in cli("view", inverse, picture, "--port", "0", code=2).message
    cli(*again)  # replaces it


def test_the_scale_of_a_run_serves_its_best_engine(inverse: Path, run: Path, here: Path) -> None:
    best = run / "best"
    shutil.copytree(inverse.parent, best)
    assert scale_path(best / inverse.name).resolve() == (run / "scale.json").resolve()
    assert scale_path(run).resolve() == (run / "scale.json").resolve()
    assert scale_path(inverse) == inverse.with_name("scale.json")


def test_bench_and_report_have_no_millimetres(
    bench: RunBench, here: Path, inverse: Path, pristine_exports: Path, pairs: Path
) -> None:
    metric = pristine_exports / ENGINE
    named = ("--engine", inverse, "--engine", metric, "--no-torch", "--data", pairs, "--frames", "2")
    result, out, _ = bench(*named, "--html", "b.html", "--csv", "b.csv", "--markdown", "b.md")
    alone, other = result.rows
    assert (alone.answers, other.answers) == ("inverse", "share")
    assert alone.parity is not None
    assert not alone.parity.is_metric
    assert alone.accuracy is not None
    assert other.accuracy is not None
    assert (alone.accuracy.alignment, other.accuracy.alignment) == ("affine", "none")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(re.search(r"onnxruntime fp32 \S+ % ", line) for line in lines), out
    assert any(re.search(r"onnxruntime fp32 affine ", line) for line in lines), out
    assert "% of the reference's span, FP32" in lines[-1]
    rows = list(csv.DictReader(StringIO((here / "b.csv").read_text())))
    assert (rows[0]["max_abs_mm"], rows[1]["max_abs_percent"]) == ("", "")
    assert float(rows[0]["max_abs_percent"]) < 0.1
    assert [row["alignment"] for row in rows] == ["affine", "none"]
    assert "| aligned |" in (here / "b.md").read_text()
    page = (here / "b.html").read_text()
    assert "aligned (affine)" in base64_pictures(page)
    assert "<span>near</span>" in page


def base64_pictures(page: str) -> str:
    """The text of all charts in a page."""
    return "".join(base64.b64decode(text).decode() for text in re.findall(r"image/svg\+xml;base64,([\w+/=]+)", page))


def test_a_gate_without_metres_is_in_percent(inverse: Path) -> None:
    reference = read_reference(reference_path(inverse.with_name("compact-32x48.fp32.onnx")))
    with load(inverse) as session:
        assert_parity(session, reference, precision="fp32")
        low, high = reference.scale
        moved = replace(reference, depths=reference.depths + np.float32(0.01 * (high - low)))
        with pytest.raises(AssertionError) as caught:
            assert_parity(session, moved, precision="fp32")
    table = str(caught.value)
    assert re.search(r"max \|Δ\| 1 % > 0\.01 %", table), table
    assert "  max |Δ| %" in table
    assert "mm" not in table
    assert "AbsRel" not in table
