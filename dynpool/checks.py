"""Arguments, checked and made canonical. Messages name the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import context
from .kept import kept_numbers
from .reference import accumulate_dtype

Nonlinearity = Literal["identity", "sqrt"]
PerChannel = float | Sequence[float] | npt.NDArray[Any] | Tensor
Counts = Sequence[int] | npt.NDArray[Any] | Tensor

NONLINEARITIES = get_args(Nonlinearity)
INPUT_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
OUTPUT_DTYPES = INPUT_DTYPES[1:]
_LARGEST = 2**31 - 1  # of frame numbers and sizes: what follows from two of them still fits an index


def choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless it is one of these."""
    if not any(isinstance(value, type(one)) and value == one for one in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flags(**flags: object) -> None:
    """Raise TypeError unless each is True or False, perhaps NumPy's or of a symbolic shape, or 1 or 0."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_, torch.SymBool)) and not (isinstance(value, int) and value in (0, 1)):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def positive_int(name: str, value: object, most: int = _LARGEST) -> int:
    """Also one of NumPy's. Raises ValueError unless it is positive, and no larger than `most`."""
    if not is_positive_int(value):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def is_positive_int(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def as_float(value: Any) -> float:
    """Of Python's or NumPy's number; infinite, if it is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_frames(x: Tensor, dim: int, *, by_kernels: bool = True) -> int:
    """The frames' dimension, counted from the front."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {described(x)}")
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"x must have one of the dtypes {INPUT_DTYPES}, got {x.dtype}")
    check_dense("x", x)
    if by_kernels and not context.is_compiling() and context.is_tracing():
        raise RuntimeError("x is traced by torch.jit.trace, which does not see kernels: use torch.export instead")
    dim = checked_int("dim", dim)
    dims = x.dim()
    if dims == 0:
        raise ValueError("x must have at least one dimension, got shape []")
    if not -dims <= dim < dims:
        raise ValueError(f"dim must be between {-dims} and {dims - 1} for x of shape {list(x.shape)}, got {dim}")
    dim %= dims
    if x.shape[dim] == 0:
        raise ValueError(f"x must have at least one frame in dimension {dim}, got shape {list(x.shape)}")
    return dim


def check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else f"one of {value.layout}"
        raise TypeError(f"{name} must be a dense Tensor, torch.strided, got {kind}")


def checked_int(name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, Integral):  # one of numpy's
        return int(value)
    raise TypeError(f"{name} must be an integer, got {value!r}")


def check_normalization(mean: PerChannel | None, std: PerChannel | None, channel_dim: int | None) -> None:
    """Raise for what no frames could fit."""
    for name, value in (("mean", mean), ("std", std)):
        device = value.device if isinstance(value, Tensor) else "cpu"
        statistic(name, value, torch.zeros(1, dtype=torch.float64, device=device))
    if channel_dim is not None:
        checked_int("channel_dim", channel_dim)


def batch_size(x: Tensor, dim: int, what: str) -> int:
    if dim == 0:
        raise ValueError(f"{what} need the clips in dimension 0 of x and the frames after it, got dim = 0")
    return x.shape[0]


def check_pooling(nonlinearity: str, out_dtype: torch.dtype | None) -> None:
    choice("nonlinearity", nonlinearity, NONLINEARITIES)
    if out_dtype is not None and out_dtype not in OUTPUT_DTYPES:
        raise TypeError(f"out_dtype must be one of {OUTPUT_DTYPES}, got {out_dtype}")


def checked_window(
    window: int | None, stride: int | None, num_frames: int | None = None
) -> tuple[int | None, int | None]:
    """Windows of a clip of so many frames, or of clips that are not known yet."""
    if window is None:
        if stride is not None:
            raise ValueError(f"stride = {stride} has no meaning without window")
        return None, None
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value is not None and not 1 <= checked_int(name, value) <= _LARGEST:
            raise ValueError(f"{name} must be between 1 and {_LARGEST}, got {value}")
    if num_frames is not None and window > num_frames:
        raise ValueError(f"window must be at most T = {num_frames} frames, got {window}")
    return checked_int("window", window), None if stride is None else checked_int("stride", stride)


def check_captured(lengths: object, offsets: object) -> None:
    """What is known on the host alone when a CUDA graph is captured would stay so at every replay."""
    if offsets is not None:
        raise ValueError("offsets cannot be captured in a CUDA graph: the shape of the weights depends on them")
    if lengths is not None and not (isinstance(lengths, Tensor) and lengths.is_cuda):
        where = lengths.device if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"lengths must be on the device of x to be captured in a CUDA graph, got {where}")


def checked_lengths(lengths: Counts, batch: int, num_frames: int, window: int | None) -> Tensor:
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
    return lengths.clamp(0, num_frames)


