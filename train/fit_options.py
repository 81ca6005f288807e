"""Options of `depthkit train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import TrainingError
from ..names import DEPTH_UNITS, file_name
from .history import EpochRecord
from .origin import place_of
from .presets import PRESETS, Preset, PresetName
from .teacher import Teacher

__all__ = ["LoggerName", "TrainOptions"]

LoggerName = Literal["csv", "tensorboard", "wandb"]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `depthkit train`.

    Attributes:
        network: a built-in name, or `package.module:Network`.
        data: `scenes` or a path, see `open_dataset`.
        size: height and width that samples are resized to.
        epochs, steps: training ends with whichever comes first; steps None: no limit. If `steps` shortens a run, it is
            divided into equal epochs, so that each still ends with a validation and a checkpoint.
        batch: pictures in a forward pass of a process.
        accumulate: forward passes whose gradients are summed for a step.
        learning_rate: None: the preset's.
        preset: a name, or a `Preset` of your own.
        init: a run folder with the initial weights; None: random weights.
        teacher: a network whose depth is followed besides measured depth; it is opened by the caller.
        unlabelled: a folder of pictures without depth, for which only the teacher's depth is followed.
        out: the run goes to `out/<network>`, see `file_name`.
        resume: continue from the run's `last.ckpt` if there is one.
        force: replace a finished run when the new one is complete.
        devices, num_nodes, precision: passed to Lightning; precision `auto` is bf16-mixed on a GPU that supports it,
            else FP32.
        compiled: use `torch.compile`.
        workers: processes that load samples; None: chosen by `loading.workers`.
        skip_bad: skip files that cannot be read, and record their names, instead of ending the run.
        answers: what the network answers; None: as the run of `init`, else a share.
        output: name of depth among the tensors that the network returns; None: the only one that may be depth.
        on_epoch, on_warning: called with the record of every epoch, and with warnings of probable mistakes.
        loggers: Lightning loggers for every step; `metrics.csv` is always written.
    """

    network: str
    data: str = "scenes"
    size: tuple[int, int] = (240, 320)
    epochs: int = 50
    steps: int | None = None
    batch: int = 8
    accumulate: int = 1
    learning_rate: float | None = None
    preset: PresetName | Preset = "paper"
    init: Path | None = None
    teacher: Teacher | None = field(default=None, compare=False)
    unlabelled: Path | None = None
    out: Path = Path("runs")
    resume: bool = False
    force: bool = False
    seed: int = 0
    devices: str = "auto"
    num_nodes: int = 1
    precision: str = "auto"
    compiled: bool = False
    workers: int | None = None
    skip_bad: bool = False
    loggers: tuple[LoggerName, ...] = ()
    depth_units: float = DEPTH_UNITS
    answers: Literal["share", "metres"] | None = None
    output: str | None = None
    progress: bool = False
    on_epoch: Callable[[EpochRecord], None] | None = field(default=None, compare=False)
    on_warning: Callable[[str], None] | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / file_name(self.network)

    @property
    def recipe(self) -> Preset:
        """The preset as a `Preset`."""
        return self.preset if isinstance(self.preset, Preset) else PRESETS[self.preset]

    @property
    def rate(self) -> float:
        """The learning rate, or else the preset's."""
        return self.recipe.learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def devices_a_node(self) -> int:
        """Devices of each node. Raises TrainingError if `devices` is invalid or more than there are."""
        if self.devices == "auto":
            return max(torch.cuda.device_count(), 1)
        if not self.devices.isdigit() or int(self.devices) < 1:
            raise TrainingError(f"{self.devices!r} is not a number of devices; give 1, 2, … or auto")
        if 0 < torch.cuda.device_count() < int(self.devices):
            raise TrainingError(f"there are {torch.cuda.device_count()} GPUs, not {self.devices}; lower --devices")
        return int(self.devices)

    @property
    def processes(self) -> int:
        """Processes of a run: one per device of each node. Raises TrainingError if torchrun started another number."""
        processes = self.num_nodes * self.devices_a_node
        started = int(os.environ.get("WORLD_SIZE", processes))
        if started != processes:
            raise TrainingError(
                f"{started} processes were started for {self.num_nodes} nodes with {self.devices_a_node} devices each; "
                "give --num-nodes and --devices the same values as torchrun"
            )
        return processes

    @property
    def pictures_a_step(self) -> int:
        """Pictures of one optimiser step over all processes: the effective batch."""
        return self.batch * self.accumulate * self.processes

    def schedule(self, samples: int) -> tuple[int, int]:
        """The number of epochs, and of optimiser steps in each."""
        steps = max(samples // self.pictures_a_step, 1)
        if self.steps is None or self.steps >= self.epochs * steps:
            return self.epochs, steps
        epochs = -(-self.steps // steps)
        return epochs, self.steps // epochs

    @property
    def used_precision(self) -> str:
        """Lightning's name of the precision; `auto` depends on the machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"

    def identity(self, samples: int, init: str | None, *, stored: bool = False) -> dict[str, Any]:
        """The options that a resumed run must share with the checkpoint.

        How a step's pictures are divided among devices and passes may change.

        Args:
            samples: number in the training split.
            init: hash of the initial weights.
            stored: the teacher's answers are those that are stored beside the data.
        """
        names = ("network", "depth_units", "size", "epochs", "steps", "seed", "output")
        return {
            **{name: getattr(self, name) for name in names},
            "answers": self.answers or "share",
            "data": place_of(self.data),
            "samples": samples,
            "preset": self.preset if isinstance(self.preset, str) else "custom",
            "recipe": str(self.recipe),
            "init": init,
            "teacher": None if self.teacher is None else self.teacher.weights_sha256 + " (stored answers)" * stored,
            "precision": self.used_precision,
            "learning_rate": self.rate,
            "pictures a step": self.pictures_a_step,
        }
