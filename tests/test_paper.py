"""docs/results/paper.md: it says what its numbers say, and its numbers are those of the runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from depthkit.bench.accuracy import measure_accuracy
from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.data.sources import open_dataset
from depthkit.files import sha256
from depthkit.frames import predict_frames
from depthkit.metrics import aggregate, score_frame
from depthkit.train.networks import build_network
from depthkit.train.torch_session import TorchSession

SCRIPTS = Path(__file__).parents[1] / "docs" / "results"
COUNTS = {"train": 3, "val": 2, "test": 8}

Main = Callable[[list[str]], int]
Paper = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def main() -> Iterator[Main]:
    """paper.py, found as it finds its own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield import_module("paper").main
    for name in [name for name in sys.modules if name.startswith("paper")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms of one depth each, at another size than the runs'; the later, the deeper. Read only."""
    root = tmp_path_factory.mktemp("data") / "rooms"
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for index in range(count):
            write_image(root / "images" / split / f"{index}.png", random.integers(0, 256, (40, 56, 3), np.uint8))
            depth = np.full((40, 56), 2.0 + index / 4, np.float32)
            depth[:12] = 0  # not measured
            write_depth_png(root / "depth" / split / f"{index}.png", depth)
    return root


@pytest.fixture(scope="module")
def runs(pristine_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of both networks, of compact by two seeds. Read only."""
    root = tmp_path_factory.mktemp("trained")
    weights = load_file(pristine_run / "model.safetensors")
    name = next(name for name in reversed(weights) if name.endswith("bias"))
    other = {**weights, name: weights[name] + 0.01}
    return [
        _altered(pristine_run, root / "seed0" / "compact", weights),
        _altered(pristine_run, root / "seed0" / "unet", build_network("unet").state_dict(), network="unet"),
        _altered(pristine_run, root / "seed1" / "compact", other, seed=1),
    ]


@pytest.fixture(scope="module")
def pristine(main: Main, data: Path, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What measuring these runs leaves, with a sentence on each failure. Read only."""
    folder = tmp_path_factory.mktemp("measured") / "paper"
    folder.mkdir()
    shutil.copy(SCRIPTS / "paper" / "page.md.j2", folder)
    (folder / "failures.json").write_text(json.dumps({str(n): f"Room {n}." for n in range(COUNTS["test"])}))
    assert main(["--folder", str(folder), "measure", "--data", str(data), *map(str, runs)]) == 0
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "paper"))


@pytest.fixture
def measured(folder: Path) -> dict[str, Any]:
    """The numbers in it."""
    return _numbers(folder)


@pytest.fixture
def paper(main: Main, folder: Path) -> Paper:
    """Runs a step of paper.py in that folder and returns its exit code."""
    return lambda *arguments: main(["--folder", str(folder), *map(str, arguments)])


def _altered(
    run: Path, goal: Path, weights: dict[str, torch.Tensor], *, seed: int = 0, network: str = "compact"
) -> Path:
    """A copy of a run with other weights, network or seed."""
    shutil.copytree(run, goal)
    save_file(weights, goal / "model.safetensors")
    document = json.loads((goal / "model.json").read_text())
    document["weights_sha256"] = sha256(goal / "model.safetensors")
    document["model"]["network"] = network
    document["training"]["seed"] = seed
    (goal / "model.json").write_text(json.dumps(document))
    return goal


def _numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "numbers.json").read_text())
    return found


def _change(folder: Path, numbers: dict[str, Any]) -> None:
    (folder / "numbers.json").write_text(json.dumps(numbers))


def _render(paper: Paper, folder: Path) -> str:
    """The page, made of the numbers in that folder."""
    assert paper("render") == 0
    return folder.with_suffix(".md").read_text(encoding="utf-8")