def checked_offsets(offsets: Counts, num_frames: int, window: int | None) -> Tensor:
    offsets = _index_tensor("offsets", offsets)
    if not context.is_compiling() and context.is_batched(offsets):
        raise ValueError("offsets cannot be batched by vmap: the shapes of what they give depend on their values")
    if window is not None and context.is_compiling():
        raise ValueError("offsets cannot be compiled with window: how many windows there are depends on their values")
    if offsets.dim() != 1 or offsets.shape[0] < 2:
        raise ValueError(f"offsets must have shape [B+1] with B ≥ 1, got {list(offsets.shape)}")
    if context.is_plain(offsets):
        offsets = offsets.cpu()
        if offsets[0] != 0 or offsets[-1] != num_frames:
            ends = f"{int(offsets[0])} … {int(offsets[-1])}"
            raise ValueError(f"offsets must run from 0 to ΣT = {num_frames}, got {ends}")
        low, high = (int(v) for v in offsets.aminmax())
        if low < 0 or high > num_frames:  # their differences might overflow
            raise ValueError(f"offsets must be between 0 and ΣT = {num_frames}, got {low if low < 0 else high}")
        shortest, least = int(offsets.diff().min()), 1 if window is None else window
        if shortest < least:
            raise ValueError(f"offsets must rise by at least {least} frame(s) a clip, got a clip of {shortest}")
        return offsets
    return offsets.clamp(0, num_frames)


def _index_tensor(name: str, values: Counts) -> Tensor:
    if isinstance(values, Tensor):
        check_dense(name, values)
    try:
        if isinstance(values, np.ndarray) and not context.is_compiling() and values.dtype.kind in "iu":
            values = torch.from_numpy(values.astype(np.int64))  # from any order of bytes, and backwards
        if context.is_compiling() and isinstance(values, (list, tuple)) and values and all(map(_is_int, values)):
            # for any numbers, of which as_tensor would make constants
            values = torch.stack([torch.full((), v, dtype=torch.int64, device="cpu") for v in values])
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be integers, got {values!r}") from error
    if tensor.numel() == 0 and not isinstance(values, Tensor):  # [] says nothing of its type
        return tensor.long()
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {tensor.dtype}")
    return tensor.long()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def canonical_normalization(
    x: Tensor, dim: int, mean: PerChannel | None, std: PerChannel | None, channel_dim: int | None
) -> tuple[Tensor | None, Tensor | None, int | None]:
    """mean and std as contiguous [C] tensors beside channel_dim, or as [1] tensors beside None."""
    if channel_dim is not None:
        checked_int("channel_dim", channel_dim)
    if mean is None and std is None:
        return None, None, None
    pair = [statistic("mean", mean, x), statistic("std", std, x)]
    sizes = {t.numel() for t in pair if t is not None}
    channels = max(sizes) if sizes else 1
    if channels == 1 and channel_dim is None:
        return pair[0], pair[1], None
    given = channel_dim
    channel_dim = -3 if channel_dim is None else channel_dim
    dims = x.dim()
    channel_dim = checked_int("channel_dim", channel_dim)
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


def statistic(name: str, value: PerChannel | None, x: Tensor) -> Tensor | None:
    """mean or std as a one-dimensional tensor in the accumulate dtype on x's device; None where it does nothing."""
    if value is None:
        return None
    if context.is_compiling() and isinstance(value, (np.ndarray, np.generic)):  # for Dynamo they are tensors
        value = torch.as_tensor(value).to(x.device)
    if isinstance(value, Tensor):
        if value.dtype.is_complex or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        check_dense(name, value)
        if value.dim() > 1 or (0 in value.shape and x.numel()):
            raise ValueError(f"{name} must be a number or have shape [C], got {list(value.shape)}")
        if value.dim() == 1 or value.is_meta:
            check_same_device(name, value, x)
        if value.device.type == "cpu" and context.is_plain(value):
            _check_statistic(name, value.tolist(), x)
        return value.to(x.device, accumulate_dtype(x.dtype)).flatten()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    numbers: Any = [value] if _is_number(value) else value
    if not isinstance(numbers, Sequence) or not numbers or not all(map(_is_number, numbers)):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a Tensor, got {described(value)}")
    _check_statistic(name, numbers, x)
    if not context.is_compiling() and name == "mean" and len(numbers) == 1 and not numbers[0]:
        return None
    return kept_numbers(tuple(numbers), x)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or isinstance(value, Real)  # noqa: SIM101  Dynamo can answer the first


def _check_statistic(name: str, values: float | Sequence[float], x: Tensor) -> None:
    kept = torch.finfo(accumulate_dtype(x.dtype))
    for v in map(as_float, values if isinstance(values, Sequence) else (values,)):
        if not abs(v) <= kept.max or (name == "std" and v < kept.tiny):
            what = f"finite{' and positive' if name == 'std' else ''}"
            why = f", which {kept.dtype} does not hold" if 0 < v < math.inf or -math.inf < v < -kept.max else ""
            raise ValueError(f"{name} must be {what}, got {v}{why}")


def check_same_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")


def check_finite(name: str, value: Tensor) -> None:
    """Weights on the CPU are checked; on a device the check would wait for it."""
    if value.device.type != "cpu" or not context.is_plain(value) or math.isfinite(value.detach().sum().item()):
        return
    if not value.isfinite().all():  # or their sum is too large
        raise ValueError(f"{name} must be finite, got {value[~value.isfinite()][0].item()}")


def described(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
