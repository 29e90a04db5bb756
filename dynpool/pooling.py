"""temporal_pool and approx_rank_pool: arguments are checked and made canonical here, then one op does the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import binary, context, ops
from .reference import accumulate_dtype
from .weights import Rows, longest_clip, rank_rows, rank_table

Nonlinearity = Literal["identity", "sqrt"]
PerChannel = float | Sequence[float] | npt.NDArray[Any] | Tensor

_INPUT_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OUTPUT_DTYPES = _INPUT_DTYPES[1:]
_NONLINEARITIES = ("identity", "sqrt")


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

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, value or device does not fit; the message names argument, value and what is allowed.
    """
    dim = _check_frames(x, dim)
    num_frames = x.shape[dim]
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        raise TypeError(f"weights must be a floating tensor, got {_describe(weights)}")
    if weights.dim() not in ((2, 3) if per_clip else (1, 2, 3)):
        allowed = "[B, T] or [B, W, T] with per_clip=True" if per_clip else "[T], [W, T] or [B, W, T]"
        raise ValueError(f"weights must have shape {allowed}, got {list(weights.shape)}")
    if weights.shape[-1] != num_frames:
        raise ValueError(f"weights must have T = {num_frames} entries in the last dimension, got {list(weights.shape)}")
    if weights.dim() == 3 or per_clip:
        batch = _batch_size(x, dim, "weights of each clip")
        if weights.shape[0] != batch:
            raise ValueError(f"weights must have B = {batch} rows in dimension 0, got {list(weights.shape)}")
    _check_device("weights", weights, x)
    _check_finite("weights", weights.to(accumulate_dtype(x.dtype)))
    keep_rows = weights.dim() == 3 or (weights.dim() == 2 and not per_clip)
    if weights.dim() < 3:
        weights = weights[:, None] if per_clip else weights.reshape(1, -1, num_frames)
    mean, std, channel_dim = _canonical_normalization(x, dim, mean, std, channel_dim)
    return _pool(x, weights, mean, std, _plan(x, None, dim, channel_dim, nonlinearity, out_dtype, keep_rows))


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
    lengths: Tensor | Sequence[int] | None = None,
    offsets: Tensor | Sequence[int] | None = None,
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

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, value or device does not fit; the message names argument, value and what is allowed.

    `lengths` and `offsets` on a CUDA device are checked on the host, which waits for the device; pass them on the CPU
    to avoid that. Inside `torch.compile` their values are not checked, and out-of-range frames are left out; nor are
    those of `lengths` while a CUDA graph is captured, which wants them on the device, and takes no `offsets`.
    """
    repeatable = mean is None and std is None and lengths is None and offsets is None and not context.is_compiling()
    if repeatable:
        y: Tensor | None = _calls.run(x, dim, window, stride, time_average, nonlinearity, normalize_weights, out_dtype)
        if y is not None:
            return y
    options = (dim, window, stride, time_average, nonlinearity, normalize_weights, out_dtype)
    time_average, normalize_weights = bool(time_average), bool(normalize_weights)  # what keys are made of
    dim = _check_frames(x, dim)
    num_frames = x.shape[dim]
    window, stride = _checked_window(window, stride, num_frames, offsets)
    if lengths is not None and offsets is not None:
        raise ValueError("lengths and offsets exclude each other: a batch is either padded or packed")
    if context.is_captured(x):
        _check_captured(lengths, offsets)
    if lengths is not None:
        lengths = _check_lengths(lengths, _batch_size(x, dim, "lengths"), num_frames, window)
    if offsets is not None:
        offsets = _check_offsets(offsets, num_frames, window)
    rows = _cached_rank_rows(x, num_frames, time_average, normalize_weights, window, stride, lengths, offsets)
    keep_rows = window is not None or offsets is not None
    mean, std, channel_dim = _canonical_normalization(x, dim, mean, std, channel_dim)
    plan = _plan(x, rows.bands, dim, channel_dim, nonlinearity, out_dtype, keep_rows, rows.overlap)
    repeatable = repeatable and x.dim() <= binary.MAX_DIMS and all(type(option) in _KEPT_TYPES for option in options)
    if repeatable and context.is_direct(x) and binary.kernels_for(x.device) is not None:
        ops.Call(x, rows.weights.shape, plan).keep(_calls, x, options, rows.weights)
    return _pool(x, rows.weights, mean, std, plan)


def _plan(
    x: Tensor,
    bands: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype | None,
    keep_rows: bool,
    overlap: int = 0,
) -> ops.Plan:
    if nonlinearity not in _NONLINEARITIES:
        raise ValueError(f"nonlinearity must be one of {_NONLINEARITIES}, got {nonlinearity!r}")
    if out_dtype is None:
        out_dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    elif out_dtype not in _OUTPUT_DTYPES:
        raise TypeError(f"out_dtype must be one of {_OUTPUT_DTYPES}, got {out_dtype}")
    return ops.Plan(bands, dim, channel_dim, nonlinearity, out_dtype, not keep_rows, overlap)


def _pool(x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, plan: ops.Plan) -> Tensor:
    if x.dim() > binary.MAX_DIMS:
        x = x.contiguous()
    weights = weights.to(accumulate_dtype(x.dtype)).contiguous()
    return ops.temporal_pool(x, weights, mean, std, plan)


# --- kept between calls --------------------------------------------------------------------------------------------

_calls = ops.new_calls()  # approx_rank_pool of such frames
_KEPT_TYPES = (int, bool, str, torch.dtype, type(None))  # of options that may be found again: they never change
_row_cache: dict[tuple[object, ...], Rows] = {}
_table_cache: dict[tuple[object, ...], Tensor] = {}
_number_cache: dict[tuple[object, ...], Tensor] = {}
_captured: dict[tuple[object, ...], Any] = {}  # of the last three, what CUDA graphs use
_LARGEST_TABLE = 1024  # frames of the longest clip: 4 MB of float32


def _cached_rank_rows(
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
    with torch.inference_mode(False) if keeps else torch.no_grad():
        rows = rank_rows(
            num_frames,
            time_average=time_average,
            normalize=normalize,
            window=window,
            stride=stride,
            lengths=lengths,
            offsets=offsets,
            table=_cached_table(x, lengths, offsets, num_frames, time_average, normalize) if window is None else None,
            dtype=dtype,
            # What is kept is copied to the device: a copy is done when it returns, so that any stream may use it.
            device=torch.device("cpu") if keeps else x.device,
        )
        bands = rows.bands if rows.bands is None else rows.bands.to(x.device)
        rows = Rows(rows.weights.contiguous().to(x.device), bands, rows.overlap)
    if keeps:
        _keep(_row_cache, key, rows)
    return rows


def _cached_table(
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


def _cached_numbers(numbers: tuple[float, ...], x: Tensor) -> Tensor:
    """Numbers as a tensor beside x; kept, because a copy to a device waits for it. Where nothing can be kept, they are
    written there, not copied: a CUDA graph captures no copy.
    """
    key = (numbers, accumulate_dtype(x.dtype), x.device)
    ordinary = context.is_ordinary(x)
    if ordinary and (kept := _recall(_number_cache, key, x)) is not None:
        return kept
    if not ordinary or context.is_captured(x):
        return torch.stack([torch.full((), number, dtype=key[1], device=x.device) for number in numbers])
    with torch.inference_mode(False):
        tensor = torch.tensor(numbers, dtype=key[1], device=x.device)
    _keep(_number_cache, key, tensor)
    return tensor


def _recall(cache: dict[tuple[object, ...], Any], key: tuple[object, ...], x: Tensor) -> Any:
    """What was kept, or None; for good if a CUDA graph is captured, which will read it at every replay."""
    value = cache.get(key)
    return _captured.setdefault(key, value) if value is not None and context.is_captured(x) else value


def _keep(cache: dict[tuple[object, ...], Any], key: tuple[object, ...], value: object) -> None:
    if len(cache) >= ops.MOST_KEPT:
        ops.finish_launches()
        cache.clear()
    cache[key] = value


# --- checks --------------------------------------------------------------------------------------------------------


def _check_frames(x: Tensor, dim: int) -> int:
    """The frames' dimension, counted from the front."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {_describe(x)}")
    if x.dtype not in _INPUT_DTYPES:
        raise TypeError(f"x must have one of the dtypes {_INPUT_DTYPES}, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense Tensor, torch.strided, got one of {x.layout}")
    if not context.is_compiling() and context.is_tracing():
        raise RuntimeError("x is traced by torch.jit.trace, which does not see kernels: use torch.export instead")
    dim = _checked_int("dim", dim)
    dims = x.dim()
    if dims == 0:
        raise ValueError("x must have at least one dimension, got shape []")
    if not -dims <= dim < dims:
        raise ValueError(f"dim must be between {-dims} and {dims - 1} for x of shape {list(x.shape)}, got {dim}")
    dim %= dims
    if x.shape[dim] == 0:
        raise ValueError(f"x must have at least one frame in dimension {dim}, got shape {list(x.shape)}")
    return dim


