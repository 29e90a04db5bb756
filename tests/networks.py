"""A small image network, and what a video network with it has to compute: clip by clip and window by window."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dynpool import rank_pool
from dynpool.models import ModelConfig, VideoModel, build
from dynpool.models.layers import Forked, replace
from dynpool.models.network import TwoNetworks

SIZE = 16
CLASSES = 3


def tiny() -> nn.Sequential:
    """conv1 … fc2, with statistics in its batch norm that are not those of the beginning."""
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 5, 3, 2, 1),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(5, 7, 3, 2, 1),
            norm2=nn.BatchNorm2d(7),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(28, 11),
            relu3=nn.ReLU(),
            fc2=nn.Linear(11, CLASSES),
        )
    )
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(network.norm2, name).uniform_(0.5, 1.5)
    return network


class Residual(nn.Module):
    """Adds its input to what `inner` makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(block=Residual(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(3, CLASSES))
    )


class Tokens(nn.Module):
    """Maps [N, C, H, W] -> tokens [N, S, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention of each token to itself and those before, of which the layer puts out a tuple."""

    def __init__(self, width: int, weights: bool) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 2, batch_first=True)
        self.weights = weights

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool).triu(1)
        seen, weights = self.layer(tokens, tokens, value=tokens, attn_mask=mask, need_weights=self.weights)
        return seen if weights is None else seen + weights.mean(2, keepdim=True) * tokens


def attentive() -> nn.Sequential:
    """patches … fc: 16 tokens an image, through layers of attention."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(
        OrderedDict(
            patches=nn.Conv2d(3, 8, 4, 4),
            tokens=Tokens(),
            encoder=nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False),
            attention=Attention(8, weights=False),
            attention2=Attention(8, weights=True),
            flatten=nn.Flatten(),
            fc=nn.Linear(128, CLASSES),
        )
    )


def tiny_model(kind: str = "dynamic", classes: int = CLASSES, **options: object) -> VideoModel:
    return build(ModelConfig(kind, classes, "custom", size=SIZE, **options), backbone=tiny())


def videos(*lengths: int, fill: float = 0.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Noise [B, T, 3, SIZE, SIZE] in 0 … 255, `fill` after the ends of the clips."""
    noise = torch.Generator().manual_seed(seed)
    video = torch.full((len(lengths), max(lengths), 3, SIZE, SIZE), fill, dtype=dtype)
    for clip, length in zip(video, lengths, strict=True):
        clip[:length] = torch.randint(0, 256, (length, *clip.shape[1:]), generator=noise).to(dtype)
    return video


# --- what is right -------------------------------------------------------------------------------------------------


def expected(model: VideoModel, video: Tensor, lengths: list[int]) -> Tensor:
    """Scores [B, classes] of each clip by itself, trimmed; differentiable."""
    return torch.stack([_scores(model, clip[:length]) for clip, length in zip(video, lengths, strict=True)])


def alpha(count: int, time_average: bool = True) -> list[float]:
    """Eq. (2), its sum written out, or eq. (4)."""
    if not time_average:
        return [2 * t - count - 1 for t in range(1, count + 1)]
    return [sum((2 * j - count - 1) / j for j in range(t, count + 1)) for t in range(1, count + 1)]


def windows(frames: list[Tensor], window: int | None, stride: int | None) -> Iterator[list[Tensor]]:
    """Windows until one reaches the end, padded with the last frame."""
    if window is None:
        yield frames
        return
    for start in range(0, len(frames), stride or window):
        part = frames[start : start + window]
        yield part + [frames[-1]] * (window - len(part))
        if start + window >= len(frames):
            return


def _scores(model: VideoModel, clip: Tensor) -> Tensor:
    if isinstance(model, TwoNetworks):
        return (_scores(model.static, clip) + _scores(model.dynamic, clip)) / 2
    config = model.config
    if config.kind == "static":
        return _static(model, clip, config.frames, config.every)
    if config.kind == "dynamic":
        return _dynamic(model, clip)
    return (_static(model, clip, config.frames, config.every) + _dynamic(model, clip)) / 2


