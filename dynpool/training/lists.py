"""What the folder of a run says of its videos: their classes, which it was trained on, and which were missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..data import Listing
from ..files import is_file
from ..terminal import printable
from ..video import numbered_images
from ..writing import whole_file
from .values import ConfigError

CLASSES, TRAINED, MISSING = "classes.txt", "train.txt", "missing.txt"
_GIVEN = "given"  # the split of a folder of train/<class>/… and test/<class>/…


def write_lists(folder: Path, listing: Listing, trained: Sequence[str]) -> None:
    """Classes, what `identities` says of the training videos, and names of those that are listed and not there."""
    _write_lines(folder / CLASSES, listing.classes)
    _write_lines(folder / TRAINED, trained)
    if listing.missing:
        _write_lines(folder / MISSING, listing.missing)


def identities(listing: Listing) -> list[str]:
    """A line a video: bytes and name. Videos of one name on two machines, or before and after, are told apart by their
    bytes: of the file, of the first picture, or of the first and the last frame in a folder.
    """
    inner = f"{listing.subset}/" if listing.split == _GIVEN else ""
    return [f"{_bytes(video.path)} {inner}{printable(video.name)}" for video in listing]


def check_classes(folder: Path, listing: Listing) -> None:
    """Raise ConfigError where the run in a folder says that it is of other classes."""
    known = _lines(folder / CLASSES)
    if known is not None and known != (there := list(map(printable, listing.classes))):
        told = f"{', '.join(known[:5])}, …, than {listing.name}: {', '.join(there[:5])}, …"
        raise ConfigError(f"{folder} has other classes, {told}")


def check_same_videos(folder: Path, listing: Listing, now: Sequence[str]) -> None:
    """Raise ConfigError where the run in a folder says that it is of other videos than there are now."""
    before = _lines(folder / TRAINED)
    if before is None or before == now:
        return
    more, gone = set(now) - set(before), set(before) - set(now)
    changed = _names(more) & _names(gone)
    counts = {"more": _names(more) - changed, "gone": _names(gone) - changed, "changed": changed}
    told = ", ".join(f"{len(names)} {what}, such as {min(names)}" for what, names in counts.items() if names)
    raise ConfigError(
        f"{folder} was trained on other videos than {listing.name} has now ({told or 'in another order'}): bring those "
        f"back; or delete {folder / TRAINED}, to go on with what is there, to another result than without the stop"
    )


def check_held_out(folder: Path, listing: Listing) -> None:
    """Raise ValueError where the run in a folder was trained on some of these videos, told by their names: their bytes
    are others where they were encoded anew, or pictures were made of them. Warns where both halves of a folder have the
    same videos, or where the run does not say what it was trained on.
    """
    lines = _lines(folder / TRAINED)
    if lines is None:
        message = f"{folder} has no {TRAINED}: it may have been trained on videos that it is tested on"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return
    # Halves of a folder may have videos of one name; but either may be given by itself.
    seen = {*lines, *(line.replace(" train/", " ", 1) for line in lines)}
    called = {name.casefold() for name in _names(seen)}
    halves = any(name.startswith("train/") for name in called)
    there = identities(listing if halves else replace(listing, split=""))
    pairs = list(zip(listing, there, strict=True))
    if known := [(video.name, line) for video, line in pairs if _name(line).casefold() in called]:
        alike = any(line in seen for _, line in known)
        told = "" if alike else f" (by name: where they are others, of other bytes, delete {folder / TRAINED})"
        raise ValueError(
            f"{folder} was trained on {len(known)} of the {len(listing)} videos of {listing.name}, such as "
            f"{known[0][0]}{told}: overrides, or a folder that has changed since, must leave them out of the test"
        )
    moved = ((video.name, line.replace(" test/", " train/", 1)) for video, line in pairs)
    if twice := [name for name, line in moved if line in seen and not line.startswith("0 ")]:
        message = (
            f"{len(twice)} videos of {listing.name} are in train/ as well, such as {twice[0]}: results are too good"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _name(line: str) -> str:
    return line.partition(" ")[2]


def _names(lines: Iterable[str]) -> set[str]:
    return set(map(_name, lines))


def _bytes(path: str) -> int:
    try:
        if is_file(path):
            return os.path.getsize(path)
        frames = numbered_images(path)
        return sum(os.path.getsize(os.path.join(path, name)) for name in (*frames[:1], *frames[-1:]))
    except OSError:  # in a tar file, or gone: reading says so
        return 0


def _lines(path: Path) -> list[str] | None:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else None


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Names, which may be of several lines, or no UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text("".join(f"{printable(line)}\n" for line in lines), encoding="utf-8")
