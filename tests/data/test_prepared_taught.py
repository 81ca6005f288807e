"""A teacher's answers beside prepared data: for the same pictures, or not at all."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from depthkit.cli import run as depthkit
from depthkit.data.dataset import SkipBad
from depthkit.data.images import resize_depth
from depthkit.data.prepare import prepare
from depthkit.data.sources import open_dataset
from depthkit.errors import DataError, EngineError

from ..support import save_array
from .sets import ARRAYS, SIZE, TAUGHT, Red, break_files, write_pairs


def test_the_teachers_answers_lie_beside_the_pictures_they_are_for(tmp_path: Path) -> None:
    """Also where samples are skipped, and for more pictures than are asked about at once."""
    root, teacher = write_pairs(tmp_path / "source", {"train": 40, "val": 2}), Red()
    (root / "images" / "train" / "3.png").write_bytes(b"no picture")
    save_array(root / "depth" / "train" / "5.png", np.zeros((24, 40), np.uint16))
    shares: list[float] = []
    prepare(root, tmp_path / "out", size=SIZE, skip_bad=True, teacher=teacher, on_progress=shares.append)
    data = open_dataset(tmp_path / "out", "train")
    assert len(data) == teacher.pictures == 38
    assert data.taught_by == teacher.weights_sha256
    for index in range(len(data)):
        found, expected = data.taught(index), teacher.depths(data[index].image[None])[0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.0005 + 1e-5)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert open_dataset(tmp_path / "out", "val").taught_by is None
    assert (tmp_path / "out" / TAUGHT).stat().st_size == 38 * 16 * 32 * 2 + 128


def test_answers_are_resized_like_predictions(pristine: Path) -> None:
    size = (8, 16)
    stored = open_dataset(pristine, "train")
    for data in (open_dataset(pristine, "train", size=size), SkipBad(open_dataset(pristine, "train", size=size))):
        assert data.taught_by == Red.weights_sha256
        np.testing.assert_array_equal(data.taught(2), resize_depth(stored.taught(2), size, smooth=True))


def test_a_sample_that_cannot_be_read_has_no_answer(prepared: Path) -> None:
    data = SkipBad(open_dataset(prepared, "train", size=SIZE))
    (prepared / TAUGHT).unlink()
    late = pickle.loads(pickle.dumps(data))  # a worker, which opens the arrays again
    assert late[1].position == ~1
    assert not late.taught(1).any()


@pytest.mark.parametrize("answer", [np.nan, np.inf, -0.1, 80.0])
def test_answers_that_cannot_be_stored_are_refused(source: Path, tmp_path: Path, answer: float) -> None:
    class Odd(Red):
        def depths(self, images: np.ndarray) -> np.ndarray:
            depths = super().depths(images)
            depths[-1, 3, 4] = answer
            return depths

    with pytest.raises(DataError, match=r"teacher predicts .* m for .*4\.png, and only answers of 0 to 65\.535 m"):
        prepare(source, tmp_path / "out", size=SIZE, teacher=Odd())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [EngineError("out of memory"), KeyboardInterrupt()])
def test_a_teacher_that_fails_leaves_nothing(source: Path, tmp_path: Path, error: BaseException) -> None:
    class Failing(Red):
        def depths(self, images: np.ndarray) -> np.ndarray:
            raise error

    with pytest.raises(type(error)):
        prepare(source, tmp_path / "out", size=SIZE, teacher=Failing())
    assert not (tmp_path / "out").exists()


def test_a_teacher_is_not_asked_for_a_set_that_is_refused(source: Path, tmp_path: Path) -> None:
    break_files(source)
    teacher = Red()
    with pytest.raises(DataError, match="3 samples"):
        prepare(source, tmp_path / "out", size=SIZE, teacher=teacher)
    assert not teacher.pictures


def test_answers_that_a_killed_run_left_are_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (TAUGHT, f".tmp-1-{TAUGHT}"):
        (out / name).write_bytes(b"left")
    prepare(source, out, size=SIZE)
    assert sorted(path.name for path in out.iterdir()) == sorted([*ARRAYS, "prepared.json"])


def test_without_a_teacher_it_needs_no_torch(source: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'lightning', 'kornia')));"
        "from depthkit.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = ["data", "prepare", str(source), "--size", "16x32", "--out", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", program, *command], check=True)
    assert len(open_dataset(tmp_path / "out", "train")) == 5


def test_with_a_teacher_it_says_how_to_get_torch(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("depthkit.packages.find_spec", lambda _: None)
    command = ["data", "prepare", str(source), "--size", "16x32", "--out", str(tmp_path / "out")]
    assert depthkit([*command, "--teacher", "compact"]) == 2
    assert "torch, which is not installed; pip install 'depthkit[train]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
