"""Configurations are plain values, and nonsense in them is named."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dynpool.models import ModelConfig


def test_configurations_go_through_json():
    config = ModelConfig("two_stream", 101, branch="conv3", window=10, stride=6, mean=(1, 2.5, 3), dropout=0.8)
    text = json.dumps(config.to_dict())
    assert ModelConfig.from_dict(json.loads(text)) == config
    assert config.to_dict()["mean"] == [1.0, 2.5, 3.0]
    assert {field.name for field in dataclasses.fields(config)} == set(config.to_dict())


def test_what_is_pooled_follows_from_the_kind():
    assert [ModelConfig(kind, 2).pool for kind in ("dynamic", "static", "two_stream")] == ["approx", "none", "approx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dynamical"}, "kind must be one of 'dynamic', 'static', 'two_stream', got 'dynamical'"),
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"num_classes": True}, "num_classes must be a positive integer, got True"),
        ({"pool": "median"}, "pool must be one of 'approx', .* got 'median'"),
        ({"nonlinearity": "log"}, "nonlinearity must be one of None, 'identity', 'sqrt', got 'log'"),
        ({"objective": "svm"}, "objective must be one of"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"window": 2.0}, "window must be a positive integer, got 2.0"),
        ({"stride": 2}, "stride = 2 has no meaning without window"),
        ({"video_layer": "relu1"}, "video_layer = 'relu1' has no meaning without window"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"num_classes": None}, "num_classes must be a positive integer, got None"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, got nan"),
        ({"std": (1, 0, 1)}, r"std must be positive, got \[1.0, 0.0, 1.0\]"),
        ({"std": (1, math.nan, 1)}, r"std must be finite, got \[1.0, nan, 1.0\]"),
        ({"std": (1, math.inf, 1)}, r"std must be finite, got \[1.0, inf, 1.0\]"),
        ({"mean": (0, math.nan, 0)}, r"mean must be finite, got \[0.0, nan, 0.0\]"),
        ({"std": ()}, "std must have a number a channel, got none"),
        ({"C": 0}, "C must be positive and finite, got 0.0"),
        ({"C": -1.0}, "C must be positive and finite, got -1.0"),
        ({"C": math.inf}, "C must be positive and finite, got inf"),
        ({"pool": "none", "window": 5}, "window = 5 has no meaning with pool = 'none'"),
        ({"pool": "none", "layer": "conv1"}, "layer = 'conv1' has no meaning with pool = 'none'"),
        ({"pool": "mean", "nonlinearity": "sqrt"}, "nonlinearity = 'sqrt' has no meaning with pool = 'mean'"),
        ({"pool": "max", "rescale": "minmax"}, "rescale = 'minmax' has no meaning with pool = 'max'"),
        ({"pool": "exact", "rescale": "difference"}, "needs pool = 'approx'"),
        ({"rescale": "rms"}, "rescale = 'rms' cannot be used at the input"),
        ({"rescale": "minmax", "layer": "conv1"}, "rescale = 'minmax' cannot be used at layer 'conv1'"),
        ({"branch": "conv1"}, "branch = 'conv1' has no meaning with kind = 'dynamic'"),
        ({"frames": "middle"}, "frames and every belong to the static stream"),
        ({"pool": "none", "time_average": False}, "time_average = False has no meaning with pool = 'none'"),
        ({"pool": "mean", "time_average": False}, "time_average = False has no meaning with pool = 'mean'"),
        ({"objective": "svr"}, "objective = 'svr' has no meaning with pool = 'approx'"),
        ({"pool": "none", "C": 5}, r"C = 5\.0 has no meaning with pool = 'none'"),
        ({"every": 2}, "frames and every belong to the static stream"),
        ({"kind": "static", "pool": "approx"}, "pool of a static network must be one of 'none', got 'approx'"),
        ({"kind": "static", "window": 3}, "window = 3 has no meaning with"),
        ({"kind": "two_stream", "pool": "none"}, "leaves a two-stream network without frames"),
        ({"kind": "two_stream", "branch": "a", "layer": "b"}, "layer must be the branch 'a' or None, got 'b'"),
        ({"kind": "two_stream", "branch": "input", "layer": "b"}, "layer must be None, got 'b'"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"kind": "dynamic", "num_classes": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_average": "false"}, "time_average must be True or False, got 'false'"),
        ({"checkpointing": 1}, "checkpointing must be True or False, got 1"),
        ({"time_average": None}, "time_average must be True or False, got None"),
        ({"mean": 5}, "mean must be a sequence of numbers, one a channel, got 5"),
        ({"std": "123"}, "std must be a sequence of numbers, one a channel, got '123'"),
        ({"std": (1, "2", 3)}, "std of a channel must be a number, got '2'"),
        ({"dropout": "0.5"}, "dropout must be a number, got '0.5'"),
        ({"C": None}, "C must be a number, got None"),
        ({"layer": 3}, "layer must be a string, got 3"),
        ({"backbone": None}, "backbone must be a string, got None"),
        ({"weights": 3}, "weights must be a string, got 3"),
    ],
)
def test_values_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        ModelConfig(**{"kind": "dynamic", "num_classes": 2, **options})


def test_numbers_of_numpy_and_paths_become_plain():
    config = ModelConfig(
        "dynamic",
        np.int64(3),
        weights=Path("weights.pth"),
        pool="exact",
        window=np.int32(4),
        stride=np.uint8(2),
        size=np.int16(64),
        C=np.float32(0.5),
        dropout=np.float64(0.25),
        mean=np.array([1, 2, 3]),
        std=torch.tensor([1.0, 2.0, 3.0]),
    )
    plain = {"window": 4, "stride": 2, "size": 64, "C": 0.5, "dropout": 0.25, "mean": (1, 2, 3), "std": (1, 2, 3)}
    assert config == ModelConfig("dynamic", 3, weights="weights.pth", pool="exact", **plain)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="model has no option 'windows': it has C, backbone"):
        ModelConfig.from_dict({"kind": "dynamic", "num_classes": 2, "windows": 3})
