"""Weights from local files: safetensors, or a state dict that torch.load(weights_only=True) reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .layers import replace


def load_into(module: nn.Module, head: str, path: str | Path) -> None:
    """Load the weights of a file into an image network; its head takes the number of classes of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as weights, or does not fit; the message names what is missing or too much.
    """
    state = read(path)
    layer = module.get_submodule(head)
    weight = state.get(f"{head}.weight")
    if isinstance(layer, nn.Linear) and weight is not None and weight.shape[0] != layer.out_features:
        replace(module, head, nn.Linear(layer.in_features, weight.shape[0], layer.bias is not None))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights in {path} do not fit {type(module).__name__}: {lines_of(error)}") from error


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name; a "module." in front of all of them, which DDP leaves, is dropped."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a file, 'default' or None: there is no file {path}")
    try:
        state = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except Exception as error:  # each reader has exceptions of its own
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"{path} cannot be read as weights: {lines_of(error)}") from error
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    return safetensors_torch().load_file(str(path))


def _pickled(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds no state dict")
    return state


def safetensors_torch() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError("weights in safetensors files need safetensors: pip install safetensors") from error


def lines_of(error: Exception) -> str:
    """The message on one line, and not all of a long one."""
    text = " ".join(str(error).split())
    return text if len(text) <= 600 else f"{text[:600]} …"
