"""Images in tar files as WebDataset reads them: 000000.tar, 000001.tar, …, a sample a video.

A sample is <video>.png, or <video>.0000.png, <video>.0001.png, … for windows, with <video>.json on what they are of
and, where videos lie in folders of classes, <video>.cls, the number of its class. Dots in a video's name become %2e:
after the first dot, WebDataset sees a suffix.

A tar file that is being written is called .part; a run that was killed leaves one, and the next goes on with it from
where the last video ends that the manifest has. Of one that is shorter than the manifest says, as after a power
failure, the rest is `lost`, and has to be made again; if it was closed, it is closed anew.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ..manifest import Entry, key_of

_BLOCK = 512
_END = 2 * _BLOCK  # of zeros
_PART = ".part"
_SHARD = re.compile(r"\d{6}\.tar(\.part)?")


class Shards:
    """The tar files of a folder; one is closed when it has reached `limit` bytes.

    Attributes:
        lost: entries whose images were to lie in a shard after where that ends.
    """

    def __init__(self, folder: Path, limit: int, entries: Iterable[Entry]) -> None:
        self._folder, self._limit = folder, limit
        self._file: BinaryIO | None = None
        self._name = ""
        self.lost: list[Entry] = []
        inside: dict[str, list[tuple[int, Entry]]] = {}
        for entry in entries:
            if entry.shard is not None and entry.end is not None:
                inside.setdefault(entry.shard, []).append((entry.end, entry))
        self._mend(inside)
        self._resume(inside)
        there = [path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name)]
        self._next = 1 + max((int(name[:6]) for name in [*there, *inside]), default=-1)

    def holds(self, entry: Entry) -> bool:
        """Whether the images of a video are there, as its entry says."""
        if entry.shard is None or entry.end is None:
            return False
        places = (self._folder / entry.shard, self._folder / (entry.shard + _PART))
        return any(place.is_file() and place.stat().st_size >= entry.end for place in places)

    def add(self, name: str, files: dict[str, bytes], about: dict[str, Any], label: int | None) -> tuple[str, int, int]:
        """Write a sample, files by their suffixes; returns the name of its shard, and where it begins and ends."""
        file = self._file or self._start()
        begin = file.tell()
        key = key_of(name)
        members = {**files, "json": json.dumps(about).encode()}
        if label is not None:
            members["cls"] = str(label).encode()
        for suffix, data in members.items():
            _write(file, f"{key}.{suffix}", data)
        file.flush()
        return self._name, begin, file.tell()

    def recorded(self) -> None:
        """What was added is in the manifest: a shard that is full may get its name, and is never touched again."""
        if self._file is not None and self._file.tell() >= self._limit:
            self.finish()

    def finish(self) -> None:
        """Close the shard that is being written, and give it its name."""
        if self._file is None:
            return
        self._file.write(bytes(_END))
        self.close()
        (self._folder / (self._name + _PART)).rename(self._folder / self._name)

    def close(self) -> None:
        """Leave the shard that is being written for another run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self) -> BinaryIO:
        self._name = f"{self._next:06d}.tar"
        self._next += 1
        self._file = (self._folder / (self._name + _PART)).open("wb")
        return self._file

    def _resume(self, inside: dict[str, list[tuple[int, Entry]]]) -> None:
        """Go on with the shard that was being written, if there is one; what was not recorded of it is cut off."""
        for path in sorted(self._folder.glob(f"*{_PART}")):
            if not _SHARD.fullmatch(path.name):
                continue
            self.finish()  # of two, which no run leaves
            name, size = path.name.removesuffix(_PART), path.stat().st_size
            recorded = inside.get(name, [])
            cut = max((end for end, _ in recorded if end <= size), default=0)
            self.lost += [entry for end, entry in recorded if end > cut]
            if cut == 0:
                path.unlink()
                continue
            self._name, self._file = name, path.open("r+b")
            self._file.truncate(cut)
            self._file.seek(cut)

    def _mend(self, inside: dict[str, list[tuple[int, Entry]]]) -> None:
        """Closed shards that were cut short end after their last whole sample: no reader takes half a one."""
        for name, recorded in inside.items():
            path = self._folder / name
            if not path.is_file() or (size := path.stat().st_size) >= max(end for end, _ in recorded) + _END:
                continue
            cut = max((end for end, _ in recorded if end <= size), default=0)
            self.lost += [entry for end, entry in recorded if end > cut]
            with path.open("r+b") as file:
                file.truncate(cut)
                file.seek(cut)
                file.write(bytes(_END))


def _write(file: BinaryIO, name: str, data: bytes) -> None:
    """A member, of no time or owner, so that the same images are the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    file.write(member.tobuf() + data + bytes(-len(data) % _BLOCK))