def _cells(page: str, start: str) -> list[str]:
    """The cells of the first row that begins with `start`."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_published_page_is_what_its_numbers_say_and_of_the_whole_test_set(main: Main) -> None:
    folder = SCRIPTS / "paper"
    assert main(["render", "--check"]) == 0
    test = _numbers(folder)["test"]
    assert test["frames"] == test["available"] == 654
    for name in re.findall(r"\]\((paper/[^)]+)\)", folder.with_suffix(".md").read_text(encoding="utf-8")):
        assert (SCRIPTS / name).stat().st_size < 400_000


def test_scores_are_those_of_evaluate(measured: dict[str, Any], data: Path, runs: list[Path]) -> None:
    test = open_dataset(data, "test")
    assert [row["name"] for row in measured["runs"]] == ["seed0/compact", "seed0/unet", "seed1/compact"]
    for row, run in zip(measured["runs"], runs, strict=True):
        with TorchSession(run) as session:
            scores = measure_accuracy(session, [test[i][:2] for i in range(len(test))], None)
        assert (row["scores"]["mse"], row["scores"]["ssim"]) == (scores.mse, scores.ssim)
        assert row["scores"]["pooled"] == vars(scores.pooled)
        assert row["scores"]["per_image"] == vars(scores.per_image)
        with (run / "metrics.csv").open(newline="") as stream:
            losses = [float(line["val_loss"]) for line in csv.DictReader(stream)]
        assert [epoch["val_loss"] for epoch in row["curve"]] == losses


def test_flip_averaging_mirrors_the_answer_back(measured: dict[str, Any], data: Path, runs: list[Path]) -> None:
    test = open_dataset(data, "test")
    with TorchSession(runs[0]) as session:

        def answer(image: np.ndarray) -> np.ndarray:
            return next(predict_frames(session, [image]))

        means = [(answer(test[i].image) + np.fliplr(answer(np.fliplr(test[i].image)))) / 2 for i in range(len(test))]
    scores = aggregate(score_frame(mean, test[i].depth) for i, mean in enumerate(means))
    flipped = measured["runs"][0]["flipped"]
    assert flipped["mse"] == pytest.approx(scores.mse, rel=1e-6)
    assert flipped["mse"] != measured["runs"][0]["scores"]["mse"]


def test_constant_is_the_median_of_the_training_pixels(measured: dict[str, Any]) -> None:
    """Of 2.0, 2.25 and 2.5 m; pixels that were not measured are 0 and would pull it down."""
    test = measured["test"]
    assert (test["data"], test["frames"], test["available"]) == ("rooms", COUNTS["test"], COUNTS["test"])
    assert (test["training"], test["validation"]) == (COUNTS["train"], COUNTS["val"])
    assert test["median"] == 2.25
    expected = np.mean([((2.25 - (2 + n / 4)) / 10) ** 2 for n in range(COUNTS["test"])])
    assert test["constant"]["mse"] == pytest.approx(expected, rel=1e-5)


def test_worst_frames_come_first(measured: dict[str, Any]) -> None:
    for row in measured["runs"]:
        errors = [frame["rmse"] for frame in row["worst"]]
        assert errors == sorted(errors, reverse=True)
        assert len(errors) == 6
        assert errors[-1] > row["scores"]["per_image"]["rmse"] * 0.5
        assert all(frame["name"] == str(frame["position"]) for frame in row["worst"])


def test_sheets_show_small_pictures_of_both_networks(measured: dict[str, Any], folder: Path) -> None:
    unet, compact = (
        next(row["weights_sha256"] for row in measured["runs"] if row["network"] == network)
        for network in ("unet", "compact")
    )
    assert measured["sheets"]["weights"] == [unet, compact], "the first seed of each, compact last"
    sizes = []
    for name in ("qualitative.png", "failures.png"):
        with Image.open(folder / name) as picture:
            sizes.append(picture.size)
        assert (folder / name).stat().st_size < 400_000
    assert sizes[0][0] - sizes[1][0] == 132, "one network more: a thumbnail of 128 pixels and a gap"


def test_page_gives_means_over_seeds_and_names_no_path(
    paper: Paper, measured: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    page = _render(paper, folder)
    a, b = (row["scores"] for row in measured["runs"] if row["network"] == "compact")
    mean, deviation = (a["mse"] + b["mse"]) / 2, abs(a["mse"] - b["mse"]) / 2**0.5
    assert _cells(page, "proposed (compact)")[2] == f"{mean:.5f} ± {deviation:.5f}"
    assert _cells(page, "baseline (unet)")[1] == "0.04781"
    shares = [scores["pooled"]["delta1"] for scores in (a, b)]
    assert _cells(page, "compact, paper")[9] == f"{np.mean(shares):.3f} ± {np.std(shares, ddof=1):.3f}"
    for frame in measured["runs"][0]["worst"]:
        assert _cells(page, frame["name"])[1] == f"Room {frame['name']}."
    assert str(tmp_path) not in page + (folder / "numbers.json").read_text()
    assert (folder / "curve.png").is_file()
    assert paper("render", "--check") == 0
    folder.with_suffix(".md").write_text(page.replace("0.04781", "0.04782"), encoding="utf-8")
    assert paper("render", "--check") == 1


@pytest.mark.parametrize(
    ("field", "figure", "said"),
    [
        ("delta1", 0.65, "0.650, reached"),
        ("delta1", 0.649, "0.649, not reached"),
        ("abs_rel", 0.22, "0.220, reached"),
        ("rmse", 0.81, "0.810, not reached"),
    ],
)
def test_goals_are_decided_from_the_numbers(
    paper: Paper, measured: dict[str, Any], folder: Path, field: str, figure: float, said: str
) -> None:
    measured["runs"] = measured["runs"][:2]
    measured["runs"][0]["scores"]["pooled"][field] = figure
    _change(folder, measured)
    name = {"delta1": "δ1", "abs_rel": "AbsRel", "rmse": "RMSE m"}[field]
    assert _cells(_render(paper, folder), name)[2] == said


@pytest.mark.parametrize(("mse", "better"), [(0.01, "compact"), (0.03, "unet")])
def test_page_says_who_is_better(paper: Paper, measured: dict[str, Any], folder: Path, mse: float, better: str) -> None:
    for row in measured["runs"]:
        row["scores"]["mse"] = 0.02 if row["network"] == "unet" else mse
    _change(folder, measured)
    assert f"MSE: {better} is better, by 0.01000" in _render(paper, folder)


def test_weights_meet_the_test_set_once(
    paper: Paper, measured: dict[str, Any], folder: Path, data: Path, runs: list[Path]
) -> None:
    true = measured["runs"][0]["scores"]["mse"]
    measured["runs"][0]["scores"]["mse"] = 0.5
    _change(folder, measured)
    assert paper("measure", "--data", data, *runs) == 0
    assert _numbers(folder)["runs"][0]["scores"]["mse"] == 0.5
    assert paper("measure", "--data", data, "--again", runs[0]) == 0
    again = {row["name"]: row["scores"]["mse"] for row in _numbers(folder)["runs"]}
    assert len(again) == len(runs)
    assert again["seed0/compact"] == true


def test_numbers_of_different_test_frames_are_not_mixed(
    paper: Paper, folder: Path, data: Path, runs: list[Path], capsys: Captured
) -> None:
    before = (folder / "numbers.json").read_bytes()
    assert paper("measure", "--data", data, "--frames", 3, *runs) == 2
    assert "8 of 8 test frames of rooms" in capsys.readouterr().err
    assert (folder / "numbers.json").read_bytes() == before


def test_failure_without_a_sentence_is_named(
    paper: Paper, measured: dict[str, Any], folder: Path, capsys: Captured
) -> None:
    worst = measured["runs"][0]["worst"][0]["name"]
    sentences = json.loads((folder / "failures.json").read_text())
    del sentences[worst]
    (folder / "failures.json").write_text(json.dumps(sentences))
    assert paper("render") == 2
    assert f"no sentence on {worst};" in capsys.readouterr().err
    assert not folder.with_suffix(".md").exists()


def test_page_without_the_baseline_is_refused(
    paper: Paper, folder: Path, data: Path, runs: list[Path], capsys: Captured
) -> None:
    (folder / "numbers.json").unlink()
    assert paper("measure", "--data", data, "--frames", 2, runs[0]) == 0
    assert _numbers(folder)["test"]["frames"] == 2
    assert paper("render") == 2
    assert "a run of unet" in capsys.readouterr().err


def test_ablation_is_of_the_validation_split(paper: Paper, folder: Path, data: Path, runs: list[Path]) -> None:
    assert paper("ablate", "--data", data, f"lr=1e-4={runs[0]}", f"lr=1e-4={runs[2]}") == 0
    found = _numbers(folder)["ablation"]
    validation = open_dataset(data, "val")
    with TorchSession(runs[0]) as session:
        scores = measure_accuracy(session, [validation[i][:2] for i in range(len(validation))], None)
    assert found[0]["scores"]["pooled"] == vars(scores.pooled)
    assert [(row["label"], row["seed"]) for row in found] == [("lr=1e-4", 0), ("lr=1e-4", 1)]
    assert _cells(_render(paper, folder), "lr=1e-4")[3] == "2"


def test_row_without_a_label_is_refused(paper: Paper, data: Path, runs: list[Path]) -> None:
    assert paper("ablate", "--data", data, runs[0]) == 2


def test_both_protocols_time_runs_and_engines(paper: Paper, folder: Path, pristine_exports: Path) -> None:
    engine = next(pristine_exports.glob("*.fp32.ort.onnx"))
    assert paper("time", "--size", "16x16", "--seconds", 0, pristine_exports, engine) == 0
    rows = _numbers(folder)["speed"]["rows"]
    assert [(row["engine"], row["size"]) for row in rows] == [
        ("torch eager, cpu", [32, 48]),
        ("torch eager, cpu", [16, 16]),
        ("CPUExecutionProvider", [32, 48]),
    ]
    assert all(len(row["paper_ms"]) == 10 and len(row["steady_ms"]) >= 10 for row in rows)
    assert rows[0]["macs"] > rows[1]["macs"]
    assert "| compact | torch eager, cpu | fp32 | 16x16 |" in _render(paper, folder)
