"""The batches of each epoch: the run's own data or built-in scenes, at the size of the epoch's stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import lightning as L  # noqa: N812 - Lightning's own convention
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from ..cores import usable_cores
from ..data.dataset import RGBD, RGBDDataset, SkipBad
from ..data.scenes.render import render_scenes, scene_seed
from ..data.scenes.scene_dataset import Scenes
from ..data.unlabelled import Joined, Unlabelled
from ..errors import TrainingError
from .fit_options import TrainOptions
from .presets import Stage, stage_at

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Feed", "Taught", "with_unlabelled", "workers"]

_Split = Literal["train", "val"]
_MOST_WORKERS = 16


class Taught(NamedTuple):
    """A sample, or a batch of them, with the stored answer of the teacher.

    Attributes:
        sample: picture and depth.
        answer: H x W, float32, metres, 0 where the teacher has none.
    """

    sample: RGBD
    answer: np.ndarray


class Feed(L.LightningDataModule):
    """The loaders of a run, made again when a stage begins (`Trainer(reload_dataloaders_every_n_epochs=1)`).

    Batches are `RGBD` of arrays with a leading N. For scenes, a batch is only their positions (N, int64), and `render`
    makes the pictures on the training device. Training batches with stored answers are `Taught`.

    Args:
        options: of the run.
        train, val: the run's own data.
        epochs: of the whole run.
        stored: the training samples come with the answers that are stored beside them.
    """

    def __init__(
        self, options: TrainOptions, train: RGBDDataset, val: RGBDDataset, epochs: int, *, stored: bool = False
    ) -> None:
        super().__init__()
        self._stored = stored
        self._options = options
        self._own = {"train": train, "val": val}
        self._epochs = epochs
        self._current: dict[_Split, tuple[Stage, RGBDDataset, DataLoader[Any]]] = {}

    @property
    def stage(self) -> Stage:
        """The stage of the current epoch."""
        assert self.trainer is not None
        epoch = min(self.trainer.current_epoch, self._epochs - 1)
        return stage_at(self._options.recipe.stages, epoch, self._epochs)

    def describe(self) -> str:
        """The stage as text for the curve: `scenes 48x64`."""
        height, width = self.stage.size(self._options.size)
        return f"{'scenes' if self._on_scenes('train') else 'data'} {height}x{width}"

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the stage. The order depends only on seed and epoch, so that a resumed run repeats it."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """The run's own validation samples at the stage's size, divided among the processes."""
        return self._loader("val")

    def transfer_batch_to_device(
        self, batch: RGBD | Tensor | Taught, device: torch.device, dataloader_idx: int
    ) -> RGBD | Tensor | Taught:
        """Move everything except the positions, which are read on the CPU."""
        if isinstance(batch, Tensor):
            return batch
        if isinstance(batch, Taught):
            sample = cast("RGBD", self.transfer_batch_to_device(batch.sample, device, dataloader_idx))
            return Taught(sample, torch.as_tensor(batch.answer).to(device, non_blocking=True))  # type: ignore[arg-type]
        image, depth = (torch.as_tensor(array).to(device, non_blocking=True) for array in (batch.image, batch.depth))
        return RGBD(image, depth, batch.position)  # type: ignore[arg-type]  # a batch has tensors

    def source(self, split: _Split, position: int) -> str:
        """Where a sample comes from, see `RGBDDataset.source`."""
        return self._current[split][1].source(position)

    def render(self, split: _Split, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Render the scenes of a batch: N x H x W x 3 uint8, N x H x W float32 metres."""
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
            # Lightning does this too, but in a resumed epoch only after the workers have started to load.
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
            cast("Dataset[Any]", self._samples(split, data)),  # torch asks for its own base class
            batch_size=self._options.batch,
            sampler=self._sampler(split, len(data), rank, world),
            drop_last=split == "train",
            num_workers=processes,
            pin_memory=on_gpu and not on_scenes,
            persistent_workers=processes > 0,
        )

    def _samples(self, split: _Split, data: RGBDDataset) -> _Positions | _Answered | RGBDDataset:
        if self._on_scenes(split):
            return _Positions()
        return _Answered(data) if self._stored and split == "train" else data

    def _sampler(self, split: _Split, length: int, rank: int, world: int) -> Sampler[int] | Sequence[int]:
        if split == "val":
            # Every n-th sample, because DistributedSampler would repeat some if the division is not even.
            return range(rank, length, world)
        if self._on_scenes(split):
            return _Fresh(length, rank, world)
        # DistributedSampler even for one process, because its order depends only on seed and epoch.
        places = cast("Dataset[int]", range(length))
        return DistributedSampler(places, world, rank, seed=self._options.seed)


class _Positions:
    """A data set of positions; the samples are rendered where the batch is used."""

    def __getitem__(self, position: int) -> int:
        return position


class _Answered:
    """A data set with the stored answers of the teacher."""

    def __init__(self, data: RGBDDataset) -> None:
        self._data = data

    def __getitem__(self, position: int) -> Taught:
        return Taught(self._data[position], self._data.taught(position))


class _Fresh(Sampler[int]):
    """New positions in every epoch: the renderer can make any number of rooms, so none is repeated."""

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
    """Number of processes that load samples for one device.

    Zero on a CPU, where they would compete with training; on a GPU all cores, divided among the node's devices.
    """
    if options.workers is not None:
        return options.workers
    return min(usable_cores() // options.devices_a_node, _MOST_WORKERS) if on_gpu else 0


def with_unlabelled(options: TrainOptions, train: RGBDDataset) -> RGBDDataset:
    """The training samples and the pictures without depth. Raises DataError, TrainingError."""
    assert options.unlabelled is not None
    if options.teacher is None:
        raise TrainingError("pictures without depth teach nothing by themselves; give a teacher with --teacher")
    if isinstance(train, Scenes):
        raise TrainingError("--unlabelled goes with a data set; the built-in scenes all have depth")
    joined = Joined(train, Unlabelled(options.unlabelled, size=options.size))
    return SkipBad(joined) if options.skip_bad else joined
