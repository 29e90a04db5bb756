"""A model in one safetensors file: its weights, and its configuration as JSON in the metadata, as in exported files."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from ..writing import whole_file
from .backbones import Backbone
from .building import VideoModel, build, video_model
from .config import ModelConfig
from .network import TwoNetworks, shapes_of
from .weights import lines_of, safetensors_torch

METADATA_KEY = "dynpool.model"
_INPUT_KEY = "dynpool.input"  # what a backbone that was passed as an object says of its input, beside the configuration
_INPUT = ("mean", "std", "size", "head")
PROGRAM_SUFFIX = ".pt2"
_PROGRAM_EXTRAS = ("extra", "extra_files")  # folders in the archives of torch.export.save; the second until torch 2.7


def save(model: VideoModel, path: str | Path) -> None:
    """Write a model's weights and configuration to a safetensors file, whole or not at all. Warns where layers were
    replaced by others with other weights, so that `load`, which builds the model anew, cannot read it.

    Raises:
        TypeError: the model is not one that `build` made, as it is or under torch.compile.
        ImportError: safetensors is not there.
        OSError: the file cannot be written.
    """
    model, library = video_model(model), safetensors_torch()
    _warn_of_other_weights(model)
    with whole_file(path) as temporary:
        about = {METADATA_KEY: model.config.to_dict(), _INPUT_KEY: _input_of(model)}
        temporary.touch()
        mode = temporary.stat().st_mode  # of new files here; safetensors writes one that only its owner may read
        library.save_model(model, str(temporary), {key: json.dumps(value) for key, value in about.items()})
        temporary.chmod(mode)


def _warn_of_other_weights(model: VideoModel) -> None:
    now = shapes_of(model)
    changed = sorted(model.built.items() - now.items()) or sorted(now.items() - model.built.items())
    if changed:
        name = changed[0][0]
        was, is_now = (f"of shape {list(s[name])}" if name in s else "missing" for s in (model.built, now))
        message = (
            f"layers of the model were replaced: {name!r} is {is_now} and was {was} when it was built. load() will "
            "build it as it was, and refuse the file; to read it, load the state_dict in it into a model like this one"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def load(path: str | Path, *, backbone: nn.Module | Backbone | None = None) -> VideoModel:
    """The model that `save` wrote to this file, on the CPU and in evaluation mode.

    Args:
        path: the file.
        backbone: what `build` got, for a model whose backbone was passed as an object. Of a bare module, the file
            knows mean, std, size and classifier.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no model of dynpool, or not one of this backbone.
        ImportError: the backbone's library or safetensors is not there.
    """
    config = _config(path, _of_weights)
    if isinstance(backbone, nn.Module):
        about = _metadata(path, _INPUT_KEY)
        with _damaged(path, _INPUT_KEY):
            backbone = Backbone(backbone, **{name: about[name] for name in _INPUT})
    model = build(config, backbone=backbone, pretrained=False)
    try:
        safetensors_torch().load_model(model, str(path))
    except RuntimeError as error:
        raise ValueError(f"weights in {path} do not fit backbone {config.backbone!r}: {lines_of(error)}") from error
    return model.eval()


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in a file that `save` or `export_pt2` wrote. Nothing else of it is read, and nothing unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no model of dynpool.
        ImportError: safetensors is not there, and the file is one.
    """
    read = _of_program if Path(path).suffix == PROGRAM_SUFFIX else _of_weights
    return _config(path, read)


def _config(path: str | Path, read: Callable[[str | Path], Mapping[str, str | bytes]]) -> ModelConfig:
    values = _metadata(path, METADATA_KEY, read)
    with _damaged(path, METADATA_KEY):
        return ModelConfig.from_dict(values)


def _input_of(model: VideoModel) -> dict[str, Any]:
    network = model.dynamic if isinstance(model, TwoNetworks) else model
    return {name: getattr(network, name) for name in _INPUT}


def _of_weights(path: str | Path) -> Mapping[str, str | bytes]:
    """What is written beside the tensors."""
    library = safetensors_torch()
    try:
        with library.safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except Exception as error:  # SafetensorError, which older versions do not export here
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _of_program(path: str | Path) -> Mapping[str, str | bytes]:
    """What is written beside the program."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name) for name in archive.namelist()]
            return {m.name: archive.read(str(m)) for m in members if m.parent.name in _PROGRAM_EXTRAS}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a file of torch.export: {error}") from error


def _metadata(
    path: str | Path, key: str, read: Callable[[str | Path], Mapping[str, str | bytes]] = _of_weights
) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    metadata = read(path)
    if key not in metadata:
        raise ValueError(f"{path} holds no model of dynpool: its metadata has no {key!r}")
    with _damaged(path, key):
        return dict(json.loads(metadata[key]))


@contextmanager
def _damaged(path: str | Path, key: str) -> Iterator[None]:
    """Errors in what is read there are those of the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no model of dynpool: {key!r} in its metadata is damaged: {error}") from error