def _checked_int(name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, Integral):  # one of numpy's
        return int(value)
    raise TypeError(f"{name} must be an integer, got {value!r}")


def _batch_size(x: Tensor, dim: int, what: str) -> int:
    if dim == 0:
        raise ValueError(f"{what} need the clips in dimension 0 of x and the frames after it, got dim = 0")
    return x.shape[0]


def _checked_window(
    window: int | None, stride: int | None, num_frames: int, offsets: object
) -> tuple[int | None, int | None]:
    if window is None:
        if stride is not None:
            raise ValueError(f"stride = {stride} has no meaning without window")
        return None, None
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value is not None and _checked_int(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if window > num_frames and offsets is None:
        raise ValueError(f"window must be at most T = {num_frames} frames, got {window}")
    return _checked_int("window", window), None if stride is None else _checked_int("stride", stride)


def _check_captured(lengths: object, offsets: object) -> None:
    """What is known on the host alone when a CUDA graph is captured would stay so at every replay."""
    if offsets is not None:
        raise ValueError("offsets cannot be captured in a CUDA graph: the shape of the weights depends on them")
    if lengths is not None and not (isinstance(lengths, Tensor) and lengths.is_cuda):
        where = lengths.device if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"lengths must be on the device of x to be captured in a CUDA graph, got {where}")


