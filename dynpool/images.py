"""Videos -> dynamic images: pictures in which the order of the frames is pooled away into motion trails."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .exact import rank_pool
from .pooling import Nonlinearity, temporal_pool
from .video import Size, Video, damaged_packets, read_clip, source_name
from .weights import rank_weights

Method = Literal["approx", "exact", "mean", "max"]
ImageMode = Literal["minmax", "minmax_channel"]

MID_GREY = 128
_NEARLY_STILL = 1e-2  # a third of what one step of one bright pixel, 255 to 254, changes under the square root


def dynamic_image(
    video: Video,
    *,
    method: Method = "approx",
    nonlinearity: Nonlinearity = "sqrt",
    time_average: bool = True,
    size: Size | None = None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The dynamic image of a video (Bilen et al. 2016): one picture of its appearance and motion.

    Args:
        video: a path, folder of images, URL, bytes, binary file object, uint8 Tensor [T, 3, H, W], uint8 ndarray
            [T, H, W, 3] or iterable of frames; see `dynpool.video.read_clip`.
        method: "approx" is approximate rank pooling, Σ_t α_t ψ(I_t), shown by `to_image`. Its scale does not matter
            there, so α is normalised and long videos do not overflow. "exact" is `rank_pool`, eq. (1), shown likewise.
            "mean" and "max" are the baselines, over the frames: they stay in pixel units, ψ is undone
            (ψ⁻¹(mean ψ(I_t))), and nothing is stretched.
        nonlinearity: ψ of the pixels 0 … 255: "sqrt", as in the paper, or "identity".
        time_average: for "approx" and "exact": rank the running means, eq. (2), or, when False, the frames, eq. (4).
        size: scale the frames first: to a short side of `size` pixels, or to (height, width).
        start, end, every, max_frames: use the frames [start:end:every], and of these the first `max_frames` only.
        device: pool on this device; by default where the frames are, the CPU for files.

    Returns:
        uint8 Tensor [3, H, W]. A video of one frame has no order, and one whose frames are all alike no motion: their
        "approx" or "exact" image is mid-grey, 128.

    Raises:
        VideoError: the file cannot be read as a video.
        FileNotFoundError: there is no such file.
        TypeError, ValueError: an argument does not fit; the message names argument, value and what is allowed.

    Warns:
        RuntimeWarning: parts of the file are damaged and were skipped.
    """
    check_options(method, nonlinearity, device)
    frames = _read(video, device, size=size, start=start, end=end, every=every, max_frames=max_frames)
    return _image(frames, len(frames), method, nonlinearity, time_average)


