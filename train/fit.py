"""Train a network on a data set and write a run bundle."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal

import lightning as L  # noqa: N812 - Lightning's own convention
import torch
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..data.dataset import RGBDDataset, SkipBad, evenly_spaced
from ..data.scenes.scene_dataset import Scenes
from ..data.sources import open_dataset
from ..errors import OutputError, TrainingError
from ..files import is_refused_write, make_folder
from ..metrics import VALID_DEPTH, implausible_depth, valid_pixels
from ..spec import ModelSpec
from .bundle import Bundle, frames_of, write_bundle
from .document import CHECKPOINT, TrainingRecord
from .figures import plot_curve, plot_samples
from .fit_options import LoggerName, TrainOptions
from .history import write_history
from .loading import Feed, with_unlabelled
from .module import DepthModule
from .networks import build_network
from .origin import depth_units_of, fingerprint, place_of
from .out_of_memory import is_out_of_memory, out_of_memory
from .start import first_network
from .workplace import checkpoint_in, claimed, discard, replace_run, require_free, workplace

__all__ = ["fit"]

_SPLITS: Final[tuple[Literal["train", "val"], ...]] = ("train", "val")

_LOOKED_AT: Final = 8
"""Samples that are checked for measured pixels before training."""


def fit(options: TrainOptions) -> Path | None:
    """Train, and return the run folder; None in the helper processes of a distributed run.

    Raises:
        DataError, SpecError, OutputError: before training starts.
        TrainingError: a loss that is not finite, too little data, or a resume with other options.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` of the last complete epoch exists.
    """
    require_free(options.folder, options.network, resume=options.resume, force=options.force)
    train, val = (_open(options, split) for split in _SPLITS)
    _check_amount(options, len(train), len(val))
    _check_measured(options, train, val)
    if options.unlabelled is not None:
        train = with_unlabelled(options, train)
    torch.manual_seed(options.seed)
    network, spec, init = first_network(options, train.focal)
    if options.teacher is not None:
        options.teacher.require_fit(spec, options.folder)
    stored = options.teacher is not None and options.teacher.has_answered(train, options.data)
    identity = options.identity(len(train), None if init is None else init.weights_sha256, stored=stored)
    work = workplace(options.folder)
    trainer = _trainer(options, spec, len(train), _Checkpoint(options, identity, work), work)
    # Only the first process of a distributed run writes.
    with claimed(options.folder) if trainer.is_global_zero else nullcontext():
        if workplace(options.folder) != work:
            raise TrainingError(f"another training has just ended in {options.folder}; choose another --out")
        checkpoint = _checkpoint(options, identity)
        if trainer.is_global_zero and checkpoint is None:
            discard(options.folder)
        make_folder(work)
        module = DepthModule(network, spec, options.recipe, options.rate, options.seed, options.teacher)
        feed = Feed(options, train, val, options.schedule(len(train))[0], stored=stored)
        with _quiet():
            _run(trainer, module, feed, checkpoint, options)
        if not trainer.is_global_zero:
            return None
        record = _record(options, module, trainer, len(train), init, stored)
        _write(options, work, spec, record, val)
        if work != options.folder:
            replace_run(work, options.folder)
    return options.folder


def _write(options: TrainOptions, work: Path, spec: ModelSpec, record: TrainingRecord, val: RGBDDataset) -> None:
    """Write the bundle of the last checkpoint into `work`."""
    # The checkpoint and not the module, because it has the averaged weights. Lightning does not copy these back into
    # the module after a resume with nothing left to train. The module may also be compiled.
    path = checkpoint_in(options.folder)
    assert path is not None, "fitting leaves a checkpoint"
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    trained = build_network(options.network).eval()
    trained.load_state_dict({name.removeprefix("network."): tensor for name, tensor in weights.items()})
    native = open_dataset(options.data, "val", depth_units=options.depth_units)
    plot_samples(work / "samples.png", trained, spec, val)
    write_bundle(work, trained, spec, record, frames_of(native))


def _open(options: TrainOptions, split: Literal["train", "val"]) -> RGBDDataset:
    data = open_dataset(options.data, split, size=options.size, depth_units=options.depth_units)
    return SkipBad(data) if options.skip_bad and not isinstance(data, Scenes) else data


def _record(
    options: TrainOptions, module: DepthModule, trainer: L.Trainer, samples: int, init: Bundle | None, stored: bool
) -> TrainingRecord:
    place = place_of(options.data)
    data = open_dataset(options.data, "train", depth_units=options.depth_units)
    return TrainingRecord(
        data=Path(place).name,
        place=place,
        fingerprint=None if place == "scenes" else fingerprint(data),
        depth_units=depth_units_of(data),
        split="train",
        samples=samples,
        size=options.size,
        preset=options.preset if isinstance(options.preset, str) else "custom",
        epochs=len(module.history),
        steps=trainer.global_step,
        batch=options.batch,
        learning_rate=options.rate,
        seed=options.seed,
        precision=str(trainer.precision),
        devices=trainer.world_size,
        seconds=round(sum(epoch.seconds for epoch in module.history), 1),
        accumulate=options.accumulate,
        stages=tuple((stage, len(list(epochs))) for stage, epochs in groupby(e.stage for e in module.history)),
        init=None if init is None else init.weights_sha256,
        teacher=None if options.teacher is None else options.teacher.weights_sha256,
        stored_answers=stored,
        skipped=tuple(sorted(module.skipped)),
        versions={name: version(name) for name in ("torch", "lightning", "kornia", "numpy")},
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


class _Checkpoint(ModelCheckpoint):
    """Writes `last.ckpt`, with the options of the run, and the curve after every epoch."""

    def __init__(self, options: TrainOptions, identity: dict[str, Any], work: Path) -> None:
        super().__init__(
            dirpath=work,
            filename=Path(CHECKPOINT).stem,
            save_top_k=1,
            monitor=None,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._options, self._work = options, work
        self._identity = identity

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning runs checkpoint callbacks after the module's own hook, so the curve is up to date here.
        super().on_train_epoch_end(trainer, pl_module)
        module = pl_module
        assert isinstance(module, DepthModule)
        if trainer.is_global_zero:
            write_history(self._work, module.history)
            plot_curve(self._work / "curve.png", module.history)
            if self._options.on_epoch is not None:
                self._options.on_epoch(module.history[-1])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["options"] = self._identity


class _ProgressBar(RichProgressBar):
    """Lightning's progress bar, but counting epochs from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))


class _MovingAverage(WeightAveraging):
    """An exponential moving average of the weights with a time constant of `window` steps.

    The time constant is shorter at first, so that the random initial weights do not stay for a whole window. The ramp
    is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """

    def __init__(self, window: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self._slowest = 1.0 - 1.0 / max(window, 1.0)
        self._decay = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning moves the module only after this hook, and would keep the average on the CPU.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # torch reads this counter in every update, which on a GPU would wait for all queued work.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._decay = min(self._slowest, (1 + trainer.global_step) / (10 + trainer.global_step))
        super().on_train_batch_end(trainer, *rest)

    def _average(self, averaged: Any, current: Any, updates: Any) -> None:
        get_ema_multi_avg_fn(self._decay)(averaged, current, updates)  # type: ignore[no-untyped-call]


def _check_amount(options: TrainOptions, train: int, val: int) -> None:
    """Raise TrainingError if the samples do not suffice for one step, or for a validation sample per process."""
    if train < options.pictures_a_step:
        raise TrainingError(
            f"{options.data} has {train} training samples, fewer than the {options.pictures_a_step} of one step "
            f"({options.batch} per pass, {options.accumulate} passes, {options.processes} processes); "
            "lower --batch, --accumulate or --devices, or add samples"
        )
    if val < options.processes:
        raise TrainingError(
            f"{options.data} has {val} validation samples for {options.processes} processes; lower --devices"
        )


def _check_measured(options: TrainOptions, *splits: RGBDDataset) -> None:
    """Raise TrainingError if none of the checked samples has a measured pixel: such a run would learn nothing.

    Call `on_warning` if the depth of the training samples is implausible.
    """
    for data in splits:
        chosen = evenly_spaced(data, _LOOKED_AT)
        depths = [data[index].depth for index in chosen]
        if not any(valid_pixels(depth).any() for depth in depths):
            low, high = VALID_DEPTH
            raise TrainingError(
                f"no pixel of {len(chosen)} samples (the first is {data.source(chosen[0])}) has a depth of {low} to "
                f"{high:g} m; check the files and --depth-units"
            )
        if data is splits[0] and options.on_warning is not None and (doubt := implausible_depth(depths)):
            options.on_warning(f"{options.data}: {doubt}")


def _trainer(options: TrainOptions, spec: ModelSpec, samples: int, checkpoint: _Checkpoint, work: Path) -> L.Trainer:
    callbacks: list[Callback] = [checkpoint]
    if options.progress:
        callbacks.append(_ProgressBar(leave=True))
    if options.loggers:
        callbacks.append(LearningRateMonitor("step"))
    epochs, steps = options.schedule(samples)
    # Of several outputs, only depth is trained, so parameters of the others get no gradient.
    strategy = "ddp" if spec.network_output is None else "ddp_find_unused_parameters_true"
    if options.recipe.average_share is not None:
        callbacks.append(_MovingAverage(options.recipe.average_share * epochs * steps))
    with _quiet():
        trainer = L.Trainer(
            accelerator="auto",
            devices=options.devices_a_node,
            num_nodes=options.num_nodes,
            strategy="auto" if options.processes == 1 else strategy,
            precision=options.used_precision,  # type: ignore[arg-type]
            max_epochs=epochs,
            log_every_n_steps=min(50, steps),
            limit_train_batches=steps * options.accumulate,
            accumulate_grad_batches=options.accumulate,
            reload_dataloaders_every_n_epochs=1,
            callbacks=callbacks,
            logger=[_logger(name, options.folder.name, work) for name in options.loggers],
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    if trainer.precision != options.used_precision:
        raise TrainingError(
            f"{options.used_precision} is not available here, but {trainer.precision} is; use --precision"
        )
    return trainer


def _logger(name: LoggerName, run: str, folder: Path) -> Logger:
    """One of Lightning's loggers, writing below `folder`. Raises TrainingError if its package is missing."""
    makers: dict[LoggerName, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="", version="csv"),
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version="tensorboard"),
        "wandb": lambda: WandbLogger(name=run, save_dir=folder, project="depthkit"),
    }
    try:
        return makers[name]()
    except ModuleNotFoundError as error:
        raise TrainingError(f"--logger {name} needs a package that is not installed; pip install {name}") from error


def _run(trainer: L.Trainer, module: DepthModule, feed: Feed, checkpoint: Path | None, options: TrainOptions) -> None:
    handler = signal.getsignal(signal.SIGINT)
    path = None if checkpoint is None else str(checkpoint)
    try:
        trainer.fit(module, datamodule=feed, ckpt_path=path, weights_only=True)
    except BaseException as error:
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)  # the child processes wait for this one in a collective
        # On Ctrl-C, Lightning calls exit(1) and leaves SIGINT ignored.
        if isinstance(error, SystemExit) and trainer.interrupted:
            raise KeyboardInterrupt from error
        if clearer := _translated(error, module, trainer, options):
            raise clearer from error
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _translated(
    error: BaseException, module: DepthModule, trainer: L.Trainer, options: TrainOptions
) -> OutputError | TrainingError | None:
    """The error to raise for one that ended a run; None: the error is clear as it is."""
    if isinstance(error, OSError) and is_refused_write(error):
        return OutputError(
            f"cannot write to {options.folder}: {error}; `--resume` continues from the last complete epoch"
        )
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return TrainingError(out_of_memory(module, options, trainer.strategy.root_device, error))
    if isinstance(error, RuntimeError) and _is_of_another_process(error):
        return TrainingError("another process of this run ended; see its error above or in its log")
    return None


def _is_of_another_process(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended; gloo has no error class of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _checkpoint(options: TrainOptions, asked: dict[str, Any]) -> Path | None:
    """The checkpoint to resume from. Raises TrainingError if its options differ."""
    path = checkpoint_in(options.folder)
    if not options.resume or path is None:
        return None
    try:
        made_with = torch.load(path, map_location="cpu", weights_only=True)["options"]
        made_with = {"answers": "share", **made_with}  # as in all checkpoints of older versions
    except Exception as error:
        raise TrainingError(f"{path} cannot be read ({error}); train again without --resume") from error
    changed = [f"{key} {made_with.get(key)} -> {asked[key]}" for key in asked if made_with.get(key) != asked[key]]
    if changed:
        raise TrainingError(
            f"{path} was made with other options ({', '.join(changed)}); repeat them, or drop --resume. With another "
            "number of devices, keep the pictures a step with --batch and --accumulate"
        )
    return path


@contextmanager
def _quiet() -> Any:
    """Hide Lightning's tips, banners, and warnings about deliberate choices of depthkit."""
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
