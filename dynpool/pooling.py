"""temporal_pool and approx_rank_pool: arguments are checked and made canonical here, then one op does the work."""

from __future__ import annotations

import torch
from torch import Tensor

from . import binary, context, ops
from .checks import (
    Counts,
    Nonlinearity,
    PerChannel,
    batch_size,
    canonical_normalization,
    check_captured,
    check_dense,
    check_finite,
    check_flags,
    check_frames,
    check_pooling,
    check_same_device,
    checked_lengths,
    checked_offsets,
    checked_window,
    described,
)
from .kept import kept_rank_rows
from .reference import accumulate_dtype

_calls = ops.new_calls()  # of approx_rank_pool, with arguments that passed its checks
_KEPT_TYPES = (int, bool, str, torch.dtype, type(None))  # of options that may be found again: they never change


def temporal_pool(
    x: Tensor,
    weights: Tensor,
    dim: int = 1,
    *,
    nonlinearity: Nonlinearity = "identity",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    channel_dim: int | None = None,
    per_clip: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Weighted temporal sum: y[b, w, i] = Σ_t A[b, w, t] · ψ((x[b, t, i] - mean_c) / std_c), in one pass over x.

    Args:
        x: frames [..., T, ...], T at `dim`; uint8, float16, bfloat16, float32 or float64, of any layout.
        weights: A, floating: [T]; [W, T] for W outputs, which take the place of T at `dim`; or one matrix a clip,
            [B, W, T], or [B, T] with `per_clip=True`, where B is dimension 0 of x. Differentiable.
        dim: dimension of the frames; may be negative.
        nonlinearity: ψ, "identity" or the signed root "sqrt": sign(v)·√|v|, whose derivative at 0 is taken as 0.
        mean, std: a number, or one per channel, in the units of x (uint8 frames to [0, 1]: std=255). Tensors are
            differentiable.
        channel_dim: the dimension of x that per-channel mean and std run along; by default the third from the end.
        per_clip: reads two-dimensional weights as [B, T] instead of [W, T].
        out_dtype: floating dtype of the result; by default that of x, and float32 for uint8. Sums are accumulated in
            float32 (float64 for float64 x). float16 overflows beyond 65504.

    Returns:
        x without `dim`, or with W in its place. Memory format is kept.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])  # three frames of two values
        >>> temporal_pool(x, torch.tensor([0.5, 0.25, 0.25]), dim=0)
        tensor([ 2., 20.])

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, value or device does not fit; the message names argument, value and what is allowed.

    Values of weights, and of mean and std that are tensors, are checked on the CPU alone, and not where calls are
    compiled, exported or mapped by vmap.
    """
    dim = check_frames(x, dim)
    num_frames = x.shape[dim]
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        raise TypeError(f"weights must be a floating tensor, got {described(weights)}")
    check_dense("weights", weights)
    if weights.dim() not in ((2, 3) if per_clip else (1, 2, 3)):
        allowed = "[B, T] or [B, W, T] with per_clip=True" if per_clip else "[T], [W, T] or [B, W, T]"
        raise ValueError(f"weights must have shape {allowed}, got {list(weights.shape)}")
    if weights.shape[-1] != num_frames:
        raise ValueError(f"weights must have T = {num_frames} entries in the last dimension, got {list(weights.shape)}")
    if weights.dim() == 3 or per_clip:
        batch = batch_size(x, dim, "weights of each clip")
        if weights.shape[0] != batch:
            raise ValueError(f"weights must have B = {batch} rows in dimension 0, got {list(weights.shape)}")
    check_same_device("weights", weights, x)
    check_finite("weights", weights.to(accumulate_dtype(x.dtype)))
    keep_rows = weights.dim() == 3 or (weights.dim() == 2 and not per_clip)
    while weights.dim() < 3:
        weights = weights.unsqueeze(1 if per_clip else 0)
    mean, std, channel_dim = canonical_normalization(x, dim, mean, std, channel_dim)
    return pool_as(x, weights, mean, std, plan_of(x, None, dim, channel_dim, nonlinearity, out_dtype, keep_rows))


def approx_rank_pool(
    x: Tensor,
    dim: int = 1,
    *,
    time_average: bool = True,
    nonlinearity: Nonlinearity = "identity",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    channel_dim: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    lengths: Counts | None = None,
    offsets: Counts | None = None,
    normalize_weights: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Approximate rank pooling, eq. (2) to (4) of Bilen et al. 2016: Σ_t α_t ψ(I_t), the dynamic image of the frames.

    Args:
        x: frames [..., T, ...], T at `dim`; uint8, float16, bfloat16, float32 or float64, of any layout.
        dim: dimension of the frames; may be negative.
        time_average: True weighs by eq. (2), on running means; False by eq. (4), on the frames themselves.
        nonlinearity, mean, std, channel_dim, out_dtype: as in `temporal_pool`.
        window, stride: pool windows of `window` frames every `stride` frames (by default `window`: no overlap). They
            take the place of T at `dim`, W = 1 + (T - window) // stride of them, as `Tensor.unfold` does.
        lengths: [B], for a padded batch whose dimension 0 is B: pools the first lengths[b] frames of clip b. What
            lies beyond is never read. With `window`, clip b has 1 + (lengths[b] - window) // stride windows, and zeros
            in the place of the windows that only longer clips have.
        offsets: [B+1], rising from 0 to ΣT: clips packed one after the other along `dim`, clip b being frames
            offsets[b] … offsets[b+1] - 1. The B pooled clips (with `window`, all windows in order) take the place of T.
        normalize_weights: divide α by ‖α‖₁/2: the result is the difference of two weighted means, in the units of
            ψ(x), whatever T. Without it values grow with T (‖α‖₁ is 31 at T = 10, 3 223 at 100).

    Returns:
        x without `dim`, or with W or B in its place. Memory format is kept. One frame has no order: T = 1 gives
        zeros (the authors' layer passes the frame through).

    Example:
        >>> x = torch.randint(0, 256, (2, 30, 3, 64, 48), dtype=torch.uint8)  # [B, T, C, H, W]
        >>> approx_rank_pool(x, nonlinearity="sqrt").shape
        torch.Size([2, 3, 64, 48])
        >>> approx_rank_pool(x, window=10, stride=5, normalize_weights=True).shape
        torch.Size([2, 5, 3, 64, 48])

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, value or device does not fit; the message names argument, value and what is allowed.

    `lengths` and `offsets` on a CUDA device are checked on the host, which waits for the device; pass them on the CPU
    to avoid that. Inside `torch.compile`, exported programs, vmap and captured CUDA graphs (which want `lengths` on the
    device) their values are not checked: `lengths` and `offsets` count as the nearest that there may be, 0 to T, and
    frames out of the range of `offsets` are left out. What `offsets` give depends in shape on their values:
    `torch.export` and vmap take none, `torch.compile` none with `window`. A program that was exported with `window` and
    an open T is for two windows and more. Weights of packed clips take the memory of as many numbers as there are
    clips, times the frames of the longest.
    """
    # A call of the same layout and options that was made before is found and run by C++ (csrc/calls.h).
    plain = mean is None and std is None and lengths is None and offsets is None and not context.is_compiling()
    if plain:
        y: Tensor | None = _calls.run(x, dim, window, stride, time_average, nonlinearity, normalize_weights, out_dtype)
        if y is not None:
            return y
    options = (dim, window, stride, time_average, nonlinearity, normalize_weights, out_dtype)
    check_flags(time_average=time_average, normalize_weights=normalize_weights)
    time_average, normalize_weights = bool(time_average), bool(normalize_weights)  # what keys are made of
    dim = check_frames(x, dim)
    num_frames = x.shape[dim]
    window, stride = checked_window(window, stride, num_frames if offsets is None else None)
    if lengths is not None and offsets is not None:
        raise ValueError("lengths and offsets exclude each other: a batch is either padded or packed")
    if context.is_captured(x):
        check_captured(lengths, offsets)
    if lengths is not None:
        lengths = checked_lengths(lengths, batch_size(x, dim, "lengths"), num_frames, window)
    if offsets is not None:
        offsets = checked_offsets(offsets, num_frames, window)
    rows = kept_rank_rows(x, num_frames, time_average, normalize_weights, window, stride, lengths, offsets)
    keep_rows = window is not None or offsets is not None
    mean, std, channel_dim = canonical_normalization(x, dim, mean, std, channel_dim)
    plan = plan_of(x, rows.bands, dim, channel_dim, nonlinearity, out_dtype, keep_rows, rows.overlap)
    repeatable = plain and x.dim() <= binary.MAX_DIMS and all(type(option) in _KEPT_TYPES for option in options)
    if repeatable and context.is_direct(x) and binary.kernels_for(x.device) and rows.weights.nbytes <= ops.LARGEST_KEPT:
        ops.Call(x, rows.weights.shape, plan).keep(_calls, x, options, rows.weights)
    return pool_as(x, rows.weights, mean, std, plan)


def plan_of(
    x: Tensor,
    bands: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype | None,
    keep_rows: bool,
    overlap: int = 0,
) -> ops.Plan:
    """How x becomes ψ of its frames, and their sums a result. Raises for a ψ or dtype that is none."""
    check_pooling(nonlinearity, out_dtype)
    if out_dtype is None:
        out_dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    return ops.Plan(bands, dim, channel_dim, nonlinearity, out_dtype, not keep_rows, overlap)


def pool_as(x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, plan: ops.Plan) -> Tensor:
    """The sums, with all that was checked; weights [B or 1, W, K] of any floating dtype."""
    if x.dim() > binary.MAX_DIMS:
        x = x.contiguous()
    weights = weights.to(accumulate_dtype(x.dtype)).contiguous()
    return ops.temporal_pool(x, weights, mean, std, plan)
