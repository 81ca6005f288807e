"""What a run is fed in which epoch: its own data or built-in scenes, at the size of the epoch's stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L  # noqa: N812 - Lightning's own convention
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from ..cores import usable_cores
from ..data.dataset import RGBD, RGBDDataset
from ..data.scenes.render import render_scenes, scene_seed
from ..data.scenes.scene_dataset import Scenes
from .fit_options import TrainOptions
from .presets import Stage, stage_at

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Feed", "workers"]

_Split = Literal["train", "val"]
_MOST_WORKERS = 16


class Feed(L.LightningDataModule):
    """The loaders of a run, made anew when a stage begins (`Trainer(reload_dataloaders_every_n_epochs=1)`).

    Batches are `RGBD` of arrays with a leading N; where the data are scenes, a batch is only their positions (N, int64)
    and `render` makes the pictures on the device that trains.

    Args:
        options: of the run.
        train, val: the run's own data.
        epochs: of the whole run.
    """

    def __init__(self, options: TrainOptions, train: RGBDDataset, val: RGBDDataset, epochs: int) -> None:
        super().__init__()
        self._options = options
        self._own = {"train": train, "val": val}
        self._epochs = epochs
        self._current: dict[_Split, tuple[Stage, RGBDDataset, DataLoader[Any]]] = {}

    @property
    def stage(self) -> Stage:
        """The stage of the epoch that runs."""
        assert self.trainer is not None
        epoch = min(self.trainer.current_epoch, self._epochs - 1)
        return stage_at(self._options.recipe.stages, epoch, self._epochs)

    def describe(self) -> str:
        """The stage in words, for the curve: `scenes 48x64`."""
        height, width = self.stage.size(self._options.size)
        return f"{'scenes' if self._on_scenes('train') else 'data'} {height}x{width}"

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the stage, in an order that depends on seed and epoch alone, so that a resumed run repeats it."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """The run's own validation samples at the stage's size, each by one process."""
        return self._loader("val")

    def transfer_batch_to_device(
        self, batch: RGBD | Tensor, device: torch.device, dataloader_idx: int
    ) -> RGBD | Tensor:
        """All but the positions, which are asked for on the CPU."""
        if isinstance(batch, Tensor):
            return batch
        image, depth = (torch.as_tensor(array).to(device, non_blocking=True) for array in (batch.image, batch.depth))
        return RGBD(image, depth, batch.position)  # type: ignore[arg-type]  # a batch has tensors

    def source(self, split: _Split, position: int) -> str:
        """Where a sample comes from, see `RGBDDataset.source`."""
        return self._current[split][1].source(position)

    def render(self, split: _Split, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The scenes of a batch: N x H x W x 3 uint8, N x H x W float32 metres."""
        base = self._options.seed if split == "train" else 0
        seeds = [scene_seed(split, int(position), base) for position in positions]
        return render_scenes(seeds, self.stage.size(self._options.size), device=device)

    def _on_scenes(self, split: _Split) -> bool:
        return isinstance(self._own[split], Scenes) or (split == "train" and self.stage.scenes)

    def _loader(self, split: _Split) -> DataLoader[Any]:
        if split not in self._current or self._current[split][0] is not self.stage:
            data = self._data(split)
            self._current[split] = self.stage, data, self._make(split, data)
        loader = self._current[split][2]
        if isinstance(loader.sampler, DistributedSampler | _Fresh):
            # Lightning does so too, but only after a resumed epoch's workers have begun to load.
            assert self.trainer is not None
            loader.sampler.set_epoch(self.trainer.current_epoch)
        return loader

    def _data(self, split: _Split) -> RGBDDataset:
        size = self.stage.size(self._options.size)
        if self._on_scenes(split):
            return Scenes(split, size=size, count=len(self._own[split]))
        data = copy.copy(self._own[split])
        data.size = size
        return data

    def _make(self, split: _Split, data: RGBDDataset) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        on_scenes = self._on_scenes(split)
        processes = 0 if on_scenes else workers(self._options, on_gpu=on_gpu)
        return DataLoader(
            cast("Dataset[RGBD]", _Positions() if on_scenes else data),  # torch asks for its own base class
            batch_size=self._options.batch,
            sampler=self._sampler(split, len(data), rank, world),
            drop_last=split == "train",
            num_workers=processes,
            pin_memory=on_gpu and not on_scenes,
            persistent_workers=processes > 0,
        )

    def _sampler(self, split: _Split, length: int, rank: int, world: int) -> Sampler[int] | Sequence[int]:
        if split == "val":
            # Every n-th sample, because DistributedSampler would repeat some where the processes do not divide them.
            return range(rank, length, world)
        if self._on_scenes(split):
            return _Fresh(length, rank, world)
        # DistributedSampler even for one process: its order depends on the seed and the epoch alone.
        places = cast("Dataset[int]", range(length))
        return DistributedSampler(places, world, rank, seed=self._options.seed)


class _Positions:
    """A data set of positions; the samples themselves are made where the batch is used."""

    def __getitem__(self, position: int) -> int:
        return position


class _Fresh(Sampler[int]):
    """Positions that no earlier epoch had: a renderer has no end of rooms, so none needs to be seen twice."""

    def __init__(self, length: int, rank: int, world: int) -> None:
        self._length, self._rank, self._world = length, rank, world
        self._epoch = 0

    def __len__(self) -> int:
        return len(range(self._rank, self._length, self._world))

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * self._length
        return iter(range(first + self._rank, first + self._length, self._world))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch


def workers(options: TrainOptions, *, on_gpu: bool) -> int:
    """Processes that load samples for one device.

    None on a CPU, where they would take the cores that compute; on a GPU all cores, shared by the node's devices.
    """
    if options.workers is not None:
        return options.workers
    return min(usable_cores() // options.devices_a_node, _MOST_WORKERS) if on_gpu else 0
