"""`depthkit predict` of clips: all four real ones, what it says, and every way in which it can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import trimesh

from depthkit.data.images import write_image
from depthkit.pipeline.outputs import OUTPUTS
from depthkit.runtime.sources import open_source

from ..runtime.clips import numbered, write_clip, write_sound
from ..support import INTERRUPTIBLE, STEM, Cli, files_at_most, save_noise

REAL = ("indoor_hololens_540x360", "indoor_tum_fr1_rpy_640x480", "mmdeploy_arm_wrestling", "tokyo_walk_outdoor")


@pytest.fixture
def engine(exports: Path) -> Path:
    return exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", numbered(25), sound=True)


def length(path: Path) -> tuple[int, float, set[str]]:
    """Frames, seconds, and the kinds of streams."""
    with av.open(str(path)) as opened:
        kinds = {str(stream.type) for stream in opened.streams}
        times = [float(frame.time or 0) for frame in opened.decode(video=0)]
    return len(times), times[-1], kinds


def test_a_clip_becomes_a_video_with_its_sound(engine: Path, clip: Path, here: Path, cli: Cli) -> None:
    printed = cli("predict", engine, clip).out
    assert f"{clip}: 25 frames, 2.5 s" in printed
    assert [path.name for path in (here / "depth").iterdir()] == ["clip_depth.mp4"]
    frames, last, kinds = length(here / "depth" / "clip_depth.mp4")
    assert (frames, kinds) == (25, {"video", "audio"})
    assert last == pytest.approx(2.4)


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_written_whole(name: str, samples: Path, engine: Path, here: Path, cli: Cli) -> None:
    path = samples / "video" / f"{name}.mp4"
    cli("predict", engine, path, "--save", "color-video,side-video,depth-video", "--smooth", "--seconds", "2")
    with open_source(path) as source:
        times = [frame.time for frame in source if frame.time < 2]
    for ending in ("_depth.mp4", "_side.mp4", "_depth.mkv"):
        frames, last, _ = length(here / "depth" / f"{name}{ending}")
        assert frames == len(times)
        assert last == pytest.approx(times[-1], abs=0.001)


def test_pictures_and_a_clip_in_one_go(engine: Path, clip: Path, here: Path, cli: Cli) -> None:
    save_noise(here / "a.png", 40, 60)
    lines = cli("predict", engine, "a.png", clip).out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a.png", str(clip)]
    names = {"a_depth.png", "a_depth16.png", "a_depth.npy", "clip_depth.mp4"}
    assert {path.name for path in (here / "depth").iterdir()} == names


def test_frames_of_two_folders_do_not_replace_each_other(engine: Path, here: Path, cli: Cli) -> None:
    for folder in ("p", "q"):
        save_noise(here / folder / "a.png", 40, 60)
    printed = cli("predict", engine, "p", "q", "--save", "side-video,npy").out
    assert "depth/q_side.mp4, depth/q_*_depth.npy" in printed
    names = {"p_side.mp4", "p_a_depth.npy", "q_side.mp4", "q_a_depth.npy"}
    assert {path.name for path in (here / "depth").iterdir()} == names


def test_a_photo_becomes_points(engine: Path, here: Path, cli: Cli) -> None:
    save_noise(here / "a.png", 48, 64)
    printed = cli("predict", engine, "a.png", "--intrinsics", "fov=63", "--save", "ply,npy", "--axes", "opengl").out
    assert "fx / width is 0.816 here" in printed or "focal length is unknown" in printed
    points = np.asarray(trimesh.load(here / "depth" / "a_depth.ply").vertices)
    metres = np.load(here / "depth" / "a_depth.npy")
    assert 0 < len(points) <= 48 * 64
    assert (points[:, 2] < 0).all()  # z backward
    assert metres.min() - 1e-3 <= -points[:, 2].max()
    assert -points[:, 2].min() <= metres.max() + 1e-3


def test_raw_frames_from_standard_input(exports: Path, here: Path) -> None:
    frames = b"".join(image.tobytes() for image in numbered(7, (24, 32)))
    command = [*INTERRUPTIBLE, "predict", str(exports / f"{STEM}.fp32.null"), "-", "--input-size", "24x32"]
    done = subprocess.run([*command, "--fps", "10"], input=frames, capture_output=True, check=False, cwd=here)
    assert done.returncode == 0, done.stderr
    assert b"standard input: 7 frames, 0.7 s" in done.stdout
    assert length(here / "depth" / "stdin_depth.mp4")[0] == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_playable_file_and_says_its_frames(number: int, exports: Path, here: Path) -> None:
    command = [*INTERRUPTIBLE, "predict", str(exports / f"{STEM}.fp32.null"), "-", "--input-size", "24x32"]
    process = subprocess.Popen(
        [*command, "--range", "1,5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here
    )
    assert process.stdin is not None
    image = np.zeros((24, 32, 3), np.uint8).tobytes()
    for _ in range(3000):
        process.stdin.write(image)
        process.stdin.flush()
        if list(here.glob("depth/.tmp-*")):
            break
        time.sleep(0.02)
    process.stdin.write(40 * image)
    process.stdin.flush()
    time.sleep(2)
    process.send_signal(number)
    printed, errors = (text.decode() for text in process.communicate())
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    frames, _, _ = length(here / "depth" / "stdin_depth.mp4")
    assert f"interrupted after {frames} frames" in printed
    assert [path.name for path in (here / "depth").iterdir()] == ["stdin_depth.mp4"]


def test_a_truncated_clip_is_kept_as_far_as_it_goes(engine: Path, here: Path, cli: Cli) -> None:
    images = [np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8) for index in range(60)]
    path = write_clip(here / "clip.mp4", images, file_options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = cli("predict", engine, path, code=2).message
    frames = length(here / "depth" / "clip_depth.mp4")[0]
    assert 10 < frames < 50
    assert "the file ends early, after" in message
    assert f"the {frames} frames before are kept" in message


def test_a_clip_that_changes_its_size_is_kept_until_then(engine: Path, here: Path, cli: Cli) -> None:
    parts = [write_clip(here / f"{side}.ts", numbered(6, (side, 64))) for side in (48, 64)]
    (here / "clip.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    message = cli("predict", engine, here / "clip.ts", code=2).message
    assert "changes its size from 48x64 to 64x64" in message
    frames = length(here / "depth" / "clip_depth.mp4")[0]
    assert f"the {frames} frames before are kept" in message


def test_a_full_disk_is_one_sentence(engine: Path, here: Path, cli: Cli) -> None:
    images = [np.random.default_rng(index).integers(0, 256, (96, 128, 3), np.uint8) for index in range(30)]
    path = write_clip(here / "clip.mkv", images)
    with files_at_most(60_000):
        message = cli("predict", engine, path, "--save", "side-video", code=2).message
    assert "cannot write depth/clip_side.mp4" in message
    assert list((here / "depth").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["99"], "no such camera: /dev/video99"),
        (["rtsp://127.0.0.1:9/x", "--timeout", "2"], "rtsp://127.0.0.1:9/x cannot be opened"),
        (["http://127.0.0.1:9/x", "--timeout", "2"], "http://127.0.0.1:9/x does not answer"),
        (["ftp://127.0.0.1/x"], "ftp:// is not an address that depthkit opens"),
        (["only.m4a"], "only.m4a has only sound"),
        (["empty.mp4"], "empty.mp4 is empty"),
        (["noise.mp4"], "noise.mp4 is not a video that FFmpeg knows, or is truncated"),
        (["gone.mp4"], "no such file or folder: gone.mp4"),
        (["clip.mp4", "--save", "colour"], "--save colour: choose from color, depth16, npy"),
        (["clip.mp4", "--save", "ply"], "--save ply needs the camera"),
        (["clip.mp4", "--intrinsics", "exif"], "only a picture file has EXIF tags"),
        (["clip.mp4", "--intrinsics", "4mm,4mm,1,1"], "is in millimetres"),
        (["clip.mp4", "--intrinsics", "500,500,320,180@640x360"], "has another aspect ratio"),
        (["clip.mp4", "--range", "5,1"], "write the smaller number first"),
        (["clip.mp4", "--colormap", "rainbows"], "no colormap 'rainbows'"),
        (["clip.mp4", "--out", "x.mp4"], "is the folder of all results"),
        (["a.png", "--smooth"], "--smooth is for clips"),
        (["a.png", "--save", "color-video"], "is for clips, and a.png is a picture"),
        (["clip.mp4", "only.m4a"], "only.m4a has only sound"),
        (["a.png", "clip.mp4", "--intrinsics", "exif"], "a.png"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    engine: Path, clip: Path, here: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    write_sound(here / "only.m4a")
    (here / "empty.mp4").touch()
    (here / "noise.mp4").write_bytes(os.urandom(5000))
    write_image(here / "a.png", np.zeros((20, 30, 3), np.uint8))
    before = sorted(here.rglob("*"))
    assert words in cli("predict", engine, *arguments, code=2).message
    assert sorted(here.rglob("*")) == before


def test_an_output_without_its_package_names_the_extra(
    engine: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_noise(here / "a.png", 40, 60)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("depthkit.packages.find_spec", lambda name: None if name == "av" else True)
    assert "pip install 'depthkit[video]'" in cli("predict", engine, "a.png", "--save", "exr", code=2).message
    cli("predict", engine, "a.png")


def test_help_lists_every_output(cli: Cli) -> None:
    text = " ".join(cli("predict", "--help").out.split())
    for name, output in OUTPUTS.items():
        assert f" {name} x{output.ending}: {' '.join(output.about.split())}"[:40] in text
