"""A finished run is not lost: not to a new training, not to two at once, not to a kill on the way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from depthkit.cli import run as depthkit
from depthkit.errors import TrainingError
from depthkit.train import fit as fit_module
from depthkit.train.fit import fit
from depthkit.train.history import EpochRecord
from depthkit.train.workplace import claimed

from .runs import KilledError, cut_short, fitted, weights_of
from .runs import train_options as _options

Captured = pytest.CaptureFixture[str]


def _content(folder: Path) -> dict[str, bytes]:
    """Every file in the folder itself."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def finished(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `pairs`. Read only."""
    return fitted(_options(pairs, tmp_path_factory.mktemp("finished")))


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """That run in a folder of the test's own."""
    return Path(shutil.copytree(finished, tmp_path / "compact"))


@pytest.mark.parametrize("itself", [False, True], ids=["anew", "init"])
def test_a_finished_run_is_not_replaced_unasked(old: Path, pairs: Path, *, itself: bool) -> None:
    before = _content(old)
    with pytest.raises(TrainingError, match=r"compact contains a finished run; .*--out.*--force"):
        fit(_options(pairs, old.parent, seed=1, init=old if itself else None))
    assert _content(old) == before
    assert sorted(path.name for path in old.parent.iterdir()) == ["compact"]


@pytest.mark.parametrize("itself", [False, True], ids=["anew", "init"])
def test_until_the_new_run_is_whole_the_old_one_is(old: Path, pairs: Path, tmp_path: Path, *, itself: bool) -> None:
    before = _content(old)
    options = _options(pairs, old.parent, epochs=2, seed=1, init=old if itself else None, force=True)
    cut_short(options)
    assert _content(old) == before
    epochs: list[EpochRecord] = []
    assert fitted(replace(options, force=False, resume=True, on_epoch=epochs.append)) == old
    assert [record.epoch for record in epochs] == [2], "it goes on, and does not begin anew"
    assert _content(old).keys() == before.keys()
    assert not (old / "unfinished").exists()
    if not itself:
        assert weights_of(old) == weights_of(fitted(replace(options, out=tmp_path / "whole")))


@pytest.mark.parametrize("moved", range(7))
def test_a_kill_while_files_are_moved_loses_nothing(
    old: Path, finished: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    def cut(work: Path, folder: Path) -> None:
        files = sorted(work.iterdir(), key=lambda path: path.name == "last.ckpt")
        assert len(files) == 7
        for path in files[:moved]:
            path.replace(folder / path.name)
        raise KilledError

    options = _options(pairs, old.parent, seed=1, force=True)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(fit_module, "replace_run", cut)
        fit(options)
    assert fitted(replace(options, resume=True)) == old
    assert weights_of(old) != weights_of(finished)
    assert not (old / "unfinished").exists()


def test_a_second_training_in_one_folder_is_refused(pairs: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(_: EpochRecord) -> None:
        with pytest.raises(TrainingError) as caught:
            fit(_options(pairs, tmp_path, seed=2, force=True))
        refused.append(str(caught.value))

    folder = fitted(_options(pairs, tmp_path, on_epoch=second))
    assert len(refused) == 1
    assert f"another training is running in {folder}" in refused[0]
    assert not list(folder.glob(".*")), "the lock is gone with the training"


def test_a_lock_that_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with claimed(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())


def test_of_two_networks_none_is_trained_where_one_is_finished(old: Path, pairs: Path, capsys: Captured) -> None:
    arguments = ["train", "--network", "unet", "--network", "compact", "--data", str(pairs), "--size", "32x48"]
    assert depthkit([*arguments, "--out", str(old.parent)]) == 2
    said = capsys.readouterr()
    assert "contains a finished run" in said.err
    assert not said.out
    assert sorted(path.name for path in old.parent.iterdir()) == ["compact"]


def test_the_last_line_names_the_next_command(pairs: Path, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["train", "--network", "compact", "--data", str(pairs), "--size", "32x48", "--steps", "1"]
    assert depthkit([*arguments, "--batch", "4", "--out", str(tmp_path / "my runs")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: depthkit export '{tmp_path}/my runs/compact'"


def test_the_progress_bar_counts_epochs_from_one() -> None:
    class _Trainer:
        max_epochs = 1

    bar = fit_module._ProgressBar()
    bar._trainer = _Trainer()  # type: ignore[assignment]
    assert bar._get_train_description(0).strip() == "Epoch 1/1"
