"""A line for every epoch, on a terminal or in a log file alike; on a terminal, a bar below them."""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from ..models import VideoModel
from ..terminal import printable_lines
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
        _say(describe(videos.config, videos.train, model.config, train=True).in_words())
        for listing in (videos.train, videos.validation):
            if listing is not None:
                _say(listing.summary())

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin()  # a run that goes on in the middle of an epoch does not start it

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self._start, self._measured = time.perf_counter(), False

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._measured = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._start
        parts = [f"{_epoch(trainer)}: {_figures(trainer, _SHOWN)}"]
        if self._measured:  # else Lightning still has those of an epoch before
            parts.append(f"validation {_figures(trainer, _MEASURED)}")
        _say("; ".join([*parts, f"{seconds:.1f} s"]))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if isinstance(module, VideoClassifier) and (summary := module.notices.summary()):
            _say(summary)


class EpochBar(TQDMProgressBar):
    """Lightning's bar of an epoch's batches, which counts epochs as `EpochLines` does, and goes when it is done."""

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.leave = False  # the lines stay
        return bar

    def on_train_epoch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self.train_progress_bar.set_description(_epoch(trainer))

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """Without the number of the log, "v_num"."""
        shown: dict[str, Any] = super().get_metrics(trainer, module)
        return {name: value for name, value in shown.items() if name != "v_num"}


def _say(text: str) -> None:
    """A line above whatever bars there are; at once, also where it goes into a file."""
    Tqdm.write(printable_lines(text))
    sys.stdout.flush()


def _epoch(trainer: L.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def _figures(trainer: L.Trainer, wanted: dict[str, str]) -> str:
    metrics = trainer.callback_metrics
    return ", ".join(text.format(float(metrics[name])) for name, text in wanted.items() if name in metrics)
