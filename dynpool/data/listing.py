"""Which videos there are: a `Listing`, and how the videos that it names are found on disk."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..files import PathLike
from ..video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, numbered_images
from .packed import Member, members_of, packed_videos, single_pictures

Subset = Literal["train", "test"]

_NUMBER = r"\d{4}|[1-9]\d{4,}"
_WINDOW_NUMBER = re.compile(rf"_(?:{_NUMBER})$")  # of clip_0000.png, clip_0001.png, ..., as `dynpool image` writes them
_VIDEO, _FOLDER, _PICTURE, _PICTURES = range(4)  # which of several places holds a video: the first of these


class Video(NamedTuple):
    """One labelled video: a file, a folder of numbered frames, or the (first) picture of its dynamic images."""

    path: str
    label: int
    name: str


@dataclass(frozen=True)
class Listing(Sequence[Video]):
    """Videos of one subset of one split.

    Attributes:
        videos: those that are there.
        classes: names of the classes; a label is an index into them.
        dataset, split, subset: what every result says of its data.
        missing: names of those that were listed and not found.
    """

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    dataset: str
    split: str
    subset: str
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as in Sequence: an int or a slice
        return self.videos[index]

    def __iter__(self) -> Iterator[Video]:
        return iter(self.videos)

    @property
    def name(self) -> str:
        """Such as "ucf101 split 1 test"."""
        return f"{self.dataset} split {self.split} {self.subset}"

    @property
    def labels(self) -> list[int]:
        return [video.label for video in self.videos]

    def subset_of(self, indices: Iterable[int]) -> Listing:
        """The same, of these videos only."""
        return replace(self, videos=tuple(self.videos[index] for index in indices), missing=())

    def summary(self) -> str:
        """What is there and what is missing, in a line."""
        found = f"{self.name}: {len(self)} videos of {len(self.classes)} classes"
        if not self.missing:
            return found
        listed = len(self) + len(self.missing)
        return f"{found}; {len(self.missing)} of {listed} listed are missing, the first: {self.missing[0]}"


class Listed(NamedTuple):
    """A line of a split list."""

    folder: str  # of its class
    stem: str  # file name without its suffix
    label: int

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.stem}"


class Tree:
    """The videos below a folder, <root>/<class>/<video> or <root>/<video>, or in its tar shards; each folder is read
    once, when it is asked for. Letter case does not matter: UCF101 has HandstandPushups/v_HandStandPushups_g01_c01, and
    copies of it differ.
    """

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of videos, got {str(root)!r}, which is none")
        self._folders = {entry.name.casefold(): entry.path for entry in _scan(self.root) if entry.is_dir()}
        self._packed: dict[str, list[_Place]] = {}
        for folder, name, path in packed_videos(self.root):
            self._packed.setdefault(folder, []).append(_Place(_PICTURE, path, name))
        self._read: dict[str, dict[str, _Place]] = {}

    @property
    def folders(self) -> list[str]:
        """Names of the folders that may be classes; of those that differ in the case of letters, one."""
        names = [*filter(None, self._packed), *map(os.path.basename, self._folders.values())]
        return sorted({name.casefold(): name for name in names}.values())

    def find(self, entry: Listed) -> str | None:
        """Path of a listed video, in its class's folder or straight in the root."""
        for folder in (entry.folder, ""):
            if place := self._videos(folder).get(entry.stem.casefold()):
                return place.path
        return None

    def names(self, folder: str) -> dict[str, str]:
        """Stem -> path of every video in a class's folder, in order of name."""
        return {place.stem: place.path for place in sorted(self._videos(folder).values(), key=lambda place: place.path)}

    def _videos(self, folder: str) -> dict[str, _Place]:
        """What is in a folder of the root, "" being the root itself, by stem."""
        folder = folder.casefold()
        path = self._folders.get(folder) if folder else str(self.root)
        if folder not in self._read:
            places = {} if path is None else _videos_in(path)
            for name, packed in self._packed.items():
                if name.casefold() == folder:
                    for place in packed:
                        places.setdefault(place.stem.casefold(), place)
            self._read[folder] = places
        return self._read[folder]


class _Place(NamedTuple):
    """Where a video is, and what it is called: without suffix, and without the number of a window's picture."""

    kind: int
    path: str
    stem: str


