"""A video of any kind -> its RGB frames as uint8 [T, 3, H, W]. Files are decoded by `decoder.py`.

Frames lie one after the other in one uint8 buffer, each as [H, W, 3], of which the tensor handed out is a permuted
view, or as the tensors that they were; so a video is held in memory once, at one byte a value.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .checks import check_dense, is_positive_int, positive_int
from .decoder import MAX_PIXELS, Decoder, DecodingError, Pixels, is_decoded, open_video, reason_of
from .files import File, TimeLimit, VideoError, is_file
from .formats import RgbConverter

Frame: TypeAlias = Pixels | Tensor | Image.Image  # or a frame of PyAV, which need not be installed
Video: TypeAlias = File | Tensor | Pixels | Iterable[Frame]
Size: TypeAlias = int | tuple[int, int]

_KINDS = (
    "a path, folder of images, URL, bytes, binary file object, uint8 Tensor [T, 3, H, W], uint8 ndarray [T, H, W, 3] "
    "or iterable of frames"
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m2ts .m2v .m4v .mkv .mov".split()  # noqa: SIM905
    + ".mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
_RESERVED_BYTES = 1 << 28  # the most that is reserved on the word of a file's frame count
_SCALED_BYTES = 1 << 26  # of frames that are scaled at once
_ORIENTATION = 0x0112  # of EXIF
_EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS_OF_16_BITS = ("PPM", "PNG")  # which Pillow may open in mode "I", that of 32 bits


class Clip(NamedTuple):
    """A video in memory."""

    frames: Tensor  # uint8 [T, 3, H, W], T ≥ 1
    damaged: int  # packets of the file that are unreadable or missing, frames partly made up; or images of the folder


def read_clip(
    video: Video,
    *,
    size: Size | None = None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    timeout: float | None = None,
) -> Clip:
    """Read the frames of a video.

    Args:
        video: a path; the path of a folder of images, numbered frames; a URL that fsspec knows ("s3://…"); the bytes
            of a file; a binary file object, read from its start and left open; a uint8 Tensor [T, 3, H, W] (not
            copied); a uint8 ndarray [T, H, W, 3] (not copied where torch can share it); or an iterable of frames of
            one size, each a uint8 ndarray [H, W, 3], a uint8 Tensor [3, H, W], a PIL image or a frame of PyAV.
        size: scale the frames (bilinear, antialiased) to a short side of `size` pixels, or to (height, width).
        start, end, every: use the frames [start:end:every], counted as they are shown, from 0.
        max_frames: of these, use no more than the first `max_frames`.
        timeout: seconds that reading a file or folder may take, from its first byte to its last frame; without limit by
            default. It is checked between packets, images and reads, and ends the waiting for a pipe or terminal: a
            read of another file object, or of an fsspec URL, that never returns is not cut short.

    Returns:
        Clip of uint8 frames [T, 3, H, W]. Of a file: its first video stream, in display order, rotated and mirrored
        as the file's display matrix says, converted to RGB by its own colour metadata; pixels that are not square
        stay so. Frames of another size than the first are scaled to it. What is damaged is skipped and counted:
        the clip is what remains. (Frames of which the decoder makes up parts are counted, and are in the clip.) Of a
        folder: its images in the order of the numbers in their names.

    Example:
        >>> frames, damaged = read_clip("clip.mp4", every=5)  # doctest: +SKIP
        >>> read_clip(np.zeros((7, 60, 80, 3), np.uint8), start=1, every=2).frames.shape
        torch.Size([3, 3, 60, 80])

    Raises:
        VideoError: the file is no video, or names others (but for M3U8 files and their local segments), is empty,
            has no video stream, none of its frames can be decoded, they are larger than 2^27 pixels, or it takes
            longer than `timeout`.
        FileNotFoundError: there is no such file.
        ImportError: a URL is given and fsspec is missing.
        TypeError, ValueError: `video` is of no kind named above, or has no frames in [start:end]; or size, start, end,
            every or max_frames makes no sense.
    """
    chosen = check_reading(size, start, end, every, max_frames, timeout)
    if isinstance(video, Tensor):
        return Clip(resized_clip(_chosen(_checked_tensor(video), chosen), size), 0)
    if isinstance(video, np.ndarray):
        return Clip(resized_clip(_chosen(_checked_array(video), chosen), size), 0)
    if isinstance(video, (str, os.PathLike)) and os.path.isdir(video):
        return _read_folder(os.fsdecode(video), size, chosen, timeout)
    if is_file(video):
        with open_video(video, chosen, timeout) as decoder:
            return _read_frames(decoder, size)
    if isinstance(video, Iterable):
        return Clip(_collect(cast(Iterable[Frame], video), size, chosen), 0)
    raise TypeError(f"video must be {_KINDS}, got {type(video).__name__}")


def frame_tensor(frame: Frame | Any) -> Tensor:
    """One frame as a Tensor: a Tensor as it is; a uint8 ndarray [H, W, 3], a PIL image or a frame of PyAV, converted to
    RGB and turned upright, as uint8 [3, H, W].
    """
    return frame if isinstance(frame, Tensor) else _shared(_checked_frame(frame, "frame")).permute(2, 0, 1)


def check_reading(
    size: Size | None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    timeout: float | None = None,
) -> slice:
    """The frames that are wanted. Raises ValueError for arguments that `read_clip` would refuse."""
    if not (is_positive_int(start) or (isinstance(start, Integral) and start == 0 and not isinstance(start, bool))):
        raise ValueError(f"start must be a frame number from 0, got {start!r}")
    if end is not None and not (is_positive_int(end) and end > start):
        raise ValueError(f"end must be a frame number after start = {start}, got {end!r}")
    positive_int("every", every)
    for name, number in (("start", start or None), ("end", end), ("max_frames", max_frames)):
        if number is not None:
            positive_int(name, number)
    pair = isinstance(size, (tuple, list)) and len(size) == 2 and all(map(is_positive_int, size))
    if size is not None and not pair and not is_positive_int(size):
        raise ValueError(f"size must be a positive integer or a pair (height, width) of them, got {size!r}")
    if size is not None and math.prod(map(int, size if isinstance(size, (tuple, list)) else (size, size))) > MAX_PIXELS:
        raise ValueError(f"size must make images of at most 2^27 pixels, got {size!r}")
    check_timeout(timeout)
    if max_frames is not None:
        last = start + every * (max_frames - 1) + 1
        end = last if end is None else min(end, last)
    return slice(int(start), None if end is None else int(end), int(every))


def check_timeout(timeout: float | None) -> None:
    if timeout is not None and not (isinstance(timeout, Real) and not isinstance(timeout, bool) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")


# --- tensors, arrays, frames ----------------------------------------------------------------------------------------


def _checked_tensor(video: Tensor) -> Tensor:
    if video.dtype != torch.uint8:
        raise TypeError(f"video must be uint8, got a Tensor of {video.dtype}")
    check_dense("video", video)
    if video.is_meta:
        raise ValueError("video must have values, got a meta Tensor")
    if video.dim() != 4 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape [T, 3, H, W] and at least one frame, got {list(video.shape)}")
    return video


def _checked_array(video: npt.NDArray[Any]) -> Tensor:
    if video.dtype != np.uint8:
        raise TypeError(f"video must be uint8, got an ndarray of {video.dtype}")
    if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape [T, H, W, 3] and at least one frame, got {list(video.shape)}")
    return _shared(video).permute(0, 3, 1, 2)


def _shared(pixels: Pixels) -> Tensor:
    """Not copied, unless they run backwards in memory or are read-only, which torch does not share."""
    shareable = pixels.flags.writeable and min(pixels.strides) >= 0
    return torch.from_numpy(pixels if shareable else pixels.copy())


def _chosen(frames: Tensor, chosen: slice) -> Tensor:
    if chosen.start >= len(frames):
        raise ValueError(f"start must be below the number of frames, {len(frames)}, got {chosen.start}")
    return frames[chosen]


def _taken(frames: Iterable[Any], chosen: slice) -> Iterator[Any]:
    return itertools.islice(frames, chosen.start, chosen.stop, chosen.step)


def _length_hint(video: Iterable[Frame]) -> int:
    try:
        return operator.length_hint(video)
    except (NotImplementedError, OverflowError, ValueError, TypeError):
        return 0


def _collect(video: Iterable[Frame], size: Size | None, chosen: slice) -> Tensor:
    frames = _FrameBuffer(size, len(range(*chosen.indices(_length_hint(video)))))
    shape: tuple[int, ...] | None = None
    for index, frame in _taken(enumerate(video), chosen):
        pixels = _checked_frame(frame, f"video[{index}]")
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ValueError(f"video[{index}] must be of the size of those before, {shape[:2]}, got {pixels.shape[:2]}")
        frames.append(pixels)
    if shape is None:
        least = "one frame" if chosen.start == 0 else f"{chosen.start + 1} frames, for start = {chosen.start}"
        raise ValueError(f"video must have at least {least}, got an iterable without")
    return frames.clip()


def _checked_frame(frame: Frame, name: str) -> Pixels:
    """A frame that was decoded elsewhere as uint8 [H, W, 3]."""
    if is_decoded(frame):
        try:
            return RgbConverter()(frame)
        except (DecodingError, ValueError) as error:
            raise ValueError(f"{name} cannot be converted to RGB: {reason_of(error)}") from error
    if isinstance(frame, Image.Image):
        return np.asarray(_rgb(frame))
    if isinstance(frame, Tensor) and frame.dtype == torch.uint8 and frame.dim() == 3 and frame.shape[0] == 3:
        return frame.permute(1, 2, 0).cpu().numpy()
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    described = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, (Tensor, np.ndarray)) else ""
    raise TypeError(
        f"{name} must be a uint8 ndarray [H, W, 3], a uint8 Tensor [3, H, W], a PIL image or a frame of PyAV, "
        f"got {type(frame).__name__} {described}".rstrip()
    )


def _rgb(image: Image.Image) -> Image.Image:
    """As it is to be shown: turned as its EXIF data say; of 16-bit grey, as Pillow opened it, the nearest of 8 bits,
    where Pillow would clip. Other integers and floats are clipped to 0 … 255.
    """
    image.load()  # which turns TIFF files, and says so in their EXIF data
    try:  # not by ImageOps.exif_transpose, which fails at what else those data hold
        turn = _EXIF_TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises whatever broken data lead it to
        turn = None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _FORMATS_OF_16_BITS):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


class _FrameBuffer:
    """Frames of one size, scaled to `size` a few at a time, in one uint8 array that grows in place, by half."""

    def __init__(self, size: Size | None, expected: int = 0) -> None:
        self._size, self._expected = size, expected
        self._count = self._waiting = 0
        self._memory: Pixels = np.empty((0, 0, 0, 3), np.uint8)
        self._axes: tuple[int, ...] = (0, 1, 2, 3)  # T, H, W, 3 of it
        self._few = self._memory  # [few, H, W, 3], to be scaled

    def __len__(self) -> int:
        return self._count + self._waiting

    def append(self, frame: Pixels) -> None:
        if self._size is None:
            self._store(frame[None])
            return
        if not len(self._few):
            memory, axes = _room(max(1, min(16, _SCALED_BYTES // max(frame.nbytes, 1))), frame)
            self._few = memory.transpose(axes)
        self._few[self._waiting] = frame
        self._waiting += 1
        if self._waiting == len(self._few):
            self._scale()

    def clip(self) -> Tensor:
        """The frames as [T, 3, H, W], a view; spare capacity is given back."""
        if self._waiting:
            self._scale()
        self._resize(self._count)
        return torch.from_numpy(self._memory.transpose(self._axes)).permute(0, 3, 1, 2)

    def _scale(self) -> None:
        frames = torch.from_numpy(self._few[: self._waiting]).permute(0, 3, 1, 2)
        self._waiting = 0
        self._store(resized_clip(frames, self._size).permute(0, 2, 3, 1).numpy())

    def _store(self, frames: Pixels) -> None:
        end = self._count + len(frames)
        if self._count == 0:
            reserved = min(self._expected, _RESERVED_BYTES // max(frames[0].nbytes, 1))
            self._memory, self._axes = _room(max(reserved, 16), frames[0])
        elif end > len(self._memory):
            self._resize(max(end, self._count + self._count // 2))
        self._memory.transpose(self._axes)[self._count : end] = frames
        self._count = end

    def _resize(self, capacity: int) -> None:
        self._memory.resize((capacity, *self._memory.shape[1:]), refcheck=False)


def _room(count: int, frame: Pixels) -> tuple[Pixels, tuple[int, ...]]:
    """Memory for frames that lie as this one, pixel by pixel or plane by plane; its axes T, H, W, 3."""
    height, width, channels = frame.shape
    if abs(frame.strides[2]) > abs(frame.strides[1]):
        return np.empty((count, channels, height, width), np.uint8), (0, 2, 3, 1)
    return np.empty((count, height, width, channels), np.uint8), (0, 1, 2, 3)


# --- size -----------------------------------------------------------------------------------------------------------


def resized(image: Tensor, size: Size | None) -> Tensor:
    """uint8 or float [3, H, W] scaled to a short side of `size`, or to (height, width): bilinear, antialiased."""
    return image if size is None else _interpolate(image[None], _target_size(image.shape[1], image.shape[2], size))[0]


def resized_clip(frames: Tensor, size: Size | None) -> Tensor:
    """uint8 [T, 3, H, W], all scaled as `resized` does, 64 MB of them at a time."""
    target = None if size is None else _target_size(frames.shape[2], frames.shape[3], size)
    if target is None or target == tuple(frames.shape[2:]):
        return frames
    at_once = max(1, _SCALED_BYTES // frames[0].numel())
    parts = [_interpolate(part, target) for part in frames.split(at_once)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _target_size(height: int, width: int, size: Size) -> tuple[int, int]:
    if isinstance(size, (tuple, list)):
        return int(size[0]), int(size[1])
    short = min(height, width)
    target = max(1, round(height * size / short)), max(1, round(width * size / short))
    if math.prod(target) > MAX_PIXELS:
        made = f"{target[1]} x {target[0]} of {width} x {height}"
        raise ValueError(f"size must make images of at most 2^27 pixels, got {size}, which makes {made}")
    return target


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 3, H, W] scaled to `size`, in the memory layout that torch is fastest in."""
    if images.is_floating_point():
        return F.interpolate(images.contiguous(), size, mode="bilinear", antialias=True)
    if images.is_contiguous():  # thrice as fast as `contiguous` would be
        images = torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)
    batch = images.contiguous(memory_format=torch.channels_last)
    if not images.is_cuda:
        return F.interpolate(batch, size, mode="bilinear", antialias=True)
    scaled = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


