"""Images in the tar shards of `dynpool extract`, found as if they lay in folders, and read without unpacking.

The first picture of a video goes by the path it would have if its shard were a folder:
<root>/000003.tar/<class>/<video>.png, or <video>_0000.png where there are windows.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..extract.manifest import NAME, is_made, recorded
from ..extract.shards import key_of
from ..files import VideoError, file_state

_PLACE = re.compile(r"(.+)[/\\](\d{6}\.tar)[/\\](.+)\.png", re.DOTALL)  # names may have any character
_WINDOW = "_0000"


class Member(NamedTuple):
    """A picture in a tar file, which opens as a `Path` does."""

    shard: Path
    name: str
    offset: int
    size: int

    def open(self, mode: str = "rb") -> BinaryIO:
        with self.shard.open(mode) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


@dataclass(frozen=True)
class _Samples:
    """Where the sample of every video begins: its shard, and the byte."""

    windows: bool
    begins: dict[str, tuple[str, int]]


def packed_videos(root: Path) -> list[tuple[str, str]]:
    """Class and path of every video that the shards of a folder hold; "" for one without a class."""
    samples = _samples_of(root)
    number = _WINDOW if samples.windows else ""
    return [
        (os.path.dirname(name), f"{root}/{shard}/{name}{number}.png") for name, (shard, _) in samples.begins.items()
    ]


def members_of(path: str | os.PathLike[str]) -> list[Member] | None:
    """The pictures of a video by its path, in order; None for a path that leads into no shard.

    Raises:
        VideoError: they are not where the manifest says.
        OSError: the shard cannot be read.
    """
    place = _PLACE.fullmatch(os.fspath(path))
    if place is None or not is_made(place[1]) or Path(place[1], place[2]).is_dir():
        return None
    root, shard = Path(place[1]), Path(place[1], place[2])
    samples = _samples_of(root)
    name = place[3].removesuffix(_WINDOW) if samples.windows else place[3]
    key, begin = key_of(name), samples.begins.get(name, ("", -1))[1]
    found: list[Member] = []
    try:
        with shard.open("rb") as file:
            file.seek(max(begin, 0))
            for member in tarfile.TarFile(fileobj=file) if begin >= 0 else ():
                sample, _, suffix = member.name.partition(".")
                if sample != key:
                    break
                if suffix.endswith((".png", ".jpg")) or suffix in ("png", "jpg"):
                    found.append(Member(shard, member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise VideoError(str(path), f"cannot be read from its shard: {error}") from error
    if not found:
        raise VideoError(str(path), f"is not in its shard where {NAME} says")
    return found


def _samples_of(root: Path) -> _Samples:
    return _read(str(root), file_state(root / NAME)) if is_made(root) else _Samples(False, {})


@functools.lru_cache(maxsize=4)
def _read(root: str, _: object) -> _Samples:
    made, entries = recorded(root)
    begins = {entry.video: (entry.shard, entry.begin) for entry in entries if entry.shard is not None}
    return _Samples(made.get("window") is not None, begins)
