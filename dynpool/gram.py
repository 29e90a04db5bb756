"""The products of the frames of a clip with one another, which are all that exact rank pooling has to know of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import binary
from .reference import accumulate_dtype, normalize, psi

KERNEL_BLOCK = 1024  # most products of values that a kernel sums in float32, before it adds to float64
_BLOCK = 64  # the same in torch
_TILE = 1 << 20  # floats of the frames that are held at a time


class Gram(NamedTuple):
    """Products of the frames of each clip, float64, 0 for frames past its end; ψ̄ is the mean of its ψ(I_t)."""

    centred: Tensor  # [B, T, T]: ⟨ψ(I_s) - ψ̄, ψ(I_t) - ψ̄⟩
    cross: Tensor  # [B, T]: ⟨ψ(I_t) - ψ̄, ψ̄⟩
    norm: Tensor  # [B]: ‖ψ̄‖²

    def alike(self, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        """Whether the frames of a clip differ by no more than roundings, [B]."""
        row = self.centred.sum(2) / lengths[:, None]  # not quite 0: ψ̄ is rounded
        distance = self.centred.diagonal(dim1=1, dim2=2) - 2 * row + (row.sum(1) / lengths)[:, None]
        frames = torch.arange(distance.shape[1], device=distance.device)
        largest = distance.where(frames < lengths[:, None], 0).amax(1)
        return largest <= (8 * torch.finfo(accumulate_dtype(dtype)).eps) ** 2 * self.norm

    def full(self) -> Tensor:
        """⟨ψ(I_s), ψ(I_t)⟩ [B, T, T]"""
        return self.centred + self.cross[:, :, None] + self.cross[:, None] + self.norm[:, None, None]


def gram(
    x: Tensor,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dim: int = 1,
    channel_dim: int | None = None,
    nonlinearity: str = "identity",
    lengths: Tensor | None = None,
) -> Gram:
    """The Gram matrix of the frames of each clip, in one pass over them; not differentiable.

    Blocks of pixels are multiplied in float32 (float64 for float64 frames) after their mean over the frames, or what is
    near it, is taken off, because products of nearly equal frames would cancel; they are summed in float64.
    """
    if dim == 0:
        x, dim = x[None], 1
        channel_dim = None if channel_dim is None else channel_dim + 1
    if (by_kernel := binary.gram(x, mean, std, dim, channel_dim, nonlinearity, lengths)) is not None:
        return Gram(*by_kernel)
    x = x[..., None] if x.dim() == 2 else x
    strides = x.stride()
    rest = sorted((d for d in range(1, x.dim()) if d != dim), key=lambda d: -strides[d])
    pixels = x.permute(0, dim, *rest).flatten(2)  # a view where the pixels lie together, else a copy of the frames

    def of_pixels(values: Tensor | None) -> Tensor | None:
        if values is None or channel_dim is None:
            return values
        shape = [x.shape[d] if d == channel_dim else 1 for d in rest]
        return values.reshape(shape).expand([x.shape[d] for d in rest]).flatten()

    mean, std = of_pixels(mean), of_pixels(std)
    along = None if channel_dim is None else -1
    B, T, D = pixels.shape
    pixels = pixels.detach()
    mean, std = (v if v is None else v.detach() for v in (mean, std))
    products = Gram(*(torch.zeros(B, *size, dtype=torch.float64, device=x.device) for size in ((T, T), (T,), ())))
    tile = max(1, _TILE // T)
    for b, length in enumerate([T] * B if lengths is None else lengths.tolist()):
        for begin in range(0, D, tile):
            part = slice(begin, begin + tile)
            m, s = (v if v is None or along is None else v[part] for v in (mean, std))
            frames = psi(normalize(pixels[b, :length, part], m, s, along), nonlinearity)
            average = frames.mean(0)
            # On a GPU in float64: float32 may be multiplied in TF32, as the program around this may have allowed.
            exact = torch.float64 if x.is_cuda else frames.dtype
            blocks, averages = (_in_blocks(t.to(exact)) for t in (frames - average, average[None]))
            with torch.autocast(x.device.type, enabled=False):
                products.centred[b, :length, :length] += (blocks @ blocks.mT).sum(0, dtype=torch.float64)
                products.cross[b, :length] += (blocks @ averages.mT).sum(0, dtype=torch.float64)[:, 0]
            products.norm[b] += average.double().square().sum()
    return products


def _in_blocks(frames: Tensor) -> Tensor:
    """[T, D] as [n, T, _BLOCK], zeros after the last."""
    return F.pad(frames, (0, -frames.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK)).transpose(0, 1)
