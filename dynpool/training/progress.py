"""A line for every epoch, on a terminal or in a log file alike."""

from __future__ import annotations

import time
from typing import cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..models import VideoModel
from .describe import describe
from .module import VideoClassifier

_SHOWN = {"train/loss_epoch": "loss {:.4f}", "train/accuracy": "accuracy {:.1%}"}
_MEASURED = {"val/loss": "loss {:.4f}", "val/accuracy": "accuracy {:.1%}", "val/class_accuracy": "by class {:.1%}"}


class EpochLines(Callback):
    """Prints what is trained, and on what, every epoch's figures, and which files were left out."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(module, VideoClassifier):
            return
        videos, model = trainer.datamodule, cast("VideoModel", module.model)  # type: ignore[attr-defined]
        print(describe(videos.config, videos.train, model.config, train=True).in_words(), flush=True)
        for listing in (videos.train, videos.validation):
            if listing is not None:
                print(listing.summary(), flush=True)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._start
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {_figures(trainer, _SHOWN)}"]
        if measured := _figures(trainer, _MEASURED):
            parts.append(f"validation {measured}")
        print("; ".join([*parts, f"{seconds:.1f} s"]), flush=True)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if isinstance(module, VideoClassifier) and (summary := module.notices.summary()):
            print(summary, flush=True)


def _figures(trainer: L.Trainer, wanted: dict[str, str]) -> str:
    metrics = trainer.callback_metrics
    return ", ".join(text.format(float(metrics[name])) for name, text in wanted.items() if name in metrics)
