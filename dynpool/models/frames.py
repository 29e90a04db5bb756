"""Frames into one: rank pooling at the input or after a layer, and its baselines, scaled to what a network expects."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact import rank_pool
from ..pooling import approx_rank_pool, temporal_pool
from ..reference import accumulate_dtype
from .config import ModelConfig, pools_at
from .rows import Rows

_CENTRE = 127.5
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

        def of_windows(values: Tensor) -> Tensor:
            return frames.select(values, positions[None], windows).unflatten(0, (-1, positions.shape[1]))

        # torch.export would see another program where but one window lies in the video.
        exported = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
        if self.method != "approx" or exported:
            return self._pool(of_windows(rows), None), windows
        pooled = self._ranked_windows(rows, frames, windows)
        size = _size(of_windows(_norms(rows, 1)), None) if self.rescale == "rms" else None
        return self._rescaled(pooled, size), windows

    def _ranked_windows(self, rows: Tensor, frames: Rows, windows: Rows) -> Tensor:
        """Those that lie in a clip in one pass over its frames; the last, which may not, of frames that are copied."""
        assert self.window is not None
        assert self.stride is not None
        if windows.counts is None:
            last = torch.full((1, 1), windows.size - 1, device=rows.device)
        else:
            last = windows.counts[:, None] - 1
        positions = last * self.stride + torch.arange(self.window, device=last.device)
        tails = frames.select(rows, positions, Rows(frames.clips, self.window)).unflatten(0, (-1, self.window))
        tails = self._ranked(tails, None)
        if frames.size <= self.window:
            return tails
        # Windows that reach into the padding are made too, and not chosen; with NaN there they would spoil gradients.
        whole = frames.dense and not rows.is_floating_point()
        clips = rows.unflatten(0, (frames.clips, frames.size)) if whole else frames.unpack(rows)
        pooled = self._ranked(clips, None, self.window, self.stride)
        both = Rows(frames.clips, pooled.shape[1] + 1)
        place = torch.arange(windows.size, device=last.device)
        place = place[None].where(place < last, pooled.shape[1])
        return both.select(torch.cat([pooled, tails[:, None]], 1).flatten(0, 1), place, windows)

    def _pool(self, clips: Tensor, counts: Tensor | None) -> Tensor:
        """[B, T, ...] -> [B, ...] in the accumulate dtype."""
        if self.method == "max":
            return clips.amax(1).to(accumulate_dtype(clips.dtype))
        if self.method == "middle":
            return _middle(clips, counts).to(accumulate_dtype(clips.dtype))
        if self.method == "mean":
            return _mean(clips, counts)
        pooled = self._ranked(clips, counts)
        return self._rescaled(pooled, _size(_norms(clips, 2), counts) if self.rescale == "rms" else None)

    def _ranked(
        self, clips: Tensor, counts: Tensor | None, window: int | None = None, stride: int | None = None
    ) -> Tensor:
        dtype = accumulate_dtype(clips.dtype)
        if self.method == "exact":
            return rank_pool(
                clips,
                objective=self.objective,
                C=self.C,
                time_average=self.time_average,
                nonlinearity=self.nonlinearity,
                lengths=counts,
                out_dtype=dtype,
            )
        return approx_rank_pool(
            clips,
            time_average=self.time_average,
            nonlinearity=self.nonlinearity,
            window=window,
            stride=stride,
            lengths=counts,
            normalize_weights=True,
            out_dtype=dtype,
        )

    def _rescaled(self, pooled: Tensor, size: Tensor | None) -> Tensor:
        still = _STILL if self.method == "approx" else 0.0
        if self.rescale == "minmax":
            return _to_picture(pooled, still * _LARGEST[self.nonlinearity])
        if size is not None:
            return _to_size(pooled, size, still)
        if self.at_input:
            return _CENTRE * (1 + pooled / _LARGEST[self.nonlinearity])
        return pooled


def _middle(clips: Tensor, counts: Tensor | None) -> Tensor:
    batch, size = clips.shape[:2]
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
    return _CENTRE + (pooled - (low + high) / 2) * _ratio(2 * _CENTRE, span)


def _norms(maps: Tensor, dims: int) -> Tensor:
    """Of maps in dimensions after the first `dims`, which remain."""
    dtype = accumulate_dtype(maps.dtype)
    if maps.dtype == dtype or not maps.is_cpu or torch.compiler.is_compiling():
        return torch.linalg.vector_norm(maps, dim=tuple(range(dims, maps.dim())), dtype=dtype)
    some = maps.flatten(0, dims - 1).split(8)  # of which, and not of all, the CPU's norm makes a copy in float32
    return torch.cat([_norms(part.to(dtype), 1) for part in some]).unflatten(0, maps.shape[:dims])


def _size(norms: Tensor, counts: Tensor | None) -> Tensor:
    """Root mean square of the norms [B, T] of each clip's maps, [B]."""
    present = Rows(norms.shape[0], norms.shape[1], counts).present(norms.device)
    return torch.linalg.vector_norm(norms.where(present, 0), dim=1) / present.sum(1).to(norms.dtype).sqrt()


def _to_size(pooled: Tensor, size: Tensor, least: float) -> Tensor:
    """`pooled` scaled to the norms `size`; one smaller than `least` of that, as if it had it."""
    rest = tuple(range(1, pooled.dim()))
    size = size.view(-1, *(1,) * len(rest))
    own = torch.linalg.vector_norm(pooled, dim=rest, keepdim=True) if rest else pooled.abs()
    return pooled * _ratio(size, torch.maximum(own, least * size))


def _ratio(a: Tensor | float, b: Tensor) -> Tensor:
    """a / b, and 0 where b is; so is its gradient."""
    return (a / b.where(b > 0, 1)).where(b > 0, 0)
