"""The Lightning module that trains a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple
from functools import reduce
from math import isfinite
from operator import add
from time import perf_counter
from typing import Any, Literal, cast

import lightning as L  # noqa: N812 - Lightning's own convention
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from ..data.dataset import RGBD
from ..errors import TrainingError
from ..metrics import VALID_DEPTH, PixelSums, pixel_sums, valid_pixels
from ..spec import ModelSpec
from .answer import as_share
from .augment import Augmentation
from .camera_ready import in_order, normalisation
from .history import EpochRecord
from .loading import Feed, Taught
from .losses import DepthLoss, follow
from .presets import Preset
from .teacher import Teacher

__all__ = ["DepthModule"]

_Pair = tuple[Tensor, Tensor]


class DepthModule(L.LightningModule):
    """Trains `network`. The curve is part of the checkpoint, so that a resumed run continues it.

    Args:
        network: maps a normalised N x 3 x H x W to depth, see `answer`.
        spec: preprocessing, depth range, and what the network answers: metres or a share.
        preset: optimiser, loss and augmentation.
        learning_rate: replaces the preset's.
        seed: of the augmentation.
        teacher: whose depth is followed besides measured depth; None: there is none.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        preset: Preset,
        learning_rate: float,
        seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.preset = preset
        self.learning_rate = learning_rate
        self.history: list[EpochRecord] = []
        self.skipped: set[str] = set()
        self._seed = seed
        self._teacher = teacher
        self._loss = DepthLoss(preset.loss)
        self._augment = Augmentation(preset.augmentation)
        self._watch = _FiniteLoss()
        self._train_losses: list[Tensor] = []
        self._val_losses: list[Tensor] = []
        self._val_sums: list[PixelSums] = []
        self._epoch_start = self._train_seconds = 0.0
        self._pictures = 0
        self.gain: Tensor
        self.offset: Tensor
        gain, offset = normalisation(spec.preprocessing, white=1)  # augmented pictures are in 0..1
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    # Lightning's own hooks, in the order in which they run.

    def configure_optimizers(self) -> Any:
        """The preset's optimiser and schedule."""
        if self.preset.optimizer == "adam":
            return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Start the timer and counters of an epoch."""
        self._epoch_start = perf_counter()
        self._train_losses.clear()
        self._pictures = 0

    def training_step(self, batch: RGBD | Tensor | Taught, batch_index: int) -> Tensor:
        """The loss of one batch. Raises TrainingError, naming the pictures, if it is not finite."""
        sample, answer = batch if isinstance(batch, Taught) else (batch, None)
        stored = None if answer is None else torch.as_tensor(answer)[:, None]
        augmented = self._augment.augment(*self._tensors("train", sample), self._batch_seed(batch_index), stored)
        image = augmented.image
        loss, share = self._batch_loss(image, augmented.depth)
        if self._teacher is not None:
            taught = self._teacher(augmented.clean) if augmented.taught is None else augmented.taught
            loss = loss + self._teacher_weight() * follow(share, taught / self.spec.depth_range[1])
        where = f"in epoch {self.current_epoch + 1}, batch {batch_index + 1}"
        self._watch.look(loss, where, lambda: self._sources("train", sample))
        self._train_losses.append(loss.detach())
        self._pictures += len(image)
        if self.trainer.loggers:
            self.log("train_loss", loss.detach(), on_step=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Clear the results of the last validation."""
        self._watch.settle()
        self._train_seconds = perf_counter() - self._epoch_start
        self._val_losses.clear()
        self._val_sums.clear()

    def validation_step(self, batch: RGBD | Tensor, batch_index: int) -> None:
        """Loss and depth errors of one validation batch at the stage's size."""
        image, depth = self._tensors("val", batch)
        loss, share = self._batch_loss(image, depth)
        self._val_losses.append(loss)
        metres = (share * self.spec.depth_range[1]).clamp(*self.spec.depth_range)
        for p, t in zip(metres[:, 0].cpu().numpy(), depth[:, 0].cpu().numpy(), strict=True):
            self._val_sums.append(pixel_sums(p, t, valid_pixels(t)))

    def on_validation_epoch_end(self) -> None:
        """Show this process's results on the progress bar; the curve gets those of all processes."""
        pooled = reduce(add, self._val_sums).scores()
        shown: dict[str, Tensor | float] = {"val_loss": torch.stack(self._val_losses).mean(), "val_δ1": pooled.delta1}
        self.log_dict(shown, prog_bar=True, logger=bool(self.trainer.loggers), rank_zero_only=True)

    def on_train_epoch_end(self) -> None:
        """Add a line to the curve, the same in every process of a distributed run."""
        self._share_skipped()
        sums = torch.tensor(astuple(reduce(add, self._val_sums)), dtype=torch.float64)
        pooled = PixelSums(*self._total(sums).tolist()).scores()
        record = EpochRecord(
            epoch=self.current_epoch + 1,
            step=self.global_step,
            stage=self._feed.describe(),
            learning_rate=float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            train_loss=self._mean(self._train_losses),
            val_loss=self._mean(self._val_losses),
            val_abs_rel=pooled.abs_rel,
            val_delta1=pooled.delta1,
            images_per_second=self._pictures * self.trainer.world_size / self._train_seconds,
            seconds=perf_counter() - self._epoch_start,
        )
        if not isfinite(record.val_loss):
            raise TrainingError(
                f"the validation loss is {record.val_loss} after epoch {record.epoch}; lower --lr; "
                "`--resume` continues from the epoch before"
            )
        self.history.append(record)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the curve and the skipped files."""
        checkpoint["history"] = [asdict(record) for record in self.history]
        checkpoint["skipped"] = sorted(self.skipped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the curve and the skipped files."""
        self.history = [EpochRecord(**record) for record in checkpoint["history"]]
        self.skipped = set(checkpoint["skipped"])

    def trial_step(self, batch: int, size: tuple[int, int]) -> None:
        """Run forward and backward on a random batch, to test memory use; the weights do not change."""
        image = torch.rand(batch, 3, *size, device=self.device)
        with self.trainer.precision_plugin.forward_context():
            self._batch_loss(image, torch.ones_like(image[:, :1]))[0].backward()  # type: ignore[no-untyped-call]

    # Pieces.

    @property
    def _feed(self) -> Feed:
        return cast("Feed", self.trainer.datamodule)  # type: ignore[attr-defined]

    def _tensors(self, split: Literal["train", "val"], batch: RGBD | Tensor) -> _Pair:
        """A batch as N x 3 x H x W in 0..1 and N x 1 x H x W metres, on this module's device."""
        if isinstance(batch, Tensor):
            image, depth = self._feed.render(split, batch, self.device)
        else:
            image, depth = torch.as_tensor(batch.image), torch.as_tensor(batch.depth)
            self.skipped.update(self._feed.source(split, ~int(i)) for i in torch.as_tensor(batch.position) if i < 0)
        return image.permute(0, 3, 1, 2).float() / 255, depth[:, None].float()

    def _sources(self, split: Literal["train", "val"], batch: RGBD | Tensor) -> str:
        positions = batch if isinstance(batch, Tensor) else torch.as_tensor(batch.position)
        return ", ".join(self._feed.source(split, int(i)) for i in positions if i >= 0)

    def _batch_loss(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the prediction as a share of the depth range's upper end."""
        low, high = VALID_DEPTH
        valid = (depth > low) & (depth <= high)
        pixels = in_order(image, self.spec.preprocessing.color)
        normal = (pixels * self.gain + self.offset).contiguous(memory_format=torch.channels_last)
        height, width = image.shape[-2:]
        share = as_share(self.network(normal), self.spec, (height, width))
        return self._loss(share, depth / self.spec.depth_range[1], valid, image), share

    def _teacher_weight(self) -> float:
        first, last = self.preset.teacher
        return first + (last - first) * self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def _batch_seed(self, batch_index: int) -> int:
        """A seed for each batch, epoch and process, so that a resumed run draws the same as an uninterrupted one."""
        sequence = np.random.SeedSequence([self._seed, self.current_epoch, batch_index, self.global_rank])
        return int(sequence.generate_state(1)[0])

    def _mean(self, losses: list[Tensor]) -> float:
        total = torch.stack([torch.stack(losses).double().sum().cpu(), torch.tensor(float(len(losses))).double()])
        summed = self._total(total)
        return float(summed[0] / summed[1])

    def _share_skipped(self) -> None:
        """Share the skipped files among the processes of a distributed run."""
        if self.trainer.world_size > 1:
            found: list[set[str]] = [set()] * self.trainer.world_size
            torch.distributed.all_gather_object(found, self.skipped)
            self.skipped = set().union(*found)

    def _total(self, values: Tensor) -> Tensor:
        """Sum over the processes of a distributed run."""
        if self.trainer.world_size == 1:
            return values
        gathered = cast("Tensor", self.all_gather(values.to(self.device)))
        return gathered.sum(dim=0).cpu()


class _FiniteLoss:
    """Ends a run if a loss is not finite, one step later: an immediate check would make the CPU wait for each step."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event | None, str, Callable[[], str]] | None = None

    def look(self, loss: Tensor, where: str, pictures: Callable[[], str]) -> None:
        """Raise TrainingError if the loss before this one was not finite."""
        self.settle()
        event = torch.cuda.Event() if loss.is_cuda else None  # type: ignore[no-untyped-call]
        value = loss.detach().to("cpu", non_blocking=True)
        if event is not None:
            event.record()
        self._pending = value, event, where, pictures

    def settle(self) -> None:
        """Raise TrainingError if the last loss was not finite."""
        if self._pending is None:
            return
        (value, event, where, pictures), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        if not torch.isfinite(value):
            raise TrainingError(
                f"the loss is {value.item()} {where} ({pictures()}); "
                "check these pictures, or lower --lr; `--resume` continues from the last complete epoch"
            )