def _static(model: VideoModel, clip: Tensor, which: str, every: int) -> Tensor:
    frames = clip[len(clip) // 2][None] if which == "middle" else clip[::every]
    return torch.stack([_run(model, normalized(model, frame), "static") for frame in frames]).mean(0)


def _dynamic(model: VideoModel, clip: Tensor) -> Tensor:
    config = model.config
    layer = config.layer or (config.branch if config.branch != "input" else None)
    rows = list(clip)
    if layer is None and config.pool != "none":
        rows = [_pooled(config, torch.stack(part), True) for part in windows(rows, config.window, config.stride)]
    rows = [normalized(model, row) for row in rows]
    if layer is not None:
        rows = [_run(model, row, "dynamic", stop=layer) for row in rows]
        rows = [_pooled(config, torch.stack(part), False) for part in windows(rows, config.window, config.stride)]
    if len(rows) == 1:
        return _run(model, rows[0], "dynamic", start=layer)
    seen = torch.stack([_run(model, row, "dynamic", start=layer, stop=model.video_layer) for row in rows])
    return _run(model, seen.amax(0) if config.video_pool == "max" else seen.mean(0), "dynamic", start=model.video_layer)


def normalized(model: VideoModel, image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=image.dtype).view(-1, 1, 1) for values in (model.mean, model.std))
    return (image - mean) / std


def _run(model: VideoModel, x: Tensor, stream: str, start: str | None = None, stop: str | None = None) -> Tensor:
    """One image, or map, through the layers after `start` up to `stop`."""
    names = [name for name, _ in model.backbone.named_children()]
    first = 0 if start is None else names.index(start) + 1
    last = len(names) if stop is None else names.index(stop) + 1
    for name in names[first:last]:
        layer = _of_stream(getattr(model.backbone, name), stream)
        x = layer.forward(x[None].clone())[0]  # without hooks
    return x


def _of_stream(layer: nn.Module, stream: str) -> nn.Module:
    """A layer as one stream has it; a copy where only layers in it are forked."""
    if isinstance(layer, Forked):
        return getattr(layer, stream)
    inner = [name for name, module in layer.named_modules() if isinstance(module, Forked)]
    layer = copy.deepcopy(layer) if inner else layer
    for name in inner:
        replace(layer, name, getattr(layer.get_submodule(name), stream))
    return layer


def _pooled(config: ModelConfig, frames: Tensor, at_input: bool) -> Tensor:
    if config.pool == "mean":
        return frames.mean(0)
    if config.pool == "max":
        return frames.amax(0)
    if config.pool == "middle":
        return frames[len(frames) // 2]
    nonlinearity = config.nonlinearity or ("sqrt" if at_input else "identity")
    if config.pool == "exact":
        d = rank_pool(frames, 0, nonlinearity=nonlinearity, time_average=config.time_average)
    else:
        weights = torch.tensor(alpha(len(frames), config.time_average), dtype=frames.dtype)
        weights = weights / (weights.abs().sum() / 2) if len(frames) > 1 else weights  # of one frame 0
        psi = frames.sign() * frames.abs().sqrt() if nonlinearity == "sqrt" else frames
        d = (weights.view(-1, *(1,) * (frames.dim() - 1)) * psi).sum(0)
    rescale = config.rescale or ("minmax" if at_input else "rms")
    if all(torch.equal(frame, frames[0]) for frame in frames):  # no order: what d has is rounding
        return 0 * d + 127.5 if at_input else 0 * d
    if rescale == "minmax":
        return 255 * (d - d.min()) / (d.max() - d.min())
    if rescale == "rms":
        return d * (frames.square().mean() / d.square().mean()).sqrt()
    return 127.5 + d / (255**0.5 if nonlinearity == "sqrt" else 255) * 127.5 if at_input else d
