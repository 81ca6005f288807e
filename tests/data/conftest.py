"""Prepared data sets for these tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from depthkit.data.prepare import prepare

from .sets import SIZE, Red, write_pairs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A `pairs` folder with 5 training and 3 validation samples."""
    return write_pairs(tmp_path / "source", {"train": 5, "val": 3})


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of such a source, with a teacher's answers. Read only: take `prepared` to change it."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(write_pairs(root / "source", {"train": 5, "val": 3}), root / "out", size=SIZE, teacher=Red())
    return root / "out"


@pytest.fixture
def prepared(pristine: Path, tmp_path: Path) -> Path:
    """A prepared folder of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "out"))
