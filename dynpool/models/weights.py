"""Weights from local files: safetensors, or a state dict that torch.load(weights_only=True) reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .layers import replace

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")  # of DDP, torch.compile, Lightning, and dynpool


def load_into(module: nn.Module, head: str, path: str | Path) -> None:
    """Load the weights of a file into an image network; its head takes the number of classes of the file.

    They may be those of a video network or of its checkpoint: what wrappers put in front of all names is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as weights, or does not fit; the message names what is missing or too much.
    """
    state = _unwrapped(read(path), module.state_dict())
    layer = module.get_submodule(head)
    weight = state.get(f"{head}.weight")
    if isinstance(layer, nn.Linear) and weight is not None and weight.dim() and weight.shape[0] != layer.out_features:
        replace(module, head, nn.Linear(layer.in_features, weight.shape[0], layer.bias is not None))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        streams = " (they are of two streams)" if _of_streams(state) else ""
        raise ValueError(f"weights in {path} do not fit {type(module).__name__}{streams}: {lines_of(error)}") from error


def read_streams(path: str | Path) -> dict[str, Tensor] | None:
    """The weights of a file of two streams, as `read`; None where they are of one network, with which both begin."""
    state = read(path)
    return state if _of_streams(state) else None


def load_streams(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load the weights of two streams, all but last layers of other numbers of classes.

    Raises:
        ValueError: they do not fit, as those of other streams or of another backbone.
    """
    own = model.state_dict()
    state = _unwrapped(state, own)
    heads = tuple(
        ".".join(filter(None, (where, "backbone", network.head, "")))
        for where, network in model.named_modules()
        if isinstance(getattr(network, "head", None), str)
    )
    new = {name: own[name] for name in own.keys() & state.keys() if name.startswith(heads)}
    new = {name: value for name, value in new.items() if value.shape != state[name].shape}
    try:
        model.load_state_dict({**state, **new})
    except RuntimeError as error:
        raise ValueError(f"weights in {path}, of two streams, do not fit the model: {lines_of(error)}") from error


def _of_streams(state: dict[str, Tensor]) -> bool:
    return any(".static." in f".{name}" for name in state)


def _unwrapped(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' prefixes, one after the other, until there are names that the network has too."""
    prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), None)
    if not state or prefix is None or not own.keys().isdisjoint(state):
        return state
    return _unwrapped({name.removeprefix(prefix): value for name, value in state.items()}, own)


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a file, 'default' or None: there is no file {path}")
    try:
        state = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
        if odd := next((name for name, value in state.items() if value.is_complex()), None):
            raise ValueError(f"{odd!r} is complex")
        return state
    except Exception as error:  # each reader has exceptions of its own
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"{path} cannot be read as weights: {lines_of(error) or type(error).__name__}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    return safetensors_torch().load_file(str(path))


def _pickled(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
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
