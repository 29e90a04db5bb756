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
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..files import VideoError, file_state
from ..manifest import NAME, is_made, key_of, recorded

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
class _Images:
    """What `dynpool extract` has made in a folder."""

    windows: bool
    begins: dict[str, tuple[str, int]]  # by video: its shard, and the byte where its sample begins
    singles: dict[str, frozenset[str]]  # by folder: videos of which one picture lies there


def packed_videos(root: Path) -> list[tuple[str, str, str]]:
    """Class, name in it and path of every video that the shards of a folder hold; "" for one without a class."""
    made = _made_in(root)
    number = _WINDOW if made.windows else ""
    return [(*os.path.split(name), f"{root}/{shard}/{name}{number}.png") for name, (shard, _) in made.begins.items()]


def single_pictures(folder: str | os.PathLike[str]) -> frozenset[str]:
    """Videos of which `dynpool extract` made one picture in a folder, on its own or with others: a number at the end of
    their names is that of no window.
    """
    found: frozenset[str] = frozenset()
    for path in {Path(os.path.abspath(folder)), Path(os.path.realpath(folder))}:
        for root in (path, *path.parents[:2]):
            found |= _made_in(root).singles.get(path.relative_to(root).as_posix(), frozenset())
    return found


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
    made = _made_in(root)
    name = place[3].removesuffix(_WINDOW) if made.windows else place[3]
    key, begin = key_of(name), made.begins.get(name, ("", -1))[1]
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


def _made_in(root: Path) -> _Images:
    return _read(str(root), file_state(root / NAME)) if is_made(root) else _Images(False, {}, {})


@functools.lru_cache(maxsize=4)
def _read(root: str, _: object) -> _Images:
    made, entries = recorded(root)
    begins = {entry.video: (entry.shard, entry.begin) for entry in entries if entry.shard is not None}
    windows, singles = made.get("window") is not None, defaultdict(set)
    for entry in entries if not windows else ():
        folder, name = os.path.split(entry.video)
        singles[folder or "."].add(name)
    return _Images(windows, begins, {folder: frozenset(names) for folder, names in singles.items()})
