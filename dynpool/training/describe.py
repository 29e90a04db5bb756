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
        return _pooled(data.method, "flow dynamic images", "images of flow")
    made = data.how_made() or {}
    if data.source == "images" and "method" not in made:
        return "pictures made before"
    if data.source in ("images", "dynamic_images"):
        return _pooled(made.get("method", data.method), "dynamic images", "images")
    seen = {"all": "RGB frames", "middle": "middle RGB frame"}[model.frames]
    if model.every > 1:
        seen = f"{seen}, one of {model.every}"
    if model.kind == "static":
        return seen
    what = f"dynamic maps after {model.layer}" if model.layer else "dynamic images"
    pooled = _pooled(str(model.pool), what, "of frames")
    return f"{seen} and {pooled}, branch at {model.branch or 'input'}" if model.kind == "two_stream" else pooled


def _pooled(method: str, ranked: str, otherwise: str) -> str:
    """By rank pooling, or as a baseline: "mean of frames"."""
    return {"approx": ranked, "exact": f"{ranked}, exact"}.get(method, f"{method} {otherwise}")


def pretraining(config: Config, model: ModelConfig) -> str:
    """Where the weights began."""
    weights = config.model.get("weights") or model.weights
    if weights is None:
        return f"none ({model.backbone})"
    named = "ImageNet" if weights in DEFAULT_WEIGHTS else os.path.basename(str(weights))
    return f"{named} ({model.backbone})"


def _windows(config: Config, model: ModelConfig, train: bool) -> str:
    backwards = config.data.sampling(train).reverse
    chance = f", backwards{'' if backwards == 1 else f' with probability {backwards:g}'}" if backwards else ""
    if model.window is None or config.data.window is not None:
        return f"{config.data.windows_in_words(train)}{chance}"
    return f"{model.window} every {model.stride or model.window}{chance}"
