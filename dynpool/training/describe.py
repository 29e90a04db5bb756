"""What results are of: dataset, split, what the network sees, its pretraining and its windows."""

from __future__ import annotations

import os

from ..data import Listing
from ..models import ModelConfig
from ..models.backbones import DEFAULT_WEIGHTS
from .config import Config
from .scores import About


def describe(config: Config, listing: Listing, model: ModelConfig, train: bool = False) -> About:
    """What results of this model on these videos are of, in testing or in training."""
    return About(
        dataset=listing.dataset,
        split=listing.split,
        modality=modality(config, model),
        pretraining=pretraining(config, model),
        windows=_windows(config, model, train),
    )


def modality(config: Config, model: ModelConfig) -> str:
    """What the network sees, in words."""
    data = config.data
    if data.source == "flow":
        return "flow dynamic images"
    made = data.how_made() or {}
    if data.source == "images" and "method" not in made:
        return "pictures made before"
    if data.source in ("images", "dynamic_images"):
        method = made.get("method", data.method)
        return {"approx": "dynamic images", "exact": "dynamic images, exact"}.get(method, f"{method} images")
    if model.kind == "static":
        return "RGB frames"
    if model.kind == "two_stream":
        return f"RGB frames and dynamic images, branch at {model.branch or 'input'}"
    what = f"dynamic maps after {model.layer}" if model.layer else "dynamic images"
    return {"approx": what, "exact": f"{what}, exact"}.get(str(model.pool), f"{model.pool} of frames")


def pretraining(config: Config, model: ModelConfig) -> str:
    """Where the weights began."""
    weights = config.model.get("weights") or model.weights
    if weights is None:
        return f"none ({model.backbone})"
    named = "ImageNet" if weights in DEFAULT_WEIGHTS else os.path.basename(str(weights))
    return f"{named} ({model.backbone})"


def _windows(config: Config, model: ModelConfig, train: bool) -> str:
    if model.window is None or config.data.window is not None:
        return config.data.windows_in_words(train)
    return f"{model.window} every {model.stride or model.window}"
