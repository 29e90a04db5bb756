"""Loaders that deal out the same batches whatever the number of workers, and go on where they were stopped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Sampler

from .dataset import Draw, Item, VideoDataset, collate


class EpochSampler(Sampler[Draw]):
    """Videos of an epoch in an order drawn from (seed, epoch), dealt out among `world` processes. Each time that it is
    gone through is an epoch, from 0 on; `set_epoch` says which one is next.

    What the processes get is equally long: the first videos are dealt twice where the number does not divide (tell
    them by their index). `skip` leaves out the first videos of this process in the next epoch only: those already seen
    when a run goes on in the middle of an epoch.
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.length, self.shuffle, self.seed, self.rank, self.world = length, shuffle, seed, rank, world
        self.epoch = 0
        self.skip = 0
        self._dealt = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self._dealt = epoch, False

    def __len__(self) -> int:
        return -(-self.length // self.world)

    def __iter__(self) -> Iterator[Draw]:
        self.epoch, self._dealt = self.epoch + self._dealt, True
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        own = np.resize(order, len(self) * self.world)[self.rank :: self.world]
        skip, self.skip = self.skip, 0
        return iter([Draw(self.epoch, index) for index in own[skip:].tolist()])


def loader(
    dataset: VideoDataset,
    batch_size: int = 32,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Item]:
    """Batches of `collate`. Each time that it is gone through is an epoch, with another order, other crops and windows:
    the first, the second, …, unless `loader.sampler.set_epoch(epoch)` says which one is next. The batches of an epoch
    do not depend on num_workers.

    Args:
        batch_size: videos a batch and process.
        shuffle: in an order drawn from dataset.seed and the epoch.
        num_workers: processes that read videos, one thread each; 0 reads in this one.
        rank, world: this process of how many that share the videos.
        others: as `torch.utils.data.DataLoader`.

    Raises:
        TypeError: dataset is no VideoDataset, whose seed and epochs the batches depend on.
    """
    if not isinstance(dataset, VideoDataset):
        raise TypeError(
            f"dataset must be a VideoDataset, got {type(dataset).__name__}; of others torch's DataLoader makes "
            "batches, with collate_fn=dynpool.data.collate"
        )
    sampler = EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed, rank=rank, world=world)
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
