"""build: a configuration and a backbone into a network, with its layers checked in a trial run."""

from __future__ import annotations

import copy
import functools
from dataclasses import fields
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import CUSTOM, DEFAULT_WEIGHTS, Backbone, load_backbone
from .checkpointing import checkpoint_blocks
from .config import ModelConfig, forks, pools_at
from .layers import (
    Run,
    around,
    evaluating,
    fork_after,
    last_pooling,
    lets_rows_go,
    named_layer,
    replace,
    scores_of,
    trial_run,
)
from .network import Route, TwoNetworks, VideoNetwork
from .weights import load_streams, read_streams

_OF_POOLING = (
    *("layer", "branch", "video_layer", "window", "stride"),
    *("nonlinearity", "time_average", "rescale", "objective", "C"),
)
VideoModel = VideoNetwork | TwoNetworks


def video_model(model: Any) -> VideoModel:
    """A model of `build`, as it is or under torch.compile."""
    found = getattr(model, "_orig_mod", model)
    if not isinstance(found, VideoModel):
        raise TypeError(f"model must be one that build made, got {type(found).__name__}")
    return found


def build(config: ModelConfig, *, backbone: nn.Module | Backbone | None = None, pretrained: bool = True) -> VideoModel:
    """The model of a configuration.

    Args:
        config: what the model is.
        backbone: an image network [N, 3, H, W] -> [N, any number of classes] whose last linear layer gives the scores,
            instead of the one that config.backbone names; of it a copy is taken. A `Backbone` also tells its input's
            mean and std (of a bare module they are taken to be ImageNet's), its size and its classifier.
        pretrained: False leaves config.weights out, for a model whose weights are loaded next.

    Raises:
        TypeError: the backbone is no module.
        ValueError: a layer is not there, or cannot be pooled at; the backbone does not take the images, or returns no
            scores; the weights do not fit.
        ImportError: the backbone's library is not there; the message says what to install.
        FileNotFoundError: config.weights is not a file.
    """
    file = None if config.weights in DEFAULT_WEIGHTS else config.weights
    if file is None or not pretrained or backbone is not None or config.kind != "two_stream":
        return _model(config, _backbone(config, backbone, pretrained))
    streams = read_streams(file)
    model = _model(config, _backbone(config, None, streams is None))
    if streams is not None:
        load_streams(model, streams, file)
    return model


def _model(config: ModelConfig, base: Backbone) -> VideoModel:
    if config.kind != "two_stream" or forks(config):
        return _network(config, base)
    nothing: dict[str, Any] = {field.name: field.default for field in fields(config) if field.name in _OF_POOLING}
    static = changed(config, kind="static", pool="none", **nothing)
    dynamic = changed(config, kind="dynamic", branch=None, frames="all", every=1)
    return TwoNetworks(config, _network(static, copy.deepcopy(base)), _network(dynamic, base))


def _backbone(config: ModelConfig, given: nn.Module | Backbone | None, pretrained: bool) -> Backbone:
    if given is None and config.backbone == CUSTOM:
        raise ValueError("backbone = 'custom' stands for a module: build(config, backbone=module)")
    if given is None:
        base = load_backbone(config.backbone, config.weights if pretrained else None, config.size)
    else:
        if config.weights is not None and pretrained:
            raise ValueError(f"weights = {config.weights!r} is for backbones by name: load the module's own beforehand")
        base = copy.deepcopy(given) if isinstance(given, Backbone) else Backbone(copy.deepcopy(given))
    if not isinstance(base.module, nn.Module):
        raise TypeError(
            f"backbone must be a module or a Backbone, got {base.module!r}: a name goes into ModelConfig(backbone=…)"
        )
    own = {name: getattr(config, name) for name in ("mean", "std", "size") if getattr(config, name) is not None}
    return changed(base, **own)


def _network(config: ModelConfig, base: Backbone) -> VideoNetwork:
    module, head, route = base.module, base.classifier, Route()
    _classify(module, head, config.num_classes)
    if config.dropout is not None:
        _drop(module, head, config.dropout)
    layer, windows = pools_at(config), config.window is not None or config.pool == "none"
    windows = windows and config.kind != "static"
    pools_inside = layer is not None or windows
    runs = _trial(base) if pools_inside or config.size is not None else []
    if layer is not None:
        _check_layer(module, runs, "branch" if forks(config) else "layer", layer)
    video_layer = _video_layer(module, runs, config.video_layer, layer) if windows else None
    if forks(config) and layer is not None:
        fork_after(module, layer, runs, _trial(base, 3), route)
    if config.checkpointing:
        checkpoint_blocks(module, {name for name in (layer, video_layer, head) if name is not None})
    model = VideoNetwork(
        config,
        module,
        head=head,
        mean=base.mean,
        std=base.std,
        size=base.size,
        video_layer=video_layer,
        route=route,
    )
    if pools_inside:
        _check_rows(model, route)
    return model


