"""Ways to resize frames for the network and its depth back: CPU time, and the effect on accuracy, for resize.md.

    pip install opencv-python-headless av
    python docs/results/resize.py path/to/nyu

Times are CPU times of one thread, the smallest of many, because other processes may run. Accuracy is on the validation
split, by compact at 96x128 with ONNX Runtime and at 240x320 with torch. depthkit does not depend on OpenCV or PyAV.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any, Final

import av
import click
import cv2
import numpy as np
from PIL import Image

from depthkit.data.images import fill_image, resize_depth, resize_image
from depthkit.data.sources import open_dataset
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.frames import AnySize
from depthkit.metrics import DepthScores, FrameScore, aggregate, score_frame
from depthkit.pipeline.targets import open_torch
from depthkit.runtime.load import load
from depthkit.runtime.null import NullSession
from depthkit.session import Session
from depthkit.spec import ModelSpec
from depthkit.train.shipped import shipped_run

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]

FRAMES: Final = (((480, 640), (240, 320)), ((480, 640), (96, 128)), ((1080, 1920), (240, 320)))
RUNS: Final = 200
"""Runs of which the fastest counts."""


def by_depthkit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What `depthkit.Predictor` does, into a new array."""
    target = np.empty((*size, 3), np.uint8)
    fill_image(target, image)
    return target


def by_pillow(image: np.ndarray, size: tuple[int, int], gap: float | None = None) -> np.ndarray:
    """Pillow, with averaging of whole blocks before (`gap` 1.0: as far as possible)."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=gap))


def by_opencv(image: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """OpenCV."""
    return np.asarray(cv2.resize(image, size[::-1], interpolation=how))


def by_swscale(image: np.ndarray, size: tuple[int, int], how: str, kind: str = "rgb24") -> np.ndarray:
    """FFmpeg's swscale by PyAV, with the copy into a frame and out of it."""
    frame = av.VideoFrame.from_ndarray(image, format=kind)
    return frame.reformat(width=size[1], height=size[0], interpolation=how, format=kind).to_ndarray()