# --- folders ---------------------------------------------------------------------------------------------------------


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def numbered_images(folder: str) -> list[str]:
    """Names of the images in a folder, in the order of the numbers in them: frame2.png before frame10.png. Hidden ones,
    which file managers leave, are none of it.
    """

    def by_numbers(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]

    names = filter(is_image, os.listdir(folder))
    return sorted(names, key=lambda name: (by_numbers(name), name))


def _read_frames(decoder: Decoder, size: Size | None) -> Clip:
    frames, convert = _FrameBuffer(size, decoder.expected or 0), RgbConverter()
    for number, frame in decoder.frames():
        try:
            frames.append(convert(frame))
        except (DecodingError, ValueError) as error:
            raise VideoError(decoder.source, f"cannot be converted to RGB: {reason_of(error)}", number) from error
    decoder.check_any(len(frames))
    return Clip(frames.clip(), decoder.damaged)


def _opened(path: str) -> Image.Image:
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is no regular file")  # a pipe would be waited for
    with Image.open(path) as image:
        if math.prod(image.size) > MAX_PIXELS:
            raise OSError(f"{path} has more than 2^27 pixels")
        return _rgb(image)


def _read_folder(folder: str, size: Size | None, chosen: slice, timeout: float | None) -> Clip:
    limit = TimeLimit(folder, timeout)
    frames, damaged = _FrameBuffer(size), 0
    first: tuple[int, int] | None = None
    names = numbered_images(folder)
    if names and chosen.start >= len(names):
        raise VideoError(folder, f"start must be below the number of its images, {len(names)}, got {chosen.start}")
    for name in names[chosen]:
        limit.left()
        try:
            upright = _opened(os.path.join(folder, name))
        except MemoryError:
            raise
        except Exception:  # Pillow raises whatever a broken file leads it to
            damaged += 1
            continue
        first = first or upright.size
        if upright.size != first:
            upright = upright.resize(first, Image.Resampling.BILINEAR)
        frames.append(np.asarray(upright))
    if not len(frames):
        why = f": {damaged} cannot be read" if damaged else ""
        raise VideoError(folder, f"has no image to read{why} ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return Clip(frames.clip(), damaged)
