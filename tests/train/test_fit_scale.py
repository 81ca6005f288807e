"""Fitting at scale: stages, gradient accumulation, other numbers of devices, bad files, loggers, memory."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthkit.data.prepare import prepare
from depthkit.data.scenes.render import render_scenes
from depthkit.data.sources import open_dataset
from depthkit.errors import TrainingError
from depthkit.spec import Preprocessing
from depthkit.train import networks
from depthkit.train.bundle import import_weights, read_bundle
from depthkit.train.fit import fit
from depthkit.train.losses import LossWeights
from depthkit.train.presets import Preset, Stage

from .runs import curve_of, cut_short, fitted, record_of, weights_of
from .runs import train_options as _options

STAGES = (Stage(0.4, scenes=True, scale=0.5), Stage(0.2, scale=0.5), Stage(0.4))
STAGED = Preset("adamw", 1e-3, LossWeights(scale_invariant=0.1, gradient=0.1), "strong", 0.1, STAGES)


@pytest.fixture
def data(pairs: Path, tmp_path: Path) -> Path:
    """A copy of `pairs` that a test may damage."""
    return Path(shutil.copytree(pairs, tmp_path / "data"))


def test_stages_follow_each_other_and_a_cut_in_any_of_them_changes_nothing(pairs: Path, tmp_path: Path) -> None:
    options = _options(pairs, tmp_path / "whole", epochs=5, preset=STAGED)
    whole = fitted(options)
    stages = [line["stage"] for line in curve_of(whole)]
    assert stages == ["scenes 16x32", "scenes 16x32", "data 16x32", "data 32x48", "data 32x48"]
    for end in (1, 3):
        cut = replace(options, out=tmp_path / f"cut{end}")
        cut_short(cut, after=end)
        resumed = fitted(replace(cut, resume=True))
        assert curve_of(resumed) == curve_of(whole)
        assert weights_of(resumed) == weights_of(whole)


def test_every_epoch_on_scenes_has_rooms_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[int, ...], list[int]] = {}

    def watch(seeds: list[int], size: tuple[int, int], **where: Any) -> Any:
        seen.setdefault(size, []).extend(seeds)
        return render_scenes(seeds, size, **where)

    monkeypatch.setattr("depthkit.train.loading.render_scenes", watch)
    data = Path("scenes")
    fitted(_options(data, tmp_path, epochs=2, steps=4))
    first = {seed for seed in seen[32, 48] if seed % 3 == 0}  # see scene_seed
    assert len(first) == 2 * 2 * 4
    fitted(_options(data, tmp_path, size=(32, 48), epochs=2, steps=4, seed=1, force=True))
    assert len({seed for seed in seen[32, 48] if seed % 3 == 0}) == 2 * 2 * 2 * 4, "another seed, other rooms"


def test_accumulated_passes_make_one_step(pairs: Path, tmp_path: Path) -> None:
    record = record_of(fitted(_options(pairs, tmp_path, batch=2, accumulate=2)))
    assert (record.steps, record.batch, record.accumulate) == (2, 2, 2)  # of ten pictures, the last two left out


def test_a_resumed_run_may_spread_its_steps_otherwise(pairs: Path, tmp_path: Path) -> None:
    options = _options(pairs, tmp_path, epochs=2, preset="best")
    cut_short(options)
    folder = fitted(replace(options, batch=2, accumulate=2, resume=True))
    record = record_of(folder)
    assert (record.steps, record.batch, record.accumulate) == (4, 2, 2)
    assert len(curve_of(folder)) == 2


def test_a_run_starts_from_the_weights_of_another(pairs: Path, tmp_path: Path) -> None:
    first = fitted(_options(pairs, tmp_path / "first"))
    still = fitted(_options(pairs, tmp_path / "still", steps=1, learning_rate=1e-12, init=first))
    start, end = (read_bundle(folder).network for folder in (first, still))
    for before, after in zip(start.parameters(), end.parameters(), strict=True):
        torch.testing.assert_close(before, after, atol=1e-9, rtol=0)
    with pytest.raises(TrainingError, match=r"a run of compact, not of unet"):
        fit(_options(pairs, tmp_path / "unet", network="unet", init=first))


def test_a_corrupt_picture_ends_a_run_unless_it_may_be_skipped(data: Path, tmp_path: Path) -> None:
    broken = sorted((data / "images" / "train").iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:200])
    options = _options(data, tmp_path / "runs", epochs=2)
    with pytest.raises(Exception, match=broken.name):
        fit(options)
    folder = fitted(replace(options, skip_bad=True))
    assert record_of(folder).skipped == (str(broken),)
    assert all(np.isfinite(values).all() for values in weights_of(folder).values())
    seen = sorted((data / "images" / "val").iterdir())[0]
    seen.write_bytes(b"")
    folder = fitted(replace(options, out=tmp_path / "both", skip_bad=True))
    assert record_of(folder).skipped == (str(broken), str(seen))
    assert len(read_bundle(folder).frames.images) == len(list((data / "images" / "val").iterdir())) - 1


def test_skipping_every_sample_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--depth-units"):
        fit(_options(data, tmp_path, skip_bad=True, depth_units=1e9))
    for path in (data / "images" / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="no pixel of 8 samples"):
        fit(_options(data, tmp_path, skip_bad=True))


def test_a_precision_that_the_machine_lacks_is_not_replaced(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="16-mixed is not available here"):
        fit(_options(pairs, tmp_path, precision="16-mixed"))
    assert not (tmp_path / "compact").exists()


def test_a_data_set_that_grew_is_another_run(data: Path, tmp_path: Path) -> None:
    options = _options(data, tmp_path / "runs")
    fitted(options)
    for folder in ("images", "depth"):
        first = sorted((data / folder / "train").iterdir())[0]
        shutil.copyfile(first, first.with_stem("another"))
    with pytest.raises(TrainingError, match=r"samples 10 -> 11"):
        fit(replace(options, resume=True))


def test_a_start_keeps_range_and_preprocessing(pairs: Path, tmp_path: Path) -> None:
    first = fitted(_options(pairs, tmp_path / "first"))
    weights, normal = first / "model.safetensors", Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    val = open_dataset(pairs, "val")
    here = tmp_path / "imported"
    import_weights(here, "compact", weights, (32, 48), val, preprocessing=normal, depth_range=(0.5, 20.0))
    spec = read_bundle(fitted(_options(pairs, tmp_path / "second", init=here))).spec
    assert (spec.preprocessing, spec.depth_range) == (normal, (0.5, 20.0))


def test_the_data_decide_the_camera_also_with_a_start(data: Path, tmp_path: Path) -> None:
    first = fitted(_options(Path("scenes"), tmp_path / "first", steps=1))
    assert read_bundle(first).spec.focal == open_dataset("scenes", "train", size=(32, 48)).focal is not None
    second = fitted(_options(data, tmp_path / "second", init=first, steps=1))
    assert read_bundle(second).spec.focal is None, "nothing says which camera took the pairs"


def test_the_camera_of_prepared_data_is_that_of_the_run(data: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepare(data, prepared, size=(32, 48))
    document = json.loads((prepared / "prepared.json").read_text())
    (prepared / "prepared.json").write_text(json.dumps({**document, "focal": 0.9}))
    skipping = _options(prepared, tmp_path / "runs", steps=1, skip_bad=True)
    assert read_bundle(fitted(skipping)).spec.focal == 0.9


def test_workers_load_the_same_samples_also_after_a_cut(pairs: Path, tmp_path: Path) -> None:
    """A worker begins to load before Lightning knows the number of a resumed epoch."""
    options = _options(pairs, tmp_path / "none", epochs=2)
    one = replace(options, out=tmp_path / "one", workers=1)
    cut_short(one)
    assert weights_of(fitted(replace(one, resume=True))) == weights_of(fitted(options))


def test_lightnings_csv_logger_records_steps_and_epochs(pairs: Path, tmp_path: Path) -> None:
    folder = fitted(_options(pairs, tmp_path, epochs=2, loggers=("csv",)))
    with next((folder / "csv").rglob("metrics.csv")).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"train_loss", "val_loss", "val_δ1"} <= set(rows[0]), rows[0]
    assert sum(bool(row["val_loss"]) for row in rows) == 2


def test_a_logger_whose_package_is_missing_names_it(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pip install wandb"):
        fit(_options(pairs, tmp_path, loggers=("wandb",)))


class _Hungry(torch.nn.Module):
    """Fits no more than two pictures into an imagined memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(image) > 2 and self.training:
            raise torch.OutOfMemoryError
        answer: torch.Tensor = self.layer(image)
        return answer


def test_out_of_memory_says_which_batch_fits(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "compact", _Hungry)
    with pytest.raises(
        TrainingError, match=r"cpu has not enough memory for 8 .* at 32x48 2 fit: `--batch 2 --accumulate 4`"
    ):
        fit(_options(pairs, tmp_path, batch=8))
    with pytest.raises(TrainingError, match=r"`--batch 1 --accumulate 9`"):  # 4, 3 do not fit, and 2 is no part of 9
        fit(_options(pairs, tmp_path, batch=9))
