"""Written video: depth without loss, colours that players show, times and sound as they were, and whole files only."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.data.colours import colour, colour_planes
from depthkit.data.grey16 import millimetres
from depthkit.errors import OutputError
from depthkit.runtime.exr import write_exr
from depthkit.runtime.source import Sound
from depthkit.runtime.sources import open_source
from depthkit.runtime.video_writer import COLOUR, DEPTH, VideoWriter, frame_of, frame_of_rgb

from ..support import files_at_most
from .clips import RATE, numbered, write_clip, write_sound

TONE = 22050
"""Samples a second of `tone`."""


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time and pixels of each frame: grey of 16 bits as it is, otherwise RGB."""
    with av.open(str(path)) as opened:
        frames: list[Any] = list(opened.decode(video=0))
    grey = frames[0].format.name == "gray16le"
    return [(float(each.time), each.to_ndarray() if grey else each.to_ndarray(format="rgb24")) for each in frames]


def write_depths(path: Path, depths: list[np.ndarray], times: list[float]) -> None:
    with VideoWriter(path, DEPTH, depths[0].shape, fps=30) as writer:
        for depth, time in zip(depths, times, strict=True):
            writer.write(frame_of([millimetres(depth)], DEPTH.pixels), time)
        writer.finish()


def write_colours(path: Path, count: int, sound: Sound | None = None, *, whole: bool = True) -> list[str]:
    """As many frames at 10 a second; the writer's notes."""
    with VideoWriter(path, COLOUR, (48, 64), fps=RATE, sound=sound) as writer:
        for index in range(count):
            planes = colour_planes(np.full((48, 64), 1 + index / 10, np.float32), (1.0, 4.0))
            writer.write(frame_of(planes, COLOUR.pixels), index / RATE)
        writer.finish(whole=whole)
        return writer.notes


@settings(max_examples=12, deadline=None)
@given(
    size=st.tuples(st.integers(4, 70), st.integers(4, 90)),
    steps=st.lists(st.integers(1, 400), min_size=0, max_size=6),
    seed=st.integers(0, 999),
)
def test_a_depth_video_is_exact_in_millimetres_and_times(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], steps: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    times = [0.0, *(np.cumsum(steps) / 1000).tolist()]
    depths = [rng.uniform(-0.1, 70, size).astype(np.float32) for _ in times]
    path = tmp_path_factory.mktemp("depth") / "x.mkv"
    write_depths(path, depths, times)
    found = decoded(path)
    assert [time for time, _ in found] == pytest.approx(times, abs=1e-6)
    for (_, stored), depth in zip(found, depths, strict=True):
        np.testing.assert_array_equal(stored, np.clip(np.rint(depth * np.float32(1000)), 0, 65535).astype(np.uint16))


