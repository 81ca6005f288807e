"""What `predict` and every command with a path take as input: mixed folders, patterns, `~`, URLs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from depthkit.cli import COMMANDS, cli
from depthkit.cli import run as depthkit
from depthkit.commands.options import DataType, PathType
from depthkit.data.dataset import Split
from depthkit.data.images import write_image
from depthkit.data.sources import open_dataset
from depthkit.frames import predict_frames
from depthkit.pipeline.inputs import split_arguments
from depthkit.pipeline.pictures import read_pictures
from depthkit.runtime.load import load

from ..support import run_code, save_array

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.filterwarnings("always::depthkit.data.images.DataWarning")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path) -> Iterator[Path]:
    """A working directory with an engine `e.onnx` and a folder of two pictures, `p`."""
    for path in exports.glob("compact-32x48.fp32*"):
        path.rename(tmp_path / path.name)
    for name in ("a.png", "b.JPG"):
        write_image(tmp_path / "p" / name, np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    with monkeypatch.context() as change:
        change.chdir(tmp_path)
        change.setenv("HOME", str(tmp_path))
        yield tmp_path


ENGINE = ["--engine", "compact-32x48.fp32.onnx"]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _results(*stems: str) -> set[str]:
    return {stem + ending for stem in stems for ending in ("_depth.png", "_depth16.png", "_depth.npy")}


def test_predict_into_its_own_folder_gives_the_same_twice(here: Path, capsys: Captured) -> None:
    for _ in range(2):
        assert depthkit(["predict", "p", "--out", "p", *ENGINE]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
        assert _names(here / "p") == {"a.png", "b.JPG"} | _results("a", "b")
    assert depthkit(["predict", *map(str, sorted(Path("p").iterdir())), "--out", "p", *ENGINE]) == 0  # p/*
    assert "skipped 6 of 8 in the arguments: a_depth.npy" in capsys.readouterr().err
    assert _names(here / "p") == {"a.png", "b.JPG"} | _results("a", "b")
    assert depthkit(["predict", "p/a_depth.png", *ENGINE]) == 2
    assert "p/a_depth.png is a result" in capsys.readouterr().err


def test_a_picture_that_is_named_like_a_result_is_a_picture(here: Path, capsys: Captured) -> None:
    (here / "p" / "b.JPG").rename(here / "p" / "kitchen_depth.png")
    assert depthkit(["predict", "p", *ENGINE]) == 0
    assert _names(here / "depth") == _results("a", "kitchen_depth")


def test_results_never_replace_a_picture(here: Path, capsys: Captured) -> None:
    picture = (here / "p" / "b.JPG").rename(here / "p" / "a_depth.png")
    before = picture.read_bytes()
    assert depthkit(["predict", "p", "--out", "p", *ENGINE]) == 2
    assert "the results of p/a.png would replace the picture p/a_depth.png" in capsys.readouterr().err
    assert _names(here / "p") == {"a.png", "a_depth.png"}
    assert picture.read_bytes() == before


def test_other_files_in_a_folder_are_skipped_and_named(here: Path, capsys: Captured) -> None:
    (here / "p" / "._a.png").write_bytes(b"\0\5\26\7")
    (here / "p" / "folder.jpg").mkdir()
    (here / "p" / "loop.png").symlink_to("loop.png")
    assert depthkit(["predict", "p", *ENGINE]) == 0
    assert "depthkit: skipped 3 of 5 in p: ._a.png, folder.jpg, loop.png" in capsys.readouterr().err
    assert _names(here / "depth") == _results("a", "b")
    assert depthkit(["predict", "p/loop.png", *ENGINE]) == 2
    assert "no such file or folder: p/loop.png" in capsys.readouterr().err


@pytest.mark.parametrize(("stem", "fits"), [("a" * 241, True), ("a" * 245, False), ("あ" * 80, True)])
def test_a_long_name_gives_all_results_or_none(here: Path, capsys: Captured, stem: str, fits: bool) -> None:
    (here / "p" / "a.png").rename(here / "p" / f"{stem}.png")
    assert depthkit(["predict", "p", *ENGINE]) == (0 if fits else 2)
    if fits:
        assert _names(here / "depth") == _results("b", stem)
    else:
        assert "exceed 255 bytes; shorten its name" in capsys.readouterr().err
        assert not (here / "depth").exists()


def _pairs(root: Path, picture: np.ndarray) -> Path:
    for split in ("train", "val", "test"):
        save_array(root / "images" / split / "a.tif", picture)
        save_array(root / "depth" / split / "a.png", np.full(picture.shape[:2], 2000, np.uint16))
    return root


def test_16_bit_pictures_are_scaled_wherever_pictures_are_read(here: Path) -> None:
    """Predict, calibration and bench (a folder, at a size or not), training pairs."""
    grey = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    expected = np.repeat(np.rint(grey / 257)[..., None], 3, axis=-1)
    Image.fromarray(grey).save(here / "p" / "a.png")
    (here / "p" / "b.JPG").unlink()
    for size in (None, (32, 48)):
        (found,) = read_pictures("p", "train", 4, size=size).images
        np.testing.assert_array_equal(found, expected)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        np.testing.assert_array_equal(open_dataset(_pairs(here / "pairs", grey), split)[0].image, expected)
    assert depthkit(["predict", "p", *ENGINE]) == 0
    with load(here / ENGINE[1]) as session:
        (depth,) = predict_frames(session, [expected.astype(np.uint8)])
    np.testing.assert_array_equal(np.load("depth/a_depth.npy"), depth)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_without_a_known_white_are_refused_wherever_they_are_read(
    here: Path, capsys: Captured, dtype: type[np.generic]
) -> None:
    picture = np.ones((32, 48), dtype)
    Image.fromarray(picture).save(here / "p" / "c.tif")
    _pairs(here / "pairs", picture)
    prepare = ["data", "prepare", "pairs", "--size", "32x48", "--out", "out"]
    for arguments, name in ((["predict", "p", *ENGINE], "p/c.tif"), (prepare, "pairs/images/train/a.tif")):
        assert depthkit(arguments) == 2
        assert f"{name} holds" in (message := capsys.readouterr().err)
        assert "convert it to 8 bits" in message
    assert not (here / "depth").exists()
    assert not (here / "out").exists()


def test_what_a_pairs_set_skips_is_named(here: Path, capsys: Captured) -> None:
    root = _pairs(here / "pairs", np.zeros((32, 48, 3), np.uint8))
    (root / "images" / "train" / "._a.tif").touch()
    (root / "images" / "val" / "b.heic").touch()
    Image.fromarray(np.ones((32, 48), np.uint16)).save(root / "depth" / "train" / "b.png")
    assert depthkit(["data", "prepare", "pairs", "--size", "32x48", "--out", "out"]) == 0
    message = capsys.readouterr().err
    for words in (
        "skipped 1 of 2 in pairs/images/train: ._a.tif",
        "skipped 1 of 2 in pairs/depth/train: b.png",
        "skipped 1 of 2 in pairs/images/val: b.heic",
    ):
        assert f"depthkit: {words}" in message


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jp2", "tga"])
def test_a_lone_picture_of_any_format_is_no_engine(here: Path, capsys: Captured, suffix: str) -> None:
    kind = "JPEG" if suffix == "jfif" else None
    Image.new("RGB", (30, 20), (9, 99, 200)).save(here / f"x.{suffix}", kind)
    assert depthkit(["predict", f"x.{suffix}", *ENGINE]) == 0
    assert split_arguments([f"x.{suffix}"]) == (None, (f"x.{suffix}",))


def test_a_lone_heic_is_refused_as_a_picture(here: Path, capsys: Captured) -> None:
    (here / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert depthkit(["predict", "x.heic", *ENGINE]) == 2
    assert "x.heic" in (message := capsys.readouterr().err)
    assert "pillow-heif" in message or "decoded" in message


def test_a_pattern_that_the_shell_left_is_expanded(here: Path, capsys: Captured) -> None:
    write_image(here / "p" / "deep" / "c[1].png", np.zeros((20, 30, 3), np.uint8))
    assert depthkit(["predict", "p/*.JPG", "p/**/c*.png", *ENGINE]) == 0
    assert _names(here / "depth") == _results("b", "c[1]")
    assert depthkit(["predict", "p/deep/c[1].png", *ENGINE]) == 0  # a name that is there is no pattern
    assert depthkit(["predict", "p/*.webp", *ENGINE]) == 2
    assert "no file or folder matches p/*.webp" in capsys.readouterr().err


def test_the_home_folder_is_found(here: Path) -> None:
    assert depthkit(["predict", "~/p/a.png", "~/p/*.JPG", "--out=~/out", "--engine=~/compact-32x48.fp32.onnx"]) == 0
    assert _names(here / "out") == _results("a", "b")
    assert not (here / "~").exists()
    assert depthkit(["data", "prepare", "~/nowhere", "--out", "out"]) == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "the path is empty"), ("  ", "the path is empty"), ("https://a.b/c.jpg", "https://a.b/c.jpg is a URL")],
)
@pytest.mark.parametrize(
    "arguments", [["predict", "--engine"], ["evaluate", "x", "--data"], ["evaluate"], ["export"], ["tune"]]
)
def test_what_can_be_no_path_is_refused_before_anything_is_done(
    here: Path, capsys: Captured, arguments: list[str], value: str, words: str
) -> None:
    before = sorted(here.rglob("*"))
    assert depthkit([*arguments, value]) == 2
    assert words in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def _parameters(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from _parameters(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_of_every_command_is_checked_so(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in _parameters(command):
        metavar = str(parameter.metavar)
        is_path = isinstance(parameter.type, click.Path) or metavar in {"scenes|PATH", "PATH"}
        assert not is_path or isinstance(parameter.type, PathType | DataType), (name, parameter.name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux only")
def test_a_picture_of_108_megapixels_takes_bounded_memory(here: Path) -> None:
    Image.radial_gradient("L").resize((12000, 9000)).convert("RGB").save(here / "x.jpg", quality=90)
    # Started by a small process: Linux counts what a parent uses into the peak of its children.
    code = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    peak = run_code(code, "-m", "depthkit", "predict", "x.jpg", *ENGINE).splitlines()[-1]
    assert int(peak) / 1024 < 1500
    assert np.load(here / "depth" / "x_depth.npy", mmap_mode="r").shape == (9000, 12000)
