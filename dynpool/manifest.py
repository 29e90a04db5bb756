"""What a folder of dynamic images holds: manifest.jsonl, a line on how they were made, then one on every video.

A line is written when its video is done, or has failed; of several on one video the last holds. So a run that was
killed has lost nothing that it finished, and the next one knows what is left to do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

NAME = "manifest.jsonl"
_BEGINNING = b'{"made": '


@dataclass(frozen=True)
class Entry:
    """A video: how many images were made of so many frames, of which size, and, in tar files, where they are."""

    video: str
    version: str
    images: int = 0
    frames: int = 0
    damaged: int = 0  # packets, or files of a folder, that could not be read
    width: int = 0
    height: int = 0
    shard: str | None = None
    begin: int = 0  # bytes of the shard before the first of them
    end: int | None = None  # and up to the last
    failed: str | None = None  # why


class Manifest:
    """The manifest of a folder, which this process alone writes while it is open.

    Raises:
        ValueError: the images there were made otherwise than `made` says, the file is none of ours, or another process
            is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.entries: dict[str, Entry] = {}
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read(made)
        except BaseException:
            self._file.close()
            raise

    def add(self, entry: Entry) -> None:
        """A line at the end."""
        self.entries[entry.video] = entry
        self._write({key: value for key, value in asdict(entry).items() if value not in (None, 0)})

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out must not be written by two runs at once: another one has {self.path}") from None

    def _read(self, made: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        before, entries, whole = _parsed(self.path, data)
        if whole and (different := _differences(before, made)):
            raise ValueError(f"out must be another folder: the images in it were made with other settings, {different}")
        self.entries = {entry.video: entry for entry in entries}
        self._file.truncate(whole)
        if not whole:
            self._write({"made": made})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def recorded(folder: str | Path) -> tuple[dict[str, Any], list[Entry]]:
    """How a folder's images were made, and the entries of its videos.

    Raises:
        OSError, ValueError: there is no manifest, or none of ours.
    """
    path = Path(folder, NAME)
    made, entries, _ = _parsed(path, path.read_bytes())
    return made, list({entry.video: entry for entry in entries}.values())


def how_made(folder: str | Path) -> dict[str, Any] | None:
    """How a folder's images were made, as its first line says; None where there is none of ours."""
    if not is_made(folder):
        return None
    try:
        with Path(folder, NAME).open("rb") as file:
            return _made(file.readline().rstrip())
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_made(folder: str | Path) -> bool:
    """Whether a folder holds images that were made, and not videos."""
    try:
        with Path(folder, NAME).open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def _parsed(path: Path, data: bytes) -> tuple[dict[str, Any], list[Entry], int]:
    """How the images were made, the entries, and how many bytes are whole lines: the last of a run that was killed may
    not be one.
    """
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    try:
        return _made(lines[0] if lines else data), [Entry(**json.loads(line)) for line in lines[1:]], whole
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} must be a manifest of dynpool, got a line that is none: {error}") from error


def _made(line: bytes) -> dict[str, Any]:
    """What the first line says; of one that was cut off, nothing."""
    if not line.endswith(b"}") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        return {}
    made = json.loads(line)["made"]
    if not isinstance(made, dict):
        raise TypeError(f"made must be an object, got {made!r}")
    return made


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, lists by what one has and the other has not."""
    told = []
    for key in [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        one, other = before.get(key), now.get(key)
        if isinstance(one, list) and isinstance(other, list):
            gone, new = ([item for item in a if item not in b] for a, b in ((one, other), (other, one)))
            one, other = (f"{len(items)} items that the other has not: {items[:3]}" for items in (gone, new))
        told.append(f"{key} = {one!r}, now {other!r}")
    return ", ".join(told)


def key_of(name: str) -> str:
    """What the samples of a video are called."""
    return name.replace("%", "%25").replace(".", "%2e")
