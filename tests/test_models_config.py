"""Configurations are plain values, and nonsense in them is named."""

import dataclasses
import json

import pytest

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
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"std": (1, 0, 1)}, r"std must be positive, got \[1.0, 0.0, 1.0\]"),
        ({"pool": "none", "window": 5}, "window = 5 has no meaning with pool = 'none'"),
        ({"pool": "none", "layer": "conv1"}, "layer = 'conv1' has no meaning with pool = 'none'"),
        ({"pool": "mean", "nonlinearity": "sqrt"}, "nonlinearity = 'sqrt' has no meaning with pool = 'mean'"),
        ({"pool": "max", "rescale": "minmax"}, "rescale = 'minmax' has no meaning with pool = 'max'"),
        ({"pool": "exact", "rescale": "difference"}, "needs pool = 'approx'"),
        ({"rescale": "rms"}, "rescale = 'rms' cannot be used at the input"),
        ({"rescale": "minmax", "layer": "conv1"}, "rescale = 'minmax' cannot be used at layer 'conv1'"),
        ({"branch": "conv1"}, "branch = 'conv1' has no meaning with kind = 'dynamic'"),
        ({"frames": "middle"}, "frames and every belong to the static stream"),
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


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="model has no option 'windows': it has C, backbone"):
        ModelConfig.from_dict({"kind": "dynamic", "num_classes": 2, "windows": 3})
