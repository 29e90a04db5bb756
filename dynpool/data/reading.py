"""Frames of a video on disk: how many there are, all of them, or some, without RGB pixels of the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..decoder import Decoder, DecodingError, frame_count, open_video, warn_of_damage
from ..files import TimeExceeded, VideoError, is_file
from ..formats import RgbConverter
from ..video import IMAGE_SUFFIXES, Size, numbered_images, read_clip
from .sampling import Indices

_ALL = slice(0, None, 1)


def check_video(path: str) -> None:
    """Raise VideoError for a picture, which FFmpeg would play as a video of one frame, and for what is no file, such as
    a pipe, which would be waited for.
    """
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        raise VideoError(path, "is a picture, and no video; source 'images' wants those")
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise VideoError(path, "is no regular file")


def count_of(path: str, timeout: float | None = None) -> int:
    """How many frames a video has."""
    return frame_count(path, _ALL, timeout) if is_file(path) else len(numbered_images(path))


def read_frames(path: str, size: Size | None = None, timeout: float | None = None) -> Tensor:
    """All frames of a video, uint8 [T, 3, H, W], scaled to `size`; what was damaged is warned of."""
    clip = read_clip(path, size=size, timeout=timeout)
    warn_of_damage(path, clip.damaged)
    return clip.frames


def taken(frames: Tensor, indices: Sequence[int] | Indices) -> Tensor:
    """frames[indices], without a copy if that is all of them in order."""
    everything = len(indices) == len(frames) and np.array_equal(indices, np.arange(len(frames)))
    return frames if everything else copied(frames, indices)


def copied(frames: Tensor, indices: Sequence[int] | Indices) -> Tensor:
    """frames[indices], of frames that lie as [T, H, W, 3]: thus whole frames are copied, and not byte by byte."""
    where = torch.as_tensor(indices, device="cpu")
    return frames.permute(0, 2, 3, 1).index_select(0, where).permute(0, 3, 1, 2)


def read_chosen(
    path: str, choose: Callable[[int], Indices], size: Size | None, timeout: float | None = None
) -> tuple[Tensor, Indices]:
    """Scaled frames of a video and, of those that `choose` wants of so many as it has, the places among them."""
    if is_file(path):
        with open_video(path, _ALL, timeout) as decoder:
            count = decoder.expected or 0
            used, places = np.unique(choose(count), return_inverse=True) if count else (np.arange(0), np.arange(0))
            few = 0 < 2 * len(used) <= count
            if few and (frames := _converted(decoder, set(used.tolist()), count)) is not None:
                return read_clip(frames, size=size).frames, places.reshape(-1)
    frames = read_frames(path, size, timeout)
    used, places = np.unique(choose(len(frames)), return_inverse=True)
    return taken(frames, used), places.reshape(-1)


def _converted(decoder: Decoder, used: set[int], count: int) -> Tensor | None:
    """These frames of a file; None unless it has as many as were counted, and all of them whole."""
    frames, decoded, convert = [], 0, RgbConverter()
    try:
        for number, frame in decoder.frames():
            decoded += 1
            pixels = convert(frame) if number in used or number == 0 else None  # the first says the size of all
            if number in used and pixels is not None:
                frames.append(torch.from_numpy(pixels.copy()))
    except TimeExceeded:
        raise
    except (DecodingError, OSError, ValueError):  # whatever it is, reading all of it will say it
        return None
    whole = decoded == count and not decoder.damage
    return torch.stack(frames).permute(0, 3, 1, 2) if whole else None
