"""What `depthkit train` was asked for."""

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

__all__ = ["LoggerName", "TrainOptions"]

LoggerName = Literal["csv", "tensorboard", "wandb"]


@dataclass(frozen=True)
class TrainOptions:
    """What `depthkit train` was asked for.

    Attributes:
        network: a built-in name, or `package.module:Network`.
        data: `scenes` or a path, see `open_dataset`.
        size: height and width that samples are resized to.
        epochs, steps: whichever ends first; steps None: no limit. A run that steps cut short is divided into equal
            epochs, so that each still ends with a validation and a checkpoint.
        batch: pictures in a forward pass of a process.
        accumulate: forward passes whose gradients are added up before a step.
        learning_rate: None: the preset's.
        preset: a name, or a `Preset` of your own.
        init: a run folder whose weights are the first ones; None: random weights.
        out: the run goes to `out/<network>`, see `file_name`.
        resume: go on from the run's `last.ckpt` where there is one.
        force: replace a finished run, once the new one is whole.
        devices, num_nodes, precision: handed to Lightning; precision `auto` is bf16-mixed on a GPU that has it, else
            FP32.
        compiled: by `torch.compile`.
        workers: processes that load samples; None: as many as help, see `loading.workers`.
        skip_bad: leave files that cannot be read out, and name them, instead of ending the run.
        on_epoch, on_warning: told of every epoch, and of what is probably a mistake, as a sentence.
        loggers: Lightning's loggers that are told of every step, beside the curve that is always kept.
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
    progress: bool = False
    on_epoch: Callable[[EpochRecord], None] | None = field(default=None, compare=False)
    on_warning: Callable[[str], None] | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / file_name(self.network)

    @property
    def recipe(self) -> Preset:
        """The preset that is used."""
        return self.preset if isinstance(self.preset, Preset) else PRESETS[self.preset]

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.recipe.learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def devices_a_node(self) -> int:
        """Devices of each node. Raises TrainingError for words that are no number of them."""
        if self.devices == "auto":
            return max(torch.cuda.device_count(), 1)
        if not self.devices.isdigit() or int(self.devices) < 1:
            raise TrainingError(f"{self.devices!r} is no number of devices; write 1, 2, … or auto")
        if 0 < torch.cuda.device_count() < int(self.devices):
            raise TrainingError(f"there are {torch.cuda.device_count()} GPUs here and not {self.devices}")
        return int(self.devices)

    @property
    def processes(self) -> int:
        """Processes of a run: one for each device of each node. Raises TrainingError where torchrun started others."""
        processes = self.num_nodes * self.devices_a_node
        started = int(os.environ.get("WORLD_SIZE", processes))
        if started != processes:
            raise TrainingError(
                f"{started} processes were started for {self.num_nodes} nodes with {self.devices_a_node} devices each; "
                "let --num-nodes and --devices say what torchrun was told"
            )
        return processes

    @property
    def pictures_a_step(self) -> int:
        """Pictures between two steps of the optimiser, of all processes together: what the gradient is a mean of."""
        return self.batch * self.accumulate * self.processes

    def schedule(self, samples: int) -> tuple[int, int]:
        """Epochs, and steps of the optimiser in each."""
        steps = max(samples // self.pictures_a_step, 1)
        if self.steps is None or self.steps >= self.epochs * steps:
            return self.epochs, steps
        epochs = -(-self.steps // steps)
        return epochs, self.steps // epochs

    @property
    def used_precision(self) -> str:
        """Lightning's name of the precision; `auto` is decided by the machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"

    def identity(self, samples: int, init: str | None) -> dict[str, Any]:
        """What a resumed run must share with the one that it continues.

        How a step's pictures are spread over devices and passes is not among it.

        Args:
            samples: in the training split.
            init: hash of the first weights.
        """
        names = ("network", "depth_units", "size", "epochs", "steps", "seed")
        return {
            **{name: getattr(self, name) for name in names},
            "data": place_of(self.data),
            "samples": samples,
            "preset": self.preset if isinstance(self.preset, str) else "custom",
            "recipe": str(self.recipe),
            "init": init,
            "precision": self.used_precision,
            "learning_rate": self.rate,
            "pictures a step": self.pictures_a_step,
        }
