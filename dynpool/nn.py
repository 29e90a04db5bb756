"""Pooling as modules, for use after any layer of a network: constructor arguments, a one-line forward, a repr that is
the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import context
from .checks import (
    Counts,
    Nonlinearity,
    PerChannel,
    batch_size,
    check_flags,
    check_frames,
    check_normalization,
    check_pooling,
    checked_int,
    checked_lengths,
    checked_window,
)
from .exact import Objective, RankPoolInfo, check_problem, rank_pool
from .ops import laid_out_like
from .pooling import approx_rank_pool

__all__ = ["ApproxRankPool", "RankPool", "TemporalMaxPool"]

for _pooling in ("approx_rank_pool", "rank_pool", "temporal_max_pool"):
    torch.fx.wrap(_pooling)  # torch.fx.symbolic_trace records the call: there are no values to check in it


class ApproxRankPool(nn.Module):
    """Approximate rank pooling of frames or feature maps: eq. (2) to (4) of Bilen et al., CVPR 2016.

    The arguments are those of `dynpool.approx_rank_pool`. A Tensor given as `mean` or `std` becomes a buffer, and an
    `nn.Parameter` a parameter, which is learned; both move and are saved with the module. (A learned std must stay
    positive, which compiled calls do not check: learn its logarithm, by torch.nn.utils.parametrize.) Numbers and
    sequences are configuration and stay out of `state_dict()`.

    Shapes:
        x: [..., T, ...] with T at `dim`; uint8, float16, bfloat16, float32 or float64, of any layout.
        lengths: [B] integers, for padded clips with B at dimension 0; offsets: [B+1], for clips packed along `dim`.
        Returns x without `dim`, or with W windows (B packed clips) in its place; memory format is kept. The dtype is
        that of x, float32 for uint8, or `out_dtype`.

    Raises:
        TypeError, ValueError: as `dynpool.approx_rank_pool`, from forward; at once, where an option is wrong by itself.

    Example:
        A network sees frames [B·T, 3, H, W]. To pool the maps of any of its layers, here those of clips of 10 frames:

        >>> below, above = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        >>> network = nn.Sequential(below, nn.Unflatten(0, (-1, 10)), ApproxRankPool(normalize_weights=True), above)
        >>> network(torch.rand(2 * 10, 3, 32, 32)).shape
        torch.Size([2, 4, 28, 28])
    """

    mean: PerChannel | None
    std: PerChannel | None

    def __init__(
        self,
        dim: int = 1,
        *,
        time_average: bool = True,
        nonlinearity: Nonlinearity = "identity",
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        channel_dim: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        normalize_weights: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checked_int("dim", dim)
        check_pooling(nonlinearity, out_dtype)
        checked_window(window, stride)
        check_flags(time_average=time_average, normalize_weights=normalize_weights)
        self.dim = dim
        self.time_average = time_average
        self.nonlinearity = nonlinearity
        _hold(self, "mean", mean)
        _hold(self, "std", std)
        _check_numbers(mean, std, channel_dim)
        self.channel_dim = channel_dim
        self.window = window
        self.stride = stride
        self.normalize_weights = normalize_weights
        self.out_dtype = out_dtype

    def forward(self, x: Tensor, lengths: Counts | None = None, offsets: Counts | None = None) -> Tensor:
        """`dynpool.approx_rank_pool` of x."""
        return approx_rank_pool(x, lengths=lengths, offsets=offsets, **{name: getattr(self, name) for name in _OPTIONS})

    def extra_repr(self) -> str:
        return _call(self, _OPTIONS)


class RankPool(nn.Module):
    """Exact rank pooling of frames or feature maps: eq. (1) of Bilen et al., CVPR 2016, differentiable.

    The arguments are those of `dynpool.rank_pool`; `mean` and `std` are held as by `ApproxRankPool`.

    Shapes:
        x: [B, T, ...] with T at `dim`; uint8, float16, bfloat16, float32 or float64, of any layout.
        lengths: [B] integers, for padded clips.
        Returns x without `dim`, in the dtype of x, float32 for uint8, or `out_dtype`; with `return_info`, that and the
        `RankPoolInfo`.

    Example:
        >>> pool = RankPool(objective="svr", nonlinearity="sqrt")
        >>> pool(torch.rand(2, 10, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])

    Raises:
        TypeError, ValueError: as `dynpool.rank_pool`, from forward; at once, where an option is wrong by itself.
    """

    mean: PerChannel | None
    std: PerChannel | None

    def __init__(
        self,
        dim: int = 1,
        *,
        objective: Objective = "ranksvm",
        C: float = 1.0,
        epsilon: float = 0.1,
        time_average: bool = True,
        nonlinearity: Nonlinearity = "identity",
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        channel_dim: int | None = None,
        tol: float = 1e-3,
        max_iter: int = 1000,
        out_dtype: torch.dtype | None = None,
        return_info: bool = False,
    ) -> None:
        super().__init__()
        checked_int("dim", dim)
        check_pooling(nonlinearity, out_dtype)
        check_problem(objective, C, epsilon, tol, max_iter)
        check_flags(time_average=time_average, return_info=return_info)
        self.dim = dim
        self.objective = objective
        self.C = C
        self.epsilon = epsilon
        self.time_average = time_average
        self.nonlinearity = nonlinearity
        _hold(self, "mean", mean)
        _hold(self, "std", std)
        _check_numbers(mean, std, channel_dim)
        self.channel_dim = channel_dim
        self.tol = tol
        self.max_iter = max_iter
        self.out_dtype = out_dtype
        self.return_info = return_info

    def forward(self, x: Tensor, lengths: Counts | None = None) -> Tensor | tuple[Tensor, RankPoolInfo]:
        """`dynpool.rank_pool` of x."""
        return rank_pool(x, lengths=lengths, **{name: getattr(self, name) for name in _RANK_OPTIONS})

    def extra_repr(self) -> str:
        return _call(self, _RANK_OPTIONS)


def _defaults(module: type[nn.Module]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(module).parameters.items()}


_OPTIONS = _defaults(ApproxRankPool)
_RANK_OPTIONS = _defaults(RankPool)


def _call(module: nn.Module, defaults: dict[str, Any]) -> str:
    """The arguments that make the module."""
    given = {name: _plain(getattr(module, name)) for name in defaults}
    shown = [n for n, v in given.items() if n == "dim" or isinstance(v, Tensor) or v != defaults[n]]
    return ", ".join(f"{name}={_shown(given[name])}" for name in shown)


class TemporalMaxPool(nn.Module):
    """Maximum over frames, or over the windows of multiple dynamic images (Bilen et al., CVPR 2016, section 3.3).

    Args:
        dim: dimension of the frames or windows; may be negative.

    Shapes:
        x: [..., T, ...] with T at `dim`; uint8, float16, bfloat16, float32 or float64, of any layout.
        lengths: [B] integers, for padded clips with B at dimension 0: what lies beyond lengths[b] frames has no say,
        not even when it is NaN.
        Returns x without `dim`, in the dtype of x and its memory format (of a compiled call, that which the compiler
        chooses). A NaN before the end of a clip gives NaN.

    The gradient goes to one maximum: where several frames tie, to a single one of them. Backward keeps the index of the
    maximum, not the frames; without gradients none is made.

    Example:
        >>> TemporalMaxPool()(torch.tensor([[[1.0, 5.0], [4.0, 2.0]]]))  # one clip of two frames
        tensor([[4., 5.]])

    Raises:
        TypeError: x is not a tensor, or of another dtype; dim or lengths are not integers.
        ValueError: dim is out of range, there are no frames, or lengths are not [B] numbers between 1 and T.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        checked_int("dim", dim)
        self.dim = dim

    def forward(self, x: Tensor, lengths: Counts | None = None) -> Tensor:
        """Maximum of x along `dim`."""
        return temporal_max_pool(x, self.dim, lengths)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def temporal_max_pool(x: Tensor, dim: int, lengths: Counts | None) -> Tensor:
    """What `TemporalMaxPool` does."""
    dim = check_frames(x, dim, by_kernels=False)
    own = x if lengths is None else _without_padding(x, dim, lengths)
    if context.is_direct(x) and not (x.requires_grad and torch.is_grad_enabled()):
        largest = own.amax(dim, keepdim=True)  # several times as fast as with the index that a derivative needs
    else:
        largest = own.max(dim, keepdim=True).values
    if not context.is_compiling():  # which sees to its own strides, and cannot sort those that it does not know
        largest = laid_out_like(x, largest)
    return largest.squeeze(dim)