def _check_lengths(lengths: Tensor | Sequence[int], batch: int, num_frames: int, window: int | None) -> Tensor:
    lengths = _index_tensor("lengths", lengths)
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise ValueError(f"lengths must have shape [B] = [{batch}], got {list(lengths.shape)}")
    least = 1 if window is None else window
    if context.is_plain(lengths) and batch:
        low, high = (int(v) for v in lengths.aminmax())
        if low < least or high > num_frames:
            allowed = f"between {least}{' (window)' if window is not None else ''} and T = {num_frames}"
            raise ValueError(f"lengths must be {allowed}, got {low if low < least else high}")
    return lengths


def _check_offsets(offsets: Tensor | Sequence[int], num_frames: int, window: int | None) -> Tensor:
    offsets = _index_tensor("offsets", offsets)
    if offsets.dim() != 1 or offsets.shape[0] < 2:
        raise ValueError(f"offsets must have shape [B+1] with B ≥ 1, got {list(offsets.shape)}")
    if context.is_plain(offsets):
        offsets = offsets.cpu()
        if offsets[0] != 0 or offsets[-1] != num_frames:
            ends = f"{int(offsets[0])} … {int(offsets[-1])}"
            raise ValueError(f"offsets must run from 0 to ΣT = {num_frames}, got {ends}")
        shortest, least = int(offsets.diff().min()), 1 if window is None else window
        if shortest < least:
            raise ValueError(f"offsets must rise by at least {least} frame(s) a clip, got a clip of {shortest}")
    return offsets


