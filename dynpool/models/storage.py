"""A model in one safetensors file: its weights, and its configuration as JSON in the metadata."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from torch import nn

from .backbones import Backbone
from .building import VideoModel, build
from .config import ModelConfig
from .weights import lines_of, safetensors_torch

_KEY = "dynpool.model"


def save(model: VideoModel, path: str | Path) -> None:
    """Write a model's weights and configuration to a safetensors file, whole or not at all.

    Raises:
        ImportError: safetensors is not there.
        OSError: the file cannot be written.
    """
    path = Path(path)
    library = safetensors_torch()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        library.save_model(model, temporary, {_KEY: json.dumps(model.config.to_dict())})
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | Path, *, backbone: nn.Module | Backbone | None = None) -> VideoModel:
    """The model that `save` wrote to this file, on the CPU and in evaluation mode.

    Args:
        path: the file.
        backbone: what `build` got, for a model whose backbone was passed as an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no model of dynpool, or not one of this backbone.
        ImportError: the backbone's library or safetensors is not there.
    """
    config = read_config(path)
    model = build(config, backbone=backbone, pretrained=False)
    try:
        safetensors_torch().load_model(model, str(path))
    except RuntimeError as error:
        raise ValueError(f"weights in {path} do not fit backbone {config.backbone!r}: {lines_of(error)}") from error
    return model.eval()


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in a file that `save` wrote."""
    safetensors_torch()  # says what to install
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} holds no model of dynpool: its metadata has no {_KEY!r}")
    return ModelConfig.from_dict(json.loads(metadata[_KEY]))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
