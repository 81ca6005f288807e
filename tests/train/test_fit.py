"""Fitting: what a run leaves, that it repeats, survives a kill, and says what stopped it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.errors import DataError, OutputError, SpecError, TrainingError, UserError
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.history import EpochRecord
from depthkit.train.presets import PresetName

from ..support import files_at_most
from .runs import abs_rel_of, curve_of, cut_short, fitted, record_of, train_options, weights_of

PRESETS: tuple[PresetName, ...] = ("paper", "best")
EPOCHS, STEPS_AN_EPOCH = 2, 2  # ten pictures in batches of four, the last two left out
_options = partial(train_options, epochs=EPOCHS)


@pytest.fixture(scope="module", params=PRESETS)
def whole(request: pytest.FixtureRequest, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """The options of a run that was trained in one go, for each preset. Read only."""
    options = _options(pairs, tmp_path_factory.mktemp(request.param), preset=request.param)
    fitted(options)
    return options


@pytest.fixture(scope="module")
def cut(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """The options of a run of one epoch that was cut short: `last.ckpt` is there, a bundle is not. Read only."""
    options = _options(pairs, tmp_path_factory.mktemp("cut"))
    cut_short(options)
    return options


def test_a_run_leaves_a_whole_bundle(whole: TrainOptions) -> None:
    folder = whole.folder
    expected = ("model.safetensors", "model.json", "frames.npz", "metrics.csv", "curve.png", "samples.png", "last.ckpt")
    assert {path.name for path in folder.iterdir()} == set(expected)
    for name in ("curve.png", "samples.png"):
        picture = np.array(Image.open(folder / name).convert("RGB"))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 10
    spec, record = read_bundle(folder).spec, record_of(folder)
    assert (spec.network, spec.size, spec.parameters) == ("compact", (32, 48), 1_218_350)
    assert (record.data, record.place) == (Path(whole.data).name, str(Path(whole.data).resolve()))
    assert (record.samples, record.size, record.preset) == (10, (32, 48), whole.preset)
    assert (record.epochs, record.steps, record.batch, record.devices) == (EPOCHS, EPOCHS * STEPS_AN_EPOCH, 4, 1)
    assert record.versions["torch"] == torch.__version__


def test_a_bundle_keeps_validation_frames_at_the_cameras_size(whole: TrainOptions, pairs: Path) -> None:
    frames = read_bundle(whole.folder).frames
    assert frames.images.dtype == np.uint8
    assert frames.depths.dtype == np.float32
    originals = [np.array(Image.open(path)) for path in sorted((pairs / "images" / "val").iterdir())]
    kept = {image.tobytes() for image in frames.images}
    assert kept == {image.tobytes() for image in originals}
    assert len(frames.images) == len(frames.depths) == len(originals), "a frame is kept once"
    assert (frames.depths == 0).any()


def test_the_curve_has_a_line_an_epoch(whole: TrainOptions) -> None:
    lines = curve_of(whole.folder)
    assert [int(line["epoch"]) for line in lines] == [1, 2]
    assert [int(line["step"]) for line in lines] == [STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH]
    for line in lines:
        assert all(np.isfinite(float(value)) for name, value in line.items() if name != "stage")
        assert 0 <= float(line["val_delta1"]) <= 1


def test_the_validation_columns_are_those_of_the_weights(whole: TrainOptions, pairs: Path) -> None:
    assert float(curve_of(whole.folder)[-1]["val_abs_rel"]) == pytest.approx(abs_rel_of(whole.folder, pairs), rel=1e-3)


def test_a_seed_gives_the_same_weights_twice(whole: TrainOptions, tmp_path: Path) -> None:
    again = fitted(replace(whole, out=tmp_path))
    assert weights_of(again) == weights_of(whole.folder)
    assert curve_of(again) == curve_of(whole.folder)


@pytest.mark.parametrize("whole", ["paper"], indirect=True)
def test_another_seed_gives_other_weights(whole: TrainOptions, tmp_path: Path) -> None:
    assert weights_of(fitted(replace(whole, out=tmp_path, seed=1))) != weights_of(whole.folder)


@pytest.mark.parametrize("after", [1, EPOCHS], ids=["halfway", "before the bundle"])
def test_a_run_that_was_cut_and_resumed_is_the_run_that_was_not(
    whole: TrainOptions, tmp_path: Path, after: int
) -> None:
    cut = replace(whole, out=tmp_path)
    cut_short(cut, after)
    assert len(curve_of(cut.folder)) == after
    assert not (cut.folder / "model.json").exists()
    lines: list[EpochRecord] = []
    resumed = fitted(replace(cut, resume=True, on_epoch=lines.append))
    assert [line.epoch for line in lines] == list(range(after + 1, EPOCHS + 1))
    assert curve_of(resumed) == curve_of(whole.folder)
    assert weights_of(resumed) == weights_of(whole.folder)


def test_resuming_a_finished_run_changes_nothing(whole: TrainOptions, tmp_path: Path) -> None:
    """Averaged weights stay averaged: Lightning alone would leave the raw ones, since nothing is left to train."""
    shutil.copytree(whole.folder, tmp_path / "compact")
    assert weights_of(fitted(replace(whole, out=tmp_path, resume=True))) == weights_of(whole.folder)


@pytest.mark.parametrize("whole", ["paper"], indirect=True)
def test_resume_without_a_checkpoint_starts_from_scratch(whole: TrainOptions, tmp_path: Path) -> None:
    assert weights_of(fitted(replace(whole, out=tmp_path, resume=True))) == weights_of(whole.folder)


def test_resume_with_other_options_names_them(cut: TrainOptions) -> None:
    with pytest.raises(TrainingError) as caught:
        fit(replace(cut, resume=True, batch=2, seed=5, preset="best"))
    message = str(caught.value)
    for change in ("pictures a step 4 -> 2", "seed 0 -> 5", "preset paper -> best", "learning_rate 0.0001 -> 0.002"):
        assert change in message
    assert "epochs" not in message
    assert "last.ckpt" in message


@pytest.mark.parametrize("change", [{"depth_units": 500.0}, {"epochs": 3}, {"steps": 3}, {"size": (48, 32)}], ids=str)
def test_resume_refuses_whatever_would_make_another_curve(cut: TrainOptions, change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change))):
        fit(replace(cut, resume=True, **change))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_resume_from_a_damaged_checkpoint(cut: TrainOptions, tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "compact"
    folder.mkdir()
    whole = (cut.folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(TrainingError, match=r"last\.ckpt"):
        fit(replace(cut, out=tmp_path, resume=True))


def test_a_loss_that_is_not_finite_names_the_batch(pairs: Path, tmp_path: Path) -> None:
    """One step at such a rate overflows the weights: the second batch has no finite loss."""
    with pytest.raises(TrainingError) as caught:
        fit(_options(pairs, tmp_path, learning_rate=1e30))
    message = str(caught.value)
    assert "epoch 1" in message
    assert "batch 2" in message
    named = [path for path in (pairs / "images" / "train").iterdir() if str(path) in message]
    assert len(named) == 4
    assert not (tmp_path / "compact" / "model.json").exists()


def test_weights_that_blow_up_in_the_last_step_are_no_result(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"validation loss .* epoch 1"):
        fit(_options(pairs, tmp_path, learning_rate=1e30, steps=1))
    assert not (tmp_path / "compact" / "model.json").exists()


def test_training_needs_a_whole_batch(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"10 .*11"):
        fit(_options(pairs, tmp_path, batch=11))
    assert not (tmp_path / "compact").exists()


@pytest.mark.parametrize(("steps", "taken", "epochs"), [(1, 1, 1), (3, 2, 2), (100, 4, 2)])
def test_steps_end_a_run(pairs: Path, tmp_path: Path, steps: int, taken: int, epochs: int) -> None:
    """Never more than asked for, and in equal epochs: three steps in two epochs are one each."""
    folder = fitted(_options(pairs, tmp_path, steps=steps))
    record = record_of(folder)
    assert record.steps == taken
    assert record.epochs == len(curve_of(folder)) == epochs


def test_a_full_disk_names_the_run_folder(pairs: Path, tmp_path: Path) -> None:
    with files_at_most(1 << 20), pytest.raises(OutputError, match=str(tmp_path / "compact")):
        fit(_options(pairs, tmp_path))
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "compact" / "model.json").exists()


def test_an_output_folder_that_cannot_be_made(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        fit(_options(pairs, tmp_path / "file"))


@pytest.mark.parametrize(
    ("change", "error"),
    [({"size": (33, 48)}, SpecError), ({"network": "resnet"}, UserError), ({"data": "nowhere"}, DataError)],
    ids=["size", "network", "data"],
)
def test_a_bad_request_leaves_nothing(
    pairs: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        fit(_options(pairs, tmp_path, **change))
    assert not list(tmp_path.rglob("*"))


def _unmeasured(root: Path, *, measured: int) -> Path:
    """A set of 16 training pictures of which only so many, the last ones, have measured pixels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 1)):
        for index in range(count):
            write_image(root / "images" / split / f"{index:02}.png", random.integers(0, 256, (32, 48, 3), np.uint8))
            hole = split == "train" and index < count - measured
            write_depth_png(root / "depth" / split / f"{index:02}.png", np.full((32, 48), 0.0 if hole else 3.0))
    return root


def test_batches_without_a_measured_pixel_leave_weights_finite(tmp_path: Path) -> None:
    folder = fitted(_options(_unmeasured(tmp_path, measured=1), tmp_path / "runs", epochs=1))
    assert all(np.isfinite(values).all() for values in weights_of(folder).values())


def test_a_set_without_a_measured_pixel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no pixel of 8 samples .*00\.png.* --depth-units"):
        fit(_options(_unmeasured(tmp_path, measured=0), tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
