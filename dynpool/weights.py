"""Weights of rank pooling: α(T) of one clip, of windows, of ragged batches. No pixels here.

A pooling is a banded matrix: output row w of clip b weighs frames first[b, w] … first[b, w] + count[b, w] - 1.
`Rows` holds it as `weights` [B, W, K] (K the longest band, zero-padded) and `bands` [B, W, 2] = (first, count).
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from . import context

MAX_FRAMES = 1 << 24  # beyond it a float32 α no longer tells neighbouring frames apart


class Rows(NamedTuple):
    """A banded matrix of temporal weights; `bands` None means that every row spans all K = T frames."""

    weights: Tensor  # [B or 1, W, K]
    bands: Tensor | None  # int64 [B or 1, W, 2]: first frame and number of frames
    overlap: int = 0  # at most so many rows share a frame, if they are windows of one clip in order; 0: not known


def rank_weights(
    num_frames: int,
    *,
    time_average: bool = True,
    normalize_weights: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Weights α of approximate rank pooling: the pooled image is Σ_t α_t ψ(I_t).

    Args:
        num_frames: T ≥ 1, the number of frames.
        time_average: True gives eq. (2) of Bilen et al. 2016, ranking the running means V_t:
            α_t = 2(T-t+1) - (T+1)(H_T - H_{t-1}), t = 1 … T, H the harmonic numbers.
            False gives eq. (4), ranking the frames themselves: α_t = 2t - T - 1.
        normalize_weights: divide by ‖α‖₁/2, so that the positive weights sum to 1 and the negative ones to -1.
        dtype: floating dtype of the result. α is computed in float64 and rounded once.
        device: device of the result.

    Returns:
        Tensor [T] with Σ_t α_t = 0. T = 1 gives [0.]: one frame has no order.

    Example:
        >>> rank_weights(4, time_average=False)
        tensor([-3., -1.,  1.,  3.], dtype=torch.float64)
        >>> rank_weights(4)
        tensor([-2.4167,  0.5833,  1.0833,  0.7500], dtype=torch.float64)

    Raises:
        TypeError: num_frames is not an integer, or dtype is not floating.
        ValueError: num_frames is below 1 or above 2**24.
    """
    if not isinstance(num_frames, (int, torch.SymInt)) and isinstance(num_frames, Integral):  # one of numpy's
        num_frames = int(num_frames)
    if not isinstance(num_frames, (int, torch.SymInt)) or isinstance(num_frames, bool):
        raise TypeError(f"num_frames must be an integer, got {num_frames!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {dtype!r}")
    # Compiled, the upper bound would be one of the program's.
    if num_frames < 1 or (not context.is_compiling() and num_frames > MAX_FRAMES):
        raise ValueError(f"num_frames must be between 1 and 2**24 = {MAX_FRAMES}, got {num_frames}")
    t = torch.arange(1, num_frames + 1, dtype=torch.float64, device=device)
    return _normalized(_alpha(t, num_frames, time_average), normalize_weights).to(dtype)


def half_norm(num_frames: int, time_average: bool) -> float:
    """‖α‖₁/2, by which `normalize_weights` divides."""
    return rank_weights(num_frames, time_average=time_average, device="cpu").abs().sum().item() / 2


def unfold_starts(num_frames: int, window: int, stride: int) -> range:
    """First frames of the windows that `Tensor.unfold` takes: W = 1 + (T - window) // stride of them."""
    return range(0, num_frames - window + 1, stride)


