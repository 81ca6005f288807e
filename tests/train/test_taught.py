"""Training with a teacher's answers that `depthkit data prepare --teacher` stored."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from depthkit.cli import run as depthkit
from depthkit.data.prepare import prepare
from depthkit.data.sources import open_dataset
from depthkit.errors import TrainingError, UserError
from depthkit.pipeline.targets import open_teacher
from depthkit.runtime.null import NullSession
from depthkit.spec import Dim
from depthkit.train.document import read_document
from depthkit.train.losses import follow
from depthkit.train.presets import PRESETS, Stage
from depthkit.train.teacher import Teacher
from depthkit.train.torch_session import TorchSession

from ..conftest import PAIRS
from ..support import STEM, model_spec, save_noise
from .runs import cut_short, fitted, record_of, train_options, weights_of

SIZE = (32, 48)


class _Counting(TorchSession):
    """Counts the frames that it is asked about."""

    frames = 0

    def run(self) -> None:
        type(self).frames += 1
        super().run()


@pytest.fixture
def teacher(pristine_exports: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """The network of the shared run; `_Counting.frames` counts what it is asked."""
    monkeypatch.setattr(_Counting, "frames", 0)
    return Teacher(_Counting(pristine_exports), pristine_exports, read_document(pristine_exports).weights_sha256)


@pytest.fixture(scope="module")
def taught(pairs: Path, pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pairs`, prepared with that teacher's answers. Read only."""
    out = tmp_path_factory.mktemp("taught") / "prepared"
    prepare(pairs, out, size=SIZE, teacher=open_teacher(pristine_exports))
    return out


def test_stored_answers_are_the_teachers(taught: Path, teacher: Teacher) -> None:
    data = open_dataset(taught, "train")
    assert (len(data), data.taught_by) == (PAIRS["train"], teacher.weights_sha256)
    asked = teacher.depths(np.stack([data[index].image for index in range(len(data))]))
    found = np.stack([data.taught(index) for index in range(len(data))])
    np.testing.assert_allclose(found, asked, rtol=0, atol=0.0005 + 1e-5)
    assert asked.std() > 0.01


@pytest.mark.parametrize("batch", [1, 3, 16, Dim("batch", 2, 3, 4), Dim("batch", 5, 5, 8)])
def test_a_teacher_answers_for_any_number_of_pictures(batch: int | Dim) -> None:
    class Brightness(NullSession):
        def run(self) -> None:
            image, depth = self._buffers()
            depth[:] = image[..., 0] / 10

    teacher = Teacher(Brightness(model_spec(16, 32, batch), 0.0), Path("engine"), "0" * 64)
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3), np.uint8)
    for count in range(1, 10):
        np.testing.assert_allclose(teacher.depths(images[:count]), images[:count, ..., 0] / 10, atol=1e-5)


def test_training_with_them_never_asks_the_teacher(taught: Path, teacher: Teacher, tmp_path: Path) -> None:
    stored = fitted(train_options(taught, tmp_path / "stored", teacher=teacher))
    assert _Counting.frames == 0
    record = record_of(stored)
    assert (record.teacher, record.stored_answers) == (teacher.weights_sha256, True)
    plain = fitted(train_options(taught, tmp_path / "plain"))
    assert (record_of(plain).teacher, record_of(plain).stored_answers) == (None, False)
    assert read_document(stored).weights_sha256 != read_document(plain).weights_sha256


def test_without_them_the_teacher_is_asked_in_every_step(pairs: Path, teacher: Teacher, tmp_path: Path) -> None:
    record = record_of(fitted(train_options(pairs, tmp_path, teacher=teacher)))
    assert _Counting.frames == record.steps * record.batch
    assert not record.stored_answers


@pytest.mark.parametrize("workers", [0, 1])
def test_a_smaller_stage_uses_them_too_and_scenes_ask(
    taught: Path, teacher: Teacher, tmp_path: Path, workers: int
) -> None:
    stages = Stage(0.5, scenes=True), Stage(0.5, scale=0.5)
    preset = replace(PRESETS["paper"], stages=stages)
    options = train_options(taught, tmp_path, teacher=teacher, preset=preset, epochs=2, size=SIZE, workers=workers)
    record = record_of(fitted(replace(options, skip_bad=True)))
    assert [stage for stage, _ in record.stages] == ["scenes 32x48", "data 16x32"]
    assert _Counting.frames == record.steps // 2 * record.batch


