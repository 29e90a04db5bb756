"""From a video to files of its dynamic images: what a worker does."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp, mkstemp

import torch

from ..files import TimeLimit, failure
from ..images import Pictures
from ..manifest import Entry
from ..recipe import Recipe
from ..writing import Job, encoded, write_pictures
from .finding import Found

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EROFS  # what would fail one video after the other
_GRACE = 1.0  # seconds
_LONGEST_ALARM = 1e8  # seconds, which systems can count


@dataclass(frozen=True)
class Outcome:
    """What a worker made of a video; pictures that are no images of the folder are handed back, or kept in files of
    their own; errno is why it could write none.
    """

    images: int = 0
    frames: int = 0
    damaged: int = 0
    width: int = 0
    height: int = 0
    failed: str | None = None
    pictures: list[bytes] | None = None
    kept: Job | None = None
    errno: int = 0

    @classmethod
    def failure(cls, reason: str) -> Outcome:
        return cls(failed=reason)

    def entry(self, video: Found) -> Entry:
        fields = {key: value for key, value in vars(self).items() if key not in ("pictures", "kept", "errno")}
        return Entry(video.name, video.version, **fields)

    def taken(self) -> list[bytes]:
        """The pictures, which are kept no longer."""
        if self.kept is None:
            return self.pictures or []
        pictures = [self.kept.path(index).read_bytes() for index in range(self.images)]
        shutil.rmtree(self.kept.folder, ignore_errors=True)
        return pictures


@dataclass(frozen=True)
class Work:
    """The images of a video: into the folder, or, without one, kept in `scratch`. Where there is none either, as on
    other machines, they are handed back: not through a pipe, where who dies half way keeps all others waiting.
    """

    recipe: Recipe
    jpeg: int | None
    folder: Path | None
    scratch: Path | None

    def __call__(self, video: Found) -> Outcome:
        torch.set_num_threads(1)  # its siblings have the other cores
        try:
            with _ended_after(self.recipe.timeout, video.path):
                return self._made(video)
        except Exception as error:  # whatever goes wrong with one video, the others are done
            if isinstance(error, OSError) and error.errno in _FULL:
                return Outcome(errno=error.errno)
            return Outcome.failure(failure(error))

    def _made(self, video: Found) -> Outcome:
        pictures = Pictures(video.path, replace(self.recipe, interleaved=True))
        if self.folder is None and self.scratch is not None:
            job = Job(video.path, Path(mkdtemp(dir=self.scratch)), "picture", suffix_of(self.jpeg))
            paths, (width, height) = write_pictures(pictures, job, True, self.jpeg, self.scratch)
            return Outcome(len(paths), *pictures.account, width, height, kept=job)
        if self.folder is None:
            data, (width, height) = _as_bytes(pictures, self.jpeg)
            return Outcome(len(data), *pictures.account, width, height, pictures=data)
        job, windows = job_of(video, self.folder, self.jpeg), self.recipe.window is not None
        job.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.scratch if self.scratch is not None and _moves(self.scratch, job.folder) else None
        paths, (width, height) = write_pictures(pictures, job, windows, self.jpeg, scratch)
        if windows:
            _remove_from(len(paths), job)
        return Outcome(len(paths), *pictures.account, width, height)


@contextmanager
def _ended_after(timeout: float | None, source: str) -> Iterator[None]:
    """VideoError some time after reading should have noticed: a file system may not answer."""
    if timeout is None or not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise TimeLimit(source, timeout).exceeded()

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, min(timeout + _GRACE, _LONGEST_ALARM))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@functools.lru_cache(maxsize=4096)
def _moves(scratch: Path, folder: Path) -> bool:
    """Whether files do from here to there: not to another file system, nor to another mount of the same, as a class
    folder may be.
    """
    file, path = mkstemp(prefix=".dynpool-", dir=scratch)
    os.close(file)
    moved = folder / Path(path).name
    try:
        os.replace(path, moved)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    finally:
        for place in (Path(path), moved):
            place.unlink(missing_ok=True)
    return True


def _remove_from(index: int, job: Job) -> None:
    """Images of more windows, which the video had when it was another."""
    while (path := job.path(index)).is_file():
        path.unlink()
        index += 1


def _as_bytes(pictures: Pictures, jpeg: int | None) -> tuple[list[bytes], tuple[int, int]]:
    data, size = [], (0, 0)
    for pixels in pictures:
        picture, size = encoded(pixels, jpeg)
        data.append(picture)
    return data, size


def job_of(video: Found, out: Path, jpeg: int | None) -> Job:
    place = out / video.name
    return Job(video.path, place.parent, place.name, suffix_of(jpeg))


def suffix_of(jpeg: int | None) -> str:
    return ".png" if jpeg is None else ".jpg"
