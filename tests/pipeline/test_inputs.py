"""What the arguments of predict mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depthkit.data.images import write_image
from depthkit.errors import DataError, OutputError, UserError
from depthkit.pipeline.inputs import plan_inputs, require_fitting, require_folder, require_goals, split_arguments
from depthkit.pipeline.outputs import OUTPUTS, parse_outputs

INPUTS = (
    *("c.jpg", "p", "p/*.png", "clip.mp4", "gone.mp4", "other.bin"),
    *("0", "/dev/video3", "-", "shots/%05d.png", "rtsp://camera/1", "https://a.b/clip.mp4"),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "p/b.png", "c.jpg", "shots/00001.png"):
        write_image(tmp_path / name, np.zeros((20, 30, 3), np.uint8))
    for name in ("clip.mp4", "other.bin", "engine.null", "made.onnx"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("word", INPUTS)
def test_an_input_alone_is_no_engine(here: Path, word: str) -> None:
    assert split_arguments([word]) == (None, (word,))


@pytest.mark.parametrize("word", ["compact", "nano", "engine.null", "gone.ov.blob", "runs/x"])
def test_an_engine_comes_first(here: Path, word: str) -> None:
    assert split_arguments([word, "clip.mp4", "0"]) == (Path(word), ("clip.mp4", "0"))
    with pytest.raises(UserError, match="INPUT after the engine"):
        split_arguments([word])


def test_pictures_are_together_and_clips_apart(here: Path) -> None:
    found = plan_inputs(["p", "clip.mp4", "c.jpg", "0", "rtsp://me:pw@cam.local:554/1?x=2", "-", "shots/%05d.png"], ())
    assert [(each.kind, each.name) for each in found] == [
        ("pictures", ""),
        ("clip", "clip"),
        ("clip", "camera0"),
        ("clip", "cam.local_554_1"),
        ("clip", "stdin"),
        ("clip", "shots"),
    ]
    assert [path.name for path in found[0].pictures] == ["a.png", "b.png", "c.jpg"]
    assert [each.outputs(()) for each in found[:2]] == [("color", "depth16", "npy"), ("color-video",)]


def test_a_folder_becomes_a_clip_if_it_is_asked_for(here: Path) -> None:
    for place in ("p", "p/*.png"):
        (found,) = plan_inputs([place], ("color-video",))
        assert (found.kind, found.name, len(found.pictures)) == ("clip", "p", 2)
    with found.open(fps=5) as source:
        assert (source.count, source.fps) == (2, 5)
    with pytest.raises(UserError, match=r"--save side-video is for clips, and c\.jpg is a picture"):
        plan_inputs(["c.jpg"], ("color", "side-video"))
    write_image(here / "p" / "c.png", np.zeros((20, 31, 3), np.uint8))
    with pytest.raises(DataError, match=r"need one size: p/a\.png has 20x30, and p/c\.png 20x31"):
        plan_inputs(["p"], ("color-video",))[0].open()


def test_clips_of_one_name_are_told_apart(here: Path) -> None:
    (here / "clip.mkv").touch()
    (here / "clip_2.mp4").touch()
    found = plan_inputs(["clip.mp4", "clip.mkv", "clip_2.mp4"], ())
    assert [each.name for each in found] == ["clip", "clip_2", "clip_2_2"]


def test_an_output_never_replaces_an_input(here: Path) -> None:
    (here / "clip_depth.mp4").touch()
    found = plan_inputs(["clip.mp4", "clip_depth.mp4"], ())
    with pytest.raises(OutputError, match=r"the results of clip.mp4 would replace the input clip_depth.mp4"):
        require_goals(found, (), Path())
    assert require_goals(found, (), Path("out")) == {here / "clip.mp4", here / "clip_depth.mp4"}


@pytest.mark.parametrize("name", ["[x].mp4", "x?.mkv", "a%05d.mp4", "7", "rtsp_%d.avi", "[x]/y.mp4"])
def test_a_file_that_exists_is_meant_by_its_name(here: Path, name: str) -> None:
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).touch()
    (found,) = inputs = plan_inputs([name], ())
    assert (found.kind, found.place, found.name) == ("clip", name, Path(name).stem)
    for option in ({"fps": 5.0}, {"input_size": (4, 6)}):
        with pytest.raises(UserError, match="leave it out"):
            require_fitting(inputs, **{"smooth": False, "fps": None, "input_size": None, **option})  # type: ignore[arg-type]


def test_no_result_replaces_another(here: Path) -> None:
    for name in ("q/a.png", "clip_000000.png"):
        write_image(here / name, np.zeros((20, 30, 3), np.uint8))
    names = ("side-video", "npy")
    assert require_goals(plan_inputs(["p", "q"], names), names, Path("out"))
    with pytest.raises(OutputError, match=r"would both be written to out/clip_000000_depth\.npy"):
        require_goals(plan_inputs(["clip_000000.png", "clip.mp4"], ("npy",)), ("npy",), Path("out"))


@pytest.mark.parametrize("name", ["x.mp4", "x.PNG", "x.npy"])
def test_the_name_of_a_file_is_no_folder(here: Path, name: str) -> None:
    with pytest.raises(OutputError, match="is the folder of all results"):
        require_folder(Path(name))
    (here / name).mkdir()
    require_folder(Path(name))


def test_options_without_effect_are_refused(here: Path) -> None:
    pictures, video, camera = (plan_inputs([place], ()) for place in ("p", "clip.mp4", "0"))
    for inputs, options, words in (
        (pictures, {"smooth": True}, "--smooth is for clips"),
        (video, {"fps": 5.0}, "--fps is for pictures"),
        (video, {"input_size": (4, 6)}, "--input-size is for raw frames"),
    ):
        with pytest.raises(UserError, match=words):
            require_fitting(inputs, **{"smooth": False, "fps": None, "input_size": None, **options})  # type: ignore[arg-type]
    require_fitting(camera, smooth=True, fps=5.0, input_size=(4, 6))


def test_names_of_outputs_are_checked() -> None:
    assert parse_outputs("npy, color,npy", has_camera=False) == ("npy", "color")
    assert parse_outputs(",".join(OUTPUTS), has_camera=True) == tuple(OUTPUTS)
    for text in ("colour", "", "color,,npy"):
        with pytest.raises(UserError, match="choose from color, depth16"):
            parse_outputs(text, has_camera=True)
    with pytest.raises(UserError, match="--save ply needs the camera"):
        parse_outputs("ply", has_camera=False)
