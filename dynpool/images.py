"""Videos -> dynamic images: pictures in which the order of the frames is pooled away into motion trails."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .checks import Nonlinearity
from .decoder import Decoder, DecodingError, frame_count, open_video, reason_of, warn_of_damage
from .exact import rank_pool
from .files import File, VideoError, is_file
from .formats import RgbConverter
from .planes import Pool
from .pooling import temporal_pool
from .pools import pool_for
from .recipe import Method, Recipe
from .streaming import Endless, Windows
from .video import Size, Video, read_clip, resized_clip
from .weights import half_norm

# The largest float32 rounding that pixels which never change leave, up to 1600 frames; of more in proportion.
_ROUNDING, _ROUNDED = {"sqrt": 4e-5, "identity": 1e-3}, 1600
_NEARLY_STILL = {"sqrt": 1e-2, "identity": 0.3}  # a third of what a step of a bright pixel, 255 to 254, changes


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
    resize_first: bool = False,
    timeout: float | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The dynamic image of a video (Bilen et al. 2016): one picture of its appearance and motion.

    Args:
        video: a path, folder of images, URL, bytes, binary file object, uint8 Tensor [T, 3, H, W], uint8 ndarray
            [T, H, W, 3] or iterable of frames; see `dynpool.read_clip`.
        method: "approx" is approximate rank pooling, Σ_t α_t ψ(I_t), shown by `to_image`. Its scale does not matter
            there, so α is normalised and long videos do not overflow. "exact" is `rank_pool`, eq. (1), shown likewise.
            "mean" and "max" are the baselines, over the frames: they stay in pixel units, ψ is undone
            (ψ⁻¹(mean ψ(I_t))), and nothing is stretched.
        nonlinearity: ψ of the pixels 0 … 255: "sqrt", as in the paper, or "identity".
        time_average: for "approx" and "exact": rank the running means, eq. (2), or, when False, the frames, eq. (4).
        size: scale the image (bilinear, antialiased) to a short side of `size` pixels, or to (height, width).
        start, end, every, max_frames: use the frames [start:end:every], and of these the first `max_frames` only.
        resize_first: scale the frames, not the pooled image: slower, and another picture, since √ and scaling do not
            commute.
        timeout: seconds that reading a file may take; see `dynpool.read_clip`.
        device: pool on this device; by default where the frames are, the CPU for files.

    A file is pooled while it is decoded, straight from the decoder's planes (but for "exact", which keeps its frames),
    in memory that does not depend on its length. With frames of even size in yuv420p, yuv422p or RGB, that is nearly
    all videos, the image equals that of its RGB frames within a level of 255, or two levels where hardly anything moves
    and min-max blows up the rounding of roots; where nothing does until the last frames, a film is decoded once more,
    and these become RGB (windows of a thousand such frames may be grey, and what a pipe brings, if it is more than 32
    MB, which are not kept). In other formats and odd sizes FFmpeg interpolates colour between its samples where dynpool
    takes the nearest one: single pixels at edges of colours differ by more (of one clip by up to 17 levels as 4:4:4, 25
    as nv12 or in 10 bits, 56 in an odd size). Frames of another size or pixel format than the first become like it:
    after a grey one all are grey. Under ψ = identity rank pooling takes the planes, and their sum becomes RGB, so that
    colours outside of RGB's cube, which a frame would clip, count with what they are: on average pixels differ by half
    a level, the one that does most by 12 levels in the median of 21 clips of UCF101, HMDB51 and Kinetics (36 in one),
    and by 17 in windows of ten frames (50 in one), where such a colour may be the minimum or maximum of the picture. Of
    `read_clip(video).frames` it is that of RGB frames.

    Returns:
        uint8 Tensor [3, H, W]. A video of one frame has no order, and one whose frames are all alike no motion: their
        "approx" or "exact" image is mid-grey, 128.

    Example:
        >>> image = dynamic_image("clip.mp4", size=224)  # doctest: +SKIP
        >>> frames = torch.randint(0, 256, (12, 3, 60, 80), dtype=torch.uint8)
        >>> dynamic_image(frames, size=30).shape
        torch.Size([3, 30, 40])

    Raises:
        VideoError: the file cannot be read as a video.
        FileNotFoundError: there is no such file.
        ImportError: a URL is given and fsspec is missing.
        TypeError, ValueError: an argument does not fit; the message names argument, value and what is allowed.

    Warns:
        RuntimeWarning: parts of the file are damaged, and were skipped or made up by the decoder, or are missing. What
            it makes up, of damage that it does not notice, too, may differ from call to call.
    """
    made = make_images(
        video,
        Recipe(
            method=method,
            nonlinearity=nonlinearity,
            time_average=time_average,
            size=size,
            start=start,
            end=end,
            every=every,
            max_frames=max_frames,
            resize_first=resize_first,
            timeout=timeout,
            device=device,
        ),
    )
    warn_of_damage(video, made.damaged)
    return made.images[0]


