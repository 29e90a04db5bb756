"""Which videos there are: a `Listing`, and how the videos that it names are found on disk."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..video import IMAGE_SUFFIXES, numbered_images

Subset = Literal["train", "test"]
PathLike = str | os.PathLike[str]

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)
_WINDOW_NUMBER = re.compile(r"_\d{4,}$")  # of clip_0000.png, clip_0001.png, ..., as `dynpool image` writes them
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


class Entry(NamedTuple):
    """A line of a split list."""

    folder: str  # of its class
    stem: str  # file name without its suffix
    label: int

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.stem}"


class Tree:
    """The videos below a folder, <root>/<class>/<video> or <root>/<video>, read once. Letter case does not matter:
    UCF101 has HandstandPushups/v_HandStandPushups_g01_c01, and copies of it differ.
    """

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of videos, got {str(root)!r}, which is none")
        self._places: dict[tuple[str, str], tuple[int, str]] = {}
        for item in _scan(self.root):
            self._add("", item)
            if item.is_dir():
                for inner in _scan(Path(item.path)):
                    self._add(item.name, inner)

    def find(self, entry: Entry) -> str | None:
        """Path of a listed video, in its class's folder or straight in the root."""
        for folder in (entry.folder, ""):
            if place := self._places.get((folder.casefold(), entry.stem.casefold())):
                return place[1]
        return None

    def names(self, folder: str) -> dict[str, str]:
        """Stem -> path of every video in a class's folder, in order of name."""
        wanted = folder.casefold()
        inside = (path for (parent, _), (_, path) in self._places.items() if parent == wanted)
        return {_stem(path): path for path in sorted(inside)}

    def _add(self, folder: str, item: os.DirEntry[str]) -> None:
        stem, suffix = os.path.splitext(item.name)
        suffix = suffix.lower()
        if suffix in IMAGE_SUFFIXES and item.is_file():
            if _WINDOW_NUMBER.search(stem):
                self._place(folder, _WINDOW_NUMBER.sub("", stem), _PICTURES, item.path)
            else:
                self._place(folder, stem, _PICTURE, item.path)
        elif suffix in VIDEO_SUFFIXES and item.is_file():
            self._place(folder, stem, _VIDEO, item.path)
        elif folder and item.is_dir():  # a folder in the root is a class; one in a class holds the frames of a video
            self._place(folder, item.name, _FOLDER, item.path)

    def _place(self, folder: str, stem: str, kind: int, path: str) -> None:
        """Of several places of one name, a file goes before a folder of frames, and that before pictures."""
        key = folder.casefold(), stem.casefold()
        other = self._places.setdefault(key, (kind, path))
        if other[0] == kind == _VIDEO and other[1] != path:
            warnings.warn(f"{path} has the name of {other[1]} and is left out", RuntimeWarning, stacklevel=4)
        self._places[key] = min((kind, path), other)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _stem(path: str) -> str:
    """What a video is called: without suffix, and without the number of a window's picture."""
    if os.path.isdir(path):
        return os.path.basename(path)
    stem, suffix = os.path.splitext(os.path.basename(path))
    return _WINDOW_NUMBER.sub("", stem) if suffix.lower() in IMAGE_SUFFIXES else stem


def find_all(
    entries: Iterable[Entry], tree: Tree, classes: Sequence[str], *, dataset: str, split: str, subset: str
) -> Listing:
    """The listing of those entries that are on disk.

    Raises:
        FileNotFoundError: none is.

    Warns:
        RuntimeWarning: some are missing: how many, and the first.
    """
    found: list[Video] = []
    missing: list[str] = []
    for entry in entries:
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


def pictures_of(path: PathLike) -> list[Path]:
    """The picture <video>.png, or those of its windows, <video>_0000.png, …, in order, given any one of them."""
    given = Path(path)
    if given.suffix.lower() not in IMAGE_SUFFIXES:
        return []
    if not _WINDOW_NUMBER.search(given.stem):
        return [given] if given.is_file() else []
    stem = _WINDOW_NUMBER.sub("", given.stem)
    pattern = re.compile(re.escape(stem) + r"_(\d{4,})")
    numbered = (
        (pattern.fullmatch(other.stem), other) for other in given.parent.iterdir() if other.suffix == given.suffix
    )
    return [other for _, other in sorted((int(match[1]), other) for match, other in numbered if match)]
