"""A training run in a folder: configuration, checkpoints, logs and the trained model."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from ..models import VideoModel, build, read_config, save
from ..writing import whole_file
from .config import Config, differences, load, write
from .datamodule import Videos
from .lists import check_classes, check_same_videos, identities, write_lists
from .module import VideoClassifier
from .progress import EpochBar, EpochLines
from .values import ConfigError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

CONFIG, MODEL = "config.yaml", "model.safetensors"
CHECKPOINT, BEST, LOCK = "last.ckpt", "best.ckpt", ".lock"
_LAUNCHER = "DYNPOOL_LAUNCHER"  # the process that Lightning started this one from, to those of its environment
# What Lightning goes on from.
_CHECKPOINT_KEYS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
_TERMINATED = "is killed by signal: Terminated"  # torch, of a loader's process
_EXPECTED = (  # what Lightning warns of, and we mean
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*number of training batches.*",
    ".*Total length of .list. across ranks is zero.*",
    ".*LeafSpec.*",
    ".*your dataloader is not resumable.*",  # it is: VideoClassifier.take_resumed
    ".*Experiment logs directory.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*Please add the following callbacks.*",  # of steps, which need not be kept again
)


def fit(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    backbone: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a model.

    Args:
        config: what, on which data, and how.
        out: the folder of the run. It gets config.yaml and classes.txt; train.txt, bytes and names of the training
            videos; missing.txt, the names of those that are listed and not there, if any; last.ckpt after every epoch;
            best.ckpt, where progress is measured on videos set aside; logs/version_N/metrics.csv, another N for every
            start, and tensorboard/; and at the end model.safetensors, which `dynpool.models.load` reads.
        resume: go on where the run in `out` was stopped, however it was: on the same machine and settings, the result
            is that of a run that was not.
        backbone: a network of your own, where model.backbone is "custom"; see `dynpool.models.build`.
        callbacks: of Lightning, besides our own.

    Returns:
        The path of model.safetensors.

    Raises:
        FileExistsError: `out` holds a run already, and resume is false, or that is of other settings; or another
            process trains in it.
        ConfigError: what was stopped is of other classes, other videos or another network, or a checkpoint is damaged
            or gone; there is but one class; or Lightning refuses an option.
        ValueError: training diverged.
        others: as `dynpool.data` and `dynpool.models`.
    """
    try:
        return _fit(config.anchored(), Path(out), resume, backbone, callbacks)
    finally:  # Lightning's trainer and loaders refer to one another, and to the images that are cached: a gigabyte
        gc.collect()