def _without_padding(x: Tensor, dim: int, lengths: Counts) -> Tensor:
    """x with the smallest value of its dtype past each clip's end."""
    lengths = checked_lengths(lengths, batch_size(x, dim, "lengths"), x.shape[dim], None).to(x.device)
    padding = torch.arange(x.shape[dim], device=x.device) >= lengths[:, None]
    shape = [padding.shape[0], *(padding.shape[1] if d == dim else 1 for d in range(1, x.dim()))]
    return x.masked_fill(padding.view(shape), -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min)


def _check_numbers(mean: PerChannel | None, std: PerChannel | None, channel_dim: int | None) -> None:
    """But not Tensors, into which values may be loaded later."""
    mean, std = (None if isinstance(value, Tensor) else value for value in (mean, std))
    check_normalization(mean, std, channel_dim)


def _hold(module: nn.Module, name: str, value: PerChannel | None) -> None:
    """A tensor as buffer, a parameter as parameter, what is numpy's in Python's numbers, a sequence frozen as tuple."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a Tensor, got {value!r}")
    value = _plain(value)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    elif isinstance(value, Sequence):
        setattr(module, name, tuple(value))
    else:
        setattr(module, name, value)


def _plain(value: Any) -> Any:
    """What is numpy's as Python's, in sequences too."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _shown(value: object) -> str:
    return f"{type(value).__name__}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
