"""Labelled videos for training and testing: a dataset, and batches of padded videos."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..files import PathLike, VideoError
from ..video import Size, check_timeout
from .cache import make_cache
from .geometry import Crop, Geometry
from .listing import Listing
from .sampling import Random, Sampling
from .sources import Pooling, SourceName, make_source

log = logging.getLogger(__name__)

OnError = Literal["skip", "replace", "raise"]
_TRIES = 20  # videos in a row that cannot be read before something else must be wrong


class Notice(NamedTuple):
    """What was wrong with a file: `skipped` tells whether all of it or only parts are left out."""

    name: str
    reason: str
    skipped: bool


class Item(TypedDict):
    """A video: uint8 [T, 3, H, W], which may be a view of larger frames, and what it is.

    `video` is None where it could not be read.
    """

    video: Tensor | None
    label: int
    name: str
    index: int
    notices: list[Notice]


class Batch(TypedDict):
    """Videos padded with zeros to the longest: uint8 [B, T, 3, H, W], in the memory layout of frames [B, T, H, W, 3];
    `lengths`, `label` and `index` are int64 [B].
    """

    video: Tensor
    lengths: Tensor
    label: Tensor
    index: Tensor
    name: list[str]
    notices: list[Notice]


class Draw(NamedTuple):
    """What a sampler asks of a dataset: a video, as it looks in an epoch."""

    epoch: int
    item: int


@dataclass
class VideoDataset(Dataset[Item]):
    """The videos of a listing.

    Attributes:
        listing: which videos.
        source: "frames"; "dynamic_images", one of each window, made on the fly; "images", pictures made before; or
            "flow", dynamic images of the optical flow.
        sampling: windows, and how many of them.
        size, resize, crop, flip, min_scale: see `Geometry`: the same for all frames of a video.
        method, nonlinearity, time_average: of dynamic images; see `dynpool.dynamic_image`.
        cache: None, "memory" or a folder: what was decoded and pooled, before crop and flip.
        timeout: seconds that reading a video may take; one that takes longer cannot be read.
        seed: what is drawn depends on seed, epoch and index, and not on the number of workers.
        on_error: with a video that cannot be read: "skip" gives an item without video, which `collate` leaves out;
            "replace" gives the next one that can, so that batches stay full; "raise" raises.

    `dataset[i]` is video i in the epoch of `set_epoch`; `dataset[Draw(epoch, i)]` in another.

    Raises:
        VideoError: a video cannot be read, and on_error is "raise"; or twenty in a row with "replace".
        TypeError, ValueError: an argument makes no sense.
    """

    listing: Listing
    source: SourceName = "frames"
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    size: int | None = 224
    resize: Size | None = None
    crop: Crop = "centre"
    flip: bool = False
    min_scale: float = 1.0
    method: str = "approx"
    nonlinearity: str = "sqrt"
    time_average: bool = True
    cache: PathLike | None = None
    timeout: float | None = None
    seed: int = 0
    on_error: OnError = "skip"

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error must be 'skip', 'replace' or 'raise', got {self.on_error!r}")
        self.geometry = Geometry(self.size, self.resize, self.crop, self.flip, self.min_scale)
        pooling = Pooling(self.method, self.nonlinearity, self.time_average)
        check_timeout(self.timeout)
        cache = make_cache(self.cache)
        self._load = make_source(self.source, self.geometry, self.sampling, cache, pooling, self.timeout)
        self._unreadable: dict[int, str] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def clip_frames(self) -> int | None:
        """How many entries of T make a clip: 1 for pictures; None where a video is one clip, whatever its length."""
        return self.sampling.clip_frames if self.source == "frames" else 1

    def set_epoch(self, epoch: int) -> None:
        """Other crops, flips and windows. Loaders with workers want `Draw`s instead: their datasets are copies."""
        self._epoch = epoch

    def __getitem__(self, which: int | Draw) -> Item:
        draw = which if isinstance(which, Draw) else Draw(self._epoch, range(len(self))[which])
        item = self._item(draw)
        if item["video"] is not None or self.on_error == "skip":
            return item
        return self._replacement(draw, item["notices"])

    def _replacement(self, draw: Draw, notices: list[Notice]) -> Item:
        for step in range(1, min(_TRIES, len(self))):
            item = self._item(Draw(draw.epoch, (draw.item + step) % len(self)))
            notices = notices + item["notices"]
            if item["video"] is not None:
                item["notices"] = notices
                return item
        first = notices[0].reason
        raise VideoError(self.listing.name, f"{len(notices)} videos in a row cannot be read, the first: {first}")

    def _item(self, draw: Draw) -> Item:
        video = self.listing[draw.item]
        random = np.random.default_rng([self.seed, draw.epoch, draw.item])
        notices: list[Notice] = []
        frames = self._read(draw.item, random, notices)
        return Item(video=frames, label=video.label, name=video.name, index=draw.item, notices=notices)

    def _read(self, index: int, random: Random, notices: list[Notice]) -> Tensor | None:
        video = self.listing[index]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            try:
                if index in self._unreadable:
                    raise VideoError(video.path, self._unreadable[index])
                frames = self.geometry(self._load(video.path, self.sampling, random), random)
            except (VideoError, OSError) as error:
                if self.on_error == "raise":
                    raise
                self._unreadable[index] = getattr(error, "reason", None) or str(error)
                notices.append(Notice(video.name, str(error), skipped=True))
                return None
        notices += [Notice(video.name, str(w.message), skipped=False) for w in caught]
        return frames


def collate(items: Sequence[Item]) -> Batch:
    """Videos of one frame size into a batch; those that could not be read are left out, and may leave it empty.

    Raises:
        ValueError: frames differ in size.
    """
    read = [(item, item["video"]) for item in items if item["video"] is not None]
    videos = [video for _, video in read]
    return Batch(
        video=_padded(videos) if videos else torch.zeros(0, 1, 3, 1, 1, dtype=torch.uint8, device="cpu"),
        lengths=_numbers(len(video) for video in videos),
        label=_numbers(item["label"] for item, _ in read),
        index=_numbers(item["index"] for item, _ in read),
        name=[item["name"] for item, _ in read],
        notices=[notice for item in items for notice in item["notices"]],
    )


def _numbers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def _padded(videos: Sequence[Tensor]) -> Tensor:
    sizes = {tuple(video.shape[1:]) for video in videos}
    if len(sizes) > 1:
        raise ValueError(f"videos of a batch must have frames of one size, got {sorted(sizes)}: set size")
    channels, height, width = sizes.pop()
    batch = _zeros(len(videos), max(map(len, videos)), height, width, channels).permute(0, 1, 4, 2, 3)
    for row, video in zip(batch, videos, strict=True):
        row[: len(video)] = video
    return batch


def _zeros(*shape: int) -> Tensor:
    """uint8; in a worker, as by torch's own `collate`, in the memory through which it will be handed over.

    The system clears both page by page as they are touched: padding costs nothing. NumPy asks for large pages.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.zeros(shape, np.uint8))
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).view(shape)


class Notices:
    """Files that were skipped, or damaged in part: each is said once, and counted."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}

    def add(self, batch: Batch | Any) -> None:
        for notice in batch["notices"]:
            known = self.skipped if notice.skipped else self.damaged
            if notice.name not in known:
                known[notice.name] = notice.reason
                log.warning("%s: %s%s", self.where, notice.reason, ": skipped" if notice.skipped else "")

    def summary(self) -> str | None:
        """The counts in a line; None where nothing was wrong."""
        if not self.skipped and not self.damaged:
            return None
        return f"{self.where}: {len(self.skipped)} videos skipped, {len(self.damaged)} damaged in part"
