"""Configurations: YAML, overrides, what is refused, and what comes with dynpool."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

pytest.importorskip("yaml", reason="needs PyYAML: pip install dynpool[train]")
pytest.importorskip("lightning", reason="needs Lightning: pip install dynpool[train]")
from dynpool.data import Sampling, recipe
from dynpool.models import build
from dynpool.training import commands
from dynpool.training.config import Config, OptimiserConfig, load, read, shipped, write
from dynpool.training.module import rate
from dynpool.training.values import ConfigError


def test_files_and_overrides_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("optimiser: {lr: 0.1, momentum: 0.5}\ndata: {resize: [240, 320]}\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("optimiser:\n  lr: 2e-3\n")  # YAML reads 2e-3 as text
    config = load(
        [tmp_path / "a.yaml", tmp_path / "b.yaml"], ["optimiser.momentum=0", "data.flip=true", "data.split=lena"]
    )
    assert (config.optimiser.lr, config.optimiser.momentum, config.seed) == (2e-3, 0.0, 3)
    assert (config.data.resize, config.data.flip, config.data.split) == ((240, 320), True, "lena")
    assert config.trainer == Config().trainer


def test_a_configuration_is_what_was_written(tmp_path):
    config = load(
        ["authors_release"], ["data.resize=[256,300]", "trainer.devices=[0,1]", "data.validation=0.2", "seed=7"]
    )
    write(config, tmp_path / "config.yaml")
    assert load([tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.rate=1", "unknown key 'optimiser.rate': optimiser has name, lr, final_lr"),
        ("optimizer.lr=1", "unknown key 'optimizer': the configuration has data, model, optimiser, trainer, seed"),
        ("model.layers=1", "model has no option 'layers': it has .*video_layer"),
        ("model.kind=dynamite", "kind must be one of 'dynamic', 'static', 'two_stream', got 'dynamite'"),
        ("optimiser.lr=quick", "optimiser.lr must be a number, got 'quick'"),
        ("optimiser.lr=-1", "optimiser: lr, final_lr and head_lr must be positive numbers, got -1.0"),
        ("optimiser.lr=.nan", "optimiser: lr, final_lr and head_lr must be positive numbers, got nan"),
        ("optimiser.final_lr=.inf", "optimiser: lr, final_lr and head_lr must be positive numbers, got 0.001, inf"),
        ("optimiser.clip=-1", "optimiser: clip must be a positive number or null, got -1.0"),
        ("optimiser.weight_decay=.nan", "optimiser: weight_decay must not be negative, got nan"),
        ("optimiser.label_smoothing=.nan", "optimiser: label_smoothing must be at least 0 and below 1, got nan"),
        ("trainer.max_steps=0", "trainer: max_steps must be at least 1, or -1 for no limit, got 0"),
        ("data.validation=.nan", "data: validation must be between 0 and 1"),
        ("optimiser.name=adam", "optimiser.name must be 'sgd' or 'adamw', got 'adam'"),
        ("data.flip=1", "data.flip must be true or false, got 1"),
        ("data.window=0", "data: window must be a positive integer, got 0"),
        ("data.window=true", "data.window must be an integer or null, got True"),
        ("data.stride=3", "data: stride has no meaning without window, got 3"),
        ("data.max_windows=3", "data: max_windows has no meaning without window, but for source 'images'"),
        ("data.source=video", "data.source must be 'frames', 'dynamic_images', 'images' or 'flow', got 'video'"),
        ("data.validation=2", "data: validation must be between 0 and 1"),
        ("data.resize=[1,2,3]", "data.resize must be an integer, a list or null"),
        ("trainer.patience=3", "trainer.patience needs training videos set aside"),
        ("optimiser.momentum=1", "optimiser: momentum must be at least 0 and below 1, got 1.0"),
        ("trainer.epochs=0", "trainer: epochs must be at least 1, got 0"),
        ("data=3", "data must be keys and values, got 3"),
        ("seed=-1", r"seed must be from 0 to 2\^63 - 1, got -1"),
        ("seed", "an override must be key=value, such as optimiser.lr=0.01, got 'seed'"),
        ("seed=[", "seed must be given in YAML"),
        ("model.kind=two_stream", "model.kind = 'two_stream' needs data.source = 'frames', got 'dynamic_images'"),
        ("data.frames=3", "data: frames = 3 thins the frames of source 'frames'"),
        ("data.jitter=true", "data: jitter has no meaning without window, frames or max_windows"),
        ("data.min_scale=0.5", r"data: min_scale = 0\.5 has no meaning but with crop = 'random', got 'centre'"),
        (
            "data.test_windows=0",
            r"what is tested \(test_windows = 0, test_frames = None\): max_windows must be a positive",
        ),
        ("data.lists=lists", "data: lists = 'lists' is of dataset 'ucf101' and 'hmdb51', got dataset 'folders'"),
        ("model.time_average=false", "model: time_average = False has no meaning with pool = 'none'"),
        ("model.pool=approx", "model.pool = 'approx' needs data.source = 'frames', got 'dynamic_images'"),
    ],
)
def test_what_is_refused_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load([], [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimiser.name=adamw", "optimiser.momentum=0.5"], r"momentum = 0\.5 is of name = 'sgd', got 'adamw'"),
        (
            ["optimiser.schedule=constant", "optimiser.final_lr=0.5"],
            r"final_lr = 0\.5 has no meaning with schedule = 'con",
        ),
        (["optimiser.warmup=5", "trainer.epochs=5"], r"must be below trainer\.epochs, got warmup = 5 and epochs = 5"),
        (
            ["data.dataset=weizmann", "data.test_fraction=0.5"],
            r"test_fraction = 0\.5 is of dataset 'folders', got 'weizm",
        ),
        (
            ["data.dataset=ucf101", "data.group=g"],
            "group = 'g' is of .* or of videos set aside, got dataset 'ucf101' and va",
        ),
        (["data.method=max", "data.time_average=false"], "time_average = False has no meaning with method = 'max'"),
        (
            ["model.kind=static", "data.source=frames", "model.video_pool=mean"],
            "video_pool = 'mean' has no meaning with k",
        ),
    ],
)
def test_options_that_would_do_nothing_beside_others_are_refused(overrides, message):
    """Of a new run: old ones are tested, and go on, with what they had."""
    with pytest.raises(ConfigError, match=message):
        load([], overrides).check_effects()
    for override in overrides:
        if not override.startswith(("model.video_pool", "data.group", "model.kind")):
            load([], [override]).check_effects()
    for name in shipped():
        load([name]).check_effects()


def test_groups_keep_together_what_is_set_aside():
    load([], ["data.dataset=ucf101", "data.group=g", "data.validation=0.1"]).check_effects()


def test_steps_do_not_end_epochs_that_are_measured():
    message = r"must be null with trainer\.max_steps, got 'test' and max_steps = 5: say trainer\.epochs"
    with pytest.raises(ConfigError, match=message):
        load([], ["data.validation=test", "trainer.max_steps=5"])


def test_options_of_the_command_are_overrides():
    for folder in ("it's \\ here: yes", 'of "any" kind \n', "no text \udce9\x7f", "\U0001f600 ä \ufeff"):
        data = load(["weizmann"], commands._given(folder, commands.Kind.static, "03")).data
        assert (data.dataset, data.root, data.split, data.source) == ("folders", folder, "03", "frames")
    data = load(["weizmann"], commands._given("ucf101:UCF-101", commands.Kind.dynamic, "3")).data
    assert (data.dataset, data.root, data.split, data.source) == ("ucf101", "UCF-101", 3, "dynamic_images")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="one of authors_release, paper, weizmann, got 'papers'"):
        load(["papers"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold keys and values, got list"):
        read(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml must be YAML"):
        read(tmp_path / "bad.yaml")
    for twice in ("seed: 1\nseed: 2\n", "data: {size: 3, flip: true, size: 4}\n"):
        (tmp_path / "twice.yaml").write_text(twice)
        with pytest.raises(ConfigError, match=r"twice\.yaml must be YAML: '(seed|size)' is given twice\n"):
            read(tmp_path / "twice.yaml")
    (tmp_path / "keys.yaml").write_text("? [a, b]\n: 1\n")
    with pytest.raises(ConfigError, match=r"(?s)keys\.yaml must be YAML: .*unhashable key"):
        read(tmp_path / "keys.yaml")


def test_sections_without_values_are_empty(tmp_path):
    (tmp_path / "a.yaml").write_text("optimiser:\n  # lr: 0.1\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("# nothing yet\n")
    assert load([tmp_path / "a.yaml", tmp_path / "b.yaml"]) == Config(seed=3)


def test_windows_of_pictures_are_those_of_their_manifest(tmp_path):
    def told(*overrides):
        data = load([], ["data.source=images", f"data.root={tmp_path}", *overrides]).data
        return data.windows_in_words(), data.windows_in_words(train=True)

    assert told("data.window=25", "data.stride=20") == ("25 every 20",) * 2
    assert told("data.max_windows=3") == ("those of the pictures", "those of the pictures, at most 3")
    made = [{"window": 10, "stride": 6, "method": "mean"}, {"window": 10, "stride": None}, {"window": None}]
    words = ["10 every 6, at most 20", "10 every 10, at most 20", "whole video"]
    for folder, line, expected in zip((tmp_path / "train", tmp_path / "test", tmp_path), made, words, strict=True):
        folder.mkdir(exist_ok=True)
        (folder / "manifest.jsonl").write_text(json.dumps({"made": line}) + "\n")
        told_of = told("data.window=25", "data.stride=20", "data.test_windows=20")
        assert told_of[folder.name == "train"].partition(",")[0] == expected.partition(",")[0]
        if folder.name != "train":  # of which at most 20 are not said
            assert told_of[0] == expected


def test_shipped_configurations_are_the_recipes():
    assert shipped() == ["authors_release", "paper", "weizmann"]
    paper, release = load(["paper"]), load(["authors_release"])
    assert paper.data.sampling(train=True) == paper.data.sampling(train=False) == recipe("paper", True)
    assert release.data.sampling(train=True) == recipe("authors_release", True)
    assert release.data.sampling(train=False) == recipe("authors_release", False)
    for config in (paper, release):
        assert (config.optimiser.lr, config.optimiser.train, config.trainer.epochs) == (1e-3, "all", 20)
        assert config.model_config(101).pool == "none"
    assert paper.data.windows_in_words() == "25 every 20"
    assert release.data.windows_in_words() == "10 every 6, at most 20"
    assert load().data.windows_in_words() == "whole video"
    assert load([], ["data.source=images"]).data.windows_in_words() == "those of the pictures"


@pytest.mark.parametrize("name", shipped())
def test_shipped_configurations_fit_a_network(name):
    config = load([name], ["model.backbone=custom", "model.weights=null"]).model_config(4)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    scores = build(config, backbone=backbone)(torch.zeros(1, 2, 3, 8, 8))
    assert scores.shape == (1, 4)


def test_the_backbone_is_made_for_the_size_of_the_data():
    options = ["model.backbone=caffenet", "model.weights=null"]
    model = build(load(["paper"], [*options, "data.size=83", "data.resize=90"]).model_config(4))
    assert model.size == 83
    assert model(torch.zeros(1, 1, 3, 83, 83)).shape == (1, 4)
    with pytest.raises(ConfigError, match="size must be a positive integer, got 0"):
        load([], ["model.size=0"]).model_config(4)
    assert load([], ["data.size=null"]).model_config(4).size is None
    assert load([], ["data.size=83", "model.size=100"]).model_config(4).size == 100
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    config = load(["paper"], ["data.size=9", "model.backbone=custom", "model.weights=null"]).model_config(4)
    with pytest.raises(ValueError, match=r"backbone cannot take images of 9 × 9 \(size of the configuration\)"):
        build(config, backbone=fixed)


def test_the_model_pools_windows_of_frames():
    config = load([], ["data.source=frames", "data.window=10", "data.stride=6"]).model_config(4)
    assert (config.pool, config.window, config.stride, config.num_classes) == ("approx", 10, 10, 4)
    thinned = load([], ["data.source=frames", "data.window=10", "data.frames=5"]).model_config(4)
    assert (thinned.window, thinned.stride) == (5, 5)
    whole = load([], ["data.source=frames", "model.window=10", "model.stride=6"]).model_config(4)
    assert (whole.window, whole.stride) == (10, 6)
    static = load([], ["data.source=frames", "model.kind=static", "data.frames=1", "data.test_frames=25"])
    assert static.data.sampling(train=True) == Sampling(frames=1)
    assert static.data.sampling(train=False) == Sampling(frames=25)
    with pytest.raises(ConfigError, match="windows are given twice"):
        load([], ["data.source=frames", "data.window=10", "model.window=10"])
    with pytest.raises(ConfigError, match=r"test_frames must be data\.frames"):
        load([], ["data.source=frames", "data.window=10", "data.frames=5", "data.test_frames=10"])


def test_pictures_that_are_drawn_when_training_are_all_tested():
    data = load([], ["data.source=images", "data.max_windows=2", "data.jitter=true"]).data
    assert data.sampling(train=True).jitter
    assert data.sampling(train=False).max_windows is None


def test_testing_draws_nothing():
    data = load(["weizmann"], ["data.crop=random", "data.min_scale=0.5"]).data
    assert data.sampling(train=True).draws
    assert data.geometry(train=True).draws
    assert not data.sampling(train=False).draws
    assert not data.geometry(train=False).draws


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("geometric", [1, 10**-0.5, 0.1, 10**-1.5, 0.01]),
        ("linear", [1, 0.7525, 0.505, 0.2575, 0.01]),
        ("cosine", [1, 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2, 0.505, 0.01 + 0.99 * (1 - math.sqrt(0.5)) / 2, 0.01]),
    ],
)
def test_rates(schedule, rates):
    config = OptimiserConfig(lr=1, final_lr=0.01, schedule=schedule)
    assert [rate(config, epoch, 5) for epoch in range(5)] == pytest.approx(rates)
    warm = OptimiserConfig(lr=1, final_lr=0.01, schedule=schedule, warmup=3)
    assert [rate(warm, epoch, 8) for epoch in range(8)] == pytest.approx([0.25, 0.5, 0.75, *rates])
    assert rate(config, 0, 1) == 1


def test_paths_are_right_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["data.root=videos", "data.dataset=ucf101", "data.cache=kept", "model.weights=w.safetensors"]
    config = load([], [*options, "data.lists=lists"]).anchored()
    assert (config.data.root, config.data.lists) == (str(tmp_path / "videos"), str(tmp_path / "lists"))
    assert (config.data.cache, config.model["weights"]) == (str(tmp_path / "kept"), str(tmp_path / "w.safetensors"))
    named = load([], ["data.cache=memory", "model.weights=default"]).anchored()
    assert (named.data.cache, named.data.lists, named.model["weights"]) == ("memory", None, "default")
    assert "weights" not in load().anchored().model
    elsewhere = load([], [*options, "data.root=/", "trainer.devices=2"]).anchored()
    assert elsewhere.experiment() == config.experiment()
    assert load([], ["model.weights=imagenet"]).experiment() == load([], ["model.weights=default"]).experiment()
    for short, full in ((16, "16-mixed"), ("bf16", "bf16-mixed"), (32, "32-true"), (64, "64-true")):
        pair = [load([], [f"trainer.precision={name}"]).experiment() for name in (short, full)]
        assert pair[0] == pair[1]
        assert (pair[0] == load().experiment()) == (short == 32)
    assert elsewhere.experiment() != load([], [*options, "model.weights=v.safetensors"]).anchored().experiment()
