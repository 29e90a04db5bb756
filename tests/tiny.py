"""A small network and small clips to train it on, for tests and for the processes that they start."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import clips
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from dynpool.training.config import Config, load
from dynpool.training.run import fit

CLASSES = ("left", "right")


def network() -> nn.Module:
    """Everything that makes exactness hard: batch normalisation and dropout."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(32, 2),
    )  # fmt: skip


def write_videos(root: Path, count: int = 2) -> Path:
    """A bright square that moves to the left or to the right, `count` times each, on noise: train/ and test/ alike."""
    for label, name in enumerate(CLASSES):
        (root / "train" / name).mkdir(parents=True)
        for number in range(count):
            frames = clips.random_frames(12, 24, 24, seed=10 * label + number) // 8
            for t, frame in enumerate(frames):
                x = 2 * number + t if label else 14 - t
                frame[6 + number : 14 + number, x : x + 6] = 200
            clips.write(root / "train" / name / f"{number}.mkv", np.asarray(frames))
    (root / "test").symlink_to(root / "train")
    return root


def config(root: Path, *overrides: str) -> Config:
    small = ["data.size=24", "data.window=8", "data.stride=4", "data.batch_size=2", "model.backbone=custom"]
    rates = ["optimiser.lr=0.02", "optimiser.final_lr=0.002", "trainer.accelerator=cpu", "trainer.epochs=2"]
    return load([], [f"data.root={root}", *small, *rates, *overrides])


class KillAt(Callback):
    """kill -9 when a step is reached."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train in a process of its own: ROOT OUT STEP [OVERRIDE]..., killed at STEP (-1: never)."""
    root, out, step, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    fit(config(Path(root), *overrides), out, backbone=network(), callbacks=[KillAt(int(step))])


if __name__ == "__main__":
    main()
