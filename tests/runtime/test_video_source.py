"""Video files as sources: every frame in order, upright, in the right colours; what is broken is skipped and said."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthkit.data.images import resize_image
from depthkit.errors import DataError, FrameError, UserError

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'depthkit[video]'")

from depthkit.runtime.source import Frame, Timeline  # noqa: E402
from depthkit.runtime.sources import open_source  # noqa: E402

from .clips import (  # noqa: E402
    RATE,
    SIZE,
    number,
    numbered,
    packets,
    replace_bytes,
    tilt,
    write_clip,
    write_sound,
)

EVERY_FRAME_KEY = {"g": "1", "bf": "0", "preset": "ultrafast"}


def read(path: Path) -> tuple[list[Frame], list[str]]:
    """All frames of a source, and its faults."""
    with open_source(path) as source:
        frames = list(source)
        return frames, source.faults


def test_a_clip_is_delivered_whole_and_in_order(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(25))
    with open_source(path) as source:
        assert (source.size, source.fps, source.count, source.live) == (SIZE, RATE, 25, False)
        assert source.audio is None
        frames = list(source)
        assert (source.dropped, source.faults) == (0, [])
    assert [number(frame.image()) for frame in frames] == list(range(25))  # after `close`, too
    assert [frame.index for frame in frames] == list(range(25))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(25) / RATE)
    assert frames[3].name == "clip_000003"
    assert "48x64 25 frames" in repr(source)


def test_images_are_new_contiguous_arrays(tmp_path: Path) -> None:
    (frame, *_), _ = read(write_clip(tmp_path / "clip.mkv", numbered(2)))
    first, second, small = frame.image(), frame.image(), frame.image((13, 17))
    for image, size in ((first, SIZE), (second, SIZE), (small, (13, 17))):
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
    first[:] = 0
    assert (second > 0).any()
    assert np.array_equal(frame.image(), second)
    with pytest.raises(FrameError, match="0x5"):
        frame.image((0, 5))


def test_a_frame_that_is_rgb_already_is_copied(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", numbered(2), codec="rawvideo", pixels="rgb24")
    (frame, *_), _ = read(path)
    image = frame.image()
    image[:] = 0
    assert np.array_equal(frame.image(), numbered(1)[0])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(2, 70), st.integers(2, 70)),
    count=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_a_lossless_clip_of_any_size_reads_back_exactly(
    tmp_path: Path, size: tuple[int, int], count: int, seed: int
) -> None:
    noise = np.random.default_rng(seed)
    images = [noise.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    frames, faults = read(write_clip(tmp_path / "clip.mkv", images, codec="ffv1", pixels="bgr0"))
    assert faults == []
    assert len(frames) == count
    assert all(np.array_equal(frame.image(), image) for frame, image in zip(frames, images, strict=True))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "rgb24", "yuva420p"])
def test_odd_sizes_and_pixel_formats(tmp_path: Path, pixels: str) -> None:
    image = np.full((35, 51, 3), 120, np.uint8)
    codec = "png" if pixels == "rgb24" else "ffv1"
    (frame,), _ = read(
        write_clip(tmp_path / ("a.mov" if codec == "png" else "a.mkv"), [image], codec=codec, pixels=pixels)
    )
    assert np.abs(frame.image().astype(int) - 120).max() <= 2
    assert np.abs(frame.image((10, 15), exact=False).astype(int) - 120).max() <= 2


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((90, False), lambda image: np.rot90(image, 1)),
        ((-90, False), lambda image: np.rot90(image, -1)),
        ((180, False), lambda image: np.rot90(image, 2)),
        ((0, True), lambda image: image[:, ::-1]),
        ((90, True), lambda image: np.rot90(image[:, ::-1], 1).copy()),
    ],
)
def test_the_display_matrix_is_applied(tmp_path: Path, rotation: tuple[float, bool], expected: object) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:20, :24], image[:20, 40:], image[30:, :24] = (220, 30, 30), (30, 220, 30), (30, 30, 220)
    upright = expected(image)  # type: ignore[operator]
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    write_clip(plain, [image])
    with open_source(write_clip(turned, [image], rotation=rotation)) as source:
        assert source.size == upright.shape[:2]
        (frame,) = source
    difference = np.abs(frame.image().astype(int) - upright)
    if rotation == (90, True):  # mirrored before or after it is turned: both are used by muxers
        difference = np.minimum(difference, np.abs(frame.image().astype(int) - upright[::-1, ::-1]))
    assert difference.mean() < 8
    height, width = upright.shape[:2]
    small = frame.image((height // 2, width // 2))
    assert small.shape == (height // 2, width // 2, 3)
    assert small.flags.c_contiguous
    assert np.abs(small.astype(int) - resize_image(frame.image(), small.shape[:2])).mean() < 2


def test_a_tilted_video_is_named_and_given_as_stored(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(3))
    tilt(path, 30)
    frames, faults = read(path)
    assert len(frames) == 3
    assert frames[0].image().shape == (*SIZE, 3)
    assert any("turned by" in fault for fault in faults)


def test_a_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.5, 1.7, 1.75]
    frames, faults = read(write_clip(tmp_path / "clip.mkv", numbered(6), times=times))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=0.002)
    assert faults == []


def test_a_clip_that_begins_late_begins_at_zero(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(4), times=[5, 5.1, 5.2, 5.3])
    frames, _ = read(path)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.002)


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=40))
def test_times_always_increase(stamps: list[float | None]) -> None:
    line = Timeline(0.1)
    times = [line.at(stamp) for stamp in stamps]
    assert times[0] == 0
    assert all(before < after for before, after in pairwise(times))


def test_a_clock_that_starts_anew_goes_on(tmp_path: Path) -> None:
    """Recorders that restart append to the same transport stream."""
    parts = [write_clip(tmp_path / f"{n}.ts", numbered(20), options=EVERY_FRAME_KEY) for n in range(2)]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, faults = read(path)
    assert [number(frame.image()) for frame in frames] == [*range(20), *range(20)]
    assert [frame.time for frame in frames] == pytest.approx(np.arange(40) / RATE, abs=0.05)
    assert "1 time stamp went backwards and was moved" in faults


def test_a_playlist_on_disk_reaches_no_network(tmp_path: Path) -> None:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    (tmp_path / "list.m3u8").write_text(f"{head}http://127.0.0.1:1/clip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match=r"list\.m3u8"):
        open_source(tmp_path / "list.m3u8")


def test_the_sound_is_described(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(10), sound=True)
    with open_source(path) as source:
        assert source.audio is not None
        assert (source.audio.codec, source.audio.start) == ("aac", 0)
        with av.open(source.audio.place) as opened:
            assert opened.streams[source.audio.stream].type == "audio"
            assert sum(frame.samples for frame in opened.decode(audio=0)) >= 8000
        assert len(list(source)) == 10


def test_a_name_with_a_colon_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "plain.mkv", numbered(2)).rename(tmp_path / "rtsp:clip.mkv")
    monkeypatch.chdir(tmp_path)
    with open_source("rtsp:clip.mkv") as source:
        assert len(list(source)) == 2


def test_broken_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(20), options=EVERY_FRAME_KEY)
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for place, size in (packets(path)[index] for index in (5, 11)):
        data[place + 8 : place + size] = noise.bytes(size - 8)
    path.write_bytes(data)
    frames, faults = read(path)
    shown = [number(frame.image()) for frame in frames]
    assert len(frames) >= 18
    assert {*range(20)} - {5, 11} <= {*shown}
    assert any("broken packet" in fault or "damaged frame" in fault for fault in faults), faults
    times = [frame.time for frame in frames]
    assert times[-1] == pytest.approx(1.9, abs=0.002)  # a hole in time, not a shift


def test_a_truncated_file_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mp4", numbered(20), options=EVERY_FRAME_KEY, file_options={"movflags": "faststart"}
    )
    place, size = packets(path)[12]
    path.write_bytes(path.read_bytes()[: place + size // 2])
    frames, faults = read(path)
    assert 12 <= len(frames) <= 13
    assert [number(frame.image()) for frame in frames[:12]] == list(range(12))
    assert any("ends early" in fault and "of 20 frames" in fault for fault in faults), faults


def test_a_truncated_matroska_is_named_too(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(40), options=EVERY_FRAME_KEY)
    place, size = packets(path)[12]
    path.write_bytes(path.read_bytes()[: place + size // 2])
    frames, faults = read(path)
    assert 12 <= len(frames) <= 13
    assert any("ends early" in fault for fault in faults), faults


def test_a_size_that_changes_is_refused_by_both_sizes(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{n}.ts", numbered(5, size)) for n, size in enumerate((SIZE, (64, 96)))]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_source(path) as source:
        taken: list[Frame] = []
        with pytest.raises(DataError, match=r"changes its size from 48x64 to 64x96"):
            taken.extend(source)
    assert len(taken) <= 5


REFUSED = {
    "empty": ("empty.mp4", b"", "is empty"),
    "noise": ("noise.mp4", bytes(range(256)) * 40, "not a video that FFmpeg knows, or is truncated"),
    "text": ("notes.txt", b"no video at all\n" * 50, "no video stream"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_video_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == ""  # FFmpeg prints nothing of its own


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(20))
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(DataError, match="truncated"):
        open_source(path)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only sound"):
        open_source(write_sound(tmp_path / "sound.m4a"))


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(3))
    replace_bytes(path, b"avc1", b"zzzz")
    with pytest.raises(DataError, match="codec"):
        open_source(path)


def test_a_video_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(3), options=EVERY_FRAME_KEY)
    data = bytearray(path.read_bytes())
    for place, size in packets(path):
        data[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"no frame of .* could be decoded"):
        open_source(path)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(2))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(DataError, match="no permission"):
        open_source(path)


def test_without_pyav_the_message_has_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(2))
    monkeypatch.setattr("depthkit.packages.find_spec", lambda _: None)
    for place in (path, "0", "rtsp://127.0.0.1/x", "http://127.0.0.1/x"):
        with pytest.raises(UserError, match=r"pip install 'depthkit\[video\]'"):
            open_source(place)


def test_a_source_is_read_once_and_closed_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(5))
    with open_source(path) as source:
        frames = iter(source)
        next(frames)
        with pytest.raises(DataError, match="read before"):
            iter(source)
        source.close()
        source.close()
        assert list(frames) == []
    with pytest.raises(DataError, match="closed before"):
        iter(source)


def test_decoder_threads_give_the_same_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(20))
    with open_source(path) as one, open_source(path, threads=2) as two:
        pairs = list(zip(one, two, strict=True))
    assert len(pairs) == 20
    assert all(np.array_equal(a.image(), b.image()) for a, b in pairs)


def test_resizing_in_one_pass_is_close_to_that_of_training(samples: Path) -> None:
    """On the real clips; the bound is twice what tests/perf_sources.py finds."""
    for path in sorted((samples / "video").glob("*.mp4")):
        with open_source(path) as source:
            frame = next(iter(source))
        expected = resize_image(frame.image(), (240, 320))
        assert np.abs(frame.image((240, 320)).astype(int) - expected).mean() < 0.7, path


def test_real_clips_are_read_whole(samples: Path) -> None:
    found = {}
    for name in ("indoor_hololens_540x360", "mmdeploy_arm_wrestling"):
        with open_source(samples / "video" / f"{name}.mp4") as source:
            found[name] = (sum(1 for _ in source), source.count)
    assert found
    assert all(read == stated for read, stated in found.values()), found


def test_a_container_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(12), sound=True)
    with path.open("rb") as data:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
        with open_source("-") as source:
            assert (source.name, source.audio) == ("standard input", None)
            assert [number(frame.image()) for frame in source] == list(range(12))
            assert source.faults == ["its sound cannot be carried over, because it is read once"]