def _fit(config: Config, folder: Path, resume: bool, backbone: nn.Module | None, callbacks: Sequence[Callback]) -> Path:
    checkpoint = folder / CHECKPOINT
    if not resume:
        config.check_effects()
    trainer = make_trainer(config, folder, callbacks)
    if not resume and trainer.is_global_zero and (folder / CONFIG).exists():
        raise FileExistsError(f"{folder} holds a run already: resume it, or choose another folder")
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    train, validation = config.data.subsets()
    if len(train.classes) < 2:
        raise ConfigError(f"{train.name} must have two classes or more, got {', '.join(train.classes)}")
    torch.manual_seed(config.seed)
    found = str(checkpoint) if resume and checkpoint.exists() else None
    begins = found is None or config.weights_file is None  # else what the file held is in the checkpoint
    model = build(config.model_config(len(train.classes)), backbone=backbone, pretrained=begins)
    model.train()  # a backbone of one's own may come in evaluation mode, which Lightning would leave it in
    module = VideoClassifier(model, config.optimiser, len(train.classes), config.seed)
    trained = identities(train) + (identities(validation) if validation is not None and config.data.sets_aside else [])
    if resume:
        check_classes(folder, train)
        _check_continues(folder, config, module)
        if found is not None:
            check_same_videos(folder, train, trained)
    if not trainer.is_global_zero:
        return _trained(trainer, module, Videos(config, train, validation), found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        write(config, folder / CONFIG)
        write_lists(folder, train, trained)
        return _trained(trainer, module, Videos(config, train, validation), found, folder)


def _trained(trainer: L.Trainer, module: VideoClassifier, videos: Videos, found: str | None, folder: Path) -> Path:
    with _quiet(), _stopping(folder), _ending_with_launcher(trainer):
        trainer.fit(module, videos, ckpt_path=found)
    return _finish(trainer, module, folder, videos.config.data.sets_aside)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, by a lock that loaders, which outlive a kill, do not inherit."""
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # others: of file systems that have no locks
                reason = f"{folder} is being trained in by another process: wait for it, or choose another folder"
                raise FileExistsError(reason) from None
        yield


@contextmanager
def _ending_with_launcher(trainer: L.Trainer) -> Iterator[None]:
    """Where Lightning starts processes from the first of a machine, they end with it, also by kill -9: those that wait
    for it to join them would wait for half an hour.
    """
    launcher, done = os.environ.get(_LAUNCHER), threading.Event()
    if trainer.local_rank == 0:
        os.environ[_LAUNCHER] = str(os.getpid())
    elif launcher is not None:
        threading.Thread(target=_watch, args=(int(launcher), done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if trainer.local_rank == 0:  # or all that is started later, by whomever, would take this one for its launcher
            del os.environ[_LAUNCHER]


def _watch(launcher: int, done: threading.Event) -> None:
    while os.getppid() == launcher:
        if done.wait(1):
            return
    os._exit(1)


def _check_continues(folder: Path, config: Config, module: VideoClassifier) -> None:
    """Raise ConfigError where the run in a folder is of another network, or cannot be read, and FileExistsError where
    it is of other settings.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return
    checkpoint = _checkpoint(path)
    saved, own = checkpoint["state_dict"], module.state_dict()
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (saved, own)]
    if different := [name for name in {**saved, **own} if shapes[0].get(name) != shapes[1].get(name)]:
        raise ConfigError(f"{path} is of another network than is configured: it differs in {', '.join(different[:3])}")
    _check_settings(folder, config)
    states = [state for state in checkpoint["callbacks"].values() if isinstance(state, dict)]
    bests = [os.path.basename(state.get("best_model_path", "")) for state in states]
    if BEST in bests and not (folder / BEST).exists():
        raise ConfigError(f"{folder} lacks {BEST}, the best epoch of what was trained: {CHECKPOINT} is the last")


def _check_settings(folder: Path, config: Config) -> None:
    """Raise FileExistsError where settings that a result depends on are not those of what was trained in a folder."""
    if not (folder / CONFIG).is_file() or not ((folder / CHECKPOINT).exists() or (folder / MODEL).exists()):
        return
    different = differences(saved_config(folder), config)
    told = ", ".join(f"{key} = {before}, now {now}" for key, (before, now) in different.items())
    if told and (folder / MODEL).exists():
        raise FileExistsError(
            f"{folder} is trained already, by other settings ({told}). To train on, choose another folder and "
            f"model.weights={folder / MODEL}"
        )
    if told:
        raise FileExistsError(f"{folder} holds a run of other settings ({told}): go on with its own, or elsewhere")


