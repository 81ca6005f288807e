"""How much of a bare training loop's throughput `fit` keeps, on this machine's GPU or CPU; part of `make perf`.

The bare loop is what anyone would write to time a network: forward, loss, backward, step, on a batch in memory. `fit`
loads, augments, checks, averages and counts as well. Both take turns, an epoch each, in one run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from threading import Event, Thread
from time import perf_counter

import torch

from depthkit.data.grey16 import write_depth_png
from depthkit.data.images import write_image
from depthkit.data.prepare import prepare
from depthkit.data.scenes.render import render_scenes
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.history import EpochRecord
from depthkit.train.losses import DepthLoss
from depthkit.train.networks import build_network
from depthkit.train.presets import PRESETS, Stage

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIZE, BATCH, STEPS = ((240, 320), 64, 16) if ON_GPU else ((96, 128), 8, 16)
EPOCHS = 7


@dataclass
class Speeds:
    """Images a second of `fit` and of the bare loop, epoch by epoch; when `fit` trained, and how busy the GPU was."""

    fit: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    trained: list[tuple[float, float]] = field(default_factory=list)
    readings: list[tuple[float, float]] = field(default_factory=list)

    @property
    def busy(self) -> float:
        """Percent of the time, by the driver, while `fit` trained; validation and the bare loop are left out."""
        return mean(busy for when, busy in self.readings if any(start < when < end for start, end in self.trained[1:]))

    @property
    def share(self) -> float:
        """Median of the epochs' ratios; the first epoch, in which memory is found and kernels are chosen, left out."""
        return median(mine / theirs for mine, theirs in zip(self.fit[1:], self.bare[1:], strict=True))


class BareLoop:
    """Forward, loss, backward, step of compact on one batch in memory, in the precision that `fit` takes here."""

    def __init__(self, *, compiled: bool) -> None:
        self._network = build_network("compact").to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            self._network.compile()
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=1e-3)
        self._loss = DepthLoss(PRESETS["best"].loss)
        self._image = torch.rand(BATCH, 3, *SIZE, device=DEVICE)
        self._normal = self._image.contiguous(memory_format=torch.channels_last)
        self._depth = torch.rand(BATCH, 1, *SIZE, device=DEVICE) * 0.9 + 0.05
        self._valid = torch.ones_like(self._depth, dtype=torch.bool)

    def epoch(self) -> float:
        """Images a second."""
        start = perf_counter()
        for _ in range(STEPS):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
                prediction = self._network(self._normal)
            loss = self._loss(prediction.float(), self._depth, self._valid, self._image)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        if ON_GPU:
            torch.cuda.synchronize()
        return STEPS * BATCH / (perf_counter() - start)


@contextmanager
def watch_gpu(readings: list[tuple[float, float]]) -> Iterator[None]:
    """Ask the driver every 50 ms how busy the GPU is."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=50"]
    done = Event()

    def read() -> None:
        with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                readings.append((perf_counter(), float(line)))
                if done.is_set():
                    process.kill()

    if not ON_GPU:
        yield
        return
    thread = Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def write_pairs(folder: Path) -> None:
    """Scenes as files: enough for an epoch of training, and a batch to validate."""
    for split, count in (("train", STEPS * BATCH), ("val", BATCH)):
        for first in range(0, count, BATCH):
            images, depths = render_scenes(range(first, first + BATCH), SIZE, device=DEVICE)
            for index, image, depth in zip(range(first, first + BATCH), images.cpu(), depths.cpu(), strict=True):
                write_image(folder / "images" / split / f"{index:05}.png", image.numpy())
                write_depth_png(folder / "depth" / split / f"{index:05}.png", depth.numpy())


def train_throughput(*, compiled: bool = False) -> Speeds:
    """Train compact on a prepared set with everything that `best` does to own data, and the bare loop between."""
    speeds = Speeds()
    bare = BareLoop(compiled=compiled)

    def bare_epoch(record: EpochRecord) -> None:
        speeds.fit.append(record.images_per_second)
        start = perf_counter() - record.seconds
        speeds.trained.append((start, start + STEPS * BATCH / record.images_per_second))
        speeds.bare.append(bare.epoch())

    with tempfile.TemporaryDirectory() as folder, watch_gpu(speeds.readings):
        pairs, data = Path(folder, "pairs"), Path(folder, "prepared")
        write_pairs(pairs)
        prepare(pairs, data, size=SIZE)
        options = TrainOptions("compact", str(data), SIZE, out=Path(folder, "runs"), on_epoch=bare_epoch)
        best = replace(PRESETS["best"], stages=(Stage(1.0),))
        steps = EPOCHS * STEPS
        fit(replace(options, epochs=EPOCHS, steps=steps, batch=BATCH, preset=best, compiled=compiled))
    return speeds


def scene_throughput(batch: int = 64 if ON_GPU else 16) -> float:
    """Built-in scenes a second on this device."""
    times = []
    for turn in range(7):
        start = perf_counter()
        render_scenes(range(turn * batch, (turn + 1) * batch), SIZE, device=DEVICE)
        if ON_GPU:
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return batch / median(times[1:])


def main() -> int:
    """Print the figures; 1 where `fit` keeps less than 95 % of the bare loop."""
    name = torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"compact {SIZE[0]}x{SIZE[1]}, batch {BATCH}, {'bf16' if ON_GPU else 'FP32'}, {name}")
    print(f"built-in scenes: {scene_throughput():.0f} images/s")
    holds = True
    for compiled in (False, True) if ON_GPU else (False,):
        speeds = train_throughput(compiled=compiled)
        holds &= speeds.share >= 0.95
        print(
            f"{'compiled' if compiled else 'eager'}: fit {median(speeds.fit[1:]):.1f} images/s, "
            f"{speeds.share:.1%} of the bare loop's {median(speeds.bare[1:]):.1f} (wanted 95 %)"
            + (f"; GPU busy {speeds.busy:.0f} %" if ON_GPU else "")
        )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