@settings(max_examples=10, deadline=None)
@given(size=st.tuples(st.integers(16, 99), st.integers(16, 99)), steps=st.lists(st.integers(11, 9999), max_size=6))
def test_a_colour_video_has_an_even_size_and_keeps_a_variable_rate(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("colour") / "x.mp4"
    times = [0.0, *(np.cumsum(steps) / 10000).tolist()]
    depth = np.linspace(1.5, 2, size[0], dtype=np.float32)[:, None].repeat(size[1], axis=1)
    planes = colour_planes(depth, (1.0, 4.0))
    with VideoWriter(path, COLOUR, planes[0].shape, fps=None) as writer:
        for time in times:
            writer.write(frame_of(planes, COLOUR.pixels), time)
        writer.finish()
    found = decoded(path)
    assert [time for time, _ in found] == pytest.approx(times, abs=1e-4)
    apart = np.abs(found[0][1][: size[0], : size[1]].astype(int) - colour(depth, (1.0, 4.0)))
    assert found[0][1].shape[:2] == tuple(side + side % 2 for side in size)
    assert apart.mean() < 8
    assert np.percentile(apart, 90) < 20


def test_players_know_codec_colours_and_where_to_begin(tmp_path: Path) -> None:
    write_colours(tmp_path / "x.mp4", 12)
    with av.open(str(tmp_path / "x.mp4")) as opened:
        context = opened.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
        stream = opened.streams.video[0]
        assert stream.frames == 12
        assert float(stream.duration * stream.time_base) == pytest.approx(1.2, abs=0.001)  # type: ignore[operator]
    data = (tmp_path / "x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_rgb_keeps_its_colours(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (200, 40, 60), (20, 90, 220)
    with VideoWriter(tmp_path / "x.mp4", COLOUR, (48, 64)) as writer:
        writer.write(frame_of_rgb(image), 0.0)
        writer.finish()
    ((_, found),) = decoded(tmp_path / "x.mp4")
    assert np.abs(found.astype(int) - image)[4:-4, 4:28].max() < 6
    assert np.abs(found.astype(int) - image)[4:-4, 36:-4].max() < 6


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_sound_is_copied_as_it_is(tmp_path: Path, suffix: str) -> None:
    clip = tone(tmp_path / f"clip.{suffix}", begin=0.5, codec="aac")
    with open_source(clip) as source:
        assert source.audio is not None
        assert write_colours(tmp_path / "x.mp4", 20, source.audio) == []
    (copied, first, _), (original, begin, picture) = (samples(path) for path in (tmp_path / "x.mp4", clip))
    skipped = round((first - (begin - picture)) * TONE)  # what a decoder needs to start, which MPEG-TS does not hide
    assert 0 <= skipped <= 1024
    assert np.abs(copied[2048:] - original[skipped:][2048 : len(copied)]).max() < 1e-6


def test_sound_of_another_codec_becomes_aac_at_the_same_time(tmp_path: Path) -> None:
    clip = tone(tmp_path / "clip.mkv", begin=1.0)
    with open_source(clip) as source:
        assert source.audio is not None
        assert source.audio.codec == "pcm_s16le"
        assert write_colours(tmp_path / "x.mp4", 20, source.audio) == []
    with av.open(str(tmp_path / "x.mp4")) as opened:
        assert opened.streams.audio[0].codec_context.name == "aac"
    heard, first, _ = samples(tmp_path / "x.mp4")
    assert first + np.flatnonzero(np.abs(heard) > 0.1)[0] / TONE == pytest.approx(1.0, abs=0.01)


def test_sound_ends_with_a_clip_that_is_cut_short(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(40), sound=True)
    with open_source(clip) as source:
        write_colours(tmp_path / "x.mp4", 10, source.audio, whole=False)
    with av.open(str(tmp_path / "x.mp4")) as opened:
        length = float(opened.streams.audio[0].duration * opened.streams.audio[0].time_base)  # type: ignore[operator]
    assert length == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("place", ["gone.mp4", "only.m4a"])
def test_sound_that_cannot_be_read_is_said_and_the_video_is_whole(tmp_path: Path, place: str) -> None:
    write_sound(tmp_path / "only.m4a")
    sound = Sound(f"file:{tmp_path / place}", 0 if place.startswith("gone") else 7, "aac", 0.0)
    (note,) = write_colours(tmp_path / "x.mp4", 5, sound)
    assert "its sound (aac) cannot be carried over" in note
    assert len(decoded(tmp_path / "x.mp4")) == 5


@pytest.mark.parametrize("coding", [COLOUR, DEPTH])
def test_a_full_disk_is_one_sentence_and_leaves_no_file(tmp_path: Path, coding: Any) -> None:
    path = tmp_path / "x.mkv"
    noise = np.random.default_rng(0)

    def write() -> None:
        with VideoWriter(path, coding, (96, 128), fps=10) as writer:
            for index in range(40):
                if coding is DEPTH:
                    frame = frame_of([noise.integers(0, 65535, (96, 128), np.uint16)], coding.pixels)
                else:
                    frame = frame_of_rgb(noise.integers(0, 256, (96, 128, 3), np.uint8))
                writer.write(frame, index / 10)
            writer.finish()

    with files_at_most(100_000), pytest.raises(OutputError, match=r"cannot write .*x\.mkv: .*; choose a writable"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_leaves_no_file_and_keeps_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, DEPTH, (8, 8)) as writer:
        writer.write(frame_of([np.zeros((8, 8), np.uint16)], DEPTH.pixels), 0.0)
        raise KeyboardInterrupt
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"older"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), VideoWriter(tmp_path / "file" / "x.mkv", DEPTH, (8, 8)):
        pass


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99))
def test_exr_holds_the_floats(tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0, 10, size).astype(np.float32)
    path = tmp_path_factory.mktemp("exr") / "x.exr"
    write_exr(path, depth)
    assert path.read_bytes()[:4] == bytes.fromhex("762f3101")  # the magic number of OpenEXR
    with av.open(str(path)) as opened:
        (frame,) = opened.decode(video=0)
    np.testing.assert_array_equal(frame.to_ndarray(), depth)


def samples(path: Path) -> tuple[np.ndarray, float, float]:
    """All samples of the first channel, the time of the first, and that of the first picture."""
    with av.open(str(path)) as opened:
        frames: list[Any] = list(opened.decode(audio=0))
    with av.open(str(path)) as opened:
        picture: Any = next(iter(opened.decode(video=0)))
    heard = np.concatenate([np.atleast_2d(frame.to_ndarray())[0] for frame in frames])
    return heard, float(frames[0].time), float(picture.time)


def tone(path: Path, begin: float, codec: str = "pcm_s16le") -> Path:
    """A clip of 2 seconds with a tone from `begin` on."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio: Any = out.add_stream(codec, rate=TONE, layout="mono")
        for index, image in enumerate(numbered(20)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        times = np.arange(2 * TONE) / TONE
        wave = np.where(times >= begin, 20000 * np.sin(2 * np.pi * 440 * times), 0).astype(np.int16)
        for start in range(0, len(wave), 1024):
            heard = wave[None, start : start + 1024]
            if codec == "aac":
                part = av.AudioFrame.from_ndarray((heard / 32768).astype(np.float32), format="fltp", layout="mono")
            else:
                part = av.AudioFrame.from_ndarray(heard, format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = TONE, start, Fraction(1, TONE)
            out.mux(audio.encode(part))
        out.mux(audio.encode(None))
    return path
