"""The operation of csrc/temporal_pool.h in plain torch: the tests' oracle, and the fallback where no kernel fits.

Any device, dtype and layout; differentiable to any order and under every functorch transform. It holds the frames
in the accumulate dtype, and banded rows once per window: right, not lean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def psi(x: Tensor, nonlinearity: str) -> Tensor:
    """ψ of normalised values: the identity, or the signed root sign(v)·√|v| with derivative 0 at 0."""
    if nonlinearity == "identity":
        return x
    nonzero, sign = x != 0, x.detach().sign()  # times x, not its abs: the derivative of that ends torch 2.6
    return (sign * (sign * x).where(nonzero, 1).sqrt()).where(nonzero, 0)


def normalize(x: Tensor, mean: Tensor | None, std: Tensor | None, channel_dim: int | None) -> Tensor:
    """(x - mean_c) / std_c in the accumulate dtype."""
    x = x.to(accumulate_dtype(x.dtype))
    if mean is not None:
        x = x - _along(mean, x, channel_dim)
    return x if std is None else x / _along(std, x, channel_dim)


def temporal_pool(
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """y[b, w, i] = Σ_{k < count} A[b, w, k] ψ((x[b, first + k, i] - mean_c) / std_c), (first, count) = bands[b, w].

    x [..., T, ...] with T at `dim`; weights [B or 1, W, K] in the accumulate dtype; bands int64 [B or 1, W, 2], or
    None for rows over all K = T frames; mean, std [C] with C at `channel_dim`, or [1] with channel_dim None. B is
    dimension 0 of x. Returns y with W in the place of T.
    """
    if bands is not None:
        x = _weighed_frames(x, bands, dim)
    frames = psi(normalize(x, mean, std, channel_dim), nonlinearity)
    return weighted_sum(frames, weights, bands, dim).to(out_dtype)


def weighted_sum(frames: Tensor, weights: Tensor, bands: Tensor | None, dim: int) -> Tensor:
    """Σ_k A[b, w, k] frames[b, first + k, i], W in the place of T."""
    frames = frames.movedim(dim, -1)  # [..., T]
    lead = () if weights.shape[0] == 1 else frames.shape[:1]
    pixels = math.prod(frames.shape[len(lead) : -1])  # not -1, which empty frames leave open
    clips = frames.reshape(*(lead or (1,)), pixels, frames.shape[-1])  # [B or 1, I, T]
    if bands is None:  # no matrix product: autocast would round α to half, which leaks the static image
        rows = [(clips * weights[:, None, w]).sum(-1, keepdim=True) for w in range(weights.shape[1])]
        pooled = torch.cat([clips[..., :0], *rows], -1)
    else:
        pooled = _banded_product(clips, weights, bands)
    return pooled.reshape(*frames.shape[:-1], weights.shape[1]).movedim(-1, dim)


def _along(values: Tensor, x: Tensor, channel_dim: int | None) -> Tensor:
    """[C] or [1] values shaped to broadcast against x."""
    shape = [1] * x.dim()
    if channel_dim is not None:
        shape[channel_dim] = x.shape[channel_dim]
    return values.reshape(shape)


def _weighed_frames(x: Tensor, bands: Tensor, dim: int) -> Tensor:
    """x with zeros in the frames that no row weighs, so that not even NaN there has a say, in any derivative."""
    t = torch.arange(x.shape[dim], device=x.device)
    first, count = bands[..., :1], bands[..., 1:]
    weighed = ((t >= first) & (t < first + count)).any(1)  # [B or 1, T]
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    if weighed.shape[0] != 1:
        shape[0] = x.shape[0]
    return x.where(weighed.reshape(shape), 0)


def _banded_product(clips: Tensor, weights: Tensor, bands: Tensor) -> Tensor:
    """[B, I, T] by banded rows -> [B, I, W]; frames outside a row's band have no say in it, not even when NaN."""
    num_frames = clips.shape[-1]
    k = torch.arange(weights.shape[-1], device=clips.device)
    frame = bands[..., :1] + k  # [B or 1, W, K]
    inside = (k < bands[..., 1:]) & (frame >= 0) & (frame < num_frames)
    index = frame.where(inside, 0).flatten(1)[:, None].expand(clips.shape[0], clips.shape[1], -1)
    taken = clips.gather(2, index).unflatten(2, tuple(weights.shape[1:]))  # [B, I, W, K]
    taken = taken.where(inside[:, None], 0)
    return (taken * weights.where(inside, 0)[:, None]).sum(-1)


def temporal_pool_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """Gradients for those of (x, weights, mean, std) that `needs` marks, in that order; themselves differentiable."""
    inputs = (x, weights, mean, std)
    wanted = [i for i in range(4) if needs[i]]

    def pool(*values: Tensor) -> Tensor:
        given = list(inputs)
        for i, value in zip(wanted, values, strict=True):
            given[i] = value
        x, weights, mean, std = given
        return temporal_pool(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype)  # type: ignore

    _, pull_back, *_ = torch.func.vjp(pool, *(inputs[i] for i in wanted))
    return pull_back(grad)