def dynamic_images(
    video: Video,
    *,
    window: int,
    stride: int,
    method: Method = "approx",
    nonlinearity: Nonlinearity = "sqrt",
    time_average: bool = True,
    size: Size | None = None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Dynamic images of windows of a video: `window` frames each, one every `stride` frames.

    Windows start at frames 0, stride, 2·stride, … until one reaches the end of the video. It is padded by repeating
    the last frame, as in the authors' released recipe (window 10, stride 6), and so is a video shorter than one window:

        12 frames, window 6, stride 4:   0 1 2 3 4 5 | 4 5 6 7 8 9 | 8 9 10 11 11 11

    Every frame is in some window, unless stride > window leaves gaps. (`approx_rank_pool` drops the tail instead.)

    Args:
        window, stride: in frames, at least 1.
        others: as in `dynamic_image`; each window is an image by itself.

    Returns:
        uint8 Tensor [W, 3, H, W'], W = 1 + ⌈(T - window) / stride⌉ images for T > window, else 1; with stride >
        window, none that would start behind the last frame.

    Raises, warns: as `dynamic_image`.
    """
    check_options(method, nonlinearity, device, window, stride)
    frames = _read(video, device, size=size, start=start, end=end, every=every, max_frames=max_frames)
    starts = _covering_starts(len(frames), window, stride)
    clips = (frames[start : start + window] for start in starts)
    return torch.stack([_image(clip, window, method, nonlinearity, time_average) for clip in clips])


def to_image(pooled: Tensor, mode: ImageMode = "minmax") -> Tensor:
    """Show pooled values as a picture: scale them from [min, max] to [0, 255] (section 4.2 of the paper).

    Args:
        pooled: real values [..., C, H, W], of any scale.
        mode: "minmax" takes min and max over each image, and so keeps its colours; "minmax_channel" over each channel.

    Returns:
        uint8, the shape of `pooled`, rounded to nearest. Where min = max there is nothing to scale: mid-grey, 128.

    Raises:
        TypeError: pooled is not a real Tensor.
        ValueError: pooled has fewer than three dimensions, is empty, or is not finite; or mode is unknown.
    """
    if not isinstance(pooled, Tensor) or pooled.dtype.is_complex or pooled.dtype == torch.bool:
        raise TypeError(
            f"pooled must be a Tensor of real numbers, got {getattr(pooled, 'dtype', type(pooled).__name__)}"
        )
    if pooled.dim() < 3 or 0 in pooled.shape:
        raise ValueError(f"pooled must have shape [..., C, H, W] and not be empty, got {list(pooled.shape)}")
    _check_choice("mode", mode, get_args(ImageMode))
    dims = (-3, -2, -1) if mode == "minmax" else (-2, -1)
    values = pooled.detach().double()
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    span = high - low
    if not span.isfinite().all():  # NaN or infinite wherever a value is
        raise ValueError("pooled must be finite, got NaN or infinity")
    still = span == 0
    return (values - low).div_(span + still).mul_(255).add_(still * MID_GREY).round_().to(torch.uint8)


def check_options(
    method: str,
    nonlinearity: str,
    device: torch.device | str | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> None:
    """Raise ValueError for options that no video would make valid: before one is read."""
    _check_choice("method", method, get_args(Method))
    _check_choice("nonlinearity", nonlinearity, get_args(Nonlinearity))
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    _check_device(device)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_device(device: torch.device | str | None) -> None:
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device must be one that torch can use here, got {str(device)!r}: {reason}") from error


def _read(video: Video, device: torch.device | str | None, **reading: Any) -> Tensor:
    clip = read_clip(video, **reading)
    if clip.damaged:
        message = f"{source_name(video)}: {damaged_packets(clip.damaged)} skipped"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return clip.frames if device is None else clip.frames.to(device)


def _covering_starts(num_frames: int, window: int, stride: int) -> range:
    """First frames of the windows that cover the video, of which the last may reach beyond its end."""
    beyond = max(num_frames - window, 0) + stride
    return range(0, min(beyond, num_frames), stride)


def _image(frames: Tensor, count: int, method: Method, nonlinearity: Nonlinearity, time_average: bool) -> Tensor:
    """Image [3, H, W] of frames [K, 3, H, W] whose last one stands for frames K … count."""
    if method == "max":
        return frames.amax(0).contiguous()  # of ψ, which rises, the same
    if method == "exact":
        padded = torch.cat([frames, frames[-1:].expand(count - len(frames), -1, -1, -1)])
        d = rank_pool(padded, 0, nonlinearity=nonlinearity, time_average=time_average)
        return to_image(d.where(frames.amax(0) != frames.amin(0), 0).contiguous())
    if method == "mean":
        weights = torch.full((count,), 1 / count, dtype=torch.float64, device=frames.device)
    else:
        weights = rank_weights(count, time_average=time_average, normalize=True, device=frames.device)
    pooled = temporal_pool(frames, _folded(weights, len(frames)), 0, nonlinearity=nonlinearity).contiguous()
    if method == "approx":
        return to_image(_stilled(pooled, frames))
    pixels = pooled.square() if nonlinearity == "sqrt" else pooled
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _folded(weights: Tensor, count: int) -> Tensor:
    """Weights of `count` frames of which the last is repeated: it takes the weight of all its copies."""
    return torch.cat([weights[: count - 1], weights[count - 1 :].sum(0, keepdim=True)])


def _stilled(pooled: Tensor, frames: Tensor) -> Tensor:
    """Pixels that never change pool to zero, but for rounding, which min-max would blow up into a picture of noise."""
    low, high = pooled.aminmax()
    if high - low > _NEARLY_STILL:
        return pooled
    return pooled.where(frames.amax(0) != frames.amin(0), 0)
