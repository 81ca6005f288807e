"""A student that also follows a teacher's depth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthkit.cli import run as depthkit
from depthkit.errors import DataError, TrainingError, UserError
from depthkit.pipeline.targets import open_target, open_teacher
from depthkit.reference import Reference, read_reference
from depthkit.spec import ModelSpec
from depthkit.train.document import read_document
from depthkit.train.losses import follow
from depthkit.train.presets import PRESETS, Stage
from depthkit.train.teacher import Teacher
from depthkit.train.torch_session import TorchSession

from ..support import STEM, before_focal, save_noise
from .runs import cut_short, fitted, record_of, train_options


@pytest.fixture(scope="module")
def reference(pristine_exports: Path) -> Reference:
    """What the shared run answers in torch."""
    return read_reference(pristine_exports / f"{STEM}.reference.npz")


@pytest.fixture(scope="module", params=["run", "ONNX file"])
def teacher(request: pytest.FixtureRequest, pristine_exports: Path) -> Teacher:
    """The network of the shared run at 32x48."""
    return open_teacher(pristine_exports if request.param == "run" else pristine_exports / f"{STEM}.fp32.onnx")


def test_it_answers_in_metres_at_the_students_size(teacher: Teacher, reference: Reference) -> None:
    image = torch.from_numpy(reference.images).permute(0, 3, 1, 2) / 255
    depth = teacher(image)
    np.testing.assert_allclose(depth[:, 0], reference.depths, atol=2e-3)
    larger = torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
    answer = teacher(larger)
    assert answer.shape == (len(image), 1, 64, 96)
    assert (answer - larger.new_tensor(reference.depths.mean())).abs().mean() < 3


def test_following_is_zero_for_the_teachers_own_depth_and_pulls_towards_it() -> None:
    taught = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    assert follow(taught, taught) == 0
    prediction = (taught * 1.5).requires_grad_()
    follow(prediction, taught).backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert prediction.grad.sum() > 0, "too far: a step against the gradient comes nearer"


def test_a_run_with_a_teacher_says_so_and_differs(teacher: Teacher, pairs: Path, tmp_path: Path) -> None:
    averaged = replace(PRESETS["best"], stages=(Stage(1.0),))  # averaging copies the module with its teacher
    plain = fitted(train_options(pairs, tmp_path / "plain", preset=averaged))
    taught = fitted(train_options(pairs, tmp_path / "taught", preset=averaged, teacher=teacher))
    assert (record_of(plain).teacher, record_of(taught).teacher) == (None, teacher.weights_sha256)
    assert read_document(plain).weights_sha256 != read_document(taught).weights_sha256


def test_a_resumed_run_must_have_the_same_teacher(teacher: Teacher, pairs: Path, tmp_path: Path) -> None:
    options = train_options(pairs, tmp_path, epochs=2, teacher=teacher)
    cut_short(options)
    with pytest.raises(TrainingError, match="teacher"):
        fitted(replace(options, teacher=None, resume=True))
    fitted(replace(options, resume=True))


def test_a_teacher_of_another_depth_range_is_refused(pristine_exports: Path, pairs: Path, tmp_path: Path) -> None:
    session = TorchSession(pristine_exports)
    session.spec = replace(session.spec, depth_range=(1.0, 80.0))
    with pytest.raises(UserError, match=r"1 to 80 m.*0\.1 to 10 m"):
        fitted(train_options(pairs, tmp_path, teacher=Teacher(session, pristine_exports, "0" * 64)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["", f"{STEM}.fp32.onnx"])
def test_a_run_is_not_its_own_teacher(pristine_exports: Path, pairs: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(pristine_exports, tmp_path / "compact"))
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="is the run that is trained"):
        fitted(train_options(pairs, tmp_path, teacher=open_teacher(folder / part), force=True))
    assert sorted(folder.iterdir()) == before


def test_pictures_without_depth_are_trained_on(
    pristine_exports: Path, pairs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        save_noise(folder / f"{seed}.png", 40 + seed, 60, seed)
    teacher = open_teacher(pristine_exports)
    options = train_options(pairs, tmp_path, teacher=teacher, unlabelled=folder)
    labelled = record_of(fitted(replace(options, unlabelled=None, out=tmp_path / "labelled"))).samples
    assert record_of(fitted(options)).samples == labelled + 4
    (folder / "broken.png").write_bytes(b"no picture")
    again = replace(options, out=tmp_path / "again")
    with pytest.raises(DataError, match=r"broken\.png"):
        fitted(again)
    skipping = replace(again, skip_bad=True, force=True)
    assert [Path(name).name for name in record_of(fitted(skipping)).skipped] == ["broken.png"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None}, "give a teacher"),
        ({"data": "scenes"}, "scenes"),
        ({"unlabelled": Path("nowhere")}, "nowhere"),
    ],
)
def test_pictures_without_depth_that_cannot_teach_are_refused(
    pristine_exports: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    options = train_options(
        pairs, tmp_path / "out", teacher=open_teacher(pristine_exports), unlabelled=pairs / "images"
    )
    with pytest.raises((DataError, TrainingError), match=words):
        fitted(replace(options, **changes))
    assert not (tmp_path / "out").exists()


def test_the_command_line_opens_it(
    pairs: Path, pristine_exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["train", "--network", "compact", "--data", str(pairs), "--size", "32x48", "--epochs", "1"]
    quick += ["--out", str(tmp_path)]
    assert depthkit([*quick, "--teacher", str(pristine_exports)]) == 0
    assert record_of(tmp_path / "compact").teacher == read_document(pristine_exports).weights_sha256
    assert depthkit([*quick, "--force", "--teacher", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_runs_of_before_are_read(pristine_exports: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pristine_exports, tmp_path / "compact"))
    document = json.loads((folder / "model.json").read_text())
    document["schema_version"] = 2
    document["model"] = before_focal(json.dumps(document["model"]))
    del document["training"]["teacher"], document["training"]["stored_answers"], document["adopted"]
    (folder / "model.json").write_text(json.dumps(document))
    now = read_document(pristine_exports)
    assert read_document(folder) == replace(now, model=replace(now.model, focal=None))
    with open_target(folder) as session:
        assert isinstance(session.spec, ModelSpec)
