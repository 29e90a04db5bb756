"""From a dataset of videos to one of dynamic images, of which a run that is cut short loses nothing."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._version import __version__
from ..decoder import cores
from ..files import failure
from ..images import Pictures, Recipe
from ..video import check_count
from ..writing import SCRATCH, Job, save_png, write_pictures
from .finding import Found, chosen, find
from .manifest import Entry, Manifest
from .shards import Shards
from .workers import in_processes, on_ray

_MEGABYTE = 10**6
_NOT_IN_IMAGES = "timeout", "device", "starts"  # fields of a recipe that images do not depend on


class Report(NamedTuple):
    """What became of the videos: entries of those done now, and those that were there before; why others failed."""

    done: dict[str, Entry]
    before: dict[str, Entry]
    failed: dict[str, str]


def extract(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    only: Iterable[str] | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    **recipe: Any,
) -> Report:
    """Make the dynamic images of a dataset of videos.

    They are PNG files in folders like those of the videos, out/<class>/<video>.png, or <video>_0000.png, … for windows,
    which `dynpool.data` reads as source "images"; or samples of WebDataset in tar files (`shard_size`).

    out/manifest.jsonl has a line on every video. To call this again does what is left: new videos, changed ones, those
    that failed or whose images are gone. A run that is killed loses no video that it finished, and leaves none half
    done.

    Args:
        source: a folder with videos in it or in folders below, at any depth: files, and folders of numbered images; or
            a URL of such a folder that fsspec knows ("s3://…").
        out: a folder on this machine, or, for `ray`, one that all of the cluster write to by the same name.
        only: names of videos, such as the lines of a list of UCF101: others are left alone.
        shard_size: megabytes from which on a tar file is closed, and another begun. The images of a video are in memory
            until its last is made.
        workers: processes; by default one for every core.
        ray: work on a Ray cluster instead, "auto", "local" or its address.
        recipe: keywords of `dynpool.dynamic_image`, and window and stride as of `dynamic_images`.

    Raises:
        FileNotFoundError: there are no videos.
        ImportError: fsspec or Ray is needed and missing.
        OSError: out cannot be written.
        TypeError, ValueError: an argument makes no sense, or the images in `out` were made with others.
    """
    done, failed = {}, {}
    with Extraction(source, out, Recipe(**recipe), only=only, shard_size=shard_size) as extraction:
        for entry in extraction.run(workers, ray):
            if entry.failed is None:
                done[entry.video] = entry
            else:
                failed[entry.video] = entry.failed
        return Report(done, extraction.before, failed)


class Extraction:
    """`extract` step by step: what there is to do, then `run`. To be closed, or used in a with statement.

    Attributes:
        before: entries of the videos that were done before.
        left: how many are to be done.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        recipe: Recipe,
        *,
        only: Iterable[str] | None = None,
        shard_size: int | None = None,
    ) -> None:
        """Raises what `extract` does."""
        recipe.check()
        if recipe.stride is not None and recipe.window is None:
            raise ValueError(f"stride has no meaning without window, got {recipe.stride!r}")
        recipe = replace(recipe, stride=recipe.stride or recipe.window)
        if shard_size is not None:
            check_count("shard_size", shard_size)
        found = find(source)
        self._classes = sorted({video.of_class for video in found if video.of_class is not None})
        self._recipe, self._out = recipe, Path(out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._manifest = Manifest(self._out, self._made(shard_size is not None))
        self._shards: Shards | None = None
        try:
            self._tidy()
            if shard_size is not None:
                self._shards = Shards(self._out, shard_size * _MEGABYTE, self._manifest.entries.values())
            wanted = found if only is None else chosen(found, only)
            self.before = {video.name: entry for video in wanted if (entry := self._done(video)) is not None}
        except BaseException:
            self.close()
            raise
        self._wanted = [video for video in wanted if video.name not in self.before]
        self.left = len(self._wanted)

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._shards is not None:
            self._shards.close()
        self._manifest.close()

    def run(self, workers: int | None = None, ray: str | None = None) -> Iterator[Entry]:
        """Do what is left; yields the entry of every video as it is written to the manifest, failed ones among them."""
        if workers is not None:
            check_count("workers", workers)
        work = _Work(self._recipe, None if self._shards is not None else str(self._out.absolute()))
        videos = []
        for video in self._wanted:
            if (reason := self._hopeless(video)) is None:
                videos.append(video)
            else:
                yield self._failed(video, reason)
        if videos:
            count = min(workers or cores(), len(videos))
            results = on_ray(work, videos, ray, _failed) if ray else in_processes(work, videos, count, _failed)
            with closing(results):
                for video, outcome in results:
                    yield self._recorded(video, outcome)
        if self._shards is not None:
            self._shards.finish()

    def _made(self, shards: bool) -> dict[str, Any]:
        """What must be the same whenever the folder is added to."""
        recipe = {key: value for key, value in asdict(self._recipe).items() if key not in _NOT_IN_IMAGES}
        recipe["size"] = list(recipe["size"]) if isinstance(recipe["size"], tuple) else recipe["size"]
        return {**recipe, "classes": self._classes, "format": "shards"} if shards else {**recipe, "format": "folders"}

    def _tidy(self) -> None:
        """Remove what a run that was killed has left: no other is at work here."""
        for folder in self._out.glob(f"{SCRATCH}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _done(self, video: Found) -> Entry | None:
        """Its entry, if its images are there, and were made of what it still is."""
        entry = self._manifest.entries.get(video.name)
        if entry is None or entry.failed is not None or video.problem or entry.version != video.version:
            return None
        if self._shards is not None:
            return entry if self._shards.holds(entry) else None
        job = _job(video, self._out)
        windows = range(entry.images) if self._recipe.window is not None else [None]
        return entry if all(job.path(index).is_file() for index in windows) else None

    def _hopeless(self, video: Found) -> str | None:
        """Why it cannot be done, if it cannot."""
        if video.problem is None and (shard := self._shard_of(video)) is not None:
            return f"has changed since it was written to {shard}, from which nothing can be taken"
        return video.problem

    def _shard_of(self, video: Found) -> str | None:
        before = self._manifest.entries.get(video.name)
        held = before is not None and self._shards is not None and self._shards.holds(before)
        return before.shard if before is not None and held else None

    def _failed(self, video: Found, reason: str) -> Entry:
        entry = _failed(reason).entry(video)
        if self._shard_of(video) is None:  # else the manifest keeps where the images are
            self._manifest.add(entry)
        return entry

    def _recorded(self, video: Found, outcome: _Outcome) -> Entry:
        entry = outcome.entry(video)
        if self._shards is not None and outcome.pictures is not None:
            counts = {"images": entry.images, "frames": entry.frames, "damaged": entry.damaged}
            about = {"video": video.name, "class": video.of_class, **counts, "dynpool": __version__}
            label = None if video.of_class is None else self._classes.index(video.of_class)
            shard, end = self._shards.add(video.name, outcome.pictures, self._recipe.window is not None, about, label)
            entry = replace(entry, shard=shard, end=end)
        self._manifest.add(entry)
        return entry


# --- in a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """What a worker made of a video; pictures are PNG files that it has not written."""

    images: int = 0
    frames: int = 0
    damaged: int = 0
    width: int = 0
    height: int = 0
    pictures: list[bytes] | None = None
    failed: str | None = None

    def entry(self, video: Found) -> Entry:
        fields = {key: value for key, value in vars(self).items() if key != "pictures"}
        return Entry(video.name, video.version, **fields)


def _failed(reason: str) -> _Outcome:
    return _Outcome(failed=reason)


@dataclass(frozen=True)
class _Work:
    """The images of a video: into the folder, or, without one, handed back."""

    recipe: Recipe
    folder: str | None

    def __call__(self, video: Found) -> _Outcome:
        torch.set_num_threads(1)  # its siblings have the other cores
        try:
            return self._made(video)
        except Exception as error:  # whatever goes wrong with one video, the others are done
            return _failed(failure(error))

    def _made(self, video: Found) -> _Outcome:
        pictures = Pictures(video.path, self.recipe)
        if self.folder is None:
            data, (width, height) = _as_bytes(pictures)
            return _Outcome(len(data), *pictures.account, width, height, data)
        job, windows = _job(video, Path(self.folder)), self.recipe.window is not None
        job.folder.mkdir(parents=True, exist_ok=True)
        paths, (width, height) = write_pictures(pictures, job, windows, scratch=Path(self.folder))
        if windows:
            _remove_from(len(paths), job)
        return _Outcome(len(paths), *pictures.account, width, height)


def _remove_from(index: int, job: Job) -> None:
    """Images of more windows, which the video had when it was another."""
    while (path := job.path(index)).is_file():
        path.unlink()
        index += 1


def _as_bytes(pictures: Pictures) -> tuple[list[bytes], tuple[int, int]]:
    data, size = [], (0, 0)
    for pixels in pictures:
        file = io.BytesIO()
        size = save_png(pixels, file)
        data.append(file.getvalue())
    return data, size


def _job(video: Found, out: Path) -> Job:
    place = out / video.name
    return Job(video.path, place.parent, place.name)
