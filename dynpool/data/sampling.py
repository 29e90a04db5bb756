"""Which frames of a video a network sees: windows, how many of them, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..checks import positive_int
from ..images import covering_starts

Random = np.random.Generator
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """Windows of a video.

    Windows start at frames o, o + stride, o + 2·stride, … until one reaches the end of the video, and are padded with
    its last frame, as `dynpool.dynamic_images` does; o is 0 but for jitter:

        12 frames, window 6, stride 4:   0 1 2 3 4 5 | 4 5 6 7 8 9 | 8 9 10 11 11 11

    Attributes:
        window: frames in a window; None is one window, the whole video.
        stride: frames from one window to the next; by default `window`.
        max_windows: use no more windows of a video (of source "images": pictures): evenly spread ones, the first and
            the last among them (one: the middle), or, with jitter, as many drawn at random. Their order stays that of
            time.
        frames: thin each window (the whole video) to this many frames: the middles of equal parts of it, or, with
            jitter, a frame drawn from each part. Shorter ones stay as they are.
        jitter: draw o from 0 … stride - 1 (as far as a whole window fits after it), and draw windows and frames.
        reverse: probability with which the frames run backwards; 1 is always.
    """

    window: int | None = None
    stride: int | None = None
    max_windows: int | None = None
    frames: int | None = None
    jitter: bool = False
    reverse: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window", "stride", "max_windows", "frames"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, positive_int(name, value))
        if self.window is None and self.stride is not None:
            raise ValueError(f"stride has no meaning without window, got {self.stride}")
        if not isinstance(self.jitter, bool):
            raise ValueError(f"jitter must be true or false, got {self.jitter!r}")
        if self.jitter and not (self.window or self.frames or self.max_windows):
            raise ValueError("jitter has no meaning without window, frames or max_windows, of which it draws")
        if not isinstance(self.reverse, (int, float)) or not 0 <= self.reverse <= 1:
            raise ValueError(f"reverse must be a probability between 0 and 1, got {self.reverse!r}")

    @property
    def step(self) -> int:
        """Frames from one window to the next."""
        return self.stride or self.window or 1

    @property
    def thins(self) -> bool:
        """Whether many frames of a video may be left out."""
        return bool(self.frames or self.max_windows or self.step > (self.window or 1))

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random."""
        return self.jitter or 0 < self.reverse < 1

    @property
    def chooses(self) -> bool:
        """Whether windows start elsewhere than at 0, step, 2·step, …, or not all of them are used."""
        return self.window is not None and (self.jitter or self.max_windows is not None)

    @property
    def clip_frames(self) -> int | None:
        """Frames of every window, as they come out; None where that depends on the video."""
        if self.window is None:
            return 1 if self.frames == 1 else None
        return min(self.window, self.frames or self.window)

    def without_chance(self) -> Sampling:
        """The same without jitter or random reversal: for testing."""
        return replace(self, jitter=False, reverse=float(self.reverse == 1))

    def backwards(self, random: Random) -> bool:
        """Whether the frames run backwards this time."""
        return self.reverse == 1 or (self.reverse > 0 and bool(random.random() < self.reverse))

    def offset(self, num_frames: int, random: Random) -> int:
        """First frame of the first window, counted in the order in which the frames run."""
        if not self.jitter or self.window is None:
            return 0
        slack = min(self.step - 1, max(num_frames - self.window, 0))
        return int(random.integers(slack + 1))

    def starts(self, num_frames: int, offset: int = 0) -> list[int]:
        """First frames of all windows from `offset` on, counted in the order in which the frames run."""
        return window_starts(num_frames, self.window or num_frames, self.step, offset)

    def kept(self, num_windows: int, random: Random) -> list[int]:
        """Which of the windows are used."""
        limit = self.max_windows
        if limit is None or num_windows <= limit:
            return list(range(num_windows))
        if self.jitter:
            return sorted(random.choice(num_windows, limit, replace=False).tolist())
        if limit == 1:
            return [(num_windows - 1) // 2]
        return [round(index * (num_windows - 1) / (limit - 1)) for index in range(limit)]

    def chosen_starts(self, num_frames: int, random: Random) -> list[int]:
        """First frames of the windows that are used, in the order in which the frames run."""
        starts = self.starts(num_frames, self.offset(num_frames, random))
        return [starts[index] for index in self.kept(len(starts), random)]

    def indices(self, num_frames: int, random: Random) -> Indices:
        """Frames [W, K] of a video of `num_frames` frames, window by window, in the order in which they run."""
        backwards = self.backwards(random)
        starts = self.chosen_starts(num_frames, random)
        played = window_frames(starts, self.window or num_frames, num_frames, backwards)
        return played[:, self._thinned(played.shape[1], random)]

    def _thinned(self, count: int, random: Random) -> Indices:
        """Places of the frames of a window that are used."""
        if self.frames is None or self.frames >= count:
            return np.arange(count)
        edges = np.linspace(0, count, self.frames + 1)
        places = random.uniform(edges[:-1], edges[1:]) if self.jitter else (edges[:-1] + edges[1:]) / 2
        return np.minimum(places.astype(np.int64), count - 1)


def window_frames(starts: Sequence[int], window: int, num_frames: int, backwards: bool = False) -> Indices:
    """Frames [W, window] of windows that start there; past the end of the video, its last frame again."""
    played = np.minimum(np.array(starts)[:, None] + np.arange(window), num_frames - 1)
    return num_frames - 1 - played if backwards else played


def window_starts(num_frames: int, window: int, stride: int, offset: int = 0) -> list[int]:
    """First frames of the windows that cover frames offset … num_frames - 1; the last may reach beyond the end."""
    return [offset + start for start in covering_starts(num_frames - offset, window, stride)]


RecipeName = Literal["whole", "paper", "authors_release"]


def recipe(name: RecipeName, train: bool) -> Sampling:
    """Windows as in the literature.

    "whole" is one window; "paper" has 25 frames every 20 (section 4.2; 5 frames, 20 %, overlap);
    "authors_release" 10 every 6, at most 10 of them in training, jittered, and 20 in testing.
    """
    if name == "whole":
        return Sampling()
    if name == "paper":
        return Sampling(window=25, stride=20)
    if name == "authors_release":
        return Sampling(window=10, stride=6, max_windows=10 if train else 20, jitter=train)
    raise ValueError(f"recipe must be 'whole', 'paper' or 'authors_release', got {name!r}")
