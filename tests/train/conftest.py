"""Data for the tests of the training half: small real files with holes in their depth."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from depthkit.data.images import write_depth_png, write_image
from depthkit.data.scenes.render import render_scenes, scene_seed

COUNTS: Final = {"train": 10, "val": 3, "test": 2}
"""Samples in each split of `pairs`."""


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `pairs` data set of rooms at 40x56, larger than what tests train at. Read only."""
    root = tmp_path_factory.mktemp("pairs")
    for split, count in COUNTS.items():
        seeds = [scene_seed(split, index) for index in range(count)]  # type: ignore[arg-type]
        images, depths = render_scenes(seeds, (40, 56))
        depths[:, 10:20, 30:40] = 0  # not measured
        for index in range(count):
            write_image(root / "images" / split / f"{index}.png", images[index].numpy())
            write_depth_png(root / "depth" / split / f"{index}.png", depths[index].numpy())
    return root
