"""How fast videos come out of a loader, beside how fast they can be decoded at all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from ..decoder import TOLERANT
from .dataset import VideoDataset
from .loader import loader

_BATCHES = 1000  # of an epoch, at least


class Throughput(NamedTuple):
    """Videos and frames a second of a loader, and frames a second of the decoder alone in as many processes."""

    videos: float
    frames: float
    decoded: float

    @property
    def share(self) -> float:
        """Of the decoder's rate: 1 is decode-bound."""
        return self.frames / self.decoded


def measure(dataset: VideoDataset, num_workers: int = 0, batch_size: int = 8, seconds: float = 5.0) -> Throughput:
    """Read files for about `seconds` by a loader, then for as long by the decoder alone, which makes no RGB frames.

    Both start their processes and read one batch before the clock runs. An epoch goes through the listing many times:
    where it ends, workers wait for the slowest. A cache would make the figures meaningless.

    Raises:
        ValueError: the dataset has a cache, reads pictures, or has no videos.
    """
    if dataset.cache is not None or dataset.source == "images":
        raise ValueError("throughput is that of video files without a cache")
    if not len(dataset):
        raise ValueError(f"dataset must have videos, got an empty listing of {dataset.listing.dataset}")
    paths = [video.path for video in dataset.listing]
    counts = _decoded(paths)
    listing = replace(dataset.listing, videos=dataset.listing.videos * -(-_BATCHES * batch_size // len(paths)))
    loaded = loader(replace(dataset, listing=listing), batch_size, num_workers=num_workers)
    batches = (batch["index"].tolist() for _ in itertools.count() for batch in loaded)
    videos, frames = _rate(
        batches, lambda indices: (len(indices), sum(counts[listing[i].path] for i in indices)), seconds
    )
    return Throughput(videos, frames, _decoder_rate(paths, num_workers, seconds))


def _decoder_rate(paths: list[str], num_workers: int, seconds: float) -> float:
    if num_workers == 0:
        return _decode_for(paths, seconds)
    with ProcessPoolExecutor(num_workers) as pool:
        list(pool.map(count_frames, paths[:num_workers]))
        return sum(pool.map(_decode_for, [paths] * num_workers, [seconds] * num_workers))


def _decode_for(paths: list[str], seconds: float) -> float:
    """Frames a second of this process."""
    counts = (count_frames(path) for _ in itertools.count() for path in paths)
    return _rate(counts, lambda frames: (1, frames), seconds)[1]


def _rate(work: Iterable[object], count: Callable[..., tuple[int, int]], seconds: float) -> tuple[float, float]:
    """Videos and frames a second, the first piece of work left out."""
    pieces = iter(work)
    next(pieces)
    videos = frames = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        more = count(next(pieces))
        videos, frames = videos + more[0], frames + more[1]
    return videos / passed, frames / passed


def _decoded(paths: list[str]) -> dict[str, int]:
    return {path: count_frames(path) for path in paths}


def count_frames(path: str) -> int:
    """Decode a file, and nothing else: one thread, no conversion; frames that cannot be decoded do not count."""
    import av

    count = 0
    with av.open(path, **TOLERANT) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            try:
                count += len(packet.decode())
            except av.FFmpegError:
                continue
    return count
