"""Frames of every dtype and memory layout, shared by the tests of the operation."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.uint8, *FLOATING)
LAYOUTS = ("contiguous", "channels_last", "time_innermost", "reversed", "sliced", "strided", "offset")
LAYOUTS += ("expanded_time", "expanded")


def frames(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Pixels 0 … 255, or numbers in (-3, 3) at least 1/16 away from 0, where the signed root is steep.

    Made on the CPU, so that every device sees the same ones.
    """
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype).to(device)
    x = torch.rand(shape, dtype=torch.float64) * (3 - 1 / 16) + 1 / 16
    return (x * (torch.randint(0, 2, shape) * 2 - 1)).to(dtype).to(device)


def laid_out(x: Tensor, layout: str, dim: int) -> Tensor:
    """x in the given memory layout. "expanded…" repeat one frame, or one index of the last dimension."""
    poison = 255 if x.dtype == torch.uint8 else float("nan")
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":  # the dimension third from the end becomes the innermost one
        at = max(x.dim() - 3, 0)
        return x.movedim(at, -1).contiguous().movedim(-1, at)
    if layout == "time_innermost":
        return x.movedim(dim, -1).contiguous().movedim(-1, dim)
    if layout == "reversed":
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if layout in ("sliced", "strided"):
        step = 2 if layout == "strided" else 1
        big = torch.full([step * n + 3 for n in x.shape], poison, dtype=x.dtype, device=x.device)
        view = big[tuple(slice(1, 1 + step * n, step) for n in x.shape)]
        return view.copy_(x)
    if layout == "offset":  # one element off any alignment
        flat = torch.full((x.numel() + 2,), poison, dtype=x.dtype, device=x.device)
        return flat[1:-1].view(x.shape).copy_(x)
    if layout == "expanded_time":
        return x.narrow(dim, 0, 1).expand_as(x)
    if layout == "expanded":
        return x.narrow(-1, 0, 1).expand_as(x)
    raise ValueError(layout)