def by_means(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """NumPy's mean of every block, for sizes that divide."""
    (height, width), (tall, wide) = size, image.shape[:2]
    down, across = tall // height, wide // width
    blocks = image.reshape(height, down, width, across, 3).sum((1, 3), dtype=np.uint16)
    return ((blocks + down * across // 2) // (down * across)).astype(np.uint8)


WAYS: Final[dict[str, Resize]] = {
    "Pillow, antialiased (training)": resize_image,
    "**depthkit.Predictor**": by_depthkit,
    "Pillow, means of blocks first": partial(by_pillow, gap=1.0),
    "NumPy, means of blocks": by_means,
    "OpenCV, INTER_AREA": partial(by_opencv, how=cv2.INTER_AREA),
    "OpenCV, INTER_LINEAR": partial(by_opencv, how=cv2.INTER_LINEAR),
    "swscale, BILINEAR": partial(by_swscale, how="BILINEAR"),
    "swscale, AREA": partial(by_swscale, how="AREA"),
}


def pillow_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's bilinear interpolation."""
    return np.asarray(Image.fromarray(depth).resize(size[::-1], Image.Resampling.BILINEAR))


WAYS_BACK: Final[dict[str, Resize]] = {
    "Pillow": pillow_depth,
    "**depthkit.Predictor**": partial(resize_depth, smooth=True),
    "OpenCV, INTER_LINEAR": partial(by_opencv, how=cv2.INTER_LINEAR),
    "swscale, BILINEAR": partial(by_swscale, how="BILINEAR", kind="grayf32le"),
}


@click.command()
@click.argument("nyu")
def main(nyu: str) -> None:
    """Print the tables of resize.md."""
    cv2.setNumThreads(1)
    data = open_dataset(nyu, "val")
    picture = data[0].image
    click.echo(f"On {cpu_fingerprint().name}.\n")
    _print_shrinking(picture)
    _print_enlarging(load(_onnx())(resize_image(picture, (96, 128))))
    _print_overhead(picture)
    torch_compact = open_torch(shipped_run("compact"), (240, 320))
    _print_accuracy(data, {"96x128": load(_onnx()), "240x320": torch_compact})


def _print_shrinking(picture: np.ndarray) -> None:
    click.echo(
        "| way | 640x480 to 320x240, ms | 640x480 to 128x96, ms | 1920x1080 to 320x240, ms | largest difference |"
    )
    click.echo("|---|---:|---:|---:|---:|")
    for name, resize in WAYS.items():
        cells, worst = [], 0
        for source, goal in FRAMES:
            frame = by_pillow(picture, source)
            if resize is by_means and source[0] % goal[0]:
                cells.append("")
                continue
            cells.append(f"{_ms(resize, frame, goal):.2f}")
            away = resize(frame, goal).astype(int) - resize_image(frame, goal)
            worst = max(worst, int(np.abs(away).max()))
        click.echo(f"| {name} | {' | '.join(cells)} | {worst} |")


def _print_enlarging(depth: np.ndarray) -> None:
    click.echo("\n| way | 320x240 to 640x480, ms | 128x96 to 640x480, ms | largest difference, mm |")
    click.echo("|---|---:|---:|---:|")
    for name, resize in WAYS_BACK.items():
        cells, worst = [], 0.0
        for small in (pillow_depth(depth, (240, 320)), depth):
            cells.append(f"{_ms(resize, small, (480, 640)):.2f}")
            away = resize(small, (480, 640)) - pillow_depth(small, (480, 640))
            worst = max(worst, float(np.abs(away).max()) * 1000)
        click.echo(f"| {name} | {' | '.join(cells)} | {worst:.3f} |")


def _print_overhead(picture: np.ndarray) -> None:
    click.echo("\n| all but the engine, ms | RGB | BGR |")
    click.echo("|---|---:|---:|")
    for source, goal in (*FRAMES, ((720, 1280), (240, 320))):
        frame = by_pillow(picture, source)
        spec = _spec(goal)
        both = [AnySize(NullSession(spec, 1.0), flip=flip) for flip in (False, True)]
        cells = [f"{_ms(_run, model, frame):.2f}" for model in both]
        click.echo(f"| {source[1]}x{source[0]}, engine of {goal[1]}x{goal[0]} | {' | '.join(cells)} |")


def _print_accuracy(data: Any, sessions: dict[str, Session]) -> None:
    click.echo(f"\n| way | {' | '.join(f'δ1 at {name}, change | AbsRel, change' for name in sessions)} |")
    click.echo(f"|---|{'---:|---:|' * len(sessions)}")
    scores = {name: _scores(data, session) for name, session in sessions.items()}
    for way in WAYS:
        cells = []
        for found in scores.values():
            ours, first = found[way].pooled, next(iter(found.values())).pooled
            cells.append(f"{ours.delta1:.5f}, {ours.delta1 - first.delta1:+.5f}")
            cells.append(f"{ours.abs_rel:.5f}, {ours.abs_rel - first.abs_rel:+.5f}")
        click.echo(f"| {way} | {' | '.join(cells)} |")


def _scores(data: Any, session: Session) -> dict[str, DepthScores]:
    """The scores of every way; the depth is enlarged by depthkit, or for Pillow by Pillow."""
    found: dict[str, list[FrameScore]] = {name: [] for name in WAYS}
    for index in range(len(data)):
        sample = data[index]
        for name, resize in WAYS.items():
            small = session(np.ascontiguousarray(resize(sample.image, session.spec.size)))
            back = pillow_depth if resize is resize_image else partial(resize_depth, smooth=True)
            found[name].append(score_frame(back(small, sample.image.shape[:2]), sample.depth, data.crop))
    return {name: aggregate(frames) for name, frames in found.items()}


def _ms(call: Callable[..., object], *arguments: object) -> float:
    call(*arguments)
    best = float("inf")
    for _ in range(RUNS):
        start = thread_time()
        call(*arguments)
        best = min(best, thread_time() - start)
    return best * 1000


def _run(model: AnySize, frame: np.ndarray) -> np.ndarray:
    return next(model.run([frame]))


def _onnx() -> Path:
    return next(shipped_run("compact").glob("*.fp32.onnx"))


def _spec(size: tuple[int, int]) -> ModelSpec:
    with open_torch(shipped_run("compact"), size) as session:
        return session.spec


if __name__ == "__main__":
    sys.exit(main())
