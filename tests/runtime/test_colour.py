"""Colours of video files: matrix, range, depth and primaries become the RGB that the tags mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'depthkit[video]'")

from depthkit.runtime.sources import open_source

from .clips import PATCHES, matrix, patches, write_frames

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("weights", "code"), [(BT601, 5), (BT601, 6), (BT709, 1), (BT2020, 9)])
def test_colours_are_those_that_the_tags_mean(
    tmp_path: Path, pixels: str, full: bool, weights: tuple[float, float], code: int
) -> None:
    frame = patches(weights, pixels=pixels, full=full)
    frame.colorspace, frame.color_range = code, 2 if full else 1
    assert np.abs(_centres(write_frames(tmp_path / "clip.mkv", [frame])) - 255 * np.array(PATCHES)).max() <= 2.5


@pytest.mark.parametrize(("width", "weights"), [(32, BT601), (224, BT709)])
def test_without_tags_large_frames_are_bt709_and_small_ones_bt601(
    tmp_path: Path, width: int, weights: tuple[float, float]
) -> None:
    frame = patches(weights, pixels="yuv420p", full=False, width=width)
    path = write_frames(tmp_path / "clip.mkv", [frame])
    assert np.abs(_centres(path, width) - 255 * np.array(PATCHES)).max() <= 2.5


def test_a_large_jpeg_is_bt601_and_full_range(tmp_path: Path) -> None:
    frame = patches(BT601, pixels="yuvj444p", full=True, width=224)
    path = write_frames(tmp_path / "clip.avi", [frame], codec="mjpeg")
    assert np.abs(_centres(path, 224) - 255 * np.array(PATCHES)).max() <= 12  # lossy


@pytest.mark.parametrize("transfer", [14, 18])
def test_bt2020_primaries_become_those_of_bt709(tmp_path: Path, transfer: int) -> None:
    """Against ITU-R BT.2087 in double precision; both transfers as a screen of gamma 2.4 shows them."""
    frame = patches(BT2020, pixels="yuv420p10le", full=False)
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, transfer
    to_xyz_2020 = np.array([[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0.0, 0.0281, 1.0610]])
    to_xyz_709 = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    light = (np.array(PATCHES) ** 2.4) @ (np.linalg.inv(to_xyz_709) @ to_xyz_2020).T
    expected = 255 * np.clip(light, 0, 1) ** (1 / 2.4)
    found = _centres(write_frames(tmp_path / "clip.mkv", [frame]))
    # In deep shadow one level of a channel is many of another: compare light where a channel is dark.
    assert np.abs(found - expected)[expected > 30].max() <= 3
    assert (np.abs((found / 255) ** 2.4 - (expected / 255) ** 2.4) < 0.01).all()


def test_pq_white_is_203_nits(tmp_path: Path) -> None:
    frame = patches(BT2020, pixels="yuv420p10le", full=False)
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, 16
    grey = _centres(write_frames(tmp_path / "clip.mkv", [frame]))[3]
    # ST 2084: signal 0.5 is 92.25 nits.
    assert np.abs(grey - 255 * (92.25 / 203) ** (1 / 2.4)).max() <= 3


def _centres(path: Path, width: int = 32) -> np.ndarray:
    with open_source(path) as source:
        (frame,) = source
    return frame.image()[16, width // 2 :: width].astype(float)


def test_the_matrices_here_are_the_standards() -> None:
    assert np.allclose(matrix(*BT601)[0], (0.299, 0.587, 0.114))
    assert np.allclose(matrix(*BT709)[1:].sum(axis=1), 0)
