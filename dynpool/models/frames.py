"""Frames into one: rank pooling at the input or after a layer, and its baselines, scaled to what a network expects."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact import rank_pool
from ..pooling import approx_rank_pool, temporal_pool
from ..reference import accumulate_dtype
from .config import ModelConfig, pools_at
from .rows import Rows

_MID_GREY = 127.5
_LARGEST = {"identity": 255.0, "sqrt": 255.0**0.5}  # ψ(255)
# What normalised weights give below this part of the frames' own size is rounding (float32 sums of some hundred frames
# reach 1e-5 of it), and is not blown up.
_STILL = 1e-4


class FramePool:
    """Pools the rows of frames of each clip, or of each of its windows, into one row, as a configuration says."""

    def __init__(self, config: ModelConfig) -> None:
        at_input = pools_at(config) is None
        self.method = config.pool
        self.window = config.window
        self.stride = config.window if config.stride is None else config.stride
        self.nonlinearity = config.nonlinearity or ("sqrt" if at_input else "identity")
        self.time_average = config.time_average
        self.rescale = config.rescale or ("minmax" if at_input else "rms")
        self.at_input = at_input
        self.objective, self.C = config.objective, config.C

    def __call__(self, rows: Tensor, frames: Rows) -> tuple[Tensor, Rows]:
        """Rows [R, ...] of frames -> rows of windows, in the dtype of `rows`."""
        if self.window is None:
            pooled, windows = self._pool(frames.unpack(rows), frames.counts), Rows(frames.clips, 1)
        else:
            pooled, windows = self._windows(rows, frames)
        return pooled.to(rows.dtype), windows

    def video(self, video: Tensor, frames: Rows) -> tuple[Tensor, Rows]:
        """Frames [B, T, C, H, W] -> rows of windows, in pixel units 0 … 255."""
        if self.window is not None:
            return self._windows(video.flatten(0, 1), frames)
        if frames.counts is not None and self.method in ("mean", "max"):  # rank pooling does not read the padding
            video = frames.unpack(video.flatten(0, 1))
        return self._pool(video, frames.counts), Rows(frames.clips, 1)

    def _windows(self, rows: Tensor, frames: Rows) -> tuple[Tensor, Rows]:
        assert self.window is not None
        assert self.stride is not None
        windows = frames.windows(self.window, self.stride)
        device = rows.device if frames.counts is None else frames.counts.device
        starts = torch.arange(windows.size, device=device) * self.stride
        positions = starts[:, None] + torch.arange(self.window, device=device)
        clips = frames.select(rows, positions[None], windows).unflatten(0, (-1, self.window))
        return self._pool(clips, None), windows

    def _pool(self, clips: Tensor, counts: Tensor | None) -> Tensor:
        """[B, T, ...] -> [B, ...] in the accumulate dtype."""
        if self.method == "max":
            return clips.amax(1).to(accumulate_dtype(clips.dtype))
        if self.method == "middle":
            return _middle(clips, counts).to(accumulate_dtype(clips.dtype))
        if self.method == "mean":
            return _mean(clips, counts)
        return self._rescaled(self._ranked(clips, counts), clips, counts)

    def _ranked(self, clips: Tensor, counts: Tensor | None) -> Tensor:
        dtype = accumulate_dtype(clips.dtype)
        if self.method == "exact":
            d: Tensor = rank_pool(
                clips,
                objective=self.objective,
                C=self.C,
                time_average=self.time_average,
                nonlinearity=self.nonlinearity,
                lengths=counts,
                out_dtype=dtype,
            )
            return d
        return approx_rank_pool(
            clips,
            time_average=self.time_average,
            nonlinearity=self.nonlinearity,
            lengths=counts,
            normalize_weights=True,
            out_dtype=dtype,
        )

    def _rescaled(self, pooled: Tensor, clips: Tensor, counts: Tensor | None) -> Tensor:
        still = _STILL if self.method == "approx" else 0.0
        if self.rescale == "minmax":
            return _to_picture(pooled, still * _LARGEST[self.nonlinearity])
        if self.rescale == "rms":
            return _to_size_of(pooled, clips, counts, still)
        if self.at_input:
            return _MID_GREY * (1 + pooled / _LARGEST[self.nonlinearity])
        return pooled


def _middle(clips: Tensor, counts: Tensor | None) -> Tensor:
    batch, size = clips.shape[:2]
    if counts is None:
        return clips[:, size // 2]
    frames = Rows(batch, size, counts, packed=False)
    return frames.select(clips.flatten(0, 1), frames.middle(), Rows(batch, 1))


def _mean(clips: Tensor, counts: Tensor | None) -> Tensor:
    present = Rows(clips.shape[0], clips.shape[1], counts).present(clips.device).double()
    weights = present / present.sum(1, keepdim=True)
    return temporal_pool(clips, weights, per_clip=True, out_dtype=accumulate_dtype(clips.dtype))


def _to_picture(pooled: Tensor, least: float) -> Tensor:
    """`to_image` in float, and differentiable: [min, max] of each image to [0, 255].

    An image with less contrast than `least` is not stretched further than one that has it: a still video is mid-grey,
    not noise.
    """
    low, high = pooled.amin((1, 2, 3), keepdim=True), pooled.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=least)
    return _MID_GREY + (pooled - (low + high) / 2) * _ratio(2 * _MID_GREY, span)


def _to_size_of(pooled: Tensor, clips: Tensor, counts: Tensor | None, least: float) -> Tensor:
    """`pooled` scaled to the root mean square of the clip's maps; one smaller than `least` of that, as if it had it."""
    dtype = pooled.dtype
    rest = tuple(range(1, pooled.dim()))
    norms = torch.linalg.vector_norm(clips, dim=tuple(range(2, clips.dim())), dtype=dtype)  # [B, T]
    present = Rows(clips.shape[0], clips.shape[1], counts).present(clips.device)
    size = torch.linalg.vector_norm(norms.where(present, 0), dim=1) / present.sum(1).to(dtype).sqrt()
    size = size.view(-1, *(1,) * len(rest))
    own = torch.linalg.vector_norm(pooled, dim=rest, keepdim=True) if rest else pooled.abs()
    return pooled * _ratio(size, torch.maximum(own, least * size))


def _ratio(a: Tensor | float, b: Tensor) -> Tensor:
    """a / b, and 0 where b is; so is its gradient."""
    return (a / b.where(b > 0, 1)).where(b > 0, 0)
