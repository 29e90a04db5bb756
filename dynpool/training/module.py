"""Training steps: a model, its loss and learning rates, as Lightning wants them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..data import Batch, Notices
from .config import OptimiserConfig
from .values import ConfigError

_WORLD = "dynpool_processes"  # in checkpoints


class Resumed(NamedTuple):
    """The epoch in which a run goes on, and batches of it that were done before the run was stopped."""

    epoch: int
    batches: int


class MeanClassAccuracy(MulticlassAccuracy):
    """Mean accuracy of the classes that have videos, as `Scores.mean_class_accuracy`; "macro" counts those, too, that
    some video was taken for.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        right = cast(Tensor, self.tp)
        videos = right + cast(Tensor, self.fn)
        present = videos > 0
        return (right[present] / videos[present]).mean() if bool(present.any()) else right.sum()


class VideoClassifier(L.LightningModule):
    """Trains a model of `dynpool.models` on batches of `dynpool.data`.

    Everything random in a step is drawn from (seed, step, process), so that a run that was stopped goes on exactly.
    """

    def __init__(self, model: nn.Module, optimiser: OptimiserConfig, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.optimiser_config = optimiser
        self.seed = seed
        self.loss = nn.CrossEntropyLoss(label_smoothing=optimiser.label_smoothing)
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_class_accuracy = MeanClassAccuracy(num_classes)
        self.notices = Notices("training")
        self._resumed = Resumed(0, 0)
        if optimiser.train == "head":
            model.requires_grad_(False)
            for parameter in head_parameters(model):
                parameter.requires_grad_(True)

    def forward(self, video: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, num_classes]."""
        return self.model(video, lengths)

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._prepare()  # a run that goes on in the middle of an epoch does not start it

    def on_train_epoch_start(self) -> None:
        self.log("train/lr", self._prepare(), sync_dist=True)

    def _prepare(self) -> float:
        """What an epoch begins with; its rate."""
        config = self.optimiser_config
        if config.freeze_batchnorm or config.train == "head":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self._set_rate()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed = np.random.SeedSequence([self.seed, self.global_step, batch_idx, self.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.notices.add(batch)
        with _naming_batch_size(len(batch["label"])):
            scores = self(batch["video"], batch["lengths"])
        loss: Tensor = self.loss(scores, batch["label"])
        self.train_accuracy(scores, batch["label"])
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(batch["label"])}
        self.log("train/loss_step", loss)  # of the first process; that of the epoch is of all
        self.log("train/loss_epoch", loss, sync_dist=True, **options)
        self.log("train/accuracy", self.train_accuracy, **options)
        return loss

    def on_train_epoch_end(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise ValueError(
                f"training diverged: weights are not finite after epoch {self.current_epoch + 1}. Lower "
                f"optimiser.lr = {self.optimiser_config.lr:g}, or set optimiser.clip, and start in another folder"
            )

    # --- validation ------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._measured = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Of batches that none of whose videos could be read, nothing is measured, but all processes log as often."""
        self.notices.add(batch)
        # Others are dealt twice, to even processes out.
        own = batch["index"] % self.trainer.world_size == self.global_rank
        label = batch["label"][own]
        self._measured += len(label)
        if len(label):
            scores = self(batch["video"][own], batch["lengths"][own])
            self.val_loss.update(self.loss(scores, label), len(label))
            self.val_accuracy(scores, label)
            self.val_class_accuracy(scores, label)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(label)}
        self.log("val/loss", self.val_loss, **options)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, **options)
        self.log("val/class_accuracy", self.val_class_accuracy, **options)

    def on_validation_epoch_end(self) -> None:
        """An accuracy of nothing would make some epoch the best."""
        measured = torch.tensor(float(self._measured), device=self.device)
        if not self.trainer.strategy.reduce(measured, reduce_op="sum"):
            raise ValueError("none of the videos that progress is measured on could be read")

    # --- optimiser -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.optimiser_config
        optimiser: torch.optim.Optimizer
        if config.name == "sgd":
            optimiser = torch.optim.SGD(self._groups(), config.lr, config.momentum, weight_decay=config.weight_decay)
        else:
            optimiser = torch.optim.AdamW(self._groups(), config.lr, weight_decay=config.weight_decay)
        return optimiser

    def _set_rate(self) -> float:
        """The epoch alone says the rate, so that nothing of it has to be kept for a run that goes on."""
        config = self.optimiser_config
        now = rate(config, self.current_epoch, int(self.trainer.max_epochs or 1))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = now * group["scale"]
        return now

    def _groups(self) -> list[dict[str, Any]]:
        """The last layer with its own rate; what is not trained stays out."""
        config = self.optimiser_config
        head = {id(parameter) for parameter in head_parameters(self.model)}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        body = [parameter for parameter in trained if id(parameter) not in head]
        last = [parameter for parameter in trained if id(parameter) in head]
        groups: list[dict[str, Any]] = [{"params": body, "scale": 1.0}, {"params": last, "scale": config.head_lr}]
        return [group for group in groups if group["params"]]

    # --- going on where a run was stopped ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_WORLD] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        done = 0 if batches["is_last_batch"] else int(batches["current"]["processed"])
        world, before = self.trainer.world_size, checkpoint.get(_WORLD, self.trainer.world_size)
        if done and before != world:
            told = f"as many processes as it had, {before}, got {world}"
            raise ConfigError(f"a run that was stopped within an epoch goes on with {told}")
        self._resumed = Resumed(int(loop["epoch_progress"]["current"]["processed"]), done)

    def take_resumed(self) -> Resumed:
        """Where the run goes on; asked for once."""
        resumed, self._resumed = self._resumed, Resumed(0, 0)
        return resumed


@contextmanager
def _naming_batch_size(videos: int) -> Iterator[None]:
    """torch's complaint of a batch norm after which nothing is left of maps, in terms of the configuration."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        told = f"got a batch of {videos} video{'' if videos == 1 else 's'} in a process, of which it has one value"
        raise ConfigError(
            "data.batch_size must leave the network's batch norm two values a channel or more, or "
            f"optimiser.freeze_batchnorm be true, {told}"
        ) from error


def rate(config: OptimiserConfig, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, the first being 0: lr after the warm-up, final_lr in the last of `epochs`."""
    if epoch < config.warmup:
        return config.lr * (epoch + 1) / (config.warmup + 1)
    last = max(epochs - 1 - config.warmup, 1)
    done = min((epoch - config.warmup) / last, 1.0)
    if config.schedule == "geometric":
        return config.lr * (config.final_lr / config.lr) ** done
    if config.schedule == "cosine":
        return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "linear":
        return config.lr + (config.final_lr - config.lr) * done
    return config.lr


def head_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Those of the last layer, or of each stream's."""
    for network in model.modules():
        head = getattr(network, "head", None)
        if isinstance(head, str):
            yield from network.backbone.get_submodule(head).parameters()  # type: ignore[union-attr]
