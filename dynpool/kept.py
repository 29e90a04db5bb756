"""Caches of tensors that depend on the arguments of a call alone: rows of weights, tables of α, mean and std; each on
the device of the frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import context, ops
from .reference import accumulate_dtype
from .weights import Rows, longest_clip, rank_rows, rank_table, unfold_starts

_row_cache: dict[tuple[object, ...], Rows] = {}
_table_cache: dict[tuple[object, ...], Tensor] = {}
_number_cache: dict[tuple[object, ...], Tensor] = {}
_captured: dict[tuple[object, ...], Any] = {}  # entries of all three that a CUDA graph reads when it is replayed
_MOST_BYTES = 1 << 26  # of a cache, before all is dropped
_LARGEST_TABLE = 1024  # frames of the longest clip: 4 MB of float32


def kept_rank_rows(
    x: Tensor,
    num_frames: int,
    time_average: bool,
    normalize: bool,
    window: int | None,
    stride: int | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> Rows:
    """`rank_rows` for x, from a cache where the arguments alone determine plain tensors that outlive the call."""
    dtype = accumulate_dtype(x.dtype)
    cacheable = lengths is None and offsets is None and context.is_ordinary(x)
    key = (num_frames, time_average, normalize, window, stride, dtype, x.device)
    if cacheable and (rows := _recall(_row_cache, key, x)) is not None:
        return rows
    keeps = cacheable and not context.is_captured(x)
    if keeps:
        size = num_frames if window is None else window * len(unfold_starts(num_frames, window, stride or window))
        keeps = dtype.itemsize * size <= _MOST_BYTES // 4
    with torch.inference_mode(False) if keeps else torch.no_grad():
        rows = rank_rows(
            num_frames,
            time_average=time_average,
            normalize=normalize,
            window=window,
            stride=stride,
            lengths=lengths,
            offsets=offsets,
            table=_kept_table(x, lengths, offsets, num_frames, time_average, normalize) if window is None else None,
            dtype=dtype,
            # What is kept is copied to the device: a copy is done when it returns, so that any stream may use it.
            device=torch.device("cpu") if keeps else x.device,
        )
        bands = rows.bands if rows.bands is None else rows.bands.to(x.device)
        rows = Rows(rows.weights.contiguous().to(x.device), bands, rows.overlap)
    if keeps:
        _keep(_row_cache, key, rows)
    return rows


def _kept_table(
    x: Tensor, lengths: Tensor | None, offsets: Tensor | None, num_frames: int, time_average: bool, normalize: bool
) -> Tensor | None:
    """`rank_table` for clips of these lengths; None where it would be too large, or could not be kept."""
    if (lengths is None and offsets is None) or not context.is_ordinary(x):
        return None
    longest = num_frames if offsets is None else longest_clip(offsets)
    size = max(64, 1 << (longest - 1).bit_length())  # so that few serve all
    if size > _LARGEST_TABLE:
        return None
    dtype = accumulate_dtype(x.dtype)
    key = (size, time_average, normalize, dtype, x.device)
    if (kept := _recall(_table_cache, key, x)) is not None or context.is_captured(x):
        return kept
    with torch.inference_mode(False):
        table = rank_table(size, time_average=time_average, normalize=normalize, dtype=dtype).to(x.device)
    _keep(_table_cache, key, table)
    return table


def kept_numbers(numbers: tuple[float, ...], x: Tensor) -> Tensor:
    """Numbers as a tensor beside x; kept, because a copy to a device waits for it. Where nothing can be kept, they are
    written there, not copied: a CUDA graph captures no copy.
    """
    key = (numbers, accumulate_dtype(x.dtype), x.device)
    ordinary = context.is_ordinary(x)
    if ordinary and (kept := _recall(_number_cache, key, x)) is not None:
        return kept
    if not ordinary or context.is_captured(x):
        one = torch.ones((), dtype=key[1], device=x.device)  # times any number: torch.full would be compiled for each
        return torch.stack([one * number for number in numbers])
    with torch.inference_mode(False):
        tensor = torch.tensor(numbers, dtype=key[1], device=x.device)
    _keep(_number_cache, key, tensor)
    return tensor


def _recall(cache: dict[tuple[object, ...], Any], key: tuple[object, ...], x: Tensor) -> Any:
    """What was kept, or None; for good if a CUDA graph is captured, which will read it at every replay."""
    value = cache.get(key)
    return _captured.setdefault(key, value) if value is not None and context.is_captured(x) else value


def _keep(cache: dict[tuple[object, ...], Any], key: tuple[object, ...], value: object) -> None:
    kept_bytes = sum(map(_bytes_of, cache.values()))
    if len(cache) >= ops.MOST_KEPT or kept_bytes + _bytes_of(value) > _MOST_BYTES:
        if not ops.finish_launches():
            return
        cache.clear()
    cache[key] = value


def _bytes_of(value: Any) -> int:
    tensors = value[:2] if isinstance(value, Rows) else (value,)
    return sum(t.nbytes for t in tensors if t is not None)
