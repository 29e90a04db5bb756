"""Scale, crop and flip: drawn once for all frames or dynamic images of a video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from ..checks import positive_int
from ..video import Size, Video, check_reading, read_clip
from .sampling import Random

Crop = Literal["centre", "random"]


@dataclass(frozen=True)
class Geometry:
    """From frames of any size to squares of `size` pixels.

    Attributes:
        size: side of the square; None leaves frames as they are, and batches then hold videos of one size only.
        resize: scale to a short side of so many pixels, or to (height, width), before the crop; by default `size`, so
            that the crop loses only what a square must. (size, size) loses nothing and squeezes.
        crop: where the square lies: in the centre, or anywhere; of size None, there is none.
        flip: mirror left and right, every second time.
        min_scale: random squares are `min_scale` … 1 times `size` wide, and scaled up to it.
    """

    size: int | None = 224
    resize: Size | None = None
    crop: Crop = "centre"
    flip: bool = False
    min_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.resize, list):
            object.__setattr__(self, "resize", tuple(self.resize))
        check_reading(self.resize)
        if self.size is not None:
            object.__setattr__(self, "size", positive_int("size", self.size))
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop must be 'centre' or 'random', got {self.crop!r}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale must be above 0 and at most 1, got {self.min_scale!r}")
        if self.min_scale < 1 and self.crop != "random":
            raise ValueError(f"min_scale = {self.min_scale} has no meaning but with crop = 'random', got {self.crop!r}")
        if self.size is None and self.crop != "centre":
            raise ValueError(f"crop = {self.crop!r} has no meaning without size, got None")
        if self.size is not None and self._short_side() < self.size:
            raise ValueError(f"resize must leave room for a crop of size {self.size}, got {self.resize!r}")

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random."""
        return self.crop == "random" or self.flip

    @property
    def scaled(self) -> Size | None:
        """What frames are scaled to before the crop, as `read_clip` takes it."""
        return self.size if self.resize is None else self.resize

    def without_chance(self) -> Geometry:
        """The same with the crop in the centre, and no flip: for testing."""
        return replace(self, crop="centre", flip=False, min_scale=1.0)

    def scale(self, frames: Video) -> Tensor:
        """Frames or pictures, as `read_clip` takes them, scaled as the crop wants them: uint8 [T, 3, H, W]."""
        return read_clip(frames, size=self.scaled).frames

    def __call__(self, frames: Tensor, random: Random) -> Tensor:
        """Crop and flip scaled frames, all alike: uint8 [T, 3, size, size], of which a crop is but a view."""
        if self.size is not None:
            frames = self._crop(frames, self.size, random)
        return frames.flip(-1) if self.flip and random.random() < 0.5 else frames

    def _crop(self, frames: Tensor, size: int, random: Random) -> Tensor:
        height, width = frames.shape[-2:]
        if self.crop == "centre":
            top, left = (height - size) // 2, (width - size) // 2
            return frames[..., top : top + size, left : left + size]
        side = round(size * random.uniform(self.min_scale, 1)) if self.min_scale < 1 else size
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        square = frames[..., top : top + side, left : left + side]
        return square if side == size else read_clip(square, size=(size, size)).frames

    def _short_side(self) -> int:
        scaled = self.scaled or 0
        return scaled if isinstance(scaled, int) else min(scaled)
