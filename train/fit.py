"""Fit a network to data and leave a run bundle."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import lightning as L  # noqa: N812 - Lightning's own convention
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ..errors import OutputError, TrainingError
from ..files import is_refused_write, make_folder, remove
from ..spec import ModelSpec, Preprocessing, camera_ready
from .bundle import Frames, write_bundle, write_history
from .datasets import RGBD, RGBDDataset, Scenes, evenly_spaced, open_dataset
from .document import CHECKPOINT, MODEL, TrainingRecord
from .figures import plot_curve, plot_samples
from .module import DepthModule, EpochRecord
from .networks import build_network, count_macs, count_parameters
from .presets import PRESETS, PresetName

__all__ = ["TrainOptions", "fit", "model_spec"]

FRAMES: Final = 8
"""Validation frames that a bundle keeps."""

DEPTH_RANGE: Final = (0.1, 10.0)
"""Metres that a network can answer; the upper end is the paper's scale."""


@dataclass(frozen=True)
class TrainOptions:
    """What `depthkit train` was asked for.

    Attributes:
        data: `scenes` or a path, see `open_dataset`.
        size: height and width that samples are resized to.
        epochs, steps: whichever ends first; steps None: no limit. A run that steps cut short is divided into equal
            epochs, so that each still ends with a validation and a checkpoint.
        batch: pictures a step and process.
        learning_rate: None: the preset's.
        out: the run goes to `out/<network>`.
        resume: go on from the run's `last.ckpt` where there is one.
        devices, num_nodes, precision: handed to Lightning; precision `auto` is bf16-mixed on a GPU that has it, else
            FP32.
    """

    network: str
    data: str = "scenes"
    size: tuple[int, int] = (240, 320)
    epochs: int = 50
    steps: int | None = None
    batch: int = 8
    learning_rate: float | None = None
    preset: PresetName = "paper"
    out: Path = Path("runs")
    resume: bool = False
    seed: int = 0
    devices: str = "auto"
    num_nodes: int = 1
    precision: str = "auto"
    depth_units: float = 1000.0
    progress: bool = False
    on_epoch: Callable[[EpochRecord], None] | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / self.network

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return PRESETS[self.preset].learning_rate if self.learning_rate is None else self.learning_rate

    def identity(self) -> dict[str, Any]:
        """The options that a resumed run must share with the one that it continues."""
        names = ("network", "depth_units", "size", "epochs", "steps", "batch", "preset", "seed", "precision")
        return {
            **{name: getattr(self, name) for name in names},
            "data": self.data if self.data == "scenes" else str(Path(self.data).resolve()),
            "learning_rate": self.rate,
            "processes": _processes(self),
        }