def _checkpoint(path: Path) -> dict[str, Any]:
    """What a run wrote. Raises ConfigError where that is damaged, or something else stands there."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        altered = _altered(path)
    except Exception as error:  # of many kinds, and some advise to unpickle whatever it is
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ConfigError(f"{path} is damaged, or no checkpoint of a run: torch cannot read it") from error
    if altered is not None:
        raise ConfigError(f"{path} is damaged: {altered} is not what was written, or was written without checksums")
    lacking = [name for name in _CHECKPOINT_KEYS if not isinstance(content, dict) or name not in content]
    if lacking:
        raise ConfigError(f"{path} is no checkpoint of a run: it has no {', '.join(lacking)}")
    return cast("dict[str, Any]", content)


def _altered(path: Path) -> str | None:
    """Which part of the file has another checksum than when it was written: torch looks at none."""
    with zipfile.ZipFile(path) as parts:
        return parts.testzip()


def is_main() -> bool:
    """Whether this is the first process of the run, which prints, as Lightning counts them."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def _finish(trainer: L.Trainer, module: VideoClassifier, folder: Path, best: bool) -> Path:
    """Write the model: that of the best epoch where one is wanted and there, else of the last."""
    path = folder / MODEL
    if trainer.is_global_zero:
        if best and (folder / BEST).exists():
            module.load_state_dict(_checkpoint(folder / BEST)["state_dict"])
        save(cast("VideoModel", module.model.cpu().eval()), path)
    trainer.strategy.barrier()
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of itself at every start."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """A run that is stopped says how it goes on, and its exit code is no success."""
    code, why = None, ""
    try:
        yield
        return
    except SystemExit as stop:  # so Lightning ends: by SIGTERM without a code, by SIGINT with 1
        code = 128 + signal.SIGINT if isinstance(stop.__context__, KeyboardInterrupt) else stop.code
    except RuntimeError as error:
        told = [str(e) for e in (error, error.__cause__) if _TERMINATED in str(e)]
        if not told:
            raise
        why = f" ({told[0].strip()})"  # a signal to all processes may end loaders before Lightning looks
    if is_main():
        print(f"stopped{why}; to go on: dynpool train --resume -o {folder}", file=sys.stderr)
    raise SystemExit(code or 128 + signal.SIGTERM)


def make_trainer(config: Config, folder: Path, callbacks: Sequence[Callback]) -> L.Trainer:
    """Lightning's Trainer for a run.

    Raises:
        ConfigError: there is no such accelerator here, or Lightning refuses an option.
    """
    try:
        with _quiet():
            return _trainer(config, folder, callbacks)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}") from error


def _trainer(config: Config, folder: Path, callbacks: Sequence[Callback]) -> L.Trainer:
    options = config.trainer
    return L.Trainer(
        default_root_dir=folder,
        accelerator=options.accelerator,
        devices=list(options.devices) if isinstance(options.devices, tuple) else options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,  # type: ignore[arg-type]  # Lightning checks it
        max_epochs=options.epochs,
        max_steps=options.max_steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=config.optimiser.clip,
        logger=[CSVLogger(folder, name="logs"), TensorBoardLogger(folder, name="", version="tensorboard")],
        log_every_n_steps=10,
        callbacks=[*_checkpoints(config, folder), *_progress(config), *callbacks],
        plugins=[WholeFiles()],
        use_distributed_sampler=False,  # the loaders deal out the videos
        num_sanity_val_steps=0,
        limit_val_batches=0 if config.data.validation is None else 1.0,
        enable_progress_bar=_shows_bar(config),
        enable_model_summary=False,
    )


def _checkpoints(config: Config, folder: Path) -> list[Callback]:
    every = config.trainer.checkpoint_steps
    latest: dict[str, Any] = {"dirpath": folder, "filename": Path(CHECKPOINT).stem, "enable_version_counter": False}
    made: list[Callback] = []
    if config.trainer.patience is not None:
        made.append(Patience("val/accuracy", mode="max", patience=config.trainer.patience))
    if config.data.sets_aside:  # before the latest, which holds what the best was
        best = {**latest, "filename": Path(BEST).stem}
        made.append(Checkpoint(**best, monitor="val/accuracy", mode="max"))
    made.append(Checkpoint(**latest, save_on_train_epoch_end=True))
    return made if every is None else [*made, StepCheckpoint(**latest, every_n_train_steps=every)]


def _progress(config: Config) -> list[Callback]:
    return [EpochLines(), *([EpochBar()] if _shows_bar(config) else [])]


def _shows_bar(config: Config) -> bool:
    return config.trainer.progress and sys.stdout.isatty()  # where the bar is written


class Checkpoint(ModelCheckpoint):
    """Where a run's folder has been moved or copied, Lightning's own would forget which epoch was the best."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_model_path")}
        bests = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": bests, "dirpath": self.dirpath})