def _videos_in(folder: str) -> dict[str, _Place]:
    """Of several places of one name, a file goes before a folder of frames, and that before pictures."""
    places: dict[str, _Place] = {}
    singles = single_pictures(folder)
    for item in _scan(folder):
        if (place := _place(item, singles)) is None:
            continue
        other = places.setdefault(place.stem.casefold(), place)
        if other.kind == place.kind == _VIDEO and other != place:
            warnings.warn(f"{place.path} has the name of {other.path} and is left out", RuntimeWarning, stacklevel=5)
        places[place.stem.casefold()] = min(place, other)
    return places


def _place(item: os.DirEntry[str], singles: Set[str]) -> _Place | None:
    """What may be a video."""
    stem, suffix = os.path.splitext(item.name)
    if item.is_dir():
        return _Place(_FOLDER, item.path, item.name)
    if suffix.lower() in VIDEO_SUFFIXES:
        return _Place(_VIDEO, item.path, stem)
    if suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if stem in singles or not _WINDOW_NUMBER.search(stem):
        return _Place(_PICTURE, item.path, stem)
    return _Place(_PICTURES, item.path, _WINDOW_NUMBER.sub("", stem))


def _scan(folder: PathLike) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def find_all(
    entries: Iterable[Listed], tree: Tree, classes: Sequence[str], *, dataset: str, split: str, subset: str
) -> Listing:
    """The listing of those entries that are on disk.

    Raises:
        FileNotFoundError: none is.

    Warns:
        RuntimeWarning: some are missing: how many, and the first; or listed twice.
    """
    found: list[Video] = []
    missing: list[str] = []
    once: dict[str, Listed] = {}
    again = [entry.name for entry in entries if once.setdefault(entry.name.casefold(), entry) is not entry]
    if again:
        message = f"{dataset} split {split} {subset} lists videos twice, which count once: {again[0]} is the first"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    for entry in once.values():
        path = tree.find(entry)
        if path is None:
            missing.append(entry.name)
        else:
            found.append(Video(path, entry.label, entry.name))
    listing = Listing(tuple(found), tuple(classes), dataset, split, subset, tuple(missing))
    if not found:
        first = f", the first being {missing[0]}" if missing else ""
        raise FileNotFoundError(
            f"{tree.root} has none of the {len(missing)} videos of {listing.name}{first}; "
            "it must hold <class>/<video>.avi, the videos themselves, or <class>/<video>/ with numbered frames"
        )
    if missing:
        warnings.warn(listing.summary(), RuntimeWarning, stacklevel=3)
    return listing


def check_subset(subset: str) -> None:
    if subset not in get_args(Subset):
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}")


def class_counts(listing: Listing) -> dict[str, int]:
    """Videos of each class."""
    counts = Counter(listing.labels)
    return {name: counts[label] for label, name in enumerate(listing.classes)}


def holds_frames(path: PathLike) -> bool:
    """Whether a path is a folder of the numbered frames of one video."""
    return os.path.isdir(path) and bool(numbered_images(os.fspath(path)))


def is_video(path: PathLike) -> bool:
    """Whether what a `Tree` has found is one: all but a folder without frames."""
    return not os.path.isdir(path) or holds_frames(path)


def is_picture(path: PathLike) -> bool:
    """Whether it stands for a video, as one of its dynamic images: a file, or in a tar shard."""
    return members_of(path) is not None or os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def pictures_of(path: PathLike) -> Sequence[Path | Member]:
    """The picture <video>.png, or those of its windows, <video>_0000.png, …, in order, given any one of them; those in
    a tar shard given the first.
    """
    if (members := members_of(path)) is not None:
        return members
    given = Path(path)
    if given.suffix.lower() not in IMAGE_SUFFIXES:
        return []
    if not _WINDOW_NUMBER.search(given.stem) or given.stem in single_pictures(given.parent):
        return [given] if given.is_file() else []
    stem = _WINDOW_NUMBER.sub("", given.stem)
    pattern = re.compile(re.escape(stem) + rf"_({_NUMBER})")
    numbered = (
        (pattern.fullmatch(other.stem), other) for other in given.parent.iterdir() if other.suffix == given.suffix
    )
    return [other for _, other in sorted((int(match[1]), other) for match, other in numbered if match)]
