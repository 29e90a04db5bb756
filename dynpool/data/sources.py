"""From a video to what enters a network: its frames, or pictures that stand for windows of them.

Every source turns (path, sampling, random) into uint8 [T, 3, H, W], scaled but not yet cropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import NONLINEARITIES, choice
from ..decoder import warn_of_damage
from ..files import VideoError
from ..flow import optical_flow
from ..images import Pictures
from ..recipe import Method, Recipe, Starts
from .cache import Cache, file_version
from .geometry import Geometry
from .listing import pictures_of
from .packed import Member
from .reading import check_video, copied, count_of, read_chosen, read_frames, taken
from .sampling import Indices, Random, Sampling

SourceName = Literal["frames", "dynamic_images", "images", "flow"]


class Source(Protocol):
    """What a dataset reads."""

    def __call__(self, path: str, sampling: Sampling, random: Random) -> Tensor: ...


@dataclass(frozen=True)
class Pooling:
    """How windows become pictures: the options of `dynpool.dynamic_image`."""

    method: str = "approx"
    nonlinearity: str = "sqrt"
    time_average: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("nonlinearity", NONLINEARITIES)):
            choice(name, getattr(self, name), choices)

    def options(self) -> dict[str, Any]:
        return {"method": self.method, "nonlinearity": self.nonlinearity, "time_average": self.time_average}


@dataclass(frozen=True)
class Frames:
    """The frames themselves: windows one after the other, [W·K, 3, H, W]."""

    geometry: Geometry
    cache: Cache | None = None
    timeout: float | None = None

    def __call__(self, path: str, sampling: Sampling, random: Random) -> Tensor:
        check_video(path)
        seed = int(random.integers(1 << 62))

        def choose(count: int) -> Indices:
            return sampling.indices(count, np.random.default_rng(seed)).reshape(-1)

        size = self.geometry.scaled
        if self.cache is not None:
            frames = _kept(self.cache, ("frames", path, size), lambda: read_frames(path, size, self.timeout))
            indices = choose(len(frames))
            everything = np.array_equal(indices, np.arange(len(frames)))
            return frames if everything and not self.cache.shares else copied(frames, indices)
        if sampling.thins:
            return taken(*read_chosen(path, choose, size, self.timeout))
        frames = read_frames(path, size, self.timeout)
        return taken(frames, choose(len(frames)))


@dataclass(frozen=True)
class DynamicImages:
    """A dynamic image of every window, [W, 3, H, W], made from the frames as the video has them and then scaled.

    With `flow`, it is one of the optical flow from frame to frame (`dynpool.models.optical_flow`), without ψ. Otherwise
    a file that is not played backwards is pooled while it is decoded; without a cache, only windows that are used.
    """

    geometry: Geometry
    cache: Cache | None = None
    pooling: Pooling = Pooling()
    flow: bool = False
    timeout: float | None = None

    def __call__(self, path: str, sampling: Sampling, random: Random) -> Tensor:
        check_video(path)
        backwards, seed = sampling.backwards(random), int(random.integers(1 << 62))
        drawn = np.random.default_rng(seed)
        if self.cache is None:

            def chosen(count: int) -> list[int]:
                return sampling.chosen_starts(count, np.random.default_rng(seed))

            return self._pool(path, sampling, backwards, chosen if sampling.chooses else None)
        offset = 0
        if sampling.jitter:

            def count_frames() -> Tensor:
                return torch.tensor(count_of(path, self.timeout), device="cpu")

            count = _kept(self.cache, ("count", path), count_frames)
            offset = sampling.offset(int(count) - self.flow, drawn)

        def make() -> Tensor:
            starts = (lambda count: sampling.starts(count, min(offset, max(count - 1, 0)))) if offset else None
            return self._pool(path, sampling, backwards, starts)

        windows = self.flow, self.pooling, self.geometry.scaled, sampling.window, sampling.step, offset, backwards
        images = _kept(self.cache, ("dynamic images", path, *windows), make)
        return images[sampling.kept(len(images), drawn)]  # a copy: what is kept is not the caller's

    def _pool(self, path: str, sampling: Sampling, backwards: bool, starts: Starts | None) -> Tensor:
        video: Tensor | str = path
        if self.flow or backwards:
            frames = read_frames(path, None, self.timeout)
            frames = frames.flip(0) if backwards else frames
            video = _flow(frames, path) if self.flow else frames
        options = {**self.pooling.options(), "interleaved": True, "timeout": self.timeout}
        if self.flow:
            options["nonlinearity"] = "identity"
        if sampling.window is not None:
            options.update(window=sampling.window, stride=sampling.step, starts=starts)
        pictures = Pictures(video, Recipe(**options))
        images = self.geometry.scale(pictures)
        warn_of_damage(path, pictures.account.damaged)
        return images


@dataclass(frozen=True)
class Images:
    """Pictures made before, by `dynpool image` or `extract`: <video>.png, or <video>_0000.png, <video>_0001.png, …, or
    those of a tar shard.
    """

    geometry: Geometry

    def __call__(self, path: str, sampling: Sampling, random: Random) -> Tensor:
        paths = pictures_of(path)
        if not paths:
            raise VideoError(path, "is no picture; source 'images' wants <video>.png or <video>_0000.png, …")
        return self.geometry.scale(_picture(paths[index]) for index in sampling.kept(len(paths), random))


def make_source(
    name: SourceName,
    geometry: Geometry,
    sampling: Sampling,
    cache: Cache | None,
    pooling: Pooling,
    timeout: float | None = None,
) -> Source:
    """The source of that name.

    Raises:
        ValueError: the name is unknown, or sampling asks for what the source cannot give.
    """
    choice("source", name, get_args(SourceName))
    if name != "frames" and sampling.frames is not None:
        raise ValueError(f"frames = {sampling.frames} thins the frames of source 'frames', got source {name!r}")
    if name == "images" and sampling.reverse:
        raise ValueError("reverse needs the frames: source 'images' has pictures only")
    if name != "images" and sampling.window is None and sampling.max_windows is not None:
        raise ValueError(f"max_windows has no meaning without window, but for source 'images', got {name!r}")
    _check_pooling(name, pooling)
    if name == "frames":
        return Frames(geometry, cache, timeout)
    if name == "images":
        return Images(geometry)
    if name == "flow" and geometry.flip:
        raise ValueError("flip has no meaning with source 'flow': what moves left would move right")
    return DynamicImages(geometry, cache, pooling, name == "flow", timeout)


def _check_pooling(name: SourceName, pooling: Pooling) -> None:
    """Raise ValueError where the source does not pool, or, of flow, takes no ψ, and is told how to."""
    without = {"frames": pooling.options(), "images": pooling.options(), "flow": ("nonlinearity",)}.get(name, ())
    for option in without:
        if (value := getattr(pooling, option)) != getattr(Pooling, option):
            raise ValueError(f"{option} = {value!r} is of source 'dynamic_images', got source {name!r}")


def _flow(frames: Tensor, path: str) -> Tensor:
    try:
        return optical_flow(frames)
    except ValueError as error:
        raise VideoError(path, f"has no flow: {error}") from error


def _picture(path: Path | Member) -> Image.Image:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        raise VideoError(str(path), f"cannot be read as a picture: {error}") from error


def _kept(cache: Cache, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
    """From the cache, under the key with the version of the file, key[1]; or made. What was made with a warning is not
    kept: of a damaged file, every run is told.
    """
    name = "|".join(map(str, (key[0], file_version(str(key[1])), *key[2:])))
    if (kept := cache.get(name)) is not None:
        return kept
    with warnings.catch_warnings(record=True) as caught:
        made = make()
    if not caught:
        cache.put(name, made)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return made