def _classify(module: nn.Module, head: str, num_classes: int) -> None:
    """Let the classifier give num_classes scores: a new one, unless it does so already."""
    layer = named_layer(module, head, "head")
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"head must be a linear layer, got {head!r}, a {type(layer).__name__}")
    if layer.out_features == num_classes:
        return
    new = nn.Linear(layer.in_features, num_classes, layer.bias is not None)
    nn.init.normal_(new.weight, std=0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    replace(module, head, new.to(layer.weight))


def _drop(module: nn.Module, head: str, probability: float) -> None:
    """Set the probability of the dropout layers; where there are none, as in a ResNet, drop what enters the head."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.p = probability
    if not layers:
        named_layer(module, head, "head").register_forward_pre_hook(functools.partial(_dropped, probability))


def _dropped(probability: float, layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (nn.functional.dropout(args[0], probability, layer.training),)


def _trial(base: Backbone, count: int = 2) -> list[Run]:
    """Grey images through the backbone."""
    try:
        runs = trial_run(base.module, _grey(base.module, len(base.mean), base.size, count))
    except Exception as error:  # whatever a network raises
        size = f"{base.size} × {base.size}"
        raise ValueError(f"backbone cannot take images of {size} (size of the configuration): {error}") from error
    scores_of(runs[-1].output)
    return runs


def _grey(module: nn.Module, channels: int, size: int, count: int = 2) -> Tensor:
    """Images for a backbone."""
    parameter = next(module.parameters())
    return torch.zeros(count, channels, size, size, dtype=parameter.dtype, device=parameter.device)


def _check_layer(module: nn.Module, runs: list[Run], argument: str, name: str) -> Run:
    named_layer(module, name, argument)
    calls = [run for run in runs if run.name == name]
    if len(calls) != 1:
        raise ValueError(f"{argument} must run once in an image, but {name!r} runs {len(calls)} times")
    output = calls[0].output
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != 2 or not output.is_floating_point():
        got: Any = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{argument} must put out maps [N, ...], but for N = 2 images {name!r} puts out {got}")
    return calls[0]


def _video_layer(module: nn.Module, runs: list[Run], name: str | None, layer: str | None) -> str:
    """Where windows are pooled: as named, or at the last pooling layer, but not before they are there."""
    made = next((run.ended for run in runs if run.name == layer), -1)
    if name is None:
        name = last_pooling(runs)
        late = next((run.ended for run in runs if run.name == name), -1)
        name = name if late >= made and late >= 0 else layer
    if name is None:
        raise ValueError(f"video_layer must be given: {type(module).__name__} has no spatial pooling layer")
    if _check_layer(module, runs, "video_layer", name).ended < made:
        raise ValueError(f"video_layer must not run before the layer {layer!r}, which makes the windows, got {name!r}")
    return name


def _check_rows(model: VideoNetwork, route: Route) -> None:
    """A network whose forward remembers how many images came in cannot have some of them pooled on the way."""
    config, size = model.config, model.size
    two_windows = 1 + max(config.window or 1, config.stride or 1)
    frames = two_windows if pools_at(config) is None else 2
    parameter = next(model.parameters())
    video = torch.zeros(1, frames, len(model.mean), size, size, dtype=torch.uint8, device=parameter.device)
    model.config = changed(config, frames="all", every=1)  # fewer, and the rows might by chance be as many as before
    try:
        with evaluating(model), torch.no_grad():
            shape = list(model(video).shape)
    except Exception as error:
        route.clear()
        raise ValueError(f"{_unpoolable(model)}: {error}") from error
    finally:
        model.config = config
    if shape != [1, config.num_classes]:
        raise ValueError(f"{_unpoolable(model)}: scores of one video have shape {shape}")


_WHY_NOT = (
    "perhaps because a skip connection goes around it, or because a forward keeps to the batch size of its input "
    "(`view(batch, -1)` instead of `flatten(1)`)"
)


def _unpoolable(model: VideoNetwork) -> str:
    """What to say where pooling failed: the layer after which rows cannot go, and the one around it that would do."""
    images = _grey(model.backbone, len(model.mean), model.size)
    argument = "branch" if forks(model.config) else "layer"
    for option, name in ((argument, pools_at(model.config)), ("video_layer", model.video_layer)):
        if name is None or lets_rows_go(model.backbone, name, images):
            continue
        blocks = (block for block in around(name) if lets_rows_go(model.backbone, block, images))
        block = next((f"; {option} = {block!r}, which holds it, can be" for block in blocks), "")
        return f"backbone cannot be pooled at {option} = {name!r}, {_WHY_NOT}{block}"
    return "backbone cannot be pooled inside"
