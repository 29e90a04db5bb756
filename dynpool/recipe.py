"""What is wanted of a video, and how pooled values become a picture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import binary, context
from .checks import NONLINEARITIES, Nonlinearity, check_dense, check_flags, choice, positive_int
from .video import Size, check_reading, resized
from .weights import MAX_FRAMES, rank_weights

Method = Literal["approx", "exact", "mean", "max"]
ImageMode = Literal["minmax", "minmax_channel"]
Starts: TypeAlias = Callable[[int], Sequence[int]]

_MID_GREY = 128
_KEPT_LENGTH = 4096  # frames of a video whose weights are kept


def to_image(pooled: Tensor, mode: ImageMode = "minmax") -> Tensor:
    """Show pooled values as a picture: scale them from [min, max] to [0, 255] (section 4.2 of the paper).

    Args:
        pooled: real values [..., C, H, W], of any scale.
        mode: "minmax" takes min and max over each image, and so keeps its colours; "minmax_channel" over each channel.

    Returns:
        uint8, the shape of `pooled`, rounded to nearest. Where min = max there is nothing to scale: mid-grey, 128.

    Example:
        >>> to_image(torch.tensor([[[-2.0, 0.0, 3.0]]]))
        tensor([[[  0, 102, 255]]], dtype=torch.uint8)

    Raises:
        TypeError: pooled is not a real Tensor.
        ValueError: pooled has fewer than three dimensions, is empty, or is not finite; or mode is unknown.
    """
    if not isinstance(pooled, Tensor) or pooled.dtype.is_complex or pooled.dtype == torch.bool:
        raise TypeError(
            f"pooled must be a Tensor of real numbers, got {getattr(pooled, 'dtype', type(pooled).__name__)}"
        )
    check_dense("pooled", pooled)
    if pooled.is_quantized:
        raise TypeError(f"pooled must be a Tensor of real numbers, got {pooled.dtype}")
    if pooled.is_meta or isinstance(pooled, FakeTensor) or (not context.is_compiling() and context.is_batched(pooled)):
        raise ValueError("pooled must have values to look at: no meta or fake Tensor, and none that vmap batches")
    if pooled.dim() < 3 or 0 in pooled.shape:
        raise ValueError(f"pooled must have shape [..., C, H, W] and not be empty, got {list(pooled.shape)}")
    choice("mode", mode, get_args(ImageMode))
    dims = (-3, -2, -1) if mode == "minmax" else (-2, -1)
    if mode == "minmax" and (images := binary.stretch(pooled.detach())) is not None:
        return images
    values = pooled.detach() if pooled.dtype == torch.float32 else pooled.detach().double()
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    span = high - low
    if not span.isfinite().all():  # NaN or infinite wherever a value is; or too far apart
        if values.isfinite().all():
            return to_image(values.double() / 2, mode)
        raise ValueError("pooled must be finite, got NaN or infinity")
    still = span == 0
    return (values - low).div_(span + still).mul_(255).add_(still * _MID_GREY).round_().to(torch.uint8)


@dataclass(frozen=True)
class Recipe:
    """The keywords of `dynamic_images`; without a window, one image for the video.

    interleaved: images lie in memory as [H, W, 3], which is how they are written and scaled, instead of [3, H, W].
    starts: of a video of so many frames, the first frames of the windows that are wanted, ascending, instead of one
    every `stride`; none after one that reaches the end of the video.
    """

    method: Method = "approx"
    nonlinearity: Nonlinearity = "sqrt"
    time_average: bool = True
    window: int | None = None
    stride: int | None = None
    size: Size | None = None
    start: int = 0
    end: int | None = None
    every: int = 1
    max_frames: int | None = None
    resize_first: bool = False
    timeout: float | None = None
    device: torch.device | str | None = None
    interleaved: bool = False
    starts: Starts | None = None

    def check(self) -> slice:
        """The frames that are wanted. Raises ValueError for what no video would make valid: before one is read."""
        choice("method", self.method, get_args(Method))
        choice("nonlinearity", self.nonlinearity, NONLINEARITIES)
        if self.window is not None:
            positive_int("window", self.window, MAX_FRAMES)
        if self.stride is not None:
            positive_int("stride", self.stride)
            if self.window is None:
                raise ValueError(f"stride has no meaning without window, got {self.stride}")
        if self.resize_first and self.size is None:
            raise ValueError("resize_first has no meaning without size")
        check_flags(time_average=self.time_average, resize_first=self.resize_first)
        check_device(self.device)
        return check_reading(self.size, self.start, self.end, self.every, self.max_frames, self.timeout)

    @property
    def step(self) -> int | None:
        """Frames from window to window."""
        return self.window if self.stride is None else self.stride

    def weights(self, count: int) -> Sequence[float]:
        """Of `count` frames; not of a maximum."""
        if self.method == "mean":
            return [1 / count] * count
        return (_kept_alpha if count <= _KEPT_LENGTH else _alpha)(count, self.time_average)

    def picture(self, pooled: Tensor) -> Tensor:
        """uint8 [3, H, W] of what was pooled: a maximum as it is, of a mean ψ⁻¹, else the values stretched."""
        if self.method == "mean":
            pooled = pooled.square() if self.nonlinearity == "sqrt" else pooled
            pooled = pooled.round_().clamp_(0, 255).to(torch.uint8)
        scaled = pooled if self.resize_first else resized(pooled, self.size)
        image = to_image(scaled) if self.method in ("approx", "exact") else scaled
        return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if self.interleaved else image.contiguous()


def _alpha(count: int, time_average: bool) -> tuple[float, ...]:
    return tuple(rank_weights(count, time_average=time_average, normalize_weights=True, device="cpu").tolist())


# The videos of a set have few lengths, and windows one; to compute α takes as long as to open a file.
_kept_alpha = functools.lru_cache(maxsize=128)(_alpha)


def check_device(device: torch.device | str | None) -> None:
    """Raises ValueError for one that torch cannot use here."""
    if device is None:
        return
    try:
        torch.empty(1, device=device).cpu()  # which meta tensors, of no memory, refuse
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device must be one that torch can use here, got {str(device)!r}: {reason}") from error
