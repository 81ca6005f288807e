"""Small data sets that tests of preparing share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from depthkit.data.dataset import Split

from ..support import save_array

SIZE = (16, 32)
SPLITS: tuple[Split, ...] = ("train", "val")
ARRAYS = [f"{split}.{kind}.npy" for split in SPLITS for kind in ("images", "depths")]
TAUGHT = "train.taught.npy"


class Red:
    """A teacher whose depth in decimetres is the red of a pixel, and a bit; it counts the pictures."""

    weights_sha256 = "ab" * 32

    def __init__(self) -> None:
        self.pictures = 0

    def depths(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.pictures += len(images)
        return images[..., 0].astype(np.float32) / 10 + np.float32(0.0123)


def write_pairs(root: Path, counts: dict[Split, int], size: tuple[int, int] = (24, 40), seed: int = 0) -> Path:
    """A `pairs` folder of noise, with holes in its depth."""
    random = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in range(count):
            depth = random.integers(1, 65536, size) * (random.random(size) < 0.8)
            depth[0, 0] = 1
            save_array(root / "images" / split / f"{name}.png", random.integers(0, 256, (*size, 3)).astype(np.uint8))
            save_array(root / "depth" / split / f"{name}.png", depth.astype(np.uint16))
    return root


def break_files(source: Path) -> list[Path]:
    """Spoil a picture and a depth map of train and a picture of val."""
    bad = [source / "images/train/1.png", source / "depth/train/3.png", source / "images/val/0.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:-900])
    bad[1].write_bytes(b"")
    bad[2].write_text("no picture")
    return bad