class StepCheckpoint(Checkpoint):
    """Every so many steps, but for the last of an epoch: the epoch's own comes when it has been measured, and a run
    that goes on after the last step would leave that out.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        if not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():  # a step is done
            super().on_train_batch_end(trainer, *rest)


class Patience(EarlyStopping):
    """A run that had stopped does not train on when it is resumed."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class WholeFiles(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, whenever the run is killed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with whole_file(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def train_splits(config: Config, out: str | os.PathLike[str], *, resume: bool = False) -> Iterator[Path]:
    """Train the configuration's split; or every one, into a folder of its own below `out`, where split is "all".

    With `resume`, splits that are done are not trained again; where `out` holds all splits, and the configuration has
    one, that one alone goes on, in its folder.

    Raises:
        FileExistsError: `out` holds a run already, and resume is false; it holds one of another kind; or a split is
            done that was trained by other settings.
        others: as `fit`.
    """
    folder, config = Path(out), config.anchored()
    if config.data.split != "all":
        if resume and (folder / CONFIG).is_file() and saved_config(folder).data.split == "all":
            config = config.with_split(_one_of(config.with_split("all").data.splits(), config.data.split))
            folder = folder / f"split-{config.data.split}"
        yield _train_one(config, folder, resume)
        return
    if is_main():
        _check_holds_splits(folder, resume)
    inner = {split: folder / f"split-{split}" for split in config.data.splits()}
    for split, path in inner.items():
        _is_done(config.with_split(split), path, resume)
    for path in inner.values():
        path.mkdir(parents=True, exist_ok=True)
    if is_main():
        write(config, folder / CONFIG)
    for split, path in inner.items():
        yield _train_one(config.with_split(split), path, resume)


def _one_of(splits: Sequence[int | str], wanted: int | str) -> int | str:
    """As the data name it: 1 may be the text of a group."""
    for split in splits:
        if str(split) == str(wanted):
            return split
    raise ConfigError(f"data.split must be one of {', '.join(map(str, splits))}, or all, got {wanted!r}")


def _check_holds_splits(folder: Path, resume: bool) -> None:
    if (folder / CHECKPOINT).exists() or (folder / MODEL).exists():
        raise FileExistsError(f"{folder} holds the run of one split: choose another folder for all of them")
    if not resume and (folder / CONFIG).exists():
        raise FileExistsError(f"{folder} holds runs already: resume them, or choose another folder")


def _train_one(config: Config, folder: Path, resume: bool) -> Path:
    if not _is_done(config, folder, resume):
        return fit(config, folder, resume=resume)
    if is_main():
        print(f"{folder} is trained already", file=sys.stderr)
    return folder / MODEL


def _is_done(config: Config, folder: Path, resume: bool) -> bool:
    """Whether a run that is to go on is trained already: a model that was cut short, as by a copy, is written anew.
    Raises FileExistsError if it is of other settings.
    """
    if resume:
        _check_settings(folder, config)
    return resume and _is_whole(folder / MODEL)


def _is_whole(model: Path) -> bool:
    """Whether a model is there, and as long as it says."""
    try:
        read_config(model)
    except (FileNotFoundError, ValueError):
        return False
    return True


def runs_in(folder: Path) -> list[Path]:
    """The run in a folder, or those of its splits, as `train_splits` left them.

    Raises:
        FileNotFoundError: there is none.

    Warns:
        RuntimeWarning: some splits are not trained yet.
    """
    if (folder / MODEL).is_file():
        return [folder]
    runs = sorted(path for path in folder.glob("split-*") if path.is_dir())
    trained = [run for run in runs if (run / MODEL).is_file()]
    if not trained:
        raise FileNotFoundError(f"{folder} holds no trained model ({MODEL}), nor split-*/{MODEL}")
    if rest := [run.name for run in runs if run not in trained]:
        warnings.warn(f"{folder}: {', '.join(rest)} not trained yet, and left out", RuntimeWarning, stacklevel=2)
    return trained


def saved_config(folder: Path, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """The configuration of the run in a folder, perhaps with changes.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG}")
    return load([path, *files], overrides)