def rank_rows(
    num_frames: int,
    *,
    time_average: bool = True,
    normalize: bool = False,
    window: int | None = None,
    stride: int | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    table: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Rows:
    """Rank-pooling weights of `num_frames` frames as banded rows. Arguments are checked by the caller.

    `lengths` [B] (frames used of each padded clip) and `offsets` [B+1] (bounds of packed clips) are int64 on the CPU
    or on `device`; with `window`, each clip is cut into its own windows. `stride` defaults to `window`. `table`, a
    `rank_table` that is large enough, serves clips of different lengths in a fraction of the time.
    """
    if window is not None:
        alpha = rank_weights(window, time_average=time_average, normalize_weights=normalize, dtype=dtype, device=device)
        stride = window if stride is None else stride
        bands = _window_bands(num_frames, window, stride, lengths, offsets, alpha.device)
        overlap = -(-window // stride) if lengths is None and offsets is None else 0  # offsets may be unchecked
        return Rows(alpha.expand(*bands.shape[:2], window), bands, overlap)
    if lengths is None and offsets is None:
        alpha = rank_weights(
            num_frames, time_average=time_average, normalize_weights=normalize, dtype=dtype, device=device
        )
        return Rows(alpha.expand(1, 1, -1), None)
    if lengths is not None:
        first, counts, longest = None, _moved(lengths, device), num_frames
    else:
        assert offsets is not None
        longest = longest_clip(offsets)
        offsets = _moved(offsets, device)
        first, counts = offsets[:-1], offsets.diff()
    if table is None:
        weights = _ragged_alpha(counts, longest, time_average, normalize, dtype)
    else:
        weights = table[:, :longest].index_select(0, counts.clamp(0, longest))
    bands = torch.stack([torch.zeros_like(counts) if first is None else first, counts], -1)
    return Rows(weights.unsqueeze(1), bands.unsqueeze(1)) if first is None else Rows(weights[None], bands[None])


def rank_table(longest: int, *, time_average: bool, normalize: bool, dtype: torch.dtype) -> Tensor:
    """α of clips of 0, 1, … `longest` frames, [longest + 1, longest], zero past each clip's end."""
    return _ragged_alpha(torch.arange(longest + 1, device="cpu"), longest, time_average, normalize, dtype)


def longest_clip(offsets: Tensor) -> int:
    """Frames of the longest of packed clips."""
    return int(offsets.diff().max()) if offsets.shape[0] > 1 else 0


def _moved(values: Tensor, device: torch.device | None) -> Tensor:
    """On a device, without waiting for it: from pinned memory."""
    waits = device is not None and device.type == "cuda" and type(values) is Tensor and values.is_cpu
    if waits and not context.is_compiling() and not context.num_modes():
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _alpha(t: Tensor, n: Tensor | int, time_average: bool) -> Tensor:
    """α_t of clips of n frames, for frame numbers t = 1, 2, … in float64. Broadcasts t against n.

    H_n - H_{t-1} = digamma(n+1) - digamma(t): exact to 1e-15 and, unlike a cumulative sum, deterministic
    on every device. One frame, whose α is 0, is left out of its rounding.
    """
    if not time_average:
        return 2 * t - n - 1
    n = n.to(t) if isinstance(n, Tensor) else t.new_full((), n)
    alpha = 2 * (n - t + 1) - (n + 1) * (torch.digamma(n + 1) - torch.digamma(t))
    return alpha.where(n > 1, 0)


def _normalized(alpha: Tensor, normalize: bool) -> Tensor:
    """α / (‖α‖₁ / 2) along the last dimension; a row of zeros (T = 1) stays as it is."""
    if not normalize:
        return alpha
    half = alpha.abs().sum(-1, keepdim=True) / 2
    return alpha / half.where(half > 0, 1)


def _ragged_alpha(lengths: Tensor, longest: int, time_average: bool, normalize: bool, dtype: torch.dtype) -> Tensor:
    """α of clips of different lengths [N] as rows [N, longest], zero past each clip's end."""
    t = torch.arange(1, longest + 1, dtype=torch.float64, device=lengths.device)
    n = lengths.unsqueeze(1)
    alpha = _alpha(t, n, time_average)
    return _normalized(alpha.where(t <= n, 0), normalize).to(dtype)


def _window_bands(
    num_frames: int, window: int, stride: int, lengths: Tensor | None, offsets: Tensor | None, device: torch.device
) -> Tensor:
    """(first, count) of every window: [1, W, 2]; [B, W, 2] for lengths, where a missing window has count 0.

    Made where they are wanted: no copy of them could be captured in a CUDA graph.
    """
    if offsets is not None:
        bounds = offsets.tolist()
        starts = [
            begin + first for begin, end in pairwise(bounds) for first in unfold_starts(end - begin, window, stride)
        ]
        first = _moved(torch.tensor(starts, dtype=torch.int64, device="cpu"), device)[None]
        return torch.stack([first, torch.full_like(first, window)], -1)
    first = torch.arange(0, num_frames - window + 1, stride, device=device).unsqueeze(0)
    count = torch.full_like(first, window)
    if lengths is not None:
        inside = first + window <= _moved(lengths, device).unsqueeze(1)
        first, count = first.expand_as(inside), count.where(inside, 0)
    return torch.stack([first, count], -1)
