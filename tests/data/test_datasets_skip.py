"""Files that break in the middle of an epoch: named, or with SkipBad come back as samples that nothing is learnt of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from depthkit.data.dataset import RGBDDataset, SkipBad
from depthkit.data.scenes.scene_dataset import Scenes
from depthkit.data.sources import open_dataset
from depthkit.data.unlabelled import Joined
from depthkit.errors import DataError

from ..support import save_array

SIZE = (16, 32)
COUNT = 7
BAD = {1: "truncated.jpg", 3: "empty.png", 4: "depth in colour", 6: "depth of another size"}


@pytest.fixture
def files(tmp_path: Path) -> RGBDDataset:
    """Seven pairs at 24x48, of which those in BAD cannot be read."""
    random = np.random.default_rng(0)
    images, depths = tmp_path / "images" / "train", tmp_path / "depth" / "train"
    for index in range(COUNT):
        save_array(images / f"{index}.jpg", random.integers(0, 256, (24, 48, 3), np.uint8))
        save_array(depths / f"{index}.png", random.integers(1, 9000, (24, 48), np.uint16))
    (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:-400])
    (images / "3.jpg").write_bytes(b"")
    save_array(depths / "4.png", np.zeros((24, 48, 3), np.uint8))
    save_array(depths / "6.png", np.zeros((12, 48), np.uint16))
    return open_dataset(tmp_path, "train", size=SIZE)


def test_a_bad_file_is_named_and_the_others_are_read(files: RGBDDataset) -> None:
    for index in range(COUNT):
        if index in BAD:
            with pytest.raises(DataError, match=rf"{index}\.(jpg|png)"):
                files[index]
        else:
            assert files[index].position == index


def test_skipped_samples_are_empty_and_know_where_they_come_from(files: RGBDDataset) -> None:
    data = SkipBad(files)
    assert (len(data), data.size, data.name, data.crop) == (COUNT, SIZE, "pairs", None)
    for index in range(COUNT):
        image, depth, position = data[index]
        assert [image.shape, depth.shape] == [(*SIZE, 3), SIZE]
        assert [image.dtype, depth.dtype] == ["uint8", "float32"]
        assert data.source(index) == files.source(index)
        if index in BAD:
            assert position == ~index < 0
            assert not image.any()
            assert not depth.any()
        else:
            assert position == index
            np.testing.assert_array_equal(image, files[index].image)
            np.testing.assert_array_equal(depth, files[index].depth)


def test_skipped_samples_are_counted_and_named_after_batching(files: RGBDDataset) -> None:
    data = SkipBad(files)
    batches: DataLoader[Any] = DataLoader(cast("Dataset[Any]", data), batch_size=3)
    positions = [int(position) for batch in batches for position in batch.position]
    assert [~position for position in positions if position < 0] == list(BAD)
    assert [data.source(~position)[-5:] for position in positions if position < 0] == [f"{n}.jpg" for n in BAD]


def test_a_wrapped_set_has_the_camera_of_the_set(files: RGBDDataset) -> None:
    assert SkipBad(files).focal is None
    files.focal = 0.9
    assert SkipBad(files).focal == 0.9
    assert SkipBad(Joined(files, Scenes("val", size=files.size))).focal == 0.9


def test_skipping_needs_a_size(files: RGBDDataset) -> None:
    files.size = None
    with pytest.raises(ValueError, match="size"):
        SkipBad(files)


def test_an_index_out_of_range_is_no_bad_file(files: RGBDDataset) -> None:
    with pytest.raises(IndexError):
        SkipBad(files)[COUNT]
