"""From a dataset of videos to one of dynamic images, of which a run that is cut short loses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from .._version import __version__
from ..checks import positive_int
from ..decoder import cores
from ..files import is_url
from ..manifest import Entry, Manifest
from ..recipe import Recipe
from .finding import Found, chosen, find
from .making import Outcome, Work, job_of
from .shards import Shards
from .workers import in_processes, on_ray

_MEGABYTE = 10**6
_SCRATCH = ".dynpool-extract"  # the folder of what is not yet whole
_NOT_IN_IMAGES = "timeout", "device", "interleaved", "starts"  # fields of a recipe that images do not depend on


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
    jpeg: int | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    **recipe: Any,
) -> Report:
    """Make the dynamic images of a dataset of videos.

    They are PNG or JPEG files in folders like those of the videos, out/<class>/<video>.png, or <video>_0000.png, … for
    windows; or samples of WebDataset in tar files (`shard_size`). `dynpool.data` reads both as source "images".

    out/manifest.jsonl has a line on every video. To call this again does what is left: new videos, changed ones (not
    those that are in tar files), those that failed or whose images are gone. A run that is killed loses no video that
    it finished. Images of videos that fail later, or are gone, stay.

    Args:
        source: a folder with videos in it or in folders below, at any depth: files, and folders of numbered images; or
            a URL of a folder with files that fsspec knows ("s3://…").
        out: a folder without videos of the source, on this machine, or, for `ray`, one that all of the cluster write to
            by the same name.
        only: names of videos, such as the lines of a list of UCF101: others are left alone.
        jpeg: write JPEG files of this quality, 1 … 100, with all their colour (4:4:4): at 90 a fifth of the size of PNG
            files, in a tenth of the time, and not quite the images.
        shard_size: megabytes from which on a tar file is closed, and another begun. The images of a video are in memory
            until its last is made. Of a source that is divided into the folders train and test, each is to be extracted
            by itself: a video's label is its folder.
        workers: processes; by default one for every core.
        ray: work on a Ray cluster instead, "auto", "local" or its address.
        recipe: keywords of `dynpool.dynamic_image`, and window and stride as of `dynamic_images`. `timeout` also ends
            the waiting for a file system that does not answer, where the system has timers (not on Windows).

    Raises:
        FileNotFoundError: there are no videos.
        ImportError: fsspec or Ray is needed and missing.
        OSError: out cannot be written, or is full.
        RuntimeError: no process can be started, as when a script calls this without `if __name__ == "__main__":`.
        TypeError, ValueError: an argument makes no sense, or the images in `out` were made with others.
    """
    done, failed = {}, {}
    with Extraction(source, out, Recipe(**recipe), only=only, jpeg=jpeg, shard_size=shard_size) as extraction:
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
        jpeg: int | None = None,
        shard_size: int | None = None,
    ) -> None:
        """Raises what `extract` does."""
        _check(recipe, out, jpeg, shard_size)
        found = find(source)
        _check_apart(found, source, out)
        wanted = found if only is None else chosen(found, only)
        self._classes = sorted({video.of_class for video in found if video.of_class is not None})
        if shard_size is not None and {"train", "test"} <= {name.partition("/")[0] for name in self._classes}:
            raise ValueError(
                "shard_size needs a source of classes, whose videos shards label, "
                f"got {os.fspath(source)!r}, which has the folders train and test: extract each by itself"
            )
        self._recipe = replace(recipe, stride=recipe.step)
        self._jpeg, self._in_shards, self._out = jpeg, shard_size is not None, Path(out).absolute()
        self._scratch = self._out / _SCRATCH
        self._shards: Shards | None = None
        _make_folder(self._out)
        with self._writing():
            self._manifest = Manifest(self._out, self._made())
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)  # of a run that was killed
            self._scratch.mkdir(exist_ok=True)  # where a worker of that still writes
            if shard_size is not None:
                with self._writing():
                    self._shards = Shards(self._out, shard_size * _MEGABYTE, self._manifest.entries.values())
                    for lost in self._shards.lost:  # before the shard grows over where they lay
                        self._manifest.add(Entry(lost.video, lost.version, failed="its images were cut off"))
            self.before = {video.name: entry for video in wanted if (entry := self._done(video)) is not None}
        except BaseException as error:
            self.__exit__(type(error))
            raise
        self._wanted = [video for video in wanted if video.name not in self.before]
        self.left = len(self._wanted)

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            with self._writing():
                self.close()
        except OSError:  # a full disk, which was said already if there was an error before
            if error is None:
                raise

    def close(self) -> None:
        try:
            if self._shards is not None:
                self._shards.close()  # on a full disk this fails, too
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._manifest.close()

    def run(self, workers: int | None = None, ray: str | None = None) -> Iterator[Entry]:
        """Do what is left; yields the entry of every video as it is written to the manifest, failed ones among them."""
        if workers is not None:
            positive_int("workers", workers)
        if workers is not None and ray is not None:
            raise ValueError(f"workers are processes of this machine, got {workers} and ray = {ray!r}")
        wanted = [video for video in self._wanted if self._done(video) is None]
        for video in wanted:
            if video.problem is not None:
                yield self._recorded(video, Outcome.failure(video.problem))
        videos = [video for video in wanted if video.problem is None]
        folder, scratch = (None, None if ray else self._scratch) if self._in_shards else (self._out, self._scratch)
        work = Work(self._recipe, self._jpeg, folder, scratch)
        if videos:
            count = min(workers or cores(), len(videos))
            results = (
                on_ray(work, videos, ray, Outcome.failure)
                if ray
                else in_processes(work, videos, count, Outcome.failure)
            )
            with closing(results):
                for video, outcome in results:
                    yield self._recorded(video, outcome)
        if self._shards is not None:
            with self._writing():
                self._shards.finish()

    def _made(self) -> dict[str, Any]:
        """What must be the same whenever the folder is added to."""
        recipe = {key: value for key, value in asdict(self._recipe).items() if key not in _NOT_IN_IMAGES}
        recipe["size"] = list(recipe["size"]) if isinstance(recipe["size"], tuple) else recipe["size"]
        recipe["jpeg"] = self._jpeg
        if self._in_shards:
            return {**recipe, "format": "shards", "classes": self._classes}
        return {**recipe, "format": "folders"}

    def _done(self, video: Found) -> Entry | None:
        """Its entry, if its images are there, and, of files, which can be replaced, were made of what it still is."""
        entry = self._manifest.entries.get(video.name)
        if entry is None or entry.failed is not None:
            return None
        if self._shards is not None:
            return entry if self._shards.holds(entry) else None
        if video.problem is not None or entry.version != video.version:
            return None
        job = job_of(video, self._out, self._jpeg)
        windows = range(entry.images) if self._recipe.window is not None else [None]
        return entry if all(_is_written(job.path(index)) for index in windows) else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What fails within it is said of the folder: files that are open have no name to tell."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"out cannot be written: {error.strerror}", str(self._out)) from error

    def _recorded(self, video: Found, outcome: Outcome) -> Entry:
        with self._writing():
            if outcome.errno:
                raise OSError(outcome.errno, os.strerror(outcome.errno))
            return self._written(video, outcome)

    def _written(self, video: Found, outcome: Outcome) -> Entry:
        entry = outcome.entry(video)
        if self._shards is not None and outcome.failed is None:
            pictures = outcome.taken()
            counts = {"images": entry.images, "frames": entry.frames, "damaged": entry.damaged}
            about = {"video": video.name, "class": video.of_class, **counts, "dynpool": __version__}
            label = None if video.of_class is None else self._classes.index(video.of_class)
            suffixes = _suffixes(len(pictures), self._recipe.window is not None, self._jpeg)
            files = dict(zip(suffixes, pictures, strict=True))
            shard, begin, end = self._shards.add(video.name, files, about, label)
            entry = replace(entry, shard=shard, begin=begin, end=end)
        if self._recipe.window is not None and self._shards is None and entry.failed is None:
            self._remove_beyond(video, entry)
        self._manifest.add(entry)
        if self._shards is not None:
            self._shards.recorded()
        return entry

    def _remove_beyond(self, video: Found, entry: Entry) -> None:
        """Images of windows that the video had when it was another; some may be gone."""
        before = self._manifest.entries.get(video.name)
        for index in range(entry.images, before.images if before else 0):
            job_of(video, self._out, self._jpeg).path(index).unlink(missing_ok=True)


def _check(recipe: Recipe, out: str | os.PathLike[str], jpeg: int | None, shard_size: int | None) -> None:
    recipe.check()
    if recipe.starts is not None:
        raise ValueError("starts has no meaning for a dataset: windows start every stride frames")
    if jpeg is not None and (not isinstance(jpeg, int) or isinstance(jpeg, bool) or not 1 <= jpeg <= 100):
        raise ValueError(f"jpeg must be a quality from 1 to 100, got {jpeg!r}")
    if shard_size is not None:
        positive_int("shard_size", shard_size)
    if is_url(out) or os.fspath(out) == "-":
        raise ValueError(f"out must be a folder on this machine, got {os.fspath(out)!r}")


def _check_apart(found: list[Found], source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """A folder that has a manifest is one of images: no video in it is looked for again."""
    place = Path(os.path.realpath(out))
    if not place.is_relative_to(os.path.realpath(source)):
        return
    for video in found:
        if Path(os.path.realpath(video.path)).is_relative_to(place):
            told = f"got {os.fspath(out)!r}, which holds {video.path}"
            raise ValueError(f"out must be a folder without videos of source, {told}")


def _is_written(path: Path) -> bool:
    """Not so is a file that a power failure left without its bytes."""
    return path.is_file() and path.stat().st_size > 0


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"out cannot be made a folder: {error.strerror}", str(out)) from error


def _suffixes(count: int, windows: bool, jpeg: int | None) -> list[str]:
    suffix = "png" if jpeg is None else "jpg"
    return [f"{index:04d}.{suffix}" for index in range(count)] if windows else [suffix]