def dynamic_images(
    video: Video,
    *,
    window: int,
    stride: int | None = None,
    method: Method = "approx",
    nonlinearity: Nonlinearity = "sqrt",
    time_average: bool = True,
    size: Size | None = None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    resize_first: bool = False,
    timeout: float | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Dynamic images of windows of a video: `window` frames each, one every `stride` frames (by default `window`).

    Windows start at frames 0, stride, 2·stride, … until one reaches the end of the video. It is padded by repeating
    the last frame, as in the authors' released recipe (window 10, stride 6), and so is a video shorter than one window:

        12 frames, window 6, stride 4:   0 1 2 3 4 5 | 4 5 6 7 8 9 | 8 9 10 11 11 11

    Every frame is in some window, unless stride > window leaves gaps. (`approx_rank_pool` drops the tail instead.)

    Args:
        window, stride: in frames, at least 1.
        others: as in `dynamic_image`; each window is an image by itself.

    Returns:
        uint8 Tensor [W, 3, H, W'], W = 1 + ⌈(T - window) / stride⌉ images for T > window, else 1; with stride >
        window, none that would start after the last frame.

    Example:
        >>> frames = torch.randint(0, 256, (12, 3, 60, 80), dtype=torch.uint8)
        >>> dynamic_images(frames, window=5, stride=4).shape  # of frames 0 … 4, 4 … 8, and 8 … 11 and again 11
        torch.Size([3, 3, 60, 80])

    Raises, warns: as `dynamic_image`.
    """
    made = make_images(
        video,
        Recipe(
            method=method,
            nonlinearity=nonlinearity,
            time_average=time_average,
            window=window,
            stride=stride,
            size=size,
            start=start,
            end=end,
            every=every,
            max_frames=max_frames,
            resize_first=resize_first,
            timeout=timeout,
            device=device,
        ),
    )
    warn_of_damage(video, made.damaged)
    return made.images


# --- how ------------------------------------------------------------------------------------------------------------


class Account(NamedTuple):
    """What is known of a video when its last image is out."""

    num_frames: int
    damaged: int


Making: TypeAlias = Generator[Tensor, None, Account]


class Pictures:
    """The images of a video, uint8 [3, H, W], one by one as their windows end: no more is held than the open windows,
    of a file, but for "exact", which keeps the frames, and for windows that `starts` chose; folders and iterables are
    read whole. `account` is there after the last.
    """

    account: Account

    def __init__(self, video: Video, recipe: Recipe) -> None:
        self._video, self._recipe, self._chosen = video, recipe, recipe.check()

    def __iter__(self) -> Iterator[Tensor]:
        video, recipe = self._video, self._recipe
        if is_file(video) and recipe.method != "exact":
            with open_video(video, self._chosen, recipe.timeout) as decoder:
                self.account = yield from self._of_decoder(video, decoder)
        else:
            self.account = yield from _of_frames(video, recipe)

    def _of_decoder(self, video: File, decoder: Decoder) -> Making:
        if self._recipe.starts is None:
            return _while_decoding(decoder, self._recipe)
        count = decoder.expected or frame_count(video, self._chosen, self._recipe.timeout)
        return _of_chosen(decoder, self._recipe, count)


class Made(NamedTuple):
    """What was made of a video."""

    images: Tensor  # uint8 [W, 3, H, W']
    num_frames: int
    damaged: int


def make_images(video: Video, recipe: Recipe) -> Made:
    """`dynamic_images`, with an account of the video."""
    pictures = Pictures(video, recipe)
    return Made(torch.stack(list(pictures)), *pictures.account)


# --- from a decoder -------------------------------------------------------------------------------------------------


def _while_decoding(decoder: Decoder, recipe: Recipe) -> Making:
    feed = _Feed(decoder, recipe)
    if recipe.step is None:
        picture, count = _whole(feed)
        yield picture
    else:
        count = yield from _covering(feed, recipe.step)
    return Account(count, decoder.damaged)


def _covering(feed: _Feed, step: int) -> Generator[Tensor, None, int]:
    """Pictures of the windows that cover the video, and its number of frames. Where packets tell how many there will
    be, no sums are kept for windows that would begin after the last.
    """
    window, expected, made = feed.recipe.window, feed.decoder.expected, 0
    assert window is not None
    starts = range(0, sys.maxsize, step) if expected is None else covering_starts(expected, window, step)
    for picture in _pictures(feed, starts):
        made += 1
        yield picture
    if expected is not None and feed.count > expected:
        yield from _pictures(feed.again(), covering_starts(feed.count, window, step)[made:])
    return feed.count


def _of_chosen(decoder: Decoder, recipe: Recipe, count: int) -> Making:
    """The windows that are wanted of a video of so many frames."""
    assert recipe.starts is not None
    for _ in range(2):  # again if there were not as many frames
        feed = _Feed(decoder, recipe)
        images = list(_pictures(feed, recipe.starts(count)))
        if feed.count == count:
            yield from images
            return Account(count, decoder.damaged)
        count = feed.count
    raise VideoError(decoder.source, "gives another number of frames each time it is decoded")


def _pictures(feed: _Feed, starts: Sequence[int]) -> Iterator[Tensor]:
    recipe = feed.recipe
    assert recipe.window is not None
    weights = None if recipe.method == "max" else recipe.weights(recipe.window)
    return _windows(feed, recipe.window, starts, weights)


class _Feed:
    """Frames of a decoder, in the batches of a pool that is made for the first of them."""

    def __init__(self, decoder: Decoder, recipe: Recipe) -> None:
        self.decoder, self.recipe = decoder, recipe
        self.count, self.last = 0, None
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        assert self._pool is not None
        return self._pool

    def again(self) -> _Feed:
        return _Feed(self.decoder, self.recipe)

    def rgb(self, frames: Iterable[tuple[int, Any]]) -> Iterator[Tensor]:
        """Decoded frames as uint8 [3, H, W], scaled if frames are."""
        convert, size = RgbConverter(), self.recipe.size if self.recipe.resize_first else None
        for number, frame in frames:
            try:
                pixels = convert(frame)
            except (DecodingError, ValueError) as error:
                raise VideoError(self.decoder.source, f"cannot be converted: {reason_of(error)}", number) from error
            yield resized_clip(torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2), size)[0]

    def __iter__(self) -> Iterator[list[Any]]:
        """Batches to be used before the next one is asked for, since frames that are held are memory that the decoder
        has to do without: fresh memory is slow.
        """
        batch: list[Any] = []
        for number, frame in self.decoder.frames():
            takes = self._pool is not None and self._pool.takes(frame)
            batch.append(frame if takes else self._fitting(number, frame))
            if len(batch) == self.pool.batch:
                yield self._counted(batch)
                batch.clear()
        if batch:
            yield self._counted(batch)
        self.decoder.check_any(self.count)

    def _fitting(self, number: int, frame: Any) -> Any:
        recipe = self.recipe
        try:
            if self._pool is None:
                device = torch.device(recipe.device or "cpu")
                size = recipe.size if recipe.resize_first else None
                self._pool = pool_for(
                    frame, recipe.nonlinearity, device, size, colours=recipe.method in ("mean", "max")
                )
            return self._pool.fitting(frame)
        except (DecodingError, ValueError) as error:
            raise VideoError(self.decoder.source, f"cannot be converted: {reason_of(error)}", number) from error

    def _counted(self, batch: list[Any]) -> list[Any]:
        self.count, self.last = self.count + len(batch), batch[-1]
        return batch


def _whole(feed: _Feed) -> tuple[Tensor, int]:
    """The picture of the whole video, and its number of frames."""
    recipe = feed.recipe
    if recipe.method == "max":
        (picture,) = _windows(feed, sys.maxsize, [0], None)
        return picture, feed.count
    expected = feed.decoder.expected
    for _ in range(2):  # again if the number of packets was not that of the frames
        if not expected:
            break
        weights = recipe.weights(expected)
        (row,) = _rows(feed, expected, [0], weights)  # all frames, before others are asked for
        if feed.count == expected:
            return _picture(feed, row, math.fsum(weights)), expected
        expected, feed = feed.count, feed.again()
    return _endless(feed), feed.count


def _windows(feed: _Feed, window: int, starts: Sequence[int], weights: Sequence[float] | None) -> Iterator[Tensor]:
    total = math.fsum(weights or ())
    return (_picture(feed, row, total) for row in _rows(feed, window, starts, weights))


def _rows(feed: _Feed, window: int, starts: Sequence[int], weights: Sequence[float] | None) -> Iterator[Tensor]:
    """Sums, or maxima, of windows: use each before the next is asked for."""
    sums: Windows | None = None
    for batch in feed:
        sums = sums or Windows(feed.pool, window, starts, weights)
        yield from sums.take(batch)
    if sums is not None:
        yield from sums.finish(feed.last)


def _endless(feed: _Feed) -> Tensor:
    """Of a video whose length nothing tells before its end."""
    recipe = feed.recipe
    sums: Endless | None = None
    for batch in feed:
        sums = sums or Endless(feed.pool, recipe.time_average)
        sums.take(batch)
    assert sums is not None
    if recipe.method == "mean":
        return _picture(feed, sums.mean(), 1.0)
    scale = half_norm(feed.count, recipe.time_average) or 1.0
    return _picture(feed, sums.ranked() / scale, 0.0)


def _picture(feed: _Feed, row: Tensor, total: float) -> Tensor:
    """As `Recipe.picture`, of a sum or maximum. Pixels that never change pool to zero, but for rounding, which min-max
    would blow up into a picture of noise: where hardly anything changes, the whole of a video is pooled once more, as
    RGB in float64, and of windows what may be rounding is left out.
    """
    recipe, pool = feed.recipe, feed.pool
    ranked = recipe.method == "approx"
    if ranked and recipe.size is None:
        picture = pool.picture(row, total, _NEARLY_STILL[recipe.nonlinearity], recipe.interleaved)
        if picture is not None:
            return picture
    pooled = pool.image(row, total)
    pooled = pooled.float() if pooled.is_floating_point() else pooled
    if ranked and not _moves(pooled, recipe):
        frames = feed.decoder.frames_again() if recipe.window is None else None
        if frames is not None:
            return recipe.picture(_changes(feed.rgb(frames), feed.count, recipe).to(pooled.device))
        rounding = _ROUNDING[recipe.nonlinearity] * max(1, min(feed.count, recipe.window or feed.count) / _ROUNDED)
        pooled = pooled.where(pooled.abs() > rounding, 0)
    return recipe.picture(pooled)


def _moves(pooled: Tensor, recipe: Recipe) -> bool:
    low, high = pooled.aminmax()
    return bool(high - low > _NEARLY_STILL[recipe.nonlinearity])


# --- from frames in memory ------------------------------------------------------------------------------------------


def _of_frames(video: Video, recipe: Recipe) -> Making:
    size = recipe.size if recipe.resize_first else None
    clip = read_clip(
        video,
        size=size,
        start=recipe.start,
        end=recipe.end,
        every=recipe.every,
        max_frames=recipe.max_frames,
        timeout=recipe.timeout,
    )
    frames = clip.frames if recipe.device is None else clip.frames.to(recipe.device)
    if recipe.window is None or recipe.step is None:
        yield _image(frames, len(frames), recipe)
    else:
        count = len(frames)
        starts = recipe.starts(count) if recipe.starts else covering_starts(count, recipe.window, recipe.step)
        for first in starts:
            yield _image(frames[first : first + recipe.window], recipe.window, recipe)
    return Account(len(frames), clip.damaged)


def covering_starts(num_frames: int, window: int, stride: int) -> range:
    """First frames of the windows that cover the video, of which the last may reach beyond its end."""
    beyond = max(num_frames - window, 0) + stride
    return range(0, min(beyond, num_frames), stride)


def _image(frames: Tensor, count: int, recipe: Recipe) -> Tensor:
    """Image [3, H, W] of frames [K, 3, H, W] whose last one stands for frames K … count."""
    if recipe.method == "max":
        return recipe.picture(frames.amax(0))  # of ψ, which rises, the same
    if recipe.method == "exact":
        padded = torch.cat([frames, frames[-1:].expand(count - len(frames), -1, -1, -1)])
        d = rank_pool(padded, 0, nonlinearity=recipe.nonlinearity, time_average=recipe.time_average)
        return recipe.picture(d.where(frames.amax(0) != frames.amin(0), 0))
    weights = torch.tensor(recipe.weights(count), dtype=torch.float64, device=frames.device)
    pooled = temporal_pool(frames, _folded(weights, len(frames)), 0, nonlinearity=recipe.nonlinearity).contiguous()
    if recipe.method == "approx" and not _moves(pooled, recipe):
        pooled = _changes(frames, count, recipe)
    return recipe.picture(pooled)


def _folded(weights: Tensor, count: int) -> Tensor:
    """Weights of `count` frames of which the last is repeated: it takes the weight of all its copies."""
    return torch.cat([weights[: count - 1], weights[count - 1 :].sum(0, keepdim=True)])


def _changes(frames: Iterable[Tensor], count: int, recipe: Recipe) -> Tensor:
    """Σ_t α_t (ψ(I_t) - ψ(I_1)), float64 [3, H, W]: Σ_t α_t ψ(I_t), but without a rounding where nothing changes. The
    last frame stands for those that lack of `count`.
    """
    alpha, frames = iter(recipe.weights(count)), iter(frames)
    first = last = next(frames)
    next(alpha)
    levels = torch.arange(256, dtype=torch.float64, device=first.device)
    levels = levels.sqrt() if recipe.nonlinearity == "sqrt" else levels
    base = levels[first.long()]
    total = torch.zeros_like(base)

    def add(frame: Tensor, weight: float) -> None:
        if not torch.equal(frame, first):
            total.add_(levels[frame.long()] - base, alpha=weight)

    for last, weight in zip(frames, alpha, strict=False):  # which takes no weight after the last frame
        add(last, weight)
    add(last, math.fsum(alpha))
    return total