def test_pictures_without_stored_answers_ask(taught: Path, teacher: Teacher, tmp_path: Path) -> None:
    for seed in range(2):
        save_noise(tmp_path / "pictures" / f"{seed}.png", 40, 60, seed)
    options = train_options(taught, tmp_path / "runs", teacher=teacher, unlabelled=tmp_path / "pictures")
    record = record_of(fitted(options))
    assert _Counting.frames == record.steps * record.batch
    assert not record.stored_answers


def test_training_follows_them(taught: Path, teacher: Teacher, tmp_path: Path) -> None:
    """With little weight on measured depth, the student comes nearer to the answers than without them."""
    preset = replace(PRESETS["paper"], teacher=(50.0, 50.0), learning_rate=1e-3)
    options = train_options(taught, tmp_path, preset=preset, epochs=6)
    data = open_dataset(taught, "train", size=SIZE)
    distances = []
    for name, guide in (("plain", None), ("taught", teacher)):
        with TorchSession(fitted(replace(options, teacher=guide, out=tmp_path / name))) as student:
            away = [np.abs(student(data[n].image) - data.taught(n)).mean() for n in range(len(data))]
        distances.append(float(np.mean(away)))
    assert distances[1] < distances[0]


def test_answers_of_another_teacher_are_refused(
    taught: Path, teacher: Teacher, tmp_path: Path, pristine_exports: Path
) -> None:
    other = Teacher(TorchSession(pristine_exports), Path("runs/other"), "cd" * 32)
    with pytest.raises(UserError) as caught:
        fitted(train_options(taught, tmp_path / "out", teacher=other))
    assert str(caught.value) == (
        f"{taught} has the answers of another teacher (weights {teacher.weights_sha256[:12]}…) than runs/other "
        "(cdcdcdcdcdcd…); give --teacher that one, or prepare the source again with this one"
    )
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_continues_with_them_as_if_uninterrupted(taught: Path, teacher: Teacher, tmp_path: Path) -> None:
    options = train_options(taught, tmp_path / "cut", epochs=2, teacher=teacher)
    cut_short(options)
    resumed = fitted(replace(options, resume=True))
    whole = fitted(replace(options, out=tmp_path / "whole"))
    assert weights_of(resumed) == weights_of(whole)
    assert _Counting.frames == 0


@pytest.mark.parametrize("stored_first", [True, False])
def test_a_run_does_not_change_between_stored_answers_and_asking(
    taught: Path, teacher: Teacher, tmp_path: Path, stored_first: bool
) -> None:
    live = Path(shutil.copytree(taught, tmp_path / "data"))
    document = json.loads((live / "prepared.json").read_text())
    without = json.dumps({**document, "teacher": None})
    first, then = (json.dumps(document), without) if stored_first else (without, json.dumps(document))
    options = train_options(live, tmp_path / "runs", epochs=2, teacher=teacher)
    (live / "prepared.json").write_text(first)
    cut_short(options)
    (live / "prepared.json").write_text(then)
    with pytest.raises(TrainingError, match=r"teacher .* \(stored answers\)") as caught:
        fitted(replace(options, resume=True))
    assert ("(stored answers) ->" in str(caught.value)) == stored_first


def test_following_looks_only_where_there_is_an_answer() -> None:
    taught = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    prediction = (taught * 1.5).clone()
    expected = follow(prediction[..., :12], taught[..., :12])
    taught[..., 12:] = 0
    assert follow(prediction, taught).item() == pytest.approx(expected.item(), rel=1e-5)
    prediction[..., 12:] = 0.9
    assert follow(prediction, taught).item() == pytest.approx(expected.item(), rel=1e-5)
    assert follow(prediction, torch.zeros_like(taught)) == 0


def test_the_command_line_prepares_and_its_next_command_trains(
    pairs: Path, pristine_exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, onnx = tmp_path / "taught", pristine_exports / f"{STEM}.fp32.onnx"
    command = ["data", "prepare", str(pairs), "--size", "32x48", "--out", str(out), "--teacher"]
    assert depthkit([*command, "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not out.exists()
    assert depthkit([*command, str(onnx)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    following = printed.split("(depthkit ", 1)[1].rpartition(")")[0]
    assert "--teacher" in following
    quick = ["--network", "compact", "--epochs", "1", "--out", str(tmp_path / "runs")]
    assert depthkit([*shlex.split(following), *quick]) == 0
    record = record_of(tmp_path / "runs" / "compact")
    assert (record.teacher, record.stored_answers) == (read_document(pristine_exports).weights_sha256, True)
    assert depthkit([*shlex.split(following), *quick, "--force", "--teacher", "compact"]) == 2
    refusal = " ".join(capsys.readouterr().err.split())
    assert "has the answers of another teacher" in refusal
    assert "prepare the source again" in refusal