def _index_tensor(name: str, values: Tensor | Sequence[int]) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be integers, got {values!r}") from error
    if tensor.numel() == 0 and not isinstance(values, Tensor):  # [] says nothing of its type
        return tensor.long()
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {tensor.dtype}")
    return tensor.long()


def _canonical_normalization(
    x: Tensor, dim: int, mean: PerChannel | None, std: PerChannel | None, channel_dim: int | None
) -> tuple[Tensor | None, Tensor | None, int | None]:
    """mean and std as contiguous [C] tensors beside channel_dim, or as [1] tensors beside None."""
    if mean is None and std is None:
        return None, None, None
    pair = [_statistic("mean", mean, x), _statistic("std", std, x)]
    sizes = {t.numel() for t in pair if t is not None}
    channels = max(sizes) if sizes else 1
    if channels == 1 and channel_dim is None:
        return pair[0], pair[1], None
    given = channel_dim
    channel_dim = -3 if channel_dim is None else channel_dim
    dims = x.dim()
    channel_dim = _checked_int("channel_dim", channel_dim)
    if not -dims <= channel_dim < dims or channel_dim % dims == dim:
        raise ValueError(
            f"channel_dim must be a dimension of x other than dim = {dim}, for x of shape {list(x.shape)}, got {given}"
            + (" (by default -3)" if given is None else "")
        )
    channel_dim %= dims
    for name, value in zip(("mean", "std"), pair, strict=True):
        if value is not None and value.numel() != 1 and value.numel() != x.shape[channel_dim]:
            raise ValueError(
                f"{name} must be a number or have C = {x.shape[channel_dim]} values (dimension {channel_dim} of x), "
                f"got {value.numel()}"
            )
    if channels == 1 and x.shape[channel_dim] != 1:
        return pair[0], pair[1], None
    mean_c, std_c = (None if t is None else t.expand(channels).contiguous() for t in pair)
    return mean_c, std_c, channel_dim


def _statistic(name: str, value: PerChannel | None, x: Tensor) -> Tensor | None:
    """mean or std as a one-dimensional tensor in the accumulate dtype on x's device; None where it does nothing."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if not value.dtype.is_floating_point and value.dtype not in (torch.int64, torch.int32, torch.uint8):
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        if value.dim() > 1:
            raise ValueError(f"{name} must be a number or have shape [C], got {list(value.shape)}")
        if value.dim() == 1:
            _check_device(name, value, x)
        if value.device.type == "cpu" and context.is_plain(value):
            _check_statistic(name, value.tolist(), x)
        return value.to(x.device, accumulate_dtype(x.dtype)).reshape(-1)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    numbers: Any = [value] if _is_number(value) else value
    if not isinstance(numbers, Sequence) or not numbers or not all(map(_is_number, numbers)):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a Tensor, got {_describe(value)}")
    if not context.is_compiling():
        _check_statistic(name, numbers, x)
        if name == "mean" and len(numbers) == 1 and not numbers[0]:
            return None
    return _cached_numbers(tuple(numbers), x)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or isinstance(value, Real)  # noqa: SIM101  Dynamo can answer the first


def _check_statistic(name: str, values: float | Sequence[float], x: Tensor) -> None:
    kept = torch.finfo(accumulate_dtype(x.dtype))
    for v in values if isinstance(values, Sequence) else (values,):
        if not abs(v) <= kept.max or (name == "std" and v < kept.tiny):
            what = f"finite{' and positive' if name == 'std' else ''}"
            why = f", which {kept.dtype} does not hold" if 0 < v < math.inf or -math.inf < v < -kept.max else ""
            raise ValueError(f"{name} must be {what}, got {v}{why}")


def _check_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")


def _check_finite(name: str, value: Tensor) -> None:
    """Weights on the CPU are checked; on a device the check would wait for it."""
    if value.device.type != "cpu" or not context.is_plain(value) or math.isfinite(value.detach().sum().item()):
        return
    if not value.isfinite().all():  # or their sum is too large
        raise ValueError(f"{name} must be finite, got {value[~value.isfinite()][0].item()}")


def _describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