def fit(options: TrainOptions) -> Path | None:
    """Train, and return the run folder; None in the helper processes of a distributed run.

    Raises:
        DataError, SpecError, OutputError: before anything is trained.
        TrainingError: a loss that is not finite, too little data, or a resume with other options.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` of the last whole epoch is there.
    """
    train = open_dataset(options.data, "train", size=options.size, depth_units=options.depth_units)
    val = open_dataset(options.data, "val", size=options.size, depth_units=options.depth_units)
    _check_amount(options, len(train), len(val))
    spec = model_spec(options.network, options.size)
    checkpoint = _checkpoint(options)
    folder = make_folder(options.folder)
    remove(folder / MODEL)  # from here on the folder is no finished run
    torch.manual_seed(options.seed)
    network = build_network(options.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = DepthModule(network, spec, PRESETS[options.preset], options.rate, options.seed, train)
    trainer = _trainer(options, module, len(train))
    loaders = _loader(train, options, trainer, shuffle=True), _loader(val, options, trainer, shuffle=False)
    with _quiet():
        _run(trainer, module, loaders, checkpoint, folder)
    if not trainer.is_global_zero:
        return None
    # The checkpoint and not the module: where weights are averaged it holds the average, also after a resume that found
    # nothing left to train, which Lightning ends without putting the average back.
    weights = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(weights)
    record = TrainingRecord(
        data=options.data,
        split="train",
        samples=len(train),
        size=options.size,
        preset=options.preset,
        epochs=len(module.history),
        steps=trainer.global_step,
        batch=options.batch,
        learning_rate=options.rate,
        seed=options.seed,
        precision=str(trainer.precision),
        devices=trainer.world_size,
        seconds=round(sum(epoch.seconds for epoch in module.history), 1),
        versions={name: version(name) for name in ("torch", "lightning", "kornia", "numpy")},
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    network.cpu().float().eval()
    frames = _keep_frames(options)
    write_bundle(folder, network, spec, record, frames)
    plot_samples(folder / "samples.png", network, spec, val)
    return folder


def model_spec(name: str, size: tuple[int, int]) -> ModelSpec:
    """The ModelSpec of a built-in network at a size, batch 1. Raises SpecError for a size that does not fit."""
    network = build_network(name)
    image, depth = camera_ready(*size)
    return ModelSpec(
        network=name,
        widths=network.widths,
        input=image,
        output=depth,
        preprocessing=Preprocessing(),
        depth_range=DEPTH_RANGE,
        parameters=count_parameters(network),
        macs=count_macs(network, size),
    )


class _Checkpoint(ModelCheckpoint):
    """`last.ckpt` after every epoch, with the options that made it, and the curve beside it."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(
            dirpath=options.folder,
            filename=Path(CHECKPOINT).stem,
            save_top_k=1,
            monitor=None,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._options = options

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning runs checkpoint callbacks after the module's own hook, so the curve is up to date here.
        super().on_train_epoch_end(trainer, pl_module)
        module = pl_module
        assert isinstance(module, DepthModule)
        if trainer.is_global_zero:
            write_history(self._options.folder, module.history)
            plot_curve(self._options.folder / "curve.png", module.history)
            if self._options.on_epoch is not None:
                self._options.on_epoch(module.history[-1])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["options"] = self._options.identity()


def _schedule(options: TrainOptions, samples: int, processes: int) -> tuple[int, int]:
    """Epochs, and batches in each."""
    batches = max(samples // (options.batch * processes), 1)
    if options.steps is None or options.steps >= options.epochs * batches:
        return options.epochs, batches
    epochs = -(-options.steps // batches)
    return epochs, options.steps // epochs


def _processes(options: TrainOptions) -> int:
    """Processes of a run: one for each device of each node."""
    return options.num_nodes * _devices(options)


def _devices(options: TrainOptions) -> int:
    if options.devices == "auto":
        return max(torch.cuda.device_count(), 1)
    if not options.devices.isdigit() or int(options.devices) < 1:
        raise TrainingError(f"{options.devices!r} is no number of devices; write 1, 2, … or auto")
    return int(options.devices)


def _check_amount(options: TrainOptions, train: int, val: int) -> None:
    """Raise TrainingError where a process would go without a batch to train on, or a sample to validate."""
    processes = _processes(options)
    if train < options.batch * processes:
        raise TrainingError(
            f"{options.data} has {train} training samples, less than a batch of {options.batch} for each of "
            f"{processes} processes; lower --batch or --devices, or add samples"
        )
    if val < processes:
        raise TrainingError(f"{options.data} has {val} validation samples for {processes} processes; lower --devices")


def _trainer(options: TrainOptions, module: DepthModule, samples: int) -> L.Trainer:
    callbacks: list[Callback] = [_Checkpoint(options)]
    if options.progress:
        callbacks.append(RichProgressBar(leave=True))
    epochs, batches = _schedule(options, samples, _processes(options))
    if module.preset.average_share is not None:
        window = max(module.preset.average_share * epochs * batches, 1.0)
        callbacks.append(EMAWeightAveraging(decay=1.0 - 1.0 / window))
    with _quiet():
        return L.Trainer(
            accelerator="auto",
            devices=_devices(options),
            num_nodes=options.num_nodes,
            strategy="ddp" if _processes(options) > 1 else "auto",
            precision=_precision(options.precision),  # type: ignore[arg-type]
            max_epochs=epochs,
            limit_train_batches=batches,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _loader(data: RGBDDataset, options: TrainOptions, trainer: L.Trainer, *, shuffle: bool) -> DataLoader[Any]:
    # A DistributedSampler even for one process: its order depends on the seed and the epoch alone, so a resumed run
    # sees the same batches as an unbroken one. Validation takes every n-th sample instead, because DistributedSampler
    # would repeat some where the processes do not divide them evenly.
    samples = cast("Dataset[RGBD]", data)  # torch asks for its own base class, and needs only indexing and length
    sampler: Iterable[int] = range(trainer.global_rank, len(data), trainer.world_size)
    if shuffle:
        sampler = DistributedSampler(samples, trainer.world_size, trainer.global_rank, seed=options.seed)
    on_gpu = torch.cuda.is_available()
    workers = 4 if on_gpu and not isinstance(data, Scenes) else 0
    return DataLoader(
        samples,
        batch_size=options.batch,
        sampler=sampler,
        drop_last=shuffle,
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
    )


def _run(
    trainer: L.Trainer, module: DepthModule, loaders: tuple[Any, Any], checkpoint: Path | None, folder: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *loaders, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
    except SystemExit as error:
        # Lightning answers Ctrl-C with exit(1), and leaves SIGINT ignored.
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    except OSError as error:
        if not is_refused_write(error):
            raise
        raise OutputError(f"cannot write to {folder}: {error}; `--resume` goes on from the last whole epoch") from error
    finally:
        signal.signal(signal.SIGINT, handler)


def _checkpoint(options: TrainOptions) -> Path | None:
    """The checkpoint to go on from. Raises TrainingError when the options differ from those that made it."""
    path = options.folder / CHECKPOINT
    if not options.resume or not path.is_file():
        return None
    try:
        made_with = torch.load(path, map_location="cpu", weights_only=True)["options"]
    except Exception as error:
        raise TrainingError(f"{path} cannot be read ({error}); train again without --resume") from error
    asked = options.identity()
    changed = [f"{key} {made_with.get(key)} -> {asked[key]}" for key in asked if made_with.get(key) != asked[key]]
    if changed:
        raise TrainingError(f"{path} was made with other options ({', '.join(changed)}); repeat them, or drop --resume")
    return path


def _keep_frames(options: TrainOptions) -> Frames:
    """Evenly spaced validation frames at the camera's size."""
    native = open_dataset(options.data, "val", depth_units=options.depth_units)
    samples = [native[index] for index in evenly_spaced(native, FRAMES)]
    shape = samples[0].image.shape
    same = [sample for sample in samples if sample.image.shape == shape]
    return Frames(np.stack([s.image for s in same]), np.stack([s.depth for s in same]))


@contextmanager
def _quiet() -> Any:
    """Without Lightning's tips and banners; its warnings about our deliberate choices are known here."""
    names = (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
