"""Loaders for Lightning: each process gets its share of the videos, and goes on where a run was stopped."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from ..data import EpochSampler, Item, Listing, loader
from .config import Config
from .module import VideoClassifier


class Videos(L.LightningDataModule):
    """Videos to train on, and perhaps to measure progress on.

    Where a process is left with one video for its last batch, that video, another one in every epoch, is passed over:
    batch normalisation has nothing to measure on one.
    """

    def __init__(self, config: Config, train: Listing, validation: Listing | None) -> None:
        super().__init__()
        self.config, self.train, self.validation = config, train, validation

    def train_dataloader(self) -> DataLoader[Item]:
        made = self._loader(self.train, train=True)
        trainer, sampler = self.trainer, made.sampler
        if trainer and isinstance(trainer.lightning_module, VideoClassifier) and isinstance(sampler, EpochSampler):
            # Lightning asks for batches, and workers read ahead, before it sets the epoch of a run that goes on.
            epoch, batches = trainer.lightning_module.take_resumed()
            sampler.set_epoch(epoch)
            sampler.skip = batches * self.config.data.batch_size
        return made

    def val_dataloader(self) -> DataLoader[Item] | list[Any]:
        return [] if self.validation is None else self._loader(self.validation, train=False)

    def _loader(self, listing: Listing, train: bool) -> DataLoader[Item]:
        data, trainer = self.config.data, self.trainer
        world = trainer.world_size if trainer else 1
        own = -(-len(listing) // world)
        leaves_one = own > data.batch_size > 1 and own % data.batch_size == 1
        return loader(
            data.videos(listing, train, self.config.seed),
            data.batch_size,
            shuffle=train,
            drop_last=train and leaves_one,
            num_workers=data.workers,
            rank=trainer.global_rank if trainer else 0,
            world=world,
            pin_memory=torch.cuda.is_available(),
        )
