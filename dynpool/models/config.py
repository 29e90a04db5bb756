"""ModelConfig: all that makes a model, as plain values that YAML and JSON can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

from ..checks import NONLINEARITIES, Nonlinearity, choice, positive_int
from ..exact import OBJECTIVES, Objective

Kind = Literal["dynamic", "static", "two_stream"]
PoolName = Literal["approx", "exact", "mean", "max", "middle", "none"]
Rescale = Literal["minmax", "difference", "rms"]
FrameChoice = Literal["all", "middle"]
VideoPool = Literal["max", "mean"]

INPUT = "input"  # the branch where two whole networks part


@dataclass(frozen=True)
class ModelConfig:
    """What a model is. `build` makes it.

    Args:
        kind: "dynamic" pools the frames into dynamic images or dynamic maps, or, as baselines, into their mean, maximum
            or middle; "static" shows the frames to the network one by one and averages their scores; "two_stream" does
            both and averages the scores of the two streams.
        num_classes: scores a video gets.
        backbone: a name that `backbones` lists, "torchvision:NAME" or "timm:NAME"; "custom" for one passed to `build`.
        weights: None for random ones, "default" (or "imagenet") for those of the backbone's library or package, or the
            path (kept as a string) of a safetensors file or of a state dict that torch.load(weights_only=True) reads.
            It may also be of a whole model with that backbone: model.safetensors or a checkpoint of another run. Of two
            streams with weights of their own, the model must have the same.
        pool: of the frames, "approx" by default; "exact" is eq. (1), slower. "none": the video's T axis holds images
            that are pooled already, windows of a video, and nothing is left to pool but the windows. Static networks
            pool no frames: "none".
        layer: a named layer of the backbone after which the frames are pooled: a dynamic map network, section 3.1 of
            the paper. None: they are pooled at the input, a dynamic image network.
        branch: where the streams of "two_stream" part. None or "input": two whole networks. A named layer: one trunk
            sees the frames up to that layer; there the maps go into a static tail, frame by frame, and, rank-pooled,
            into a dynamic tail. Both tails begin with the same weights.
        video_layer: a named layer after which the windows of a video are pooled into one, section 3.3; None: the last
            pooling layer of the backbone (or `layer`, where that comes later).
        video_pool: "max", as in the paper, or "mean".
        window, stride: frames of a window, and from one to the next (by default `window`); None: one window, the video.
            The last window is padded with the last frame, as by `dynpool.dynamic_images`.
        nonlinearity: ψ of what is rank-pooled. None: "sqrt" at the input, as in the paper, "identity" at a layer.
        time_average: rank the running means, eq. (2), or, when False, the frames, eq. (4).
        rescale: what happens to a rank-pooled image, so that the rest of the network finds what it expects:
            "minmax"      (at the input, by default there) from [min, max] of the image to [0, 255], section 4.2
            "difference"  the difference of two weighted means that normalised weights give ("approx" only); at the
                          input mid-grey + half of it, so that 0 … 255 is never left, and contrast is not stretched
            "rms"         (at a layer, by default there) to the root mean square of the maps that were pooled
        objective, C: of "exact", as in `dynpool.rank_pool`.
        frames: of the static stream: "all", with averaged scores, or the "middle" one.
        every: the static stream sees one frame of `every`.
        mean, std: of the backbone's input, in pixel units 0 … 255, one number a channel; None: the backbone's own.
        size: height and width of the images that the backbone will see, where it has to be known beforehand; None: the
            backbone's own.
        dropout: probability for all dropout layers, or, of a backbone without any, before its last layer; None: the
            backbone's own.
        checkpointing: blocks of the backbone keep no activations but compute them again in backward.

    Raises:
        TypeError, ValueError: a value does not fit; the message names it and what is allowed.
    """

    kind: Kind
    num_classes: int
    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    pool: PoolName | None = None
    layer: str | None = None
    branch: str | None = None
    video_layer: str | None = None
    video_pool: VideoPool = "max"
    window: int | None = None
    stride: int | None = None
    nonlinearity: Nonlinearity | None = None
    time_average: bool = True
    rescale: Rescale | None = None
    objective: Objective = "ranksvm"
    C: float = 1.0
    frames: FrameChoice = "all"
    every: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    dropout: float | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _PLAIN and not (value is None and field.default is None):
                object.__setattr__(self, field.name, _PLAIN[field.name](field.name, value))
        choice("kind", self.kind, get_args(Kind))
        if self.pool is None:
            object.__setattr__(self, "pool", "none" if self.kind == "static" else "approx")
        _check_values(self)
        _check_pooling(self)
        _check_streams(self)

    @property
    def ranks(self) -> bool:
        """Whether frames are rank-pooled."""
        return self.pool in ("approx", "exact")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: numbers, strings, lists, None."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration of these values; names that it does not have raise."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"model has no option {unknown[0]!r}: it has {', '.join(sorted(known))}")
        return cls(**values)


# --- plain values ----------------------------------------------------------------------------------------------------


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    return str(value)


def _path(name: str, value: Any) -> str:
    return _text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def per_channel(name: str, values: Any) -> tuple[float, ...]:
    """`mean` or `std` of an input, checked."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, one a channel, got {values!r}")
    numbers = tuple(_number(f"{name} of a channel", v.item() if hasattr(v, "item") else v) for v in values)
    if not numbers:
        raise ValueError(f"{name} must have a number a channel, got none")
    if name == "std" and not min(numbers) > 0:
        raise ValueError(f"std must be positive, got {list(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite, got {list(numbers)}")
    return numbers


