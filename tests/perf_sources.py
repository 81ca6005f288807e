"""Cost and accuracy of reading video: `python tests/perf_sources.py SAMPLES`, where SAMPLES holds `video/*.mp4`.

It prints CPU milliseconds a frame, the mean difference of swscale's scalers from the resize of training, and how memory
grows. One thread; the machine should be idle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import psutil
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation as How
from av.video.reformatter import VideoReformatter

from depthkit.data.images import resize_image
from depthkit.runtime.source import Frame
from depthkit.runtime.sources import open_source

CLIP = "indoor_tum_fr1_rpy_640x480.mp4"
SIZE = (240, 320)
FULL = How.FULL_CHR_H_INT | How.ACCURATE_RND
SCALERS = {
    "fast bilinear": How.FAST_BILINEAR,
    "bilinear": How.BILINEAR,
    "bilinear, full chroma (chosen)": How.BILINEAR | FULL,
    "area": How.AREA,
    "area, full chroma": How.AREA | FULL,
    "bicubic, full chroma": How.BICUBIC | FULL,
    "gauss, full chroma": How.GAUSS | FULL,
    "lanczos, full chroma": How.LANCZOS | FULL,
}


def main(samples: Path) -> None:
    """Print all figures."""
    clips = sorted((samples / "video").glob("*.mp4"))
    print(f"CPU: {processor()}; load {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    costs(samples / "video" / CLIP)
    scalers(clips)
    growth(samples / "video" / CLIP)


def costs(clip: Path) -> None:
    """CPU time of each way to read a clip, the median of three passes."""
    ways: dict[str, Callable[[Frame], object]] = {
        "decode": lambda _: None,
        "decode, RGB 480x640": lambda frame: frame.image(),
        "decode, RGB 480x640, exact=False": lambda frame: frame.image(exact=False),
        "decode, RGB 240x320 in one pass": lambda frame: frame.image(SIZE),
        "decode, RGB 480x640, Pillow to 240x320": lambda frame: resize_image(frame.image(), SIZE),
    }
    for name, use in ways.items():
        print(f"{name:42s} {median(cost(clip, use) for _ in range(3)):6.2f} ms of CPU a frame")


def cost(clip: Path, use: Callable[[Frame], object]) -> float:
    """CPU milliseconds of this process a frame."""
    with open_source(clip) as source:
        frames = iter(source)
        use(next(frames))
        count, begin = 0, process_time()
        for frame in frames:
            use(frame)
            count += 1
        return (process_time() - begin) / count * 1000


def scalers(clips: list[Path]) -> None:
    """Difference from the antialiased resize of training, in levels of 255, on 12 frames of each clip; and its time."""
    print(f"\n{'scaler to 240x320':34s} {'mean |difference| by clip':40s} {'bias':>6s} {'ms':>6s}")
    taken = [some(clip) for clip in clips]
    frames = [frame for group in taken for frame in group]
    expected = [[resize_image(scaled(frame, None, How.BILINEAR | FULL), SIZE) for frame in group] for group in taken]
    for name, how in SCALERS.items():
        reformatter = VideoReformatter()
        begin = process_time()
        found = [[scaled(frame, SIZE, how, reformatter) for frame in group] for group in taken]
        spent = (process_time() - begin) / len(frames) * 1000
        pairs = zip(found, expected, strict=True)
        apart = [np.subtract(ours, theirs, dtype=np.int16) for ours, theirs in pairs]
        means = " ".join(f"{np.abs(clip).mean():8.2f}" for clip in apart)
        print(f"{name:34s} {means:40s} {np.mean([clip.mean() for clip in apart]):+6.2f} {spent:6.2f}")
    fulls = [scaled(frame, None, How.BILINEAR | FULL) for frame in frames]
    begin = process_time()
    for image in fulls:
        resize_image(image, SIZE)
    print(f"{'Pillow, from RGB':34s} {'':40s} {'':6s} {(process_time() - begin) / len(frames) * 1000:6.2f}")
    print("clips: " + ", ".join(clip.stem for clip in clips))


def some(clip: Path) -> list[VideoFrame]:
    """12 decoded frames of a clip."""
    import av

    with av.open(str(clip)) as opened:
        return [frame for index, frame in enumerate(opened.decode(video=0)) if index % 15 == 0][:12]


def scaled(
    frame: VideoFrame, size: tuple[int, int] | None, how: How, reformatter: VideoReformatter | None = None
) -> np.ndarray:
    """A frame as RGB by one scaler."""
    height, width = size or (frame.height, frame.width)
    made = (reformatter or VideoReformatter()).reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=how,
        threads=1,
    )
    return made.to_ndarray()


def growth(clip: Path) -> None:
    """Memory after each pass over a clip."""
    process, sizes, count = psutil.Process(), [], 0
    for _ in range(6):
        with open_source(clip) as source:
            for frame in source:
                frame.image(SIZE)
                count += 1
        sizes.append(process.memory_info().rss)
    slope = (sizes[-1] - sizes[1]) / (count * 4 / 6)
    print(f"\nmemory: {slope:+.0f} bytes a frame over the last {count * 4 // 6} frames")


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
