"""Damaged files and unwritable output: exit code 2, one message, no partial results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..support import STEM, Cli, flip_bit, save_noise, truncate

ENGINE = f"{STEM}.fp32.ort.onnx"


def refuse(cli: Cli, *arguments: object, words: list[str]) -> None:
    message = cli(*arguments, code=2).message
    assert [word for word in words if word not in message] == [], message


def test_unreadable_picture_leaves_no_results(exports: Path, tmp_path: Path, cli: Cli) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a.png", "b.jpg"):
        save_noise(photos / name, 40, 60)
    truncate(photos / "b.jpg")
    predict = ["predict", exports / f"{STEM}.fp32.onnx", photos, "--out", out]
    refuse(cli, *predict, words=["b.jpg", "cannot be decoded"])
    assert not out.exists()


def test_damaged_engine_is_not_benched(exports: Path, cli: Cli) -> None:
    flip_bit(exports / ENGINE)
    refuse(cli, "bench", "--engine", exports / ENGINE, "--no-torch", words=[ENGINE, "SHA-256", "depthkit export"])


def test_unwritable_output_is_refused(exports: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "out"
    save_noise(tmp_path / "photo.png", 40, 60)
    bench = ["bench", "--engine", exports / ENGINE, "--duration", "80000", "--no-memory"]
    refuse(cli, "train", "--steps", "1", "--out", blocked, words=["cannot write"])
    refuse(cli, *bench, "--json", tmp_path / "b.json", "--csv", blocked, words=["cannot write"])
    assert not (tmp_path / "b.json").exists(), "refused before the bench"
    refuse(cli, "predict", exports / ENGINE, tmp_path / "photo.png", "--out", blocked, words=["cannot write"])


def test_nyu_frames_of_another_size_have_no_eigen_crop(exports: Path, tmp_path: Path, cli: Cli) -> None:
    data = tmp_path / "nyu" / "data"
    save_noise(data / "a.png", 240, 320)
    Image.fromarray(np.full((240, 320), 2000, np.uint16)).save(data / "a_depth.png")
    (data / "nyu2_test.csv").write_text("data/a.png,data/a_depth.png\n")
    evaluate = ["evaluate", exports / f"{STEM}.fp32.onnx", "--data", tmp_path / "nyu"]
    refuse(cli, *evaluate, words=["a.png", "Eigen crop", "480, 640"])
