"""Scores of a trained model on the videos of a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Batch, Listing, Notices, VideoDataset, loader
from ..files import PathLike
from ..models import ModelConfig, load, read_config
from ..recipe import check_device
from .config import Config, differences
from .config import load as load_config
from .describe import describe
from .lists import check_classes, check_held_out
from .run import CONFIG, MODEL
from .scores import About, Scores, in_words, log_probabilities

_OF_A_SPLIT = ("data.split", "model.weights")  # which may be those that another run of the split had at its end


class Task(NamedTuple):
    """What is to be tested on what."""

    folder: Path
    config: Config
    model: ModelConfig
    listing: Listing
    about: About


class Evaluation(NamedTuple):
    """Scores, and what was wrong with files on the way."""

    scores: Scores
    notices: Notices


def evaluate(
    run: PathLike,
    *,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
    clips: bool = True,
    progress: bool = False,
    backbone: nn.Module | None = None,
) -> Evaluation:
    """Scores of a run's model on the test videos of its split.

    Args:
        run: the folder of a training run.
        overrides: "key=value", such as data.root=… or data.test_windows=20, over the run's configuration; but for the
            model's, and for windows that it pools itself.
        device: by default CUDA where there is one.
        clips: measure the accuracy of single windows, too, where videos have several.
        progress: show a bar, on a terminal.
        backbone: what `fit` got.

    Raises:
        FileNotFoundError: the folder has no trained model, or the videos are not there.
        ValueError: overrides, or the device, make no sense; the videos are of other classes; the model was trained on
            some of them, by their names; or scores are not finite.

    Warns:
        RuntimeWarning: the run does not say what it was trained on; or videos are in both halves of a folder.
    """
    return evaluate_task(task(run, overrides), device=device, clips=clips, progress=progress, backbone=backbone)


def task(run: PathLike, overrides: Sequence[str] = ()) -> Task:
    """The first half of `evaluate`: all but what takes long."""
    folder = Path(run)
    if not (folder / MODEL).is_file():
        raise FileNotFoundError(f"{folder} has no {MODEL}: train the model first")
    if changed := [override for override in overrides if override.startswith("model.")]:
        raise ValueError(f"overrides must leave the model, which is trained, as it is, got {', '.join(changed)}")
    config = load_config([folder / CONFIG], overrides)
    listing = config.data.listing("test")
    check_classes(folder, listing)
    check_held_out(folder, listing)
    model = read_config(folder / MODEL)
    _check_windows(config.model_config(len(listing.classes)), model)
    return Task(folder, config, model, listing, describe(config, listing, model))


def tasks(runs: Iterable[PathLike], overrides: Sequence[str] = ()) -> list[Task]:
    """Those of several runs, whose results have a mean.

    Raises:
        ValueError: they differ in more than their split, or not in that.
        others: as `evaluate`.
    """
    made: list[Task] = []
    for run in runs:
        made.append(task(run, overrides))
        first, last = made[0], made[-1]
        if any(last.about.split == other.about.split for other in made[:-1]):
            raise ValueError(f"runs must be of different splits, got split {last.about.split} twice")
        if last.about.of_any_split() != first.about.of_any_split():
            raise ValueError(f"runs must differ in their split alone, got\n{in_words([first.about, last.about])}")
        if last.listing.classes != first.listing.classes:
            raise ValueError(f"runs must be of the same classes, and {last.folder} has others than {first.folder}")
        different = differences(first.config, last.config)
        if told := ", ".join(f"{key} = {a} and {b}" for key, (a, b) in different.items() if key not in _OF_A_SPLIT):
            raise ValueError(f"runs must differ in their split alone, got {first.folder} and {last.folder}: {told}")
    return made


def evaluate_task(
    task: Task,
    *,
    device: str | torch.device | None = None,
    clips: bool = True,
    progress: bool = False,
    backbone: nn.Module | None = None,
) -> Evaluation:
    """The second half of `evaluate`."""
    check_device(device)
    data = task.config.data
    dataset = data.videos(task.listing, train=False, seed=task.config.seed)
    static = task.model.kind == "static"
    if static and task.model.frames == "middle":  # others are not looked at
        clips = False
    return score(
        load(task.folder / MODEL, backbone=backbone),
        dataset,
        task.about,
        batch_size=data.batch_size,
        workers=data.workers,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        clip_frames=(1 if static else dataset.clip_frames) if clips else None,
        clip_step=task.model.every if static else 1,
        progress=progress,
    )


def _check_windows(implied: ModelConfig, trained: ModelConfig) -> None:
    """Raise ValueError where what the data are said to be wants another pooling than the model has."""
    names = ("pool", "window", "stride")
    pairs = {name: (getattr(trained, name), getattr(implied, name)) for name in names}
    if told := ", ".join(f"{name} = {before!r}, now {now!r}" for name, (before, now) in pairs.items() if before != now):
        raise ValueError(f"overrides must leave what the model pools as it was trained: {told}")


def score(
    model: nn.Module,
    dataset: VideoDataset,
    about: About,
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str = "cpu",
    clip_frames: int | None = None,
    clip_step: int = 1,
    progress: bool = False,
) -> Evaluation:
    """Log-probabilities of every video of a dataset by a model [B, T, 3, H, W], lengths -> scores [B, C].

    Where `clip_frames` is given and some video has more, every so many entries of T are shown alone, too, for the
    accuracy of single clips: all clips, or the first of every `clip_step`.
    """
    notices = Notices(dataset.listing.name)
    model = model.to(device).eval()
    rows: dict[int, Tensor] = {}
    hits = shown = 0
    with torch.inference_mode():
        batches = loader(dataset, batch_size, num_workers=workers)
        for batch in tqdm(batches, dataset.listing.name, leave=False, disable=None if progress else True):
            notices.add(batch)
            if not len(batch["label"]):
                continue
            video = batch["video"].to(device)
            values = model(video, batch["lengths"]).double().cpu()
            rows.update(zip(batch["index"].tolist(), values, strict=True))
            if clip_frames is not None:
                for scores, label in _clip_scores(model, batch, values, clip_frames, clip_step, device):
                    hits, shown = hits + int((scores.argmax(1) == label).sum()), shown + len(scores)
    if not rows:
        raise ValueError(f"none of the {len(dataset)} videos of {dataset.listing.name} could be read")
    left_out = len(dataset) - len(rows) + len(dataset.listing.missing)
    about = replace(about, clip_accuracy=hits / shown if shown > len(rows) else None, skipped=left_out)
    return Evaluation(_scores(dataset.listing, rows, about), notices)


def _scores(listing: Listing, rows: dict[int, Tensor], about: About) -> Scores:
    indices = sorted(rows)
    values = log_probabilities(torch.stack([rows[index] for index in indices]).numpy())
    names = tuple(listing[index].name for index in indices)
    labels = np.array([listing[index].label for index in indices], np.int64)
    return Scores(about, listing.classes, names, labels, values)


def _clip_scores(
    model: nn.Module, batch: Batch, values: Tensor, frames: int, step: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores [n, C] of every `step`th window of each video by itself, and its label; of a single one, the video's."""
    rows = zip(batch["video"], batch["lengths"].tolist(), batch["label"], values, strict=True)
    for video, length, label, scores in rows:
        windows = video[:length].unflatten(0, (-1, frames))[::step]
        yield scores[None] if length == frames else model(windows.to(device)).cpu(), label