_PLAIN: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("backbone", "layer", "branch", "video_layer"), _text),
    "weights": _path,
    **dict.fromkeys(("time_average", "checkpointing"), _truth),
    **dict.fromkeys(("num_classes", "every", "window", "stride", "size"), positive_int),
    **dict.fromkeys(("C", "dropout"), _number),
    **dict.fromkeys(("mean", "std"), per_channel),
}


# --- what fits together ----------------------------------------------------------------------------------------------


def _check_values(config: ModelConfig) -> None:
    choice("pool", config.pool, get_args(PoolName))
    choice("video_pool", config.video_pool, get_args(VideoPool))
    choice("nonlinearity", config.nonlinearity, (None, *NONLINEARITIES))
    choice("rescale", config.rescale, (None, *get_args(Rescale)))
    choice("objective", config.objective, OBJECTIVES)
    choice("frames", config.frames, get_args(FrameChoice))
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {config.dropout!r}")
    if not 0 < config.C < math.inf:
        raise ValueError(f"C must be positive and finite, got {config.C!r}")


def _check_pooling(config: ModelConfig) -> None:
    at = f"layer {config.layer!r}" if config.layer else "the input"
    if config.stride is not None and config.window is None:
        raise ValueError(f"stride = {config.stride} has no meaning without window")
    if config.video_layer is not None and config.window is None:
        raise ValueError(f"video_layer = {config.video_layer!r} has no meaning without window")
    if config.pool == "none":
        _check_absent(config, "pool = 'none'", "layer", "window")
    if not config.ranks:
        _check_absent(config, f"pool = {config.pool!r}", "nonlinearity", "rescale", "time_average")
    if config.pool != "exact":
        _check_absent(config, f"pool = {config.pool!r}", "objective", "C")
    if config.pool == "exact" and config.rescale == "difference":
        raise ValueError("rescale = 'difference' needs pool = 'approx': the scale of exact rank pooling is arbitrary")
    if config.rescale == ("rms" if pools_at(config) is None else "minmax"):
        raise ValueError(f"rescale = {config.rescale!r} cannot be used at {at}")


def _check_streams(config: ModelConfig) -> None:
    if config.kind == "static":
        choice("pool of a static network", config.pool, ("none",))
        _check_absent(config, "kind = 'static'", "layer", "window", "video_layer", "video_pool")
    if config.kind != "two_stream":
        _check_absent(config, f"kind = {config.kind!r}", "branch")
    elif config.pool == "none":
        raise ValueError("pool = 'none' leaves a two-stream network without frames for its static stream")
    elif config.branch not in (None, INPUT) and config.layer not in (None, config.branch):
        raise ValueError(f"layer must be the branch {config.branch!r} or None, got {config.layer!r}")
    elif config.branch == INPUT and config.layer is not None:
        raise ValueError(f"branch = 'input' pools there: layer must be None, got {config.layer!r}")
    if config.kind == "dynamic" and (config.frames != "all" or config.every != 1):
        raise ValueError("frames and every belong to the static stream, which kind = 'dynamic' does not have")
    if config.frames == "middle" and config.every != 1:
        raise ValueError(f"every = {config.every} has no meaning with frames = 'middle'")


def _check_absent(config: ModelConfig, reason: str, *names: str) -> None:
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name} = {getattr(config, name)!r} has no meaning with {reason}")


def forks(config: ModelConfig) -> bool:
    """Whether two streams share a trunk."""
    return config.branch not in (None, INPUT)


def pools_at(config: ModelConfig) -> str | None:
    """The layer after which frames are pooled; None: the input."""
    return config.branch if forks(config) else config.layer
